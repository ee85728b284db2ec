"""The command line as a user meets it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resval_lens.numbers import numbers

PROGRAM = [sys.executable, "-m", "resval_lens.analyses"]


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, env=environment, **options
    )


@pytest.mark.parametrize("command", [[], ["train"], ["train", "icl"], ["compare"], ["reproduce"]])
def test_help_explains_itself(command):
    done = run(*command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout
    if command in (["train", "icl"], ["compare"], ["reproduce"]):
        assert "Example" in done.stdout


def test_reproduce_prints_ours_beside_the_published(tmp_path):
    done = run("reproduce", "table-1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "64.50 ± 5.12" in done.stdout
    assert "t-tests" in done.stdout
    data = json.loads((tmp_path / "table-1.json").read_text())
    assert data["rows"][0]["published"] == {"mean": 64.5, "sd": 5.12}
    assert data["provenance"]["versions"]["torch"]


def test_reproduce_draws_figure_3(tmp_path):
    done = run("reproduce", "figure-3", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figure-3.png").read_bytes().startswith(b"\x89PNG")


def test_compare_writes_everything(tmp_path):
    few = ("--sequences", "50", "--link-sequences", "20", "--circuit-sequences", "8")
    done = run("compare", *few, "--prompts", "4", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "trained classic" in done.stdout
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".csv"} == {
        "accuracy.png",
        "attention.png",
        "circuits.png",
        "compare.json",
        "emergence.png",
        "faithfulness.png",
        "link_edits.png",
    }
    report = json.loads((tmp_path / "compare.json").read_text())
    assert set(report["four_cells"]["cells"]) == {
        "trained classic, run without",
        "trained classic, run with",
        "trained values, run without",
        "trained values, run with",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "table-9"], "'table-9' is not among table-1, table-5"),
        (["train", "icl", "--variants", "vals"], "no variant 'vals'; there are classic, queries"),
        (["train", "icl", "--seeds", ","], "seeds must name at least one number; got ','"),
        (["train", "icl", "--seeds", "a"], "seeds must be numbers like 0,1,2 or 0-3; got 'a'"),
        (["train", "icl", "--steps", "0"], "steps must be a whole number from 1 up; got 0"),
        (["train", "icl", "--spec", "x"], "spec must be 'reference' or 'paper'; got 'x'"),
        (["train", "icl", "--jobs", "-1"], "jobs must be 0 or more; got -1"),
        (["compare", "--sequences", "0"], "sequences must be 1 or more; got 0"),
        (["compare", "--link-sequences", "0"], "link_sequences must be 1 or more; got 0"),
        (["compare", "--jobs", "-1"], "jobs must be 0 or more; got -1"),
        (["compare", "--prompts", "0"], "prompts must be 1 or more; got 0"),
        (["compare", "--lm-runs", "/nonexistent"], "/nonexistent holds no training runs"),
        (["compare", "--steps", "5"], "--steps 5 is for training: add --train"),
        (["reproduce", "table-1", "--jobs", "2"], "--jobs 2 is for training: add --train"),
        (["compare", "--seeds", "9"], "holds no run of seeds [9]"),
        (["compare", "--runs", "/nonexistent"], "/nonexistent holds no training runs"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, tmp_path):
    where = ["--runs", str(tmp_path / "r")] if arguments[0] == "train" else ["--out", str(tmp_path)]
    done = run(*arguments, *where, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_debug_shows_the_traceback(tmp_path):
    done = run("--debug", "reproduce", "table-9", "--out", str(tmp_path))
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_an_unwritable_folder_is_said_before_any_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = run("compare", "--out", str(tmp_path / "file" / "out"))
    assert done.returncode == 1
    assert "cannot write to" in done.stderr
    assert (tmp_path / "file").read_text() == "in the way"


def test_ctrl_c_stops_at_once_and_the_same_command_goes_on(tmp_path):
    command = ["train", "icl", "--variants", "classic,values", "--seeds", "0", "--jobs", "2",
               "--runs", str(tmp_path / "runs"), "--quiet"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    process = subprocess.Popen(
        [*PROGRAM, *command, "--steps", "100000"], stderr=subprocess.PIPE, text=True,
        env=environment, start_new_session=True, preexec_fn=_hear_ctrl_c,
    )  # fmt: skip
    metrics = tmp_path / "runs" / "classic-seed0" / "metrics.jsonl"
    _wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command resumes from here" in errors
    _wait_for(lambda: not _processes_in(process.pid), seconds=20)
    done = run(*command, "--steps", "20")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "values-seed0" / "model" / "model.safetensors").exists()


def test_ctrl_c_while_workers_start_stops_them_too(tmp_path):
    process = subprocess.Popen(
        [*PROGRAM, "train", "icl", "--variants", "classic,values", "--seeds", "0", "--jobs", "2",
         "--runs", str(tmp_path), "--quiet"],
        stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=_hear_ctrl_c,
    )  # fmt: skip
    _wait_for(lambda: len(_processes_in(process.pid)) >= 4)  # itself, a tracker, two workers
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    _wait_for(lambda: not _processes_in(process.pid), seconds=20)


def test_ctrl_c_stops_both_halves_of_compare(tmp_path):
    process = subprocess.Popen(
        [*PROGRAM, "compare", "--jobs", "2", "--out", str(tmp_path), "--quiet"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=_hear_ctrl_c,
    )  # fmt: skip
    _wait_for(lambda: len(_processes_in(process.pid)) >= 3)  # itself, a tracker, the other half
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == "stopped\n"
    _wait_for(lambda: not _processes_in(process.pid), seconds=20)
    assert not list(tmp_path.iterdir())


def test_workers_die_with_a_killed_parent(tmp_path):
    process = subprocess.Popen(
        [*PROGRAM, "train", "icl", "--variants", "values", "--seeds", "0", "--steps", "100000",
         "--runs", str(tmp_path), "--quiet"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    metrics = tmp_path / "values-seed0" / "metrics.jsonl"
    _wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 1)
    process.kill()
    process.wait()
    _wait_for(lambda: not _processes_in(process.pid))


def test_numbers():
    assert numbers("0-3") == [0, 1, 2, 3]
    assert numbers("2,5") == [2, 5]
    for wrong in ("3-1", "", "-", "1-"):
        with pytest.raises(ValueError, match="seeds must"):
            numbers(wrong)


def _hear_ctrl_c() -> None:
    """A background job of a shell, and all that it starts, would ignore the signal."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait_for(condition, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def _processes_in(group: int) -> list[str]:
    """The living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(path.parent.name)
    return found
