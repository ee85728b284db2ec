"""Pictures of the two-layer study. Every number in them is in the JSON beside them."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.text import Text

from resval_lens.analyses.drawing.marks import cells, points, tip
from resval_lens.io.files import write_bytes
from resval_lens.numbers import number
from resval_lens.tasks.icl import MEANING, TASKS

if TYPE_CHECKING:
    from resval_lens.analyses.comparison.icl import AttentionStudy, LinkStudy

# Okabe and Ito's colours, told apart by all common kinds of colour vision.
COLOURS = {
    "classic": "#555555",
    "queries": "#E69F00",
    "keys": "#009E73",
    "values": "#0072B2",
    "values-detached": "#56B4E9",
    "queries-values": "#CC79A7",
    "queries-keys-values": "#D55E00",
    "values-half": "#B8A800",
}
KINDS = ("png", "svg", "pdf")
"""Formats of images, as suffixes name them."""
INK = "#1A1A1A"
"""Of words and axes; a page shows it in its own."""
STYLE: Any = {
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
    "figure.dpi": 100,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


OTHERS = ("#8C564B", "#7F6FBF", "#17A2A2", "#B5527A")


def colour(variant: str) -> str:
    """The variant's colour in every figure; of one that is not among the presets, by its name."""
    return COLOURS.get(variant, OTHERS[crc32(variant.encode()) % len(OTHERS)])


def plain(name: str) -> str:
    """A name as words: matplotlib would read what stands between two $ as a formula."""
    return name.replace("$", r"\$")


UNSAFE = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\u2029\u202f-\u2065\u206a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)
"""Control characters, lone surrogates, what reverses the direction of words: tokens have them."""


def clean(text: str) -> str:
    """``text`` with a sign in place of what no document may hold or what turns words around."""
    return UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)


def clean_words(figure: Figure) -> None:
    """Every word of a figure that is still to be drawn, by :func:`clean`."""
    for word in figure.findobj(Text):
        word.set_text(clean(word.get_text()))


def legible(text: str) -> str:
    """A token with a sign in place of what cannot be printed."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def per_row(panels: int) -> int:
    """Panels side by side: up to three; of more two, so that their words stay legible."""
    return panels if panels <= 3 else 2


def save(figure: Figure, path: Path) -> Path:
    """Writes ``figure`` as what the suffix names (.png, .svg, .pdf), whole or not at all.

    The figure is closed.

    Raises:
        ValueError: another suffix.
    """
    try:
        write_bytes(path, drawn(figure, kind_of(path)))
    finally:
        plt.close(figure)
    return path


def kind_of(path: Path, *others: str) -> str:
    """The format of an image that the suffix of ``path`` names, or one of ``others``.

    Raises:
        ValueError: the suffix names none of these.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in (*KINDS, *others):
        *most, last = (f".{kind}" for kind in (*others, *KINDS))
        raise ValueError(f"a picture is saved as {', '.join(most)} or {last}; got {str(path)!r}")
    return kind


def drawn(figure: Figure, kind: str, dpi: int = 150) -> bytes:
    """``figure`` as a PNG, SVG or PDF, the same bytes each time."""
    clean_words(figure)
    written: Any = io.StringIO() if kind == "svg" else io.BytesIO()
    dates: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with plt.rc_context({"svg.hashsalt": "resval-lens"}):
        figure.savefig(
            written, format=kind, dpi=dpi, bbox_inches="tight", facecolor="white",
            metadata=dates.get(kind),
        )  # fmt: skip
    content = written.getvalue()
    return clean(content).encode() if kind == "svg" else content


def seed_curves(
    axes: Axes,
    lines: Sequence[Mapping[int, float]],
    name: str,
    alpha: float,
    dashes: str = "-",
    unit: int = 1,
) -> None:
    """One line a seed (thin) and their mean (thick) at the steps that all have.

    Args:
        lines: {step: value} of each seed.
        alpha: of the thin lines.
        unit: steps that count as one on the axis.
    """
    shade = colour(name)
    for line in lines:
        at = [step / unit for step in line]
        axes.plot(at, list(line.values()), color=shade, alpha=alpha, lw=0.8)
    steps = [step for step in lines[0] if all(step in line for line in lines)]
    at = [step / unit for step in steps]
    mean = [float(np.mean([line[step] for line in lines])) for step in steps]
    axes.plot(at, mean, dashes, color=shade, lw=2, label=plain(name))
    texts = [f"{name}, step {step:,}: {number(y)}" for step, y in zip(steps, mean, strict=True)]
    points(axes, at, mean, texts, shade)


def link_edits(links: Mapping[str, LinkStudy]) -> Figure:
    """Accuracy against the factor c by which a model's links are scaled; dots: mean-ablation."""
    with plt.rc_context(STYLE):
        columns = per_row(len(links))
        lines = -(-len(links) // columns)
        figure, grid = plt.subplots(
            lines, columns, figsize=(4.2 * columns, 3.4 * lines), sharey=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for axes in grid.flat[len(links) :]:
            axes.axis("off")
        shades = dict(zip(TASKS, ("#555555", "#0072B2", "#56B4E9", "#D55E00"), strict=True))
        for axes, (variant, study) in zip(grid.flat, links.items(), strict=False):
            factors = list(study.scale)
            for task, label in TASKS.items():
                accuracies = [row[task] for row in study.scale.values()]
                axes.plot(factors, accuracies, color=shades[task], label=label, lw=2)
                texts = [
                    f"{variant}, links scaled by {number(c, 'g')}: {label} {number(y)}"
                    for c, y in zip(factors, accuracies, strict=True)
                ]
                points(axes, factors, accuracies, texts, shades[task])
                ablated = study.mean[task]
                (dot,) = axes.plot(0, ablated, "o", color=shades[task], mfc="none", ms=6)
                tip(dot, f"{variant}, links mean-ablated: {label} {number(ablated)}")
            axes.axvline(0, color="#999999", lw=0.8, ls=":")
            axes.axvline(1, color="#999999", lw=0.8, ls=":")
            axes.set(
                title=plain(variant), xlabel="link scaled by c (0: cut, 1: whole)", ylim=(0, 1.02)
            )
        for axes in grid[:, 0]:
            axes.set_ylabel("accuracy")
        grid[0, -1].legend(title="○ mean-ablated", loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def attention(attention: Mapping[str, AttentionStudy]) -> Figure:
    """Mean attention of both layers on fresh classes, one column a model."""
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            2, len(attention), figsize=(3.1 * len(attention), 6.4), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for column, (variant, study) in zip(grid.T, attention.items(), strict=True):
            measures = study.measures
            notes = (
                f"label to its object: {measures['ila1_labels']:.2f}",
                f"query to right labels: {measures['tila2']:.2f}",
            )
            for layer, axes in enumerate(column):
                pattern = np.array(study.mean_pattern[layer])
                tokens = ["o" if i % 2 == 0 else "l" for i in range(len(pattern) - 1)] + ["q"]
                texts = [
                    [
                        f"{tokens[i]} {i} to {tokens[j]} {j}: {number(weight)}"
                        for j, weight in enumerate(row)
                    ]
                    for i, row in enumerate(pattern)
                ]
                image = cells(axes, pattern, texts, plt.get_cmap("viridis"), PowerNorm(0.5, 0, 1))
                axes.set_aspect("equal")
                axes.set_xticks(range(len(tokens)), tokens, fontsize=7)
                axes.set_yticks(range(len(tokens)), tokens, fontsize=7)
                axes.tick_params(length=0)
                axes.set_title(f"{plain(variant)}, layer {layer + 1}\n{notes[layer]}", fontsize=9)
        grid[0, 0].set_ylabel("from")
        grid[1, 0].set_ylabel("from")
        for axes in grid[1]:
            axes.set_xlabel("to")
        figure.colorbar(
            image, ax=grid, shrink=0.6, label="mean attention (o object, l label, q query)"
        )
    return figure


def bars(models: Mapping[str, Mapping[str, float]]) -> Figure:
    """Accuracy of each model on each task."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
        width = 0.8 / len(models)
        for i, (variant, accuracies) in enumerate(models.items()):
            places = np.arange(len(TASKS)) + (i - (len(models) - 1) / 2) * width
            heights = [accuracies[task] for task in TASKS]
            drawn = axes.bar(
                places, heights, width * 0.92, color=colour(variant), label=plain(variant)
            )
            for bar, task, height in zip(drawn, TASKS, heights, strict=True):
                tip(bar, f"{variant}, {TASKS[task]} ({MEANING[task]}): {number(height, 'z.4f')}")
            axes.bar_label(drawn, [f"{h:.2f}" for h in heights], fontsize=7, padding=1)
        labels = [f"{label}\n{MEANING[task]}" for task, label in TASKS.items()]
        axes.set_xticks(range(len(TASKS)), labels)
        axes.set(ylabel="accuracy", ylim=(0, 1.08))
        axes.legend(ncols=len(models), loc="upper center", bbox_to_anchor=(0.5, 1.16))
    return figure
