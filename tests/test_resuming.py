"""Runs end the same however often they were killed; damage and mistakes are named."""

import json
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resval_lens.io.files import read_tensors, write_tensors
from resval_lens.tasks.icl import ICLTask
from resval_lens.training.icl import train_icl
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.recorded import load_run
from tests import crashing
from tests.crashing import PROCESSES
from tests.runs import (
    RUN,
    assert_same_outcome,
    newest,
    snapshots,
    steps,
    stop_before,
    weights,
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``RUN``, trained without interruption."""
    folder = tmp_path_factory.mktemp("straight")
    train_icl(RUN, folder)
    return folder


# Interruption


@pytest.mark.parametrize(
    "stops", [[1], [6], [10], [11], [17], [21], [30], [3, 5, 8], [14, 4, 9]], ids=str
)
def test_a_stopped_run_ends_as_one_that_was_not(
    tmp_path: Path, straight: Path, stops: list[int]
) -> None:
    for step in stops:
        assert train_icl(RUN, tmp_path, should_stop=stop_before(step)) is None
        assert not (tmp_path / "model").exists()
    assert train_icl(RUN, tmp_path) is not None
    assert_same_outcome(tmp_path, straight)


def test_kept_snapshots_survive_a_stop(tmp_path: Path) -> None:
    train_icl(RUN, tmp_path, should_stop=stop_before(1), keep_snapshots=True)
    assert snapshots(tmp_path) == [0]
    train_icl(RUN, tmp_path, keep_snapshots=True)
    assert snapshots(tmp_path) == [0, 10, 20, 30]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, straight: Path) -> None:
    for _ in range(2):
        train_icl(RUN, tmp_path)
    assert_same_outcome(tmp_path, straight)


def test_every_start_is_recorded(tmp_path: Path) -> None:
    train_icl(RUN, tmp_path, should_stop=stop_before(12))
    train_icl(RUN, tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    assert ICLRun.from_dict(record["run"]) == RUN
    assert len(record["starts"]) == 2
    assert all({"command", "created", "versions"} <= set(start) for start in record["starts"])


def test_a_run_killed_at_any_change_of_a_file_ends_as_one_that_was_not(tmp_path: Path) -> None:
    run = replace(RUN, steps=6, snapshot_every=3, batch=4, test_size=10)
    train_icl(run, tmp_path / "straight")
    wrong = []
    for change in range(1, 1000):
        folder = tmp_path / str(change)
        if finish(run, folder, change) == 0:
            break
        assert finish(run, folder) == 0
        try:
            assert_same_outcome(folder, tmp_path / "straight")
        except AssertionError:
            wrong.append((change, steps(folder)))
    assert change > 20  # the record, three snapshots with their metrics, and the model's files
    assert wrong == []


def finish(run: ICLRun, folder: Path, dies_at: int | None = None) -> int:
    process = PROCESSES.Process(target=crashing.train, args=(run, folder, dies_at))
    process.start()
    process.join()
    code = process.exitcode
    process.close()
    assert code in (0, crashing.DIED)
    return code


def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(tmp_path: Path) -> None:
    run, chance = replace(RUN, steps=10**6, snapshot_every=20), random.Random(0)
    for _ in range(6):
        kill(run, tmp_path / "killed", chance.uniform(0, 0.1))
    run = replace(run, steps=20 * (steps_done(tmp_path / "killed") // 20 + 1))
    train_icl(run, tmp_path / "killed")
    train_icl(run, tmp_path / "straight")
    assert_same_outcome(tmp_path / "killed", tmp_path / "straight")


def kill(run: ICLRun, folder: Path, seconds: float) -> None:
    """Starts a training process and kills it that long after its first new snapshot."""
    before = steps_done(folder)
    process = PROCESSES.Process(target=crashing.train, args=(run, folder), daemon=True)
    process.start()
    while steps_done(folder) <= before:
        assert process.is_alive()
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


# Damage


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """The folder of ``RUN``, stopped after its snapshot of step 20."""
    train_icl(RUN, tmp_path, should_stop=stop_before(25))
    assert snapshots(tmp_path) == [20]
    return tmp_path


@pytest.mark.parametrize(
    "tail", [b'{"step": 30, "train', b'{"step": 30}\n', b'{"step": 30}\n{"st', b"\x00\xff"]
)
def test_lines_after_the_newest_snapshot_are_made_again(
    half: Path, straight: Path, tail: bytes
) -> None:
    with (half / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    train_icl(RUN, half)
    assert_same_outcome(half, straight)


def test_metrics_are_replaced_in_one_step(half: Path) -> None:
    """Who is killed while metrics are cut back must lose none: the old file stays as it was."""
    path = half / "metrics.jsonl"
    with path.open("ab") as file:
        file.write(b'{"step": 30}\n')
    content = path.read_bytes()
    with path.open("rb") as old:
        train_icl(RUN, half, should_stop=lambda: True)
        assert path.read_bytes() != content
        assert old.read() == content


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_half_a_snapshot_is_refused_by_name(half: Path, share: float) -> None:
    path = newest(half)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        ValueError, match=rf"{re.escape(str(path))} is (no|not a) training snapshot"
    ):
        train_icl(RUN, half)


def change_snapshot(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors, metadata = read_tensors(newest(folder), "snapshot")
    change(tensors)
    write_tensors(newest(folder), tensors, {"step": metadata["step"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("generator"), "no generator state or step"),
        (lambda tensors: tensors.pop("readout.W_U"), r"lacks readout\.W_U"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "has the unknown 'more'"),
        (
            lambda tensors: tensors.update({"readout.W_U": torch.zeros(3)}),
            r"readout\.W_U must have shape \[150, 32\]; got \[3\]",
        ),
        (lambda tensors: tensors.update(generator=torch.zeros(7)), "generator"),
        (lambda tensors: tensors.update(generator=torch.zeros(7).byte()), "generator"),
    ],
)
def test_what_is_no_snapshot_of_this_run_is_refused_by_name(
    half: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    change_snapshot(half, change)
    with pytest.raises(ValueError, match=f"{re.escape(str(newest(half)))}.*{message}"):
        train_icl(RUN, half)


def test_a_damaged_line_of_metrics_is_refused_by_name(half: Path) -> None:
    path = half / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"no metrics\n", *lines[2:]]))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        train_icl(RUN, half)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"run": {}}', '{"run": 1, "starts": []}']
)
def test_a_damaged_record_is_refused_by_name(half: Path, content: str) -> None:
    path = half / "run.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        train_icl(RUN, half)


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_last_snapshot(
    tmp_path: Path,
) -> None:
    run = replace(RUN, lr=1e9)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"the loss is (nan|inf) at step 10"):
            train_icl(run, tmp_path)
        tensors, metadata = read_tensors(newest(tmp_path), "snapshot")
        assert metadata["step"] == "0"
        assert all(x.isfinite().all() for x in tensors.values())
        assert not (tmp_path / "model").exists()


# One folder, one run, one process


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 4}, "seed=3, not 4"),
        ({"lr": 0.1}, "lr=0.01, not 0.1"),
        ({"batch": 8}, "batch=16, not 8"),
        ({"name": "classic"}, "name='values', not 'classic'"),
        ({"spec": "paper"}, "spec='reference', not 'paper'"),
        ({"streams": ""}, r"streams=\[.*'of': 'v'.*\], not \[\]"),
        ({"task": ICLTask(noise=0.2)}, r"task=\{.*'noise': 0\.1,.*\}, not \{.*'noise': 0\.2,.*\}"),
        ({"snapshot_every": 5}, "snapshot_every=10, not 5"),
        ({"steps": 40, "decay": 0.0}, r"decay=1e-06, not 0\.0"),
    ],
    ids=lambda x: " and ".join(x) if isinstance(x, dict) else "",
)
def test_a_folder_of_another_run_is_refused(
    half: Path, straight: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=f"holds a run with {said}; choose another folder"):
        train_icl(replace(RUN, **change), half)
    train_icl(RUN, half)
    assert_same_outcome(half, straight)


@pytest.mark.parametrize("first", [10, 20])
def test_a_run_can_be_lengthened(tmp_path: Path, straight: Path, first: int) -> None:
    train_icl(replace(RUN, steps=first), tmp_path)
    train_icl(RUN, tmp_path)
    assert_same_outcome(tmp_path, straight)


def test_a_run_lengthened_from_between_snapshots_ends_with_the_same_weights(
    tmp_path: Path, straight: Path
) -> None:
    train_icl(replace(RUN, steps=13), tmp_path)
    train_icl(RUN, tmp_path)
    assert weights(tmp_path) == weights(straight)
    assert steps(tmp_path) == [0, 10, 13, 20, 30]


def test_a_lengthened_run_has_no_model_until_it_ends(tmp_path: Path) -> None:
    train_icl(replace(RUN, steps=20), tmp_path)
    train_icl(RUN, tmp_path, should_stop=stop_before(5))
    with pytest.raises(ValueError, match="model"):
        load_run(tmp_path, ICLRun).model()


def test_a_run_cannot_be_shortened_to_fewer_steps_than_it_has_done(half: Path) -> None:
    record = (half / "run.json").read_bytes()
    with pytest.raises(ValueError, match=r"steps=10: the run in .* has done 20 already"):
        train_icl(replace(RUN, steps=10), half)
    assert (half / "run.json").read_bytes() == record


def test_training_takes_one_thread_and_gives_the_others_back(tmp_path: Path) -> None:
    seen: list[int] = []
    before = torch.get_num_threads()
    train_icl(replace(RUN, steps=10), tmp_path, lambda *_: seen.append(torch.get_num_threads()))
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    run = replace(RUN, steps=10**6)
    first = PROCESSES.Process(target=crashing.train, args=(run, tmp_path), daemon=True)
    first.start()
    while not snapshots(tmp_path):
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match="is being trained by another process"):
        train_icl(run, tmp_path, should_stop=lambda: True)
    assert len(json.loads((tmp_path / "run.json").read_text())["starts"]) == 1
    first.kill()
    first.join()
    assert train_icl(run, tmp_path, should_stop=lambda: True) is None


def steps_done(folder: Path) -> int:
    return max(snapshots(folder), default=-1)
