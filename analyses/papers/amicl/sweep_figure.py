"""The picture of a sweep. Every number in it is in the JSON beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resval_lens.analyses.drawing.figures import STYLE, plt
from resval_lens.analyses.papers.amicl.counting import curve
from resval_lens.analyses.papers.amicl.sweep import Sweep, TaskCurve

SHADES = ("#56B4E9", "#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7")
GROUPS = {
    "noise": "Objects differ from instance to instance",
    "gap": "Four tokens between object and label",
    "distractors": "Look-alikes with labels of their own",
    "shared object": "One object, three labels; the last dimly seen",
    "hetero": "Values through a map learned from examples",
}


def draw(found: Sweep) -> Figure:
    """Right trials against a, a panel for each kind of task; last, the best a of each."""
    rows, axis = found.tasks, _LogAxis(found.a)
    groups = list(dict.fromkeys(row.of.group for row in rows))
    with plt.rc_context(STYLE):
        height = -(-(len(groups) + 1) // 3)
        figure, grid = plt.subplots(
            height, 3, figsize=(13, 3.9 * height), layout="constrained", squeeze=False
        )
        figure.suptitle(f"{found.memory_name}. {found.judged}", fontsize=10)
        for axes, group in zip(grid.flat, groups, strict=False):
            own = [row for row in rows if row.of.group == group]
            for row, shade in zip(own, _shades(len(own)), strict=True):
                for part in axis.parts:
                    at, points = axis.places[part], row.curve[part]
                    label = row.of.name if part is axis.parts[-1] else ""
                    curve(axes, at, points, shade, label, "" if len(at) > 1 else "o")
                    if row.predicted:
                        theory = row.predicted[part]
                        axes.plot(at, theory, color="#333333", lw=0.9, ls="--")
            axis.label(axes)
            axes.set(ylim=(-0.02, 1.04), ylabel=f"right of {found.trials:,} trials")
            axes.set_title(GROUPS.get(group, group), fontsize=10)
            axes.legend(fontsize=8, title="dashed: theory" if group == "noise" else None)
        _best(grid.flat[len(groups)], rows, axis)
        for axes in grid.flat[len(groups) + 1 :]:
            axes.set_visible(False)
    return figure


class _LogAxis:
    """Values of a on a logarithmic axis, with a place for 0 left of them."""

    def __init__(self, values: list[float]) -> None:
        above = [a for a in values if a > 0] or [1.0]
        self.zero, self.last = min(above) / 2, max(above)
        self.has_zero = 0 in values
        self.places = np.array([a or self.zero for a in values])
        cut = values.index(0) + 1 if self.has_zero else 0
        self.parts = [part for part in (slice(0, cut), slice(cut, None)) if len(values[part])]

    def label(self, axes: Axes) -> None:
        """Powers of two, and 0."""
        powers = 2.0 ** np.arange(np.ceil(np.log2(self.zero * 2)), np.log2(self.last) + 0.01)
        ticks = [*([self.zero] if self.has_zero else []), *powers]
        names = [*(["0"] if self.has_zero else []), *(f"{x:g}" for x in powers)]
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, names)
        axes.set_xlim(self.zero / 1.2, self.last * 1.15)
        axes.set_xlabel("a")
        axes.axvline(2, color="#999999", lw=0.8, ls=":")


def _best(axes: Axes, rows: Sequence[TaskCurve], axis: _LogAxis) -> None:
    """The best a of each task (dot) and the a that are not significantly worse (line)."""
    for place, row in enumerate(rows):
        low, high, best = (a or axis.zero for a in (*row.as_good, row.best))
        axes.plot([low, high], [place, place], color="#0072B2", lw=5, alpha=0.35)
        axes.plot(best, place, "o", color="#0072B2", ms=5)
    axes.set_yticks(range(len(rows)), [row.of.name for row in rows], fontsize=8)
    axes.invert_yaxis()
    axis.label(axes)
    axes.set_title("Best a (dot) and as good (line); dotted: a = 2", fontsize=10)


def _shades(n: int) -> list[str]:
    return [SHADES[i % len(SHADES)] for i in range(n)] if n > 2 else ["#0072B2", "#D55E00"][:n]
