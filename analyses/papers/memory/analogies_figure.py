"""Capitals and countries. Every number in the picture is in the JSON beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resval_lens.analyses.drawing.figures import STYLE, plt
from resval_lens.analyses.papers.memory.analogies import Analogies, AnalogyModel
from resval_lens.analyses.papers.memory.comparable import COLOURS


def shade(name: str) -> str:
    """The colour of a variant's positions; black for another name."""
    return next((c for start, c in COLOURS.items() if name.startswith(start)), "#000000")


def draw(study: Analogies) -> Figure:
    """Recall by capital; who wins as the context repeats itself; unknown capitals; longer ones."""
    first: dict[str, AnalogyModel] = {}
    for each in study.models:
        first.setdefault(each.name, each)
    rows, times = list(first.values()), study.times
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
        for row in rows:
            colour, style = shade(row.name), "--" if "values" in row.name else "-"
            ranks = [(each.first + each.last) / 2 for each in row.by_rank]
            look: dict[str, Any] = {"color": colour, "ms": 4}
            p_own = [each.p_own for each in row.by_rank]
            grid[0, 0].plot(ranks, p_own, style, lw=1, marker="x", **look)
            overridden = [each.overridden for each in row.by_rank]
            grid[0, 0].plot(ranks, overridden, style, lw=1.8, marker="o", label=row.name, **look)
            for axes, answers in (
                (grid[0, 1], row.wrong), (grid[1, 0], row.unknown),
            ):  # fmt: skip
                said, own = [each.said for each in answers], [each.own for each in answers]
                axes.plot(times, said, style, lw=1.8, marker="o", **look)
                axes.plot(times, own, style, lw=1, marker="x", alpha=0.6, **look)
        grid[0, 0].set_xscale("log")
        grid[0, 0].xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        grid[0, 0].set(
            xlabel="capitals, the most frequent first", ylabel="share, or probability",
            title="○ believes what was said twice   × recalls its own unsaid", ylim=(-0.03, 1.03),
        )  # fmt: skip
        grid[0, 0].legend(fontsize=8)
        for axes, title in (
            (grid[0, 1], "The context says another country"),
            (grid[1, 0], "The same, of unknown capitals"),
        ):
            axes.set(
                xlabel="times that the context says it", ylabel="share of answers",
                title=title, ylim=(-0.03, 1.03),
            )  # fmt: skip
        grid[0, 1].plot([], [], "o-", color="#555555", label="what the context says")
        grid[0, 1].plot([], [], "x-", color="#555555", alpha=0.6, label="its own country")
        grid[0, 1].legend(fontsize=8)
        _halves(grid[1, 1], rows)
    return figure


def _halves(axes: Axes, rows: Sequence[AnalogyModel]) -> None:
    length = rows[0].length
    labels = [f"t ≤ {length}", f"t > {length}"]
    for i, row in enumerate(rows):
        heights = [row.longer.trained or 0, row.longer.beyond or 0]
        places = np.arange(2) + (i - (len(rows) - 1) / 2) * 0.8 / len(rows)
        drawn = axes.bar(
            places, heights, 0.74 / len(rows), color=shade(row.name), label=row.name,
            alpha=0.55 if "values" in row.name else 1,
        )  # fmt: skip
        axes.bar_label(drawn, [f"{h:.2f}" for h in heights], fontsize=8, padding=1)
    axes.set_xticks(range(2), labels)
    axes.set(
        ylabel="in-context accuracy", ylim=(0, 1.08),
        title=f"Sequences of {2 * length}, trained on {length}",
    )  # fmt: skip
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
