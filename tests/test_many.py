"""Several runs at once, in processes of their own: the same weights, and everyone stops in time."""

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resval_lens.training.icl import train_icl
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.many import train_many
from resval_lens.training.run_folder import read_metrics
from tests.runs import RUN, metrics, weights

LONG = replace(RUN, name="long", steps=30_000, snapshot_every=1000)  # it is stopped before


def is_free(folder: Path, run: ICLRun) -> bool:
    """Whether no process trains in ``folder``; one that does makes this raise."""
    return train_icl(run, folder, should_stop=lambda: True) is None


def test_runs_in_parallel_end_as_runs_one_by_one(tmp_path: Path) -> None:
    runs = [RUN, replace(RUN, name="classic", streams=""), replace(RUN, seed=4)]
    told: dict[str, list[tuple[int, Any]]] = {run.folder_name: [] for run in runs}

    def report(run: ICLRun, step: int, line: Any) -> None:
        told[run.folder_name].append((step, line))

    train_many(runs, tmp_path / "many", jobs=2, report=report, keep_snapshots=True)
    assert multiprocessing.active_children() == []
    for run in runs:
        parallel, alone = tmp_path / "many" / run.folder_name, tmp_path / run.folder_name
        train_icl(run, alone)
        assert weights(parallel) == weights(alone)
        assert metrics(parallel) == metrics(alone)
        assert len(list((parallel / "snapshots").iterdir())) == 4  # kept, as asked
        lines = [line for _, line in told[run.folder_name] if line is not None]
        assert lines == read_metrics(parallel)
        assert [step for step, _ in told[run.folder_name]] == [0, 10, 20, 30]


def test_a_run_that_fails_stops_the_others_and_says_why(tmp_path: Path) -> None:
    fails = replace(RUN, name="fails", lr=1e9)
    with pytest.raises(RuntimeError, match=r"fails-seed3: the loss is (nan|inf) at step 10"):
        train_many([LONG, fails], tmp_path, jobs=2)
    assert multiprocessing.active_children() == []
    assert is_free(tmp_path / LONG.folder_name, LONG)
    assert not (tmp_path / LONG.folder_name / "model").exists()


def test_stopping_ends_all_runs_at_their_next_step(tmp_path: Path) -> None:
    def interrupt(run: ICLRun, step: int, line: Any) -> None:
        if step >= 10:
            raise KeyboardInterrupt

    runs = [LONG, replace(LONG, seed=4)]
    with pytest.raises(KeyboardInterrupt):
        train_many(runs, tmp_path, jobs=1, report=interrupt)
    assert multiprocessing.active_children() == []
    assert is_free(tmp_path / LONG.folder_name, LONG)


@pytest.mark.parametrize(
    "runs", [[RUN, RUN], [RUN, replace(RUN, name="classic"), replace(RUN, lr=1)]]
)
def test_two_runs_of_one_folder_are_refused(tmp_path: Path, runs: list[ICLRun]) -> None:
    with pytest.raises(ValueError, match="two runs have the same name and seed"):
        train_many(runs, tmp_path, jobs=1)
    assert list(tmp_path.iterdir()) == []


def test_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        train_many([], tmp_path, jobs=1)


@pytest.mark.parametrize("jobs", [0, -2])
def test_no_jobs_are_refused(tmp_path: Path, jobs: int) -> None:
    with pytest.raises(ValueError, match=f"jobs must be 1 or more; got {jobs}"):
        train_many([RUN], tmp_path, jobs)
