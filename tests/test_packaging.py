"""What is installed with the package, what is asked for when it is missing, what is loaded late."""

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest
from typer.testing import CliRunner

from resval_lens.analyses.cli import app as cli
from resval_lens.io.extras import needed
from resval_lens.load import load_model
from resval_lens.tasks.text.sources import read_texts
from tests.test_architecture import HOMES, MODULES, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = ("gguf", "harness", "text", "trackers")
"""Extras that the package itself asks for; the others are for notebooks and for developers."""


def python(*arguments: str | Path, cwd: Path) -> str:
    command = list(map(str, arguments))
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


# Dependencies


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    return {canonical(re.split(r"[<>=\[]", each)[0]) for each in requirements}


CORE = names(PROJECT["dependencies"])
HOMES_OF_OTHERS = packages_distributions()
EXTRAS = {extra: names(PROJECT["optional-dependencies"][extra]) for extra in OPTIONAL}


def foreign(source: str) -> Iterator[str]:
    """Packages of others that ``source`` imports, or reads a file or the presence of."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
    yield from re.findall(r"\b(?:files|needed)\(\"(\w+)\"", source)


def installed_by(package: str) -> str:
    """What is installed to have a package: of ``yaml``, pyyaml."""
    return canonical(HOMES_OF_OTHERS.get(package, [package])[0])


def distributions() -> dict[str, set[str]]:
    """What each module uses of others."""
    known = {"resval_lens", *sys.stdlib_module_names}
    return {
        module: {installed_by(name) for name in foreign(path.read_text()) if name not in known}
        for path, module in MODULES.items()
    }


def test_what_is_imported_is_what_is_declared() -> None:
    used = set().union(*distributions().values())
    extras = set().union(*EXTRAS.values())
    assert used >= CORE  # nothing is installed for nothing
    assert used - CORE <= extras
    # accelerate imports the trackers
    assert extras - used == {"tensorboard", "wandb"}


def test_an_extra_is_imported_only_where_it_is_asked_for() -> None:
    asked = {}
    for path, module in MODULES.items():
        for package, extra in re.findall(r"needed\(\"(\w+)\", \"(\w+)\"", path.read_text()):
            assert installed_by(package) in EXTRAS[extra], package
            asked[module] = package
    extras = set().union(*EXTRAS.values())
    found = {module for module, used in distributions().items() if used & (extras - CORE)}
    assert found - set(asked) == {"resval_lens.analyses.studies.harness"}  # `eval harness` asks


# Extras


def parquet(folder: Path) -> None:
    (folder / "a.parquet").write_bytes(b"PAR1")
    next(iter(read_texts(folder / "a.parquet")))


def hub(folder: Path) -> None:
    read_texts("roneneldan/TinyStories")


def gguf(folder: Path) -> None:
    (folder / "a.gguf").write_bytes(b"GGUF")
    load_model(folder / "a.gguf")


def command(*arguments: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        line = [each.replace("FOLDER", str(folder)) for each in arguments]
        done = CliRunner().invoke(cli.app, line, catch_exceptions=False)
        assert done.exit_code == 0, done.output

    return run


def training(tracker: str) -> Callable[[Path], None]:
    return command("train", "lm", "stories-small", "--tracker", tracker, "--runs", "FOLDER")


@pytest.mark.parametrize(
    ("package", "extra", "use"),
    [
        ("pyarrow", "text", parquet),
        ("datasets", "text", hub),
        ("gguf", "gguf", gguf),
        (
            "lm_eval",
            "harness",
            command("eval", "harness", "stories-small-values", "--out", "FOLDER"),
        ),
        ("tensorboard", "trackers", training("tensorboard")),
        ("wandb", "trackers", training("wandb")),
    ],
)
def test_without_an_extra_one_line_says_what_to_install(
    package: str,
    extra: str,
    use: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"needs {package}: pip install 'resval-lens\[{extra}\]'"):
        use(tmp_path)


def test_a_folder_of_a_packages_name_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "resval_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="needs resval_tracker"):
        needed("resval_tracker", "trackers", "a run")
    needed("numpy", "trackers", "a run")


# Loaded late

LATE = ("gguf", "lm_eval", "matplotlib", "networkx", "scipy.stats")
TOLD = """
import sys
import resval_lens
print(*{"torch", "numpy", "transformer_lens"} & set(sys.modules))
import torch, transformer_lens
for module in ("transformer", "hooks", "analyses.circuits.study", "analyses.display"):
    before = set(sys.modules)
    __import__("resval_lens." + module)
    print(*sorted(set(LATE) & (set(sys.modules) - before)))
"""


def test_what_takes_long_to_import_is_imported_where_it_is_used(tmp_path: Path) -> None:
    """The package itself imports nothing; its modules, beyond TransformerLens, what draws."""
    said = python(sys.executable, "-W", "ignore", "-c", f"LATE = {LATE}\n{TOLD}", cwd=tmp_path)
    assert said.splitlines() == ["", "", "", "", "matplotlib"]


# Built

ALONE = """
import sys
from pathlib import Path

import resval_lens, torch
from resval_lens import ResValConfig, ResValTransformer
from resval_lens.analyses.display.page import page
from resval_lens.hooks import cut_links, links
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.recorded import SHIPPED, load_run

for folder in (Path(resval_lens.__file__), SHIPPED):
    assert folder.is_relative_to(sys.prefix), folder
model = load_run(SHIPPED / "icl" / "values-seed0", ICLRun).model()
assert links(model)
assert "</style>" in page("title", "body")
fresh = ResValTransformer(ResValConfig(
    n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=5, n_ctx=4, act_fn="relu", streams="v",
))
with cut_links(fresh), torch.no_grad():
    print(*fresh(torch.tensor([[0, 1, 2]])).shape)
"""


def installed(archive: Path, at: Path) -> Path:
    """A new environment with the archive in it, and all that this one has but the package."""
    python(sys.executable, "-m", "venv", "--without-pip", at, cwd=at.parent)
    own = next(at.glob("lib/python*/site-packages"))
    (own / "others.pth").write_text(sysconfig.get_path("purelib"))  # an editable's own is not read
    pip = (sys.executable, "-m", "pip", "--python", at / "bin" / "python", "install")
    python(*pip, "--quiet", "--no-deps", "--no-index", "--no-build-isolation", archive,
           cwd=at.parent)  # fmt: skip
    return at / "bin"


def sdist_of_a_copy(source: Path) -> Path:
    """Built where a build may leave its files, beside tests, which it could take along."""
    for folder in (*HOMES, "tests"):
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "Makefile"):
        shutil.copy(ROOT / file, source)
    build = "from setuptools.build_meta import build_sdist; build_sdist('../built')"
    python(sys.executable, "-c", build, cwd=source)
    return next((source.parent / "built").iterdir())


def test_the_sdist_and_the_wheel_hold_the_package_alone_and_run(tmp_path: Path) -> None:
    """Built as `python -m build` does, the wheel from the sdist."""
    sdist = sdist_of_a_copy(tmp_path / "source")
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation")
    python(*pip, "--wheel-dir", "wheels", sdist, cwd=tmp_path)
    (wheel,) = (tmp_path / "wheels").iterdir()

    files = [
        (folder, path.relative_to(ROOT / folder).as_posix())
        for folder in HOMES
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {f"{HOMES[folder].replace('.', '/')}/{file}" for folder, file in files}
    with tarfile.open(sdist) as tar:
        held = {member.name.partition("/")[2] for member in tar if member.isfile()}
    held = {name for name in held if not name.startswith("resval_lens.egg-info/")}
    own = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    assert held == own | {f"{folder}/{file}" for folder, file in files}

    by_sdist, by_wheel = (installed(x, tmp_path / x.suffix[1:]) for x in (sdist, wheel))
    assert "resval-lens" in python(by_sdist / "resval-lens", "--version", cwd=tmp_path)
    assert "Usage" in python(by_wheel / "resval-lens", "--help", cwd=tmp_path)
    assert "--report" in python(by_wheel / "resval-lens", "compare", "--help", cwd=tmp_path)
    said = python(by_wheel / "python", "-W", "ignore", "-c", ALONE, cwd=tmp_path)
    assert said.split() == ["1", "3", "5"]
