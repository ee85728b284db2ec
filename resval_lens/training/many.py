"""Several training runs at once, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from queue import Empty
from typing import Any

from resval_lens.runtime import die_with
from resval_lens.training.run import TrainableRun

Report = Callable[[TrainableRun[Any], int, dict[str, Any] | None], None]
"""Called with a run, the step it reached, and at a snapshot its metrics."""

_queue: Any = None
_stop: Any = None


def train_many(
    runs: Sequence[TrainableRun[Any]],
    folder: Path,
    jobs: int,
    report: Report = lambda run, step, metrics: None,
    keep_snapshots: bool = False,
) -> None:
    """Trains each run in ``folder/<name>-seed<seed>``, ``jobs`` at a time, in the order given.

    Ctrl-C stops all of them at their next step; calling again with the same runs goes on from
    their newest snapshots. Workers also stop when this process dies.

    Raises:
        ValueError: no runs, or two runs with the same name and seed.
        KeyboardInterrupt: after the workers have stopped.
        Exception: what a run raised, after the others have stopped.
    """
    if not runs:
        raise ValueError("there is nothing to train: no variants or no seeds")
    by_folder = {run.folder_name: run for run in runs}
    if len(by_folder) < len(runs):
        raise ValueError("two runs have the same name and seed; each needs a folder of its own")
    if jobs < 1:
        raise ValueError(f"jobs must be 1 or more; got {jobs}")
    context = multiprocessing.get_context("spawn")
    queue, stop = context.Queue(), context.Event()
    with ProcessPoolExecutor(
        min(jobs, len(runs)), context, _start_worker, (queue, stop, os.getpid())
    ) as pool:
        # Workers inherit the blocked signal: Ctrl-C reaches this process alone, even while they
        # are still starting. It decides.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            waiting: set[Future[None]] = {
                pool.submit(_train, run, folder / run.folder_name, keep_snapshots) for run in runs
            }
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                _drain(queue, by_folder, report)
                for future in done:
                    future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    _drain(queue, by_folder, report)  # the workers have ended, so all they told is here


def _drain(queue: Any, runs: dict[str, TrainableRun[Any]], report: Report) -> None:
    while True:
        try:
            name, step, metrics = queue.get_nowait()
        except Empty:
            return
        report(runs[name], step, metrics)


def _start_worker(queue: Any, stop: Any, parent: int) -> None:
    global _queue, _stop
    _queue, _stop = queue, stop
    threading.Thread(target=die_with, args=(parent,), daemon=True).start()


def _train(run: TrainableRun[Any], folder: Path, keep_snapshots: bool) -> None:
    if _stop.is_set():
        return

    def progress(step: int, metrics: dict[str, Any] | None) -> None:
        _queue.put((run.folder_name, step, metrics))

    run.train(folder, progress, _stop.is_set, keep_snapshots)
