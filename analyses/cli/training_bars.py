"""Progress of several training runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.progress import Progress

from resval_lens.analyses.cli.console import err, progress_bars
from resval_lens.analyses.cli.options import writable
from resval_lens.runtime import cores
from resval_lens.training.many import train_many
from resval_lens.training.run import TrainableRun


class TrainingBars:
    """A bar for each run under way, and one for all of them."""

    def __init__(self, bars: Progress, runs: Sequence[TrainableRun[Any]]) -> None:
        self.bars = bars
        self.tasks: dict[str, Any] = {}
        self.steps = {run.folder_name: 0 for run in runs}
        self.all = bars.add_task("all runs", total=sum(run.steps for run in runs), note="")

    def report(self, run: TrainableRun[Any], step: int, metrics: dict[str, Any] | None) -> None:
        """For :func:`~resval_lens.training.many.train_many`."""
        name = run.folder_name
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=run.steps, note="")
        self.bars.update(self.tasks[name], completed=step)
        if metrics is not None:
            self.bars.update(self.tasks[name], note=run.headline(metrics))
        self.steps[name] = step
        self.bars.update(self.all, completed=sum(self.steps.values()))
        if step >= run.steps:
            self.bars.update(self.tasks[name], visible=False)


def train_with_bars(
    planned: Sequence[TrainableRun[Any]], folder: Path, jobs: int, keep_snapshots: bool, quiet: bool
) -> None:
    """Trains ``planned`` with progress on stderr; Ctrl-C exits with code 130 after snapshots.

    Args:
        jobs: runs at a time; 0: as many as cores.

    Raises:
        ValueError: a negative ``jobs``, a folder that cannot be written to.
    """
    if jobs < 0:
        raise ValueError(f"jobs must be 0 or more; got {jobs}")
    writable(folder)
    with progress_bars(quiet) as bars:
        shown = TrainingBars(bars, planned)
        try:
            train_many(planned, folder, jobs or cores(), shown.report, keep_snapshots)
        except KeyboardInterrupt:
            err.print("stopped; the same command resumes from here", style="yellow")
            raise typer.Exit(130) from None
    if not quiet:
        err.print(f"{len(planned)} runs are complete in {folder}", highlight=False)
