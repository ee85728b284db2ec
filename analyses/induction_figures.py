"""Pictures of induction. Every number in them is in the JSON beside them."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from resval_lens.analyses.figures import STYLE, colour

TITLES = {
    "ila1_labels": "layer 1: label to its object",
    "tla2": "layer 2: query to labels",
    "tila2": "layer 2: query to right labels",
    "induction_strength": "layer 2: right label minus wrong",
    "cla": "answers that are in context",
}
"""Measures that are drawn, and what they are (:mod:`resval_lens.tasks.icl_measures`)."""


def measures_over_training(study: dict[str, Any]) -> Figure:
    """Reddy's measures: one line a seed (light), one a variant (dark: the mean over seeds).

    Dotted: the level that bar ``baseline`` of the study's ``rises`` asks for.
    """
    with plt.rc_context(STYLE):
        levels = {r["measure"]: r["level"] for r in study["rises"] if r["bar"] == "baseline"}
        figure, grid = plt.subplots(2, 3, figsize=(11, 6.2), layout="constrained", sharex=True)
        panels = dict(zip(TITLES, grid.flat, strict=False))
        for measure, axes in panels.items():
            for variant, found in study["variants"].items():
                steps, curves = found["steps"], found["measures"][measure]
                shade = colour(variant)
                for values in curves["by_seed"].values():
                    axes.plot(steps, values, color=shade, alpha=0.25, lw=0.8)
                dashes = "--" if variant == "keys" else "-"  # it lies on classic
                axes.plot(steps, curves["mean"], dashes, color=shade, lw=2, label=variant)
            if measure in levels:
                axes.axhline(levels[measure], color="#999999", lw=0.8, ls=":")
            axes.set(title=TITLES[measure], ylim=(0, None))
            axes.margins(x=0)
            axes.xaxis.set_major_formatter("{x:,.0f}")
        for axes in (*grid[1, :2], grid[0, 2]):
            axes.set_xlabel("step")
            axes.tick_params(labelbottom=True)
        for axes in grid[:, 0]:
            axes.set_ylabel("mean attention weight")
        panels["cla"].set_ylabel("share of answers")
        blank = grid[1, 2]
        blank.axis("off")
        handles, labels = panels["cla"].get_legend_handles_labels()
        blank.legend(handles, labels, loc="center left")
    return figure
