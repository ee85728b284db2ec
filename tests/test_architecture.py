"""Dependencies point one way, nothing else is installed, and every public thing says what it is.

resval_lens (models, tasks, training)  <-  hooks  <-  analyses  <-  notebooks
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOMES = {
    "resval_lens": "resval_lens",
    "hooks": "resval_lens.hooks",
    "analyses": "resval_lens.analyses",
}
LONGEST = 460
DOTTED = r"resval_lens(\.\w+)+"

# What a module may not import, by the package it is in, innermost first. Plain `hooks` and
# `analyses` exist in the repository only, not where the package is installed.
OUTSIDE = ("hooks", "analyses", "notebooks", "tests")
FORBIDDEN = {
    "resval_lens.analyses": OUTSIDE,
    "resval_lens.hooks": ("resval_lens.analyses", *OUTSIDE),
    "resval_lens": ("resval_lens.hooks", "resval_lens.analyses", *OUTSIDE),
}


ANALYSES = "resval_lens.analyses"
COMMON = ("results", "drawing")
METHOD = (*COMMON, "tasks", "circuits", "attribution")
STUDY = (*METHOD, "studies", "comparison")
ROOMS: dict[str, tuple[str, ...]] = {
    "results": (),
    "drawing": (),
    "tasks": COMMON,
    "circuits": COMMON,
    "attribution": COMMON,
    "studies": METHOD,
    "comparison": (*METHOD, "studies"),
    "display": STUDY,
    "papers": STUDY,
    "report": (*STUDY, "display", "papers"),
    "experiments": (*STUDY, "papers"),
    "cli": (*STUDY, "display", "papers", "report", "experiments"),
}
"""The rooms of the analyses, lowest first, and the rooms that each may import."""
MOST_ROOMS = 15
PAPERS = f"{ANALYSES}.papers"
"""Leaves: what is about one paper. Only what lists them all imports them."""
LISTS = tuple(f"{ANALYSES}.{room}" for room, below in ROOMS.items() if "papers" in below)
ONLY_IN_3_9 = (
    "HookedTransformer", "HookedTransformerConfig", "components", "loading_from_pretrained",
    "pretrained", "utils",
)  # fmt: skip
"""What TransformerLens 4 lacks, of TransformerLens 3.9."""
METHODS = ("resval_lens.hooks", "resval_lens.analyses.attribution", "resval_lens.analyses.circuits")
"""What takes any model, and asks it what it is instead of knowing its class."""


def modules() -> Iterator[tuple[Path, str]]:
    """Every Python file of the package and the name it is imported by."""
    for folder, package in HOMES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield path, ".".join([package, *parts]).removesuffix(".__init__")


MODULES = dict(modules())
each_module = pytest.mark.parametrize(
    ("path", "module"), MODULES.items(), ids=[str(path.relative_to(ROOT)) for path in MODULES]
)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def imported(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """Dotted names that ``source`` imports anywhere, or spells out for ``import_module``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: None if is_package else -1]
            base = base[: len(base) - node.level + 1] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{home}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and re.fullmatch(DOTTED, str(node.value)):
            yield str(node.value)


def offences(source: str, module: str, is_package: bool = False) -> list[str]:
    """What ``source`` imports against the direction of dependencies."""
    forbidden = next(names for package, names in FORBIDDEN.items() if within(module, package))
    names = imported(source, module, is_package)
    return [name for name in names if any(within(name, package) for package in forbidden)]


# One direction


@each_module
def test_a_module_imports_nothing_that_stands_above_it(path: Path, module: str) -> None:
    assert offences(path.read_text(), module, path.name == "__init__.py") == []


def test_what_transformer_lens_4_lacks_is_imported_in_one_place() -> None:
    gone = [f"transformer_lens.{name}" for name in ONLY_IN_3_9]
    found = {
        module
        for path, module in MODULES.items()
        for name in imported(path.read_text(), module, path.name == "__init__.py")
        if any(within(name, each) for each in gone)
    }
    assert found == {"resval_lens.host"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("resval_lens.streams", "import resval_lens.hooks"),
        ("resval_lens.streams", "import torch, resval_lens.analyses.cli.app as cli"),
        ("resval_lens.streams", "from resval_lens import analyses"),
        ("resval_lens.streams", "from resval_lens.hooks.links import links"),
        ("resval_lens.streams", "from . import hooks"),
        ("resval_lens.tasks.icl", "from ..analyses import tables"),
        ("resval_lens.streams", "def f():\n    from resval_lens.analyses.cli.app import main"),
        ("resval_lens.streams", "if TYPE_CHECKING:\n    from resval_lens.hooks import Link"),
        ("resval_lens.streams", "import_module('resval_lens.hooks')"),
        ("resval_lens.streams", "from hooks import links"),
        ("resval_lens.training.icl", "from tests.helpers import tiny_model"),
        ("resval_lens.hooks.links", "from resval_lens.analyses.comparison.icl import compare"),
        ("resval_lens.hooks.links", "from ..analyses import icl"),
        ("resval_lens.hooks", "import analyses"),
        ("resval_lens.analyses.comparison.icl", "import notebooks.value_link"),
        ("resval_lens.analyses.comparison.icl", "from hooks.links import links"),
    ],
)
def test_an_import_of_what_stands_above_is_found(module: str, source: str) -> None:
    assert len(offences(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("resval_lens.streams", "import resval_lens.lens.hook_names"),
        ("resval_lens.streams", "from transformer_lens import hooks"),
        ("resval_lens.streams", "'''resval_lens.hooks edits them.'''"),
        ("resval_lens.hooks.ablate", "from resval_lens.hooks.links import links"),
        ("resval_lens.hooks.ablate", "from . import links\nfrom .. import streams"),
        ("resval_lens.analyses.comparison.icl", "from resval_lens.hooks import cut_links"),
    ],
)
def test_an_import_of_what_stands_below_or_beside_is_allowed(module: str, source: str) -> None:
    assert offences(source, module) == []


def room_of(name: str) -> str | None:
    """The room of ``analyses`` that a dotted name is in."""
    return name.split(".")[2] if within(name, ANALYSES) and name != ANALYSES else None


def arrows_up(source: str, module: str, is_package: bool = False) -> list[str]:
    """What ``source`` imports of rooms that its own may not import."""
    room = room_of(module)
    if room not in ROOMS:  # above them all: what starts the command line
        return []
    rooms = {name: room_of(name) for name in imported(source, module, is_package)}
    return [name for name, other in rooms.items() if other and other not in (room, *ROOMS[room])]


@each_module
def test_no_arrow_between_rooms_points_up(path: Path, module: str) -> None:
    assert arrows_up(path.read_text(), module, path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("drawing.figures", f"if TYPE_CHECKING:\n    from {ANALYSES}.comparison.icl import X"),
        ("studies.circuit_figures", f"from {ANALYSES}.comparison import circuit_compare"),
        ("results.tables", "from ..drawing import figures"),
        ("display.show", f"def f():\n    from {ANALYSES}.papers.amicl.sweep import sweep"),
        ("comparison.cells", f"import_module('{ANALYSES}.papers.memory.curves')"),
        ("papers.amicl.sweep", f"import {ANALYSES}.report.results_page"),
        ("circuits.graph", f"from {ANALYSES}.attribution import logits"),
    ],
)
def test_an_arrow_between_rooms_that_points_up_is_found(module: str, source: str) -> None:
    assert len(arrows_up(source, f"{ANALYSES}.{module}")) == 1
    assert arrows_up(source, f"{ANALYSES}.cli.app") == []


def test_the_rooms_are_those_that_are_declared_and_each_says_in_one_line_what_it_holds() -> None:
    floor = {path.parent for path in (ROOT / "analyses").glob("*/__init__.py")}
    assert {path.name for path in floor} == set(ROOMS)
    assert len(ROOMS) <= MOST_ROOMS
    for number, (room, below) in enumerate(ROOMS.items()):
        assert set(below) <= set(list(ROOMS)[:number]), room
        said = ast.get_docstring(ast.parse((ROOT / "analyses" / room / "__init__.py").read_text()))
        first, *more = (said or "").splitlines() or [""]
        assert first.endswith("."), room
        assert not more or more[0] == "", room
    assert {room for room in ROOMS if "papers" in ROOMS[room]} == {"report", "experiments", "cli"}


CORE = {"lens": (), "io": (), "tasks": ("io",), "models": ("lens", "io", "tasks"),
        "training": ("lens", "io", "models", "tasks")}  # fmt: skip
"""The rooms of the core, and the rooms that each may import; files on its floor import two."""


def test_no_core_module_knows_tasks_or_training() -> None:
    """Streams, attention, block and transformer; what loads any model and the package know all."""
    for path, module in MODULES.items():
        room = path.relative_to(ROOT).parts[1].removesuffix(".py")
        if path.relative_to(ROOT).parts[0] != "resval_lens" or room in ("__init__", "load"):
            continue
        allowed = {*CORE.get(room, ()), "lens", "io", room}
        for name in imported(path.read_text(), module, path.name == "__init__.py"):
            other = name.removeprefix("resval_lens.").partition(".")[0]
            assert other not in CORE or other in allowed, f"{module} imports {name}"


def known(source: str, module: str) -> list[str]:
    """Papers, and classes of models, that ``source`` should not know of."""
    forbidden: tuple[str, ...] = ()
    if not any(within(module, package) for package in (PAPERS, *LISTS)):
        forbidden += (PAPERS,)
    if any(within(module, package) for package in METHODS):
        forbidden += ("resval_lens.models.classifier",)
    names = imported(source, module)
    return [name for name in names if any(within(name, package) for package in forbidden)]


@each_module
def test_a_method_knows_no_paper_and_no_class_of_models(path: Path, module: str) -> None:
    assert known(path.read_text(), module) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("resval_lens.analyses.studies.ioi", f"from {PAPERS}.memory.model import construct"),
        ("resval_lens.analyses.attribution.logits", f"import {PAPERS}.amicl.model"),
        ("resval_lens.hooks.links", "from resval_lens.models.classifier import ICLClassifier"),
    ],
)
def test_a_paper_or_class_that_is_known_is_found(module: str, source: str) -> None:
    assert len(known(source, module)) == 1
    assert known(source, f"{PAPERS}.memory.asked") == []


def test_every_file_of_the_three_folders_is_looked_at() -> None:
    named = set(MODULES.values())
    assert {"resval_lens.models.classifier", "resval_lens.tasks.icl", "resval_lens.hooks"} < named
    assert {"resval_lens.hooks.links", "resval_lens.analyses.cli.app"} < named


# What is installed


def test_every_package_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {module for path, module in MODULES.items() if path.name == "__init__.py"}
    assert set(settings["packages"]) == packages
    assert settings["package-dir"] == {package: folder for folder, package in HOMES.items()}


LOOK_AROUND = """
from importlib.metadata import distribution
from importlib.util import find_spec
print(distribution("resval-lens").read_text("top_level.txt").split())
for name in ("hooks", "analyses", "resval_lens.hooks", "resval_lens.analyses"):
    print(find_spec(name) is not None)
"""


def test_only_the_package_itself_is_installed_at_the_top_level(tmp_path: Path) -> None:
    """Asked from another folder, by a Python that sees nothing but what is installed."""
    command = [sys.executable, "-I", "-c", LOOK_AROUND]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["['resval_lens']", "False", "False", "True", "True"]


# What it looks like


def undocumented(source: str) -> list[str]:
    """Public classes and functions of a module without a docstring; "" is the module itself."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else [""]
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    public = [x for x in tree.body if isinstance(x, kinds) and not x.name.startswith("_")]
    return found + [node.name for node in public if not ast.get_docstring(node)]


@each_module
def test_every_public_module_class_and_function_has_a_docstring(path: Path, module: str) -> None:
    assert undocumented(path.read_text()) == []


def test_a_missing_docstring_is_found() -> None:
    source = "def f(): pass\nclass A: pass\ndef _g(): pass\ndef h(): 'Says it.'"
    assert undocumented(source) == ["", "f", "A"]


@each_module
def test_no_file_is_long(path: Path, module: str) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


# What studies return

UNTYPED = re.compile(r"\b(dict|Mapping)\[str, (Any|dict\[str, Any\])\]")


def untyped(source: str) -> list[str]:
    """Public functions of a module that return what only string keys tell apart."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    public = (
        node
        for node in ast.parse(source).body
        if isinstance(node, functions) and not node.name.startswith("_") and node.returns
    )
    return [node.name for node in public if UNTYPED.search(ast.unparse(node.returns))]


def test_no_public_study_returns_a_dict_of_anything() -> None:
    found = {
        module: untyped(path.read_text())
        for path, module in MODULES.items()
        if within(module, "resval_lens.analyses")
    }
    assert {module: names for module, names in found.items() if names} == {}


def test_a_study_without_a_type_is_found() -> None:
    source = """
def a() -> dict[str, Any]: ...
def b() -> list[dict[str, Any]]: ...
def c() -> Mapping[str, Any]: ...
def d() -> tuple[Result, dict[str, dict[str, Any]]]: ...
def e() -> dict[str, float]: ...
def f() -> Result: ...
def _g() -> dict[str, Any]: ...
"""
    assert untyped(source) == ["a", "b", "c", "d"]
