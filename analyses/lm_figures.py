"""Pictures of language models in training. Every number in them is in the runs' metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resval_lens.analyses.figures import STYLE, colour
from resval_lens.recorded_lm import RecordedLMRun

Line = dict[str, Any]


def training(runs: Sequence[RecordedLMRun], prompts: str = "unseen") -> Figure:
    """Validation loss, IOI accuracy and P(IO) against steps, on a logarithmic axis."""
    panels: dict[str, Callable[[Line], float]] = {
        "validation loss (nats)": lambda line: line["valid_loss"],
        f"IOI accuracy, {prompts} prompts": lambda line: line["ioi"][prompts]["accuracy"],
        f"P(IO), {prompts} prompts": lambda line: line["ioi"][prompts]["p_io"],
    }
    with plt.rc_context(STYLE):
        figure, row = plt.subplots(1, len(panels), figsize=(12, 3.4), layout="constrained")
        for axes, (title, score) in zip(row, panels.items(), strict=True):
            _curves(axes, runs, score)
            axes.set(title=title, xlabel="step", xscale="log")
            axes.xaxis.set_major_formatter("{x:,.0f}")
        for axes in row[1:]:
            axes.set_ylim(0, 1.02)
        row[1].axhline(0.95, color="#999999", lw=0.8, ls=":")
        row[2].axhline(0.5, color="#999999", lw=0.8, ls=":")
        row[0].legend()
    return figure


def _curves(axes: Axes, runs: Sequence[RecordedLMRun], score: Callable[[Line], float]) -> None:
    """One line a run (light) and one an architecture (dark: mean over seeds)."""
    for name in dict.fromkeys(recorded.architecture for recorded in runs):
        own = [recorded.evaluations[1:] for recorded in runs if recorded.architecture == name]
        steps = [line["step"] for line in own[0]]
        scores = [[score(line) for line in lines] for lines in own]
        for values in scores:
            axes.plot(steps, values, color=colour(name), alpha=0.3, lw=0.8)
        axes.plot(steps, np.mean(scores, axis=0), color=colour(name), lw=2, label=name)
