"""Memories in training. Every number in the picture is in the JSON."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resval_lens.analyses.drawing.figures import STYLE, plt
from resval_lens.analyses.papers.memory.curves import LABELS, CurveStudy, Measure, VariantCurves

DRAWN: dict[Measure, tuple[str, str]] = {
    "W_O2": ("#D55E00", "-"),
    "W_K2": ("#0072B2", "-"),
    "W_K1": ("#009E73", "-"),
    "W_K1_near": ("#009E73", "--"),
    "W_K1_far": ("#009E73", ":"),
    "W_F": ("#E69F00", "-"),
    "accuracy": ("#222222", "-"),
}
COLUMNS = 5


def draw(study: CurveStudy) -> Figure:
    """Recall of each memory and in-context accuracy against the step, a panel a variant."""
    variants = study.variants
    rows = -(-len(variants) // COLUMNS)
    columns = -(-len(variants) // rows)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows, columns, figsize=(2.6 * columns + 0.4, 2.5 * rows + 0.7), sharex=True,
            sharey=True, squeeze=False, layout="constrained",
        )  # fmt: skip
        for axes in grid.flat[len(variants) :]:
            axes.axis("off")
        for axes, (name, own) in zip(grid.flat, variants.items(), strict=False):
            _curve_panel(axes, own)
            axes.axhline(study.threshold, color="#999999", lw=0.8, ls=":")
            axes.set(title=name, ylim=(-0.03, 1.05))
            axes.tick_params(labelbottom=True)
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.margins(x=0)
        for axes in grid[:, 0]:
            axes.set_ylabel("recall, accuracy")
        for i in range(max(0, len(variants) - columns), len(variants)):
            grid.flat[i].set_xlabel("step")
        there = {measure for own in variants.values() for measure in own.curves}
        there -= set() if "W_K1_far" in there else {"W_K1_near"}
        handles = [
            plt.Line2D([], [], color=shade, ls=style, lw=2, label=_label(measure))
            for measure, (shade, style) in DRAWN.items()
            if measure in there
        ]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(len(handles), 4 if columns < 4 else 7),
        )
    return figure


def _label(measure: Measure) -> str:
    return "W_F (share of the bigrams)" if measure == "W_F" else LABELS[measure]


def _curve_panel(axes: Axes, own: VariantCurves) -> None:
    for measure, (shade, style) in DRAWN.items():
        if measure not in own.curves or (
            measure == "W_K1_near" and "W_K1_far" not in own.curves  # all are near
        ):
            continue
        by_seed = own.curves[measure]
        shortest = min(map(len, by_seed.values()))
        lines = np.array([line[:shortest] for line in by_seed.values()], dtype=float)
        steps = next(iter(own.steps.values()))[:shortest]
        if len(lines) > 1:
            axes.plot(steps, lines.T, color=shade, ls=style, lw=0.7, alpha=0.35)
        axes.plot(steps, lines.mean(0), color=shade, ls=style, lw=1.8)
