"""``python -m tests.benchmarks.gpu``: all of it in small on the CPU, and its steps' ends."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from resval_lens import ResValTransformer
from resval_lens.models.language_models import language_model_config
from resval_lens.training.plan import size
from tests.benchmarks.gpu.__main__ import Step, start
from tests.benchmarks.gpu.source_tree import ROOT, lay_out
from tests.benchmarks.gpu.summary import summary


def run(*arguments: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.benchmarks.gpu", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu")
    done = run("--dry-run", "--out", out, "--minutes", 30, "--commit", "0123abc")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return out


def results(out: Path, name: str) -> dict[str, Any]:
    told = json.loads((out / f"{name}.json").read_text())
    assert told["provenance"]["git_commit"] == "0123abc"
    assert told["provenance"]["versions"]["torch"] == torch.__version__
    found: dict[str, Any] = told["results"]
    return found


def test_every_step_leaves_its_record(records: Path) -> None:
    tests = results(records, "tests")
    assert len(tests) > 30
    assert {x["outcome"] for x in tests.values()} == {"passed"}
    steps = results(records, "training")
    assert len(steps) == 13
    for x in steps.values():
        assert 0 < x["fastest"] <= x["seconds"] <= x["slowest"]
    assert {x["graphs"] for name, x in steps.items() if name.endswith("compiled")} == {1}
    analyses = results(records, "analyses")
    assert len(analyses) == 15
    assert not any("error" in x or "skipped" in x for x in analyses.values())
    told = (records / "summary.md").read_text()
    assert told.count("| done |") == 7
    assert told.strip() == summary(records, dict.fromkeys(step_names(told), "done")).strip()


def step_names(told: str) -> list[str]:
    return [line.split(" | ")[0][2:] for line in told.splitlines() if line.endswith("| done |")]


def test_what_comes_back_is_few_small_files(records: Path) -> None:
    """Machines that are lent may give back no more than eight files of 16 MiB."""
    files = list(records.iterdir())
    assert len(files) == 8
    assert all(file.is_file() and file.suffix in (".json", ".zip", ".md") for file in files)
    for vocabulary in (2048, 4096):
        cfg = language_model_config("tinystories-8m", "v", d_vocab=vocabulary)
        assert 2 * size(cfg).total < 15.5e6


@pytest.mark.parametrize("variant", ["classic", "values"])
def test_the_trained_model_comes_back(records: Path, tmp_path: Path, variant: str) -> None:
    steps = results(records, f"language-model-{variant}")
    assert steps["step 4"]["train_loss"] < steps["step 0"]["valid_loss"]
    assert set(steps["step 4"]["ioi"]) == {"paper", "seen", "unseen"}
    assert steps["end"]["all_steps"]
    shutil.unpack_archive(records / f"{variant}.zip", tmp_path)
    model = ResValTransformer.from_pretrained(tmp_path)
    assert model.cfg.dtype == torch.bfloat16
    assert bool(model.cfg.streams) == (variant == "values")
    assert model.tokenizer is not None


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return lay_out(tmp_path, None)


def test_the_package_is_whole_without_being_installed(environment: dict[str, str]) -> None:
    """By a Python that sees no installed one, in the folder where the source's own comes first."""
    last = "resval_lens.analyses.drawing.marks"
    code = f"import resval_lens.hooks.links, {last} as last; print(last.__file__)"
    own = [path for path in sys.path if path.endswith("site-packages")]
    others = [line for folder in own for line in links(Path(folder))]
    environment["PYTHONPATH"] += os.pathsep + os.pathsep.join([*own, *others])
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "site-packages" not in done.stdout
    assert Path(done.stdout.strip()).resolve() == ROOT / "analyses" / "drawing" / "marks.py"


def links(site: Path) -> list[str]:
    """Folders that .pth files of ``site`` add."""
    lines = [line for path in site.glob("*.pth") for line in path.read_text().splitlines()]
    return [line for line in lines if line.startswith("/")]


SLEEPS = """
import subprocess, sys, time
from pathlib import Path
sys.stdin.readline()
Path(sys.argv[1]).write_text(str(subprocess.Popen(["sleep", "600"]).pid))
time.sleep(600)
"""


def test_a_step_is_ended_when_its_time_is_up(tmp_path: Path, environment: dict[str, str]) -> None:
    """With all that it started; the one after it has its turn."""
    process = start([sys.executable, "-c", SLEEPS, str(tmp_path / "pid")], environment)
    assert Step("hangs", time.time() + 5, [process]).take_turn() == "stopped: its time was up"
    assert process.returncode is not None
    orphan = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    for _ in range(100):  # a signal takes its time, and then init has to reap it
        if not orphan.exists() or " Z " in orphan.read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("what the step started is still running")
    crashes = start([sys.executable, "-c", "raise SystemExit(3)"], environment)
    assert Step("crashes", time.time() + 60, [crashes]).take_turn() == "failed: exit codes [3]"
    ends = start([sys.executable, "-c", "input()"], environment)
    assert Step("ends", time.time() + 60, [ends]).take_turn() == "done"


def test_what_cannot_be_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("")
    for arguments, said in (
        (["--out", tmp_path / "full"], "is not empty"),
        (["--out", tmp_path / "a", "--wheels", tmp_path], "holds no .whl file"),
        (["--out", tmp_path / "b", "--text", tmp_path / "none"], "is not there"),
    ):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stderr.strip().endswith(said)
