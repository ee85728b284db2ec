"""The pictures of what ``compare`` says first: how much sooner, what links carry, and how much."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resval_lens.analyses.comparison.circuit_findings import IOIHeads, OverSeeds
from resval_lens.analyses.comparison.icl_curves import ICLCurves
from resval_lens.analyses.comparison.icl_emergence import Emergence
from resval_lens.analyses.drawing.figures import COLOURS, STYLE, colour, plain, plt, seed_curves
from resval_lens.analyses.drawing.marks import tip
from resval_lens.numbers import number

CHANGED = {
    "token": "other subject (token)",
    "position": "names swapped (position)",
    "random": "two other names (random)",
}
"""What corrupted prompts change, by kind."""
Row = tuple[str, str, Sequence[float], Sequence[int | None]]
"""A bar's label and colour, and a value for each seed."""


def sooner(curves: ICLCurves, found: Emergence) -> Figure:
    """Accuracy on IC over training of classic and values; dots: where each seed passes first."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.8, 2.8), layout="constrained")
        for name in ("classic", "values"):
            runs = [run for run in curves.runs if run.variant == name]
            lines = [dict(zip(run.step, run.tasks["ic"].accuracy, strict=True)) for run in runs]
            seed_curves(axes, lines, name, 0.25, unit=1000)
            row = found.row("ic", name)
            assert row is not None
            for seed, snapshot in row.snapshots.items():
                if snapshot is not None:
                    (dot,) = axes.plot(
                        snapshot / 2, found.threshold, "o", color=colour(name), ms=6, mec="white"
                    )
                    tip(dot, f"{name}, seed {seed}: above {found.threshold:g} from step "
                             f"{snapshot * 500:,.0f}")  # fmt: skip
            if row.first.mean is not None:
                axes.axvline(row.first.mean / 2, color=colour(name), lw=1, ls="--")
        axes.axhline(found.threshold, color="#999999", lw=0.8, ls=":")
        axes.set(xlabel="thousand training steps", ylabel="accuracy on IC", ylim=(0, 1.02))
        axes.margins(x=0)
        axes.legend(loc="lower right")
    return figure


def links_corrupted(rows: Sequence[OverSeeds]) -> Figure:
    """What whole models keep of the clean − corrupted gap with every link corrupted."""
    several = len({row.architecture for row in rows}) > 1
    bars: list[Row] = [
        (
            f"{row.task}, {row.architecture}" if several else row.task,
            colour(row.architecture),
            row.measures["model, links corrupted"].by_seed,
            row.seeds,
        )
        for row in rows
    ]
    figure, axes = _bars(bars, "gap kept with every link corrupted")
    with plt.rc_context(STYLE):
        for at, words in ((0, "as corrupted"), (1, "as clean")):
            axes.axvline(at, color="#999999", lw=0.8, ls=":")
            axes.text(at, -0.62, words, ha="center", va="bottom", fontsize=8, color="#555555")
    return figure


def links_carry(heads: Sequence[IOIHeads]) -> Figure:
    """How frozen links change the logit difference, by what the corrupted prompts say otherwise."""
    found = [each.signals for each in heads if each.signals is not None]
    bars: list[Row] = [
        (
            CHANGED.get(kind, kind),
            COLOURS["values"] if kind == "token" else "#999999",
            [each.effects["all"][kind] for each in found],
            [each.seed for each in heads],
        )
        for kind in found[0].signals
    ]
    figure, axes = _bars(bars, "change of the logit difference (−200%: inverted)")
    axes.axvline(0, color="#999999", lw=0.8, ls=":")
    return figure


def _bars(rows: Sequence[Row], what: str) -> tuple[Figure, Axes]:
    """A bar each: the mean over seeds, whose values are dots, and the number beside it."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.8, 0.34 * len(rows) + 1.0), layout="constrained")
        for place, (label, shade, values, seeds) in enumerate(rows):
            mean = float(np.mean(values))
            (bar,) = axes.barh(place, mean, 0.62, color=shade, alpha=0.75)
            tip(bar, f"{label}: {number(100 * mean, '.0f')}%")
            for seed, value in zip(seeds, values, strict=True):
                if len(values) > 1:
                    (dot,) = axes.plot(value, place, "o", color=shade, ms=6, mec="white")
                    tip(dot, f"{label}, seed {seed}: {number(100 * value, '.0f')}%")
            axes.annotate(
                f"{number(100 * mean, '.0f')}%", (max(0, mean, *values), place), (5, 0),
                textcoords="offset points", va="center", fontsize=8,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [plain(row[0]) for row in rows], fontsize=9)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.xaxis.set_major_formatter(lambda x, _: f"{number(100 * x, '.0f')}%")
        axes.set_xlabel(what)
        axes.margins(x=0.08)
    return figure, axes
