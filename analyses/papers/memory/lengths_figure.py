"""Sequences longer than those of training. Every number in the pictures is in the JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from resval_lens.analyses.drawing.figures import STYLE, plt
from resval_lens.analyses.papers.memory.comparable import COLOURS
from resval_lens.analyses.papers.memory.lengths import Bin, LengthStudy, MeasuredModel
from resval_lens.analyses.papers.memory.positions import AttentionMap

FEWEST = 10
"""Positions of which a mean is drawn."""
CELLS = 64
"""Rows and columns of an attention map, of which each shows the largest weight that it stands for:
a diagonal one position wide would not be seen."""


def draw(study: LengthStudy) -> Figure:
    """Accuracy and both heads' attention against the position, means over seeds; trained: left."""
    panels: dict[str, Callable[[Bin], float | None]] = {
        "In-context accuracy": lambda row: row.accuracy if row.accuracy_count >= FEWEST else None,
        "Layer 0: attention to t − 1": lambda row: row.previous_mass,
        "Layer 1: attention to the target": (
            lambda row: row.target_mass if row.target_mass_count >= FEWEST else None
        ),
    }
    with plt.rc_context(STYLE):
        figure, row = plt.subplots(1, 3, figsize=(12.4, 3.9), layout="constrained")
        for axes, (title, of) in zip(row, panels.items(), strict=True):
            for name in study.over_seeds:
                own = [model for model in study.models if model.variant == name]
                shade = COLOURS.get(own[0].positions, "#000000")
                style = "--" if own[0].streams else "-"
                axes.plot(*_by_bin(own, of), color=shade, ls=style, lw=1.8, label=name)
                if axes is row[1] and own[0].bins[-1].predicted is not None:
                    places, means = _by_bin(own, lambda row: row.predicted)
                    axes.plot(places, means, color=shade, ls=style, lw=0.9, alpha=0.6)
            axes.axvline(study.trained_length, color="#999999", lw=0.8, ls=":")
            axes.set(title=title, xlabel="position t", xscale="log", ylim=(-0.02, 1.04))
            axes.xaxis.set_minor_formatter(NullFormatter())  # less than a decade has labels there
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        row[0].set_ylabel("mean")
        row[1].plot([], [], color="#555555", lw=0.9, label="thin: as constructed")
        handles, labels = row[1].get_legend_handles_labels()
        handles.append(plt.Line2D([], [], color="#999999", lw=0.8, ls=":"))
        labels.append(f"trained to {study.trained_length}")
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
    return figure


def _by_bin(
    models: Sequence[MeasuredModel], of: Callable[[Bin], float | None]
) -> tuple[list[float], list[float]]:
    """The middle of each bin and the mean over models that have a number."""
    places, means = [], []
    for rows in zip(*(model.bins for model in models), strict=True):
        numbers = [number for number in map(of, rows) if number is not None]
        if numbers:
            places.append((rows[0].first * rows[0].last) ** 0.5)
            means.append(float(np.mean(numbers)))
    return places, means


def attention_maps(maps: Mapping[str, AttentionMap]) -> Figure:
    """Both layers' attention on one sequence, a column a model; lines mark the trained length."""
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            2, len(maps), figsize=(4.2 * len(maps) + 0.6, 7.8), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for column, (name, entry) in zip(grid.T, maps.items(), strict=True):
            for layer, axes in enumerate(column):
                if layer >= len(entry.layers):
                    axes.axis("off")
                    continue
                triangle = entry.layers[layer]
                pattern = np.full((len(triangle), len(triangle)), np.nan)
                for t, weights in enumerate(triangle):
                    pattern[t, : t + 1] = weights
                pattern = largest(pattern, max(1, len(triangle) // CELLS))
                ends = (0.5, len(triangle) + 0.5)  # positions are counted from 1
                image = axes.imshow(
                    pattern, cmap="viridis", norm=PowerNorm(0.5, 0, 1),
                    extent=(*ends, *ends[::-1]), interpolation="nearest",
                )  # fmt: skip
                for draw in (axes.axvline, axes.axhline):
                    draw(entry.trained_length + 0.5, color="#999999", lw=0.8, ls=":")
                axes.set_title(f"{name}, layer {layer}")
        for axes in grid[:, 0]:
            axes.set_ylabel("from position t")
        for axes in grid[1]:
            axes.set_xlabel("to position s")
        side = max(1, len(entry.layers[0]) // CELLS)
        of = f", the largest of {side} × {side} weights" if side > 1 else ""
        figure.colorbar(image, ax=grid, shrink=0.6, label=f"attention{of} (dotted: trained length)")
    return figure


def largest(
    x: Float[np.ndarray, "rows columns"], side: int
) -> Float[np.ndarray, "fewer_rows fewer_columns"]:
    """The largest number of each ``side`` × ``side`` block, NaN where there is none."""
    rows, columns = (-(-n // side) * side for n in x.shape)
    padded = np.full((rows, columns), -np.inf)
    padded[: x.shape[0], : x.shape[1]] = np.where(np.isnan(x), -np.inf, x)
    found = padded.reshape(rows // side, side, columns // side, side).max((1, 3))
    return np.where(np.isinf(found), np.nan, found)
