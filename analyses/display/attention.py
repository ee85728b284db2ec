"""Attention patterns: CircuitsVis on pages and in notebooks, matplotlib as an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import matplotlib.pyplot as plt
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from resval_lens.analyses.display.display import unique
from resval_lens.analyses.display.page import circuitsvis
from resval_lens.analyses.figures import STYLE, legible

Patterns = Mapping[str, Float[Tensor, "head query key"]]


def attention_body(
    patterns: Patterns, tokens: Sequence[str], heads: Sequence[str] | Mapping[str, Sequence[str]]
) -> str:
    """Models side by side, each an ``AttentionPatterns`` of CircuitsVis.

    Args:
        heads: names of heads, of all models or by model.
    """
    parts = []
    for title, weights in patterns.items():
        names = heads[title] if isinstance(heads, Mapping) else heads
        drawn = circuitsvis(
            "AttentionPatterns",
            unique("attention"),
            f"Attention patterns {title}".strip(),
            tokens=[escape(token, quote=False) for token in tokens],  # it reads them as HTML
            attention=[[[round(x, 4) for x in row] for row in head] for head in weights.tolist()],
            headLabels=list(names[: len(weights)]),
        )
        parts.append(f"<section>{f'<h4>{escape(title)}</h4>' if title else ''}{drawn}</section>")
    return f'<div class="rv-attention">{"".join(parts)}</div>'


def attention_figure(patterns: Patterns, tokens: Sequence[str], heads: Sequence[str]) -> Figure:
    """Heads of each model in rows of up to eight; queries down, keys across."""
    per_row = min(8, max(len(weights) for weights in patterns.values()))
    rows = [
        (title, weights, range(first, min(first + per_row, len(weights))))
        for title, weights in patterns.items()
        for first in range(0, len(weights), per_row)
    ]
    tokens = [legible(token) for token in tokens]
    size = max(1.6, min(3.0, 0.16 * len(tokens) + 0.6))
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(rows), per_row, squeeze=False, layout="constrained",
            figsize=(size * per_row + 1.2, (size + 0.35) * len(rows) + 0.4),
        )  # fmt: skip
        for axes in grid.flat:
            axes.axis("off")
        for line, (title, weights, chosen) in zip(grid, rows, strict=True):
            for i, axes in zip(chosen, line, strict=False):
                axes.axis("on")
                image = axes.imshow(weights[i].numpy(), cmap="viridis", vmin=0, vmax=1)
                axes.set_title(f"{title} {heads[i]}".strip(), fontsize=8, parse_math=False)
                places, plain = range(len(tokens)), {"fontsize": 5, "parse_math": False}
                axes.set_xticks(places, tokens, rotation=90, **plain)
                axes.set_yticks(places, tokens if i == chosen[0] else [], **plain)
                axes.tick_params(length=0)
        figure.colorbar(image, ax=grid, shrink=0.7, aspect=40, label="attention weight")
    return figure
