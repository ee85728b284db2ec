"""How in-context classifiers learn: accuracy and loss of recorded runs, Figure 3 of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from resval_lens.analyses.results.result import FLAT, Result
from resval_lens.tasks.icl import MEANING, TASKS
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.recorded import RecordedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curve:
    """At each snapshot of a run; loss in nats."""

    accuracy: tuple[float, ...]
    loss: tuple[float, ...]


@dataclass(frozen=True)
class RunCurves:
    """The curves of one run on each task, and the steps of its snapshots."""

    variant: str
    seed: int
    step: tuple[int, ...]
    tasks: Mapping[str, Curve] = field(metadata=FLAT)


@dataclass(frozen=True)
class ICLCurves(Result):
    """Curves of several runs."""

    runs: tuple[RunCurves, ...]

    def figures(self) -> dict[str, Figure]:
        """Figure 3."""
        return {"figure-3.png": self.figure()}

    def figure(self) -> Figure:
        """Accuracy on the four tasks, Test loss, and one variant's losses."""
        from resval_lens.analyses.drawing.figures import STYLE, colour, plt

        with plt.rc_context(STYLE):
            figure, grid = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained")
            for axes, task in zip(grid.flat[:4], TASKS, strict=True):
                self._draw(axes, [run.tasks[task].accuracy for run in self.runs])
                axes.set(title=f"{TASKS[task]}: {MEANING[task]}", ylim=(0, 1.02), ylabel="accuracy")
                if task in ("ic", "ic2"):
                    axes.axhline(0.95, color="#999999", lw=0.8, ls=":")
            self._draw(grid[1, 1], [run.tasks["test"].loss for run in self.runs])
            loss = "cross-entropy (nats)"
            grid[1, 1].set(title="Test loss", ylabel=loss, ylim=(0, None))
            variants = [run.variant for run in self.runs]
            shown = "values" if "values" in variants else variants[0]
            own = [run for run in self.runs if run.variant == shown]
            shortest = min(len(run.step) for run in own)
            steps = [step / 500 for step in own[0].step[:shortest]]
            for task, style in zip(TASKS, ("-", "--", "-.", ":"), strict=True):
                mean = np.mean([run.tasks[task].loss[:shortest] for run in own], axis=0)
                grid[1, 2].plot(steps, mean, color=colour(shown), ls=style, label=TASKS[task])
            grid[1, 2].set(title=f"All losses, {shown}", ylabel=loss, ylim=(0, None))
            grid[1, 2].legend()
            for axes in grid.flat:
                axes.set_xlabel("snapshot (500 steps)")
                axes.margins(x=0)
            grid[0, 0].legend(loc="lower right")
        return figure

    def _draw(self, axes: Axes, curves: Sequence[Sequence[float]]) -> None:
        """One line a run (light) and one a variant (dark: mean over seeds), against steps."""
        from resval_lens.analyses.drawing.figures import seed_curves

        lines: dict[str, list[dict[int, float]]] = {}
        for run, curve in zip(self.runs, curves, strict=True):
            lines.setdefault(run.variant, []).append(dict(zip(run.step, curve, strict=True)))
        for variant, own in lines.items():
            dashes = "--" if variant == "keys" else "-"  # it lies on classic
            seed_curves(axes, own, variant, 0.25, dashes, unit=500)


def icl_curves(runs: Sequence[RecordedRun[ICLRun]]) -> ICLCurves:
    """What the runs recorded of accuracy and loss."""
    found = []
    for recorded in runs:
        lines = recorded.metrics
        tasks = {
            task: Curve(
                tuple(line[task]["accuracy"] for line in lines),
                tuple(line[task]["loss"] for line in lines),
            )
            for task in TASKS
        }
        steps = tuple(line["step"] for line in lines)
        found.append(RunCurves(recorded.run.name, recorded.run.seed, steps, tasks))
    return ICLCurves(tuple(found))
