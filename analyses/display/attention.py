"""Attention patterns: a view of all heads, or CircuitsVis; a small image where no script runs."""

from __future__ import annotations

import math
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from resval_lens.analyses.display.heads import ShownHeads
from resval_lens.analyses.display.page import circuitsvis, heads, small, still, words
from resval_lens.analyses.drawing.figures import STYLE, drawn, legible
from resval_lens.analyses.drawing.words import clean

Patterns = Mapping[str, Float[Tensor, "head query key"]]
SHARES = 10_000
"""Pages hold weights in whole ten-thousandths, which are shorter."""


Names = Sequence[str] | Mapping[str, Sequence[str]]
"""Names of heads, of all models or by model."""


def attention_body(shown: Mapping[str, ShownHeads], tokens: Sequence[str]) -> str:
    """Models side by side, each with all its heads small and one of them large."""
    parts = []
    for title, of in shown.items():
        name = f"Attention patterns {title}".strip()
        parts.append(_section(title, of.caption, heads(name, _data(of, tokens))))
    return f'<div class="rv-attention">{"".join(parts)}</div>'


def circuitsvis_body(shown: Mapping[str, ShownHeads], tokens: Sequence[str]) -> str:
    """The same, each an ``AttentionPatterns`` of CircuitsVis and an image in its place."""
    parts = []
    for title, of in shown.items():
        name = f"Attention patterns {title}".strip()
        view = circuitsvis(
            "AttentionPatterns",
            name,
            tokens=[words(token) for token in tokens],  # it reads them as HTML
            attention=(of.patterns * SHARES).round().int().tolist(),
            headLabels=list(map(clean, of.names)),
        )
        image = still(attention_image({"": of.patterns}, of.names), name)
        parts.append(_section(title, of.caption, image + view))
    return f'<div class="rv-attention">{"".join(parts)}</div>'


def _section(title: str, caption: str, view: str) -> str:
    heading = f"<h4>{words(title)}</h4>" if title else ""
    said = f'<p class="rv-quiet">{words(caption)}</p>' if caption else ""
    return f"<section>{heading}{said}{view}</section>"


def _data(of: ShownHeads, tokens: Sequence[str]) -> dict[str, Any]:
    """What ``attention.js`` reads."""
    causal = not bool(of.patterns.triu(1).any())
    norms = of.norms
    return {
        "tokens": list(map(clean, tokens)),
        "names": list(map(clean, of.names)),
        "strength": None if of.strength is None else _rounded(of.strength),
        "given": not of.in_order,
        "causal": causal,
        "weights": packed(of.patterns, causal),
        "written": norms and {"own": _rounded(norms.own), "link": _rounded(norms.link)},
    }


def packed(patterns: Float[Tensor, "head query key"], causal: bool) -> str:
    """Weights in ten-thousandths, two bytes each (little-endian), deflated, in base64.

    Args:
        causal: leave out what lies above the diagonal.
    """
    if causal:
        row, column = torch.tril_indices(*patterns.shape[1:])
        patterns = patterns[:, row, column]
    whole = (patterns * SHARES).round().numpy().astype("<u2")
    return b64encode(zlib.compress(whole.tobytes(), 9)).decode()


def _rounded(numbers: Float[Tensor, "..."]) -> Any:
    """Four digits each, as lists."""
    shorter = np.vectorize(lambda x: float(f"{x:.4g}"), otypes=[float])
    return shorter(numbers.detach().cpu().numpy()).tolist()


def _of(heads: Names, title: str) -> Sequence[str]:
    return heads[title] if isinstance(heads, Mapping) else heads


def attention_image(patterns: Patterns, heads: Names) -> bytes:
    """The patterns with names and without tokens, a small PNG."""
    figure = attention_figure(patterns, None, heads)
    return small(drawn(figure, "png", dpi=80))


def attention_figure(patterns: Patterns, tokens: Sequence[str] | None, heads: Names) -> Figure:
    """Heads of each model in rows; queries down, keys across.

    All are one image and all words plain text: axes of its own for each head take minutes.

    Args:
        tokens: written at the left of each row and under each column; None writes none.
    """
    most = max(len(weights) for weights in patterns.values())
    length = next(iter(patterns.values())).shape[-1]
    per_row = min(most, 8 if most <= 64 else 18)
    side = max(0.8, min(3.0, 0.09 * length)) if tokens else max(0.5, min(1.6, 9 / per_row))
    gap, above = -(-length // 10), math.ceil(0.22 / side * length)  # in cells
    placed = [  # the model, its head, and where its cells begin
        (title, weights[i].numpy(), _of(heads, title)[i], row * (length + above) + above,
         i % per_row)
        for row, (title, weights, i) in _in_rows(patterns, per_row)
    ]  # fmt: skip
    names = [f"{title} {legible(name)}".strip() for title, _, name, _, _ in placed]
    # Letters are 0.6 of their size wide; names end before the next head.
    letters = max(3.0, min(8.0, 72 * side * 1.1 / 0.6 / max(map(len, names))))
    high, wide = placed[-1][3] + length, per_row * (length + gap) - gap
    mosaic = np.full((high, wide), np.nan, np.float32)
    with plt.rc_context(STYLE):
        figure = Figure(figsize=(wide * side / length, high * side / length))
        axes = figure.add_axes((0, 0, 1, 1))
        for name, (_, head, _, y, column) in zip(names, placed, strict=True):
            x = column * (length + gap)
            mosaic[y : y + length, x : x + length] = head
            axes.text(x - 0.5, y - 0.6, name, fontsize=letters, va="bottom", parse_math=False)
        shades = PowerNorm(0.5, 0, 1)  # of many tokens, most have little
        image = axes.imshow(
            mosaic, cmap="viridis", norm=shades, aspect="auto", interpolation="nearest"
        )
        axes.axis("off")
        if tokens:
            points = 72 * side / length
            each = math.ceil(2 / points)  # the smallest letters that can be told apart
            style: Any = {"fontsize": min(6, 0.85 * points), "parse_math": False}
            last = {column: y + length for *_, y, column in placed}
            for at in range(0, length, each):
                word = legible(tokens[at])
                for y in {y for *_, y, _ in placed}:
                    axes.text(-1, y + at, word, ha="right", va="center", **style)
                for column, y in last.items():
                    axes.text(column * (length + gap) + at, y, word, ha="center", va="top",
                              rotation=90, **style)  # fmt: skip
        width, height = figure.get_size_inches()
        place = figure.add_axes((1 + 0.15 / width, 1 - min(1.5, height) / height,
                                 0.1 / width, min(1.5, height) / height))  # fmt: skip
        figure.colorbar(image, cax=place).set_label("attention weight", fontsize=8)
        place.tick_params(labelsize=7)
    return figure


def _in_rows(patterns: Patterns, per_row: int) -> Iterator[tuple[int, tuple[str, Tensor, int]]]:
    """Every head with the row it is in; each model begins a row."""
    row = -1
    for title, weights in patterns.items():
        for i in range(len(weights)):
            row += i % per_row == 0
            yield row, (title, weights, i)
