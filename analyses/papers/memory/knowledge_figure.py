"""What models know against what the context says. Every number is in the JSON beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resval_lens.analyses.drawing.figures import STYLE, plt
from resval_lens.analyses.papers.memory.asked import ANY_TOKEN
from resval_lens.analyses.papers.memory.knowledge import Asked, Group, Knowledge
from resval_lens.numbers import number

GROUPS = {"triggers": "#0072B2", "others": "#D55E00", ANY_TOKEN: "#555555"}


def draw(study: Knowledge) -> Figure:
    """Measured against expected margins, and who wins by counts, of one model a column."""
    first: dict[str, Asked] = {}
    for each in study.subjects:
        first.setdefault(each.name, each)
    shown = list(first.values())
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            3, len(shown), figsize=(2.7 * len(shown) + 0.8, 8), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        image = None
        for column, subject in zip(grid.T, shown, strict=True):
            _scatter(column[0], subject)
            groups = list(subject.groups)
            for axes, name in zip(column[1:], (*groups, "", "")[:2], strict=True):
                if name:
                    image = _winners(axes, subject.groups[name], name)
                else:
                    axes.set_visible(False)
        grid[0, 0].set_ylabel("measured ξ(B1) − ξ(B2)")
        grid[1, 0].set_ylabel("n1, times B1")
        if image is not None:
            figure.colorbar(image, ax=grid[1:], shrink=0.6, label="share of prompts that B1 wins")
    return figure


def _scatter(axes: Axes, subject: Asked) -> None:
    notes = []
    for name, group in subject.groups.items():
        points = np.array([point for cell in group.cells for point in cell.points])
        axes.scatter(
            points[:, 0], points[:, 1], s=5, alpha=0.5, lw=0, color=GROUPS[name], label=name
        )
        fit = group.fit
        weight, strength = number(fit.weight, "z.2f"), number(fit.tau3, "z.1f")
        notes.append(f"{name}: w = {weight}, τ3 = {strength}")
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color="black", lw=0.8, ls=":")
    seed = f", seed {subject.seed}"
    axes.set(xlabel="expected (nats)")
    axes.set_title(f"{subject.name}{seed}\n" + "\n".join(notes), fontsize=9)
    axes.legend(fontsize=8, markerscale=2.5, loc="upper left", handletextpad=0.1)


def _winners(axes: Axes, group: Group, name: str) -> Any:
    most = max(cell.n1 for cell in group.cells)
    wins = np.full((most, most), np.nan)
    for cell in group.cells:
        wins[cell.n1 - 1, cell.n2 - 1] = cell.wins
    image = axes.imshow(wins, origin="lower", cmap="PuOr_r", vmin=0, vmax=1)
    for (i, j), share in np.ndenumerate(wins):
        dark = abs(share - 0.5) > 0.3
        axes.text(j, i, f"{share:.2f}".lstrip("0"), ha="center", va="center", fontsize=7,
                  color="white" if dark else "black")  # fmt: skip
    axes.set_xticks(range(most), [str(n + 1) for n in range(most)])
    axes.set_yticks(range(most), [str(n + 1) for n in range(most)])
    axes.set_title(f"A: {name}", fontsize=9)
    axes.set_xlabel("n2, times B2")
    return image
