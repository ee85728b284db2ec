"""``resval-lens reproduce``: the registry, what a result is made from, and training it again."""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from resval_lens.analyses.cli import completion, reproduce
from resval_lens.analyses.cli.app import app
from resval_lens.analyses.cli.reproducible import REPRODUCIBLE
from resval_lens.analyses.experiments import queue
from resval_lens.analyses.experiments.experiment import read_experiments
from resval_lens.analyses.results import intervals
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.recorded import write_record

pytestmark = pytest.mark.usefixtures("few_resamples")
TESTS = ("test", "ic", "ic2", "iw")


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 99)


def invoke(*arguments: str) -> Any:
    done = CliRunner().invoke(app, ["reproduce", *arguments, "--quiet", "--json"])
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout)


def write_run(run: ICLRun, folder: Path, emerges: int) -> None:
    """A record of a run that is right from snapshot ``emerges``."""
    count = max(run.steps // run.snapshot_every, 1)
    lines = [
        {"step": run.steps * i // count}
        | {task: {"accuracy": float(i >= emerges), "loss": 1.0} for task in TESTS}
        for i in range(count + 1)
    ]
    write_record(folder / run.folder_name, run.to_dict(), [], lines)


# The registry


def test_every_result_has_what_it_needs() -> None:
    experiments = {each.name for each in read_experiments()}
    for name, result in REPRODUCIBLE.items():
        assert set(result.experiments) <= experiments, name
        assert result.about
        assert re.fullmatch(r"[a-z0-9-]+", name)
    assert tuple(REPRODUCIBLE) == completion.RESULTS
    assert reproduce.MEASURED == "figure-6, figure-7, figure-8"


def test_help_says_what_each_result_is() -> None:
    text = " ".join(
        CliRunner().invoke(app, ["reproduce", "--help"]).stdout.replace("│", "").split()
    )
    for name, result in REPRODUCIBLE.items():
        assert f"{name}: {result.about}"[:40] in text


def test_gain_or_stream_comes_from_the_records(tmp_path: Path) -> None:
    found = invoke("gain-or-stream", "--out", str(tmp_path))
    assert found["rates"][0]["lr"] == 0.01
    assert {path.name for path in tmp_path.iterdir()} >= {
        "gain-or-stream.json", "gain-or-stream.png", "gain-or-stream-1.csv",
    }  # fmt: skip
    assert any("without a link" in each for each in found["found"])


def test_what_has_no_record_says_how_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resval_lens.training.recorded.SHIPPED", tmp_path)
    with pytest.raises(ValueError, match='no record yet of the experiment "paper\'s text"') as told:
        invoke("papers-text")
    assert "`resval-lens reproduce papers-text --train` trains its 16 runs" in str(told.value)


def test_runs_of_ones_own_lie_in_a_folder_or_by_experiment(tmp_path: Path) -> None:
    for seed in (0, 1):
        for name, emerges in (("classic", 9), ("values", 7)):
            write_run(ICLRun(name, seed=seed, steps=6_000), tmp_path / "icl", emerges)
    for runs in (tmp_path, tmp_path / "icl"):
        found = invoke("table-5", "--runs", str(runs), "--seeds", "1", "--out", str(tmp_path / "o"))
        assert [row["snapshots"] for row in found["rows"]] == [[9], [7]] * 2
    with pytest.raises(ValueError, match="icl holds no run of seeds \\[7\\]"):
        invoke("table-5", "--runs", str(tmp_path), "--seeds", "7")


# Training


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[ICLRun]:
    """What would be trained; each run emerges at a snapshot of its own."""
    planned: list[ICLRun] = []

    def train(runs: Sequence[ICLRun], folder: Path, *_: object) -> None:
        for run in runs:
            planned.append(run)
            write_run(run, folder, 2 + len(run.name) % 7 + run.seed % 3)

    monkeypatch.setattr("resval_lens.analyses.cli.training_bars.train_with_bars", train)
    return planned


def test_training_a_result_trains_its_experiments_and_takes_no_other_runs(
    trained: list[ICLRun], tmp_path: Path
) -> None:
    found = invoke(
        "gain-or-stream",
        "--train",
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path),
        "--seeds",
        "0-2",
    )
    named = {(run.name, run.seed, run.lr, run.steps) for run in trained}
    assert len(named) == len(trained)
    for each in read_experiments():
        if each.name in REPRODUCIBLE["gain-or-stream"].experiments:
            for run in each.runs[:1]:
                assert run.folder_name in {run.folder_name for run in trained}
    assert {(name, lr, steps) for name, _, lr, steps in named if name == "own-2"} == {
        ("own-2", 0.01, 45_000), ("own-2", 0.005, 75_000), ("own-2", 0.02, 30_000),
        ("own-2", 0.04, 20_000),
    }  # fmt: skip
    assert [rate["lr"] for rate in found["rates"]] == [0.01, 0.005, 0.02, 0.04]
    rows = [
        row for row in found["rates"][0]["reached"]
        if (row["task"], row["level"], row["variant"]) == ("ic", 0.5, "classic")
    ]  # fmt: skip
    assert rows[0]["first"]["by_seed"] == {str(seed): 2 + seed % 3 for seed in range(3)}
    assert (tmp_path / "runs" / "records" / "icl-lr-4" / "own-2-seed2" / "run.json").is_file()


def test_seeds_and_steps_of_ones_own(trained: list[ICLRun], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    arguments = ["--train", "--runs", str(runs), "--out", str(tmp_path)]
    found = invoke("table-5", *arguments, "--seeds", "3,11", "--steps", "9000", "--jobs", "1")
    assert {(run.seed, run.steps) for run in trained} == {(3, 9_000), (11, 9_000)}
    assert found["rows"][0]["seeds"] == [3, 11]
    trained.clear()
    invoke("papers-text", *arguments, "--seeds", "3")
    assert {(run.spec, run.steps) for run in trained} == {("paper", 75_000)}
    with pytest.raises(ValueError, match="does not have 2000 steps; train into other --runs"):
        invoke("table-5", *arguments, "--seeds", "3", "--steps", "2000")


def test_language_models_are_trained_one_by_one_and_studied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_recorded_lm import folder_of

    called: list[Sequence[str]] = []

    def call(command: Sequence[str], *_: object) -> int:
        called.append(command)
        values = dict(pairwise(command))
        name, seed = values["--name"], int(values["--seeds"])
        streams = values.get("--streams", "")
        at = 300 if not streams else 200
        made = folder_of(tmp_path / "made", streams, seed, at, steps=500)
        target = Path(values["--runs"]) / f"{name}-seed{seed}"
        record = json.loads((made / "run.json").read_text())
        record["run"]["name"] = name
        lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
        write_record(target, record["run"], record["starts"], lines)
        return 0

    monkeypatch.setattr(queue, "_call", call)
    monkeypatch.setitem(
        REPRODUCIBLE,
        "language-models",
        reproduce.Reproducible("", REPRODUCIBLE["language-models"].study, ("stories",)),
    )
    arguments = ["--train", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "o")]
    found = invoke("language-models", *arguments, "--seeds", "4,5", "--steps", "500")
    assert len(called) == 4
    assert all(
        list(command).count("--until") == 2 and command[-4] == "--until" for command in called
    )
    assert found["seeds"] == {"classic": 2, "values": 2}
    with pytest.raises(ValueError, match="--jobs 2 is for classifiers"):
        invoke("language-models", *arguments, "--jobs", "2")


def test_options_for_training_need_it() -> None:
    for option in (["--steps", "9"], ["--jobs", "2"], ["--corpus", "x"]):
        with pytest.raises(ValueError, match=f"{option[0]} {option[1]} is for training: add"):
            invoke("gain-or-stream", *option)
