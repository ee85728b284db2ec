"""What the study of the link over seeds found, drawn: in training, and by degrees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from resval_lens.analyses.comparison.link_controls import (
    CUT,
    CUT_KEPT,
    DOUBLED,
    RESAMPLED,
    TRAINED,
)
from resval_lens.analyses.comparison.link_grading import GRADES
from resval_lens.analyses.comparison.link_moments import LAST, MOMENTS
from resval_lens.analyses.comparison.link_over_seeds import LinkOverSeeds
from resval_lens.analyses.comparison.link_over_seeds_rows import GRADED_TASKS, LINKED
from resval_lens.numbers import number
from resval_lens.tasks.icl import MEANING, TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = {
    TRAINED: ("#0072B2", "-"),
    CUT: ("#D55E00", "-"),
    CUT_KEPT: ("#E69F00", "-"),
    DOUBLED: ("#009E73", "--"),
    RESAMPLED: ("#CC79A7", ":"),
}
SHADES = {"ic": "#0072B2", "ic2": "#56B4E9", "iw": "#D55E00"}
SCALED = {"link": "-", "link, norm kept": "--", "own": ":"}


def figures(study: LinkOverSeeds) -> dict[str, Figure]:
    """Accuracy in training under edits; accuracy with the link, or own values, by degrees."""
    return {"link-over-seeds.png": _training(study), "link-by-degrees.png": _degrees(study)}


def _training(study: LinkOverSeeds) -> Figure:
    """A panel a task; bands are one deviation over seeds."""
    from resval_lens.analyses.drawing.figures import STYLE, plt
    from resval_lens.analyses.drawing.marks import points

    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(2, 2, figsize=(9, 6.4), sharey=True, layout="constrained")
        for axes, task in zip(grid.flat, TASKS, strict=True):
            for each in (each for each in study.courses if each.task == task):
                shade, dashes = LINES[each.edit]
                thousands = [step / 1000 for step in each.step]
                mean, sd = np.array(each.mean), np.array(each.sd)
                axes.plot(thousands, mean, color=shade, ls=dashes, lw=1.8, label=each.edit)
                axes.fill_between(thousands, mean - sd, mean + sd, color=shade, alpha=0.15, lw=0)
                texts = [
                    f"step {step:,}, {each.edit}: {TASKS[task]} {number(y)}"
                    for step, y in zip(each.step, each.mean, strict=True)
                ]
                points(axes, thousands, each.mean, texts, shade)
            for at in MOMENTS:
                if at != LAST and LINKED in study.steps[at]:
                    step = study.steps[at][LINKED].mean or 0.0
                    axes.axvline(step / 1000, color="#999999", lw=0.8, ls=":")
            axes.set(
                title=f"{TASKS[task]}: {MEANING[task]}", xlabel="thousand steps", ylim=(0, 1.02)
            )
            axes.margins(x=0)
        for axes in grid[:, 0]:
            axes.set_ylabel("accuracy")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def _degrees(study: LinkOverSeeds) -> Figure:
    """A panel a moment; c falls to the right."""
    from resval_lens.analyses.drawing.figures import STYLE, plt
    from resval_lens.analyses.drawing.marks import points

    there = [at for at in MOMENTS if LINKED in study.steps[at]]
    with plt.rc_context(STYLE):
        figure, row = plt.subplots(
            1, len(there), figsize=(3.6 * len(there), 4), sharey=True, layout="constrained",
            squeeze=False,
        )  # fmt: skip
        for axes, at in zip(row[0], there, strict=True):
            for each in study.degrees:
                wanted = each.task in GRADED_TASKS and each.scaled in SCALED
                if (each.moment, each.kind) != (at, LINKED) or not wanted:
                    continue
                shade, mean, sd = SHADES[each.task], np.array(each.mean), np.array(each.sd)
                label = f"{TASKS[each.task]}, {each.scaled}"
                axes.plot(GRADES, mean, color=shade, ls=SCALED[each.scaled], lw=1.8, label=label)
                axes.fill_between(GRADES, mean - sd, mean + sd, color=shade, alpha=0.12, lw=0)
                texts = [
                    f"{at}, {each.scaled} × {c:g}: {TASKS[each.task]} {number(y)}"
                    for c, y in zip(GRADES, each.mean, strict=True)
                ]
                points(axes, GRADES, each.mean, texts, shade)
            title = "last snapshot" if at == LAST else f"first with {at}"
            axes.set(title=title, xlabel="c", xlim=(1, 0), ylim=(0, 1.02))
        row[0, 0].set_ylabel("accuracy")
        figure.legend(*row[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
