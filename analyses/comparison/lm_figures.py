"""Pictures of language models in training. Every number in them is in the runs' metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resval_lens.analyses.drawing.figures import STYLE, seed_curves
from resval_lens.streams import architectures_of
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import RecordedRun

Line = dict[str, Any]


def training(runs: Sequence[RecordedRun[LMRun]]) -> Figure:
    """Validation loss against steps (logarithmic); IOI accuracy and P(IO), if there are prompts.

    Of several sets of prompts, the last: for generated stories, the unseen.
    """
    panels: dict[str, Callable[[Line], float]] = {
        "validation loss (nats)": lambda line: line["valid_loss"]
    }
    sets = list(runs[0].evaluations[-1].get("ioi", {}))
    if sets:
        panels |= {
            f"IOI accuracy, {sets[-1]} prompts": lambda line: line["ioi"][sets[-1]]["accuracy"],
            f"P(IO), {sets[-1]} prompts": lambda line: line["ioi"][sets[-1]]["p_io"],
        }
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            1, len(panels), figsize=(4 * len(panels), 3.4), layout="constrained", squeeze=False
        )
        row = grid[0]
        for axes, (title, score) in zip(row, panels.items(), strict=True):
            _curves(axes, runs, score)
            axes.set(title=title, xlabel="step", xscale="log")
            axes.xaxis.set_major_formatter("{x:,.0f}")
        for axes in row[1:]:
            axes.set_ylim(0, 1.02)
        for axes, threshold in zip(row[1:], (0.95, 0.5), strict=False):
            axes.axhline(threshold, color="#999999", lw=0.8, ls=":")
        row[0].legend()
    return figure


def _curves(axes: Axes, runs: Sequence[RecordedRun[LMRun]], score: Callable[[Line], float]) -> None:
    """One line a run (light) and one an architecture (dark: mean over seeds)."""
    labels = architectures_of([recorded.run.config.streams for recorded in runs])
    for name in dict.fromkeys(labels):
        own = [
            {line["step"]: score(line) for line in recorded.evaluations[1:]}
            for label, recorded in zip(labels, runs, strict=True)
            if label == name
        ]
        seed_curves(axes, own, name, 0.3)
