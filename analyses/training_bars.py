"""Progress of several training runs."""

from __future__ import annotations

from typing import Any

from rich.progress import Progress

from resval_lens.training.icl_run import ICLRun


class TrainingBars:
    """A bar for each run under way, and one for all of them."""

    def __init__(self, bars: Progress, runs: list[ICLRun]) -> None:
        self.bars = bars
        self.tasks: dict[str, Any] = {}
        self.steps = {run.folder_name: 0 for run in runs}
        self.all = bars.add_task("all runs", total=sum(run.steps for run in runs), note="")

    def report(self, run: ICLRun, step: int, metrics: dict[str, Any] | None) -> None:
        """For :func:`~resval_lens.training.many.train_many`."""
        name = run.folder_name
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=run.steps, note="")
        self.bars.update(self.tasks[name], completed=step)
        if metrics is not None:
            self.bars.update(self.tasks[name], note=f"IC {metrics['ic']['accuracy']:.3f}")
        self.steps[name] = step
        self.bars.update(self.all, completed=sum(self.steps.values()))
        if step >= run.steps:
            self.bars.update(self.tasks[name], visible=False)
