"""The queue of experiments: what the list means, what is done, and going on after any stop."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from resval_lens.analyses.cli.app import app
from resval_lens.analyses.experiments import queue as experiment_queue
from resval_lens.analyses.experiments.experiment import Experiment, planned, read_experiments
from resval_lens.analyses.experiments.queue import Folders, QueueStatus, status, work
from resval_lens.analyses.papers.memory.tasks.bigrams import tiny_shakespeare
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask
from resval_lens.analyses.papers.memory.training import MemoryRun, train_memory
from resval_lens.models.language_models import language_model_config, preset, resized
from resval_lens.models.presets import ICL_VARIANTS, MEMORY_VARIANTS
from resval_lens.streams import parse_streams
from resval_lens.training.recorded import SHIPPED, export_run, load_run
from tests.runs import metrics

SMALL = """
[[experiment]]
name = "first"
about = "Does it run?"
command = '''train memory --variants {name} --seeds {seed} --steps 40 --snapshot-every 10 --length 8
    --d-model 16 --batch 4 --jobs 1 {options}'''
names = { relative = "", absolute = "--lr 0.05" }
seeds = "5,7"
into = "small"
"""


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    path = tmp_path / "queue.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "runs", tmp_path / "records")


# The package's own list


PARSER: Any = typer.main.get_command(app)


def options_of(command: tuple[str, ...]) -> dict[str, Any]:
    """A command as the command line reads it: every option by name."""
    parser, arguments = PARSER, list(command)
    while hasattr(parser, "commands"):
        parser = parser.commands[arguments.pop(0)]
    return parser.make_context("", arguments).params


GIVEN = {"corpus": Path("texts"), "model": Path("model")}


@pytest.mark.parametrize("experiment", read_experiments(given=GIVEN), ids=lambda x: x.name)
def test_every_run_of_the_list_is_one_that_its_command_trains(experiment: Experiment) -> None:
    for run in experiment.runs:
        given, (name, seed) = options_of(run.command), run.folder_name.rsplit("-seed", 1)
        assert given["seeds"] == seed
        if run.command[1] == "lm":
            assert given["name"] == name
            assert given["threads"] == 1
            model = preset(given["preset"]).model
            width = {} if given["d_model"] is None else resized(model, given["d_model"])
            depth = {} if given["n_layers"] is None else {"n_layers": given["n_layers"]}
            language_model_config(
                given["preset"], given["streams"], carry=given["carry"], **width, **depth
            )
        elif run.command[1] == "graft":
            assert (given["name"], str(given["model"])) == (name, "model")
            assert given["low_rank"] or any(x.is_learned for x in parse_streams(given["streams"]))
        else:
            assert given["variants"] == name
            assert name in (ICL_VARIANTS if run.command[1] == "icl" else MEMORY_VARIANTS)
            assert given["jobs"] == 1
        assert not run.study or run.study[0] in PARSER.commands


def test_the_streams_of_the_list_are_what_their_names_say() -> None:
    streams = {
        run.folder_name: options_of(run.command)
        for run in planned(read_experiments())
        if run.into == "lm" and run.folder_name.endswith("seed0")
    }
    found = {
        name: language_model_config("stories-small", given["streams"], carry=given["carry"])
        for name, given in streams.items()
    }
    (own,) = found["stories-small-own-2-seed0"].streams
    assert (own.mix, own.own, own.carried) == ("pair", 2, 0)
    (matched,) = found["stories-small-v-norm-matched-seed0"].streams
    assert (matched.own, matched.carried) == (0.5**0.5, 0.5**0.5)
    assert found["stories-small-v-detached-seed0"].streams[0].detach
    assert found["stories-small-v-first-seed0"].streams[0].source == "first"
    (first,) = found["stories-small-v-first-norm-matched-seed0"].streams
    assert (first.source, first.own, first.carried) == ("first", 0.5**0.5, 0.5**0.5)
    carries = {name: config.streams[0].carry for name, config in found.items()}
    assert carries.pop("stories-small-v-sum-seed0") == "sum"
    assert set(carries.values()) == {"raw"}


def test_what_ships_is_done_and_real_text_waits_for_it(tmp_path: Path) -> None:
    found = status(read_experiments(), Folders(tmp_path / "runs", tmp_path / "records"))
    by_name = {one.name: one for one in found.experiments}
    assert by_name["tables"].recorded >= 16
    real = by_name["real text"]
    assert (real.runs, real.recorded, real.waiting) == (15, 3, 12)
    assert by_name["real text"].needs == ("corpus",)
    assert set(by_name["grafts"].needs) == {"corpus", "model"}
    assert found.runs == sum(len(one.runs) for one in read_experiments())
    assert not (tmp_path / "runs").exists()
    given = status(
        read_experiments(given=dict.fromkeys(GIVEN, tmp_path)),
        Folders(tmp_path / "runs", tmp_path / "records"),
    )
    assert not any(one.waiting for one in given.experiments)


def test_runs_of_a_seed_follow_one_another() -> None:
    first = read_experiments()[0]
    assert [run.folder_name for run in first.runs[:5]] == [
        "own-2-seed0", "values-norm-matched-seed0", "own-root-2-seed0", "own-half-seed0",
        "own-2-seed1",
    ]  # fmt: skip


# Lists that cannot be


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("name =", "nam =", "experiment 1: name must be a str; got None"),
        ("about", "abut", "experiment 1: about must be a str; got None"),
        ('seeds = "5,7"', "seeds = 5", "experiment 1: seeds must be a str; got 5"),
        ('"5,7"', '"5,7,x"', "experiment 1: seeds must be numbers like 0,1,2 or 0-3"),
        ('"5,7"', '"5,5"', "relative-seed5 into 'small' occurs 2 times"),
        ("train memory", "train all", "command must begin with train icl|lm|memory"),
        ("train memory", "compare memory", "command must begin with train icl|lm|memory"),
        ("--seeds {seed}", "--seeds 0", "command must have {seed}"),
        ("--variants {name}", "--variants absolute", "command must have {name}"),
        ('"small"', '"../small"', "experiment 1: name must be one to be a folder's"),
        ("relative =", '"a/b" =', "experiment 1: name must be one to be a folder's"),
        ('relative = ""', "relative = 3", "options of relative must be a str; got 3"),
        ('into = "small"', "wieghts = true", "has no field 'wieghts'; fields are name, about"),
        ("[[experiment]]", "[[experiments]]", "expected tables [[experiment]] and nothing else"),
        ("[[experiment]]", "[[experiment", "is not a list of experiments in TOML"),
    ],
)
def test_a_list_that_cannot_be_is_one_line(
    queue: Path, before: str, after: str, message: str
) -> None:
    assert before in SMALL
    queue.write_text(SMALL.replace(before, after, 1))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_experiments(queue)
    assert str(error.value).startswith(str(queue))


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.toml is not a list of experiments"):
        read_experiments(tmp_path / "none.toml")


# Working through it


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs at the usual priority: at the lowest they would wait for other tests."""
    monkeypatch.setattr(experiment_queue, "LOWEST", os.getpriority(os.PRIO_PROCESS, 0))


@contextmanager
def stopped_when(condition: Callable[[], bool]) -> Iterator[None]:
    """Ctrl-C as soon as ``condition`` holds."""

    def watch() -> None:
        while not condition():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        yield
    thread.join()


@pytest.mark.usefixtures("at_once")
def test_a_queue_that_was_stopped_ends_as_one_that_was_not(
    queue: Path, folders: Folders, tmp_path: Path
) -> None:
    queue.write_text(SMALL.replace("5,7", "5"))
    experiments = read_experiments(queue)
    first, second = planned(experiments)
    with stopped_when(lambda: folders.step(first) is not None):
        work(experiments, folders, quiet=True)
    assert folders.record(first) is None
    assert work(experiments, folders, quiet=True) == []
    assert status(experiments, folders).recorded == 2

    given = options_of(second.command)
    task = TriggerTask(tiny_shakespeare(), given["length"], given["n_triggers"])
    for planned_run, (name, lr) in zip(
        (first, second), (("relative", 0.1), ("absolute", 0.05)), strict=True
    ):
        run = MemoryRun(
            name, name, seed=5, task=task, steps=40, snapshot_every=10, d_model=16, batch=4, lr=lr
        )  # type: ignore[arg-type]
        train_memory(run, tmp_path / name)
        record = folders.record(planned_run)
        assert record is not None
        assert not (record / "model").exists()
        found = load_run(record, MemoryRun)
        straight = export_run(load_run(tmp_path / name, MemoryRun), tmp_path / "straight")
        assert found.run == run
        assert metrics(record) == metrics(straight)
        assert f"--variants {name} --seeds 5" in found.starts[-1]["command"]
        assert str(folders.runs) not in found.starts[-1]["command"]

    shutil.rmtree(folders.runs)  # another machine has the records alone
    assert status(experiments, folders).following is None
    assert work(experiments, folders) == []
    assert not [path for path in folders.runs.iterdir() if path.is_dir()]


def test_while_a_run_of_a_killed_queue_goes_on_no_other_begins(
    queue: Path, folders: Folders, tmp_path: Path
) -> None:
    script, gate = tmp_path / "trains", tmp_path / "gate"
    script.write_text(
        f"#!/bin/sh\ntouch {tmp_path}/begun; while [ ! -e {gate} ]; do sleep .05; done"
    )
    script.chmod(0o755)
    program = (
        "import sys; from pathlib import Path; sys.executable = sys.argv[1]\n"
        "from resval_lens.analyses.experiments.queue import *\n"
        "from resval_lens.analyses.experiments.experiment import *\n"
        "work(read_experiments(Path(sys.argv[2])), Folders(Path(sys.argv[3]), Path(sys.argv[4])))"
    )
    paths = [script, queue, folders.runs, folders.records]
    killed = subprocess.Popen([sys.executable, "-c", program, *map(str, paths)])
    while not (tmp_path / "begun").exists():
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    with pytest.raises(RuntimeError, match="another process works in"):
        work([], folders)
    gate.touch()
    for _ in range(200):
        try:
            work([], folders)
            break
        except RuntimeError:
            time.sleep(0.05)
    else:
        raise AssertionError("the run has ended, the folder is not free")


def test_a_run_that_fails_does_not_keep_the_others(
    queue: Path, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(command: list[str], *_: object) -> int:
        if "absolute" in command:
            return 1
        given = options_of(tuple(command))
        name = f"relative-seed{given['seeds']}"
        shutil.copytree(SHIPPED / "memory" / "relative-seed0", given["runs"] / name)
        return 0

    monkeypatch.setattr(experiment_queue, "_call", trained)
    queue.write_text(SMALL.replace("5,7", "0"))
    command = ["runs", "next", "--queue", str(queue), "--runs", str(folders.runs), "--records",
               str(folders.records), "--json"]  # fmt: skip
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0
    assert json.loads(first.stdout)["following"] == "first, absolute-seed0"
    with pytest.raises(RuntimeError, match=r"^1 runs failed: absolute-seed0$"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert work(read_experiments(queue), folders) == ["absolute-seed0"]
    assert status(read_experiments(queue), folders).recorded == 1


def test_weights_and_a_study_stand_beside_the_record(
    queue: Path, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.write_text(
        SMALL.replace(', absolute = "--lr 0.05"', "").replace("5,7", "0")
        + 'weights = true\nstudy = "link-in-training {run} --sequences 9 --out {corpus}"\n'
    )
    called: list[list[str]] = []

    def call(command: list[str], quiet: bool, lock: int, to: Path | None = None) -> int:
        called.append(command)
        if to is not None:
            to.write_text("{}")
        return 0

    monkeypatch.setattr(experiment_queue, "_call", call)
    (waiting,) = planned(read_experiments(queue))
    assert waiting.needs == ["corpus"]
    experiments = read_experiments(queue, {"corpus": Path("my corpus")})
    (run,) = planned(experiments)
    shutil.copytree(SHIPPED / "memory" / "relative-seed0", folders.of(run))  # trained, not recorded
    for _ in range(2):
        assert work(experiments, folders, quiet=True) == []
        record = folders.record(run)
        assert record is not None
        load_run(record, MemoryRun).model()
        (record / "link-in-training.json").unlink()  # a study that was stopped is made again
        assert folders.record(run) is None
    study = ["link-in-training", str(folders.of(run)), "--sequences", "9", "--out", "my corpus"]
    assert [command[:6] for command in called] == 2 * [study]


def test_runs_have_the_lowest_priority_and_one_thread(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "says"
    script.write_text(
        f"#!{sys.executable}\nimport json, os, time\ntime.sleep(.2)\nprint(json.dumps("
        "[os.getpriority(os.PRIO_PROCESS, 0), os.environ['OMP_NUM_THREADS']]))\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with (tmp_path / "lock").open("w") as lock:
        code = experiment_queue._call(["x"], True, lock.fileno(), tmp_path / "said.json")
    assert code == 0
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    assert json.loads((tmp_path / "said.json").read_text()) == [19, "1"]
    assert os.getpriority(os.PRIO_PROCESS, 0) == niceness


@pytest.mark.usefixtures("at_once")
def test_a_run_that_ignores_ctrl_c_as_background_jobs_do_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, begun = tmp_path / "trains", tmp_path / "begun"
    script.write_text(
        f"#!{sys.executable}\nimport signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"open({str(begun)!r}, 'w')\ntime.sleep(60)\nopen({str(tmp_path / 'ended')!r}, 'w')\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with (tmp_path / "lock").open("w") as lock, stopped_when(begun.exists):
        experiment_queue._call(["x"], True, lock.fileno())
    assert not (tmp_path / "ended").exists()


def test_the_table_says_what_is_under_way(queue: Path, folders: Folders) -> None:
    experiments = read_experiments(queue)
    folder = folders.of(planned(experiments)[0]) / "snapshots"
    folder.mkdir(parents=True)
    for step in (9_500, 10_000):
        (folder / f"{step:08d}.safetensors").touch()
    found = status(experiments, folders)
    assert isinstance(found, QueueStatus)
    assert found.experiments[0].under_way == {"relative-seed5": 10_000}
