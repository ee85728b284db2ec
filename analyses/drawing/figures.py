"""What every figure is drawn with: colours, words, files, curves over seeds."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import matplotlib
import numpy as np

if matplotlib.get_backend(auto_select=False) is None:  # a notebook, or a user, has chosen before
    matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from resval_lens.analyses.drawing.marks import points
from resval_lens.analyses.drawing.vector import vector
from resval_lens.analyses.drawing.words import clean_words
from resval_lens.io.files import write_bytes
from resval_lens.numbers import number

# Okabe and Ito's colours, told apart by all common kinds of colour vision.
COLOURS = {
    "classic": "#555555",
    "queries": "#E69F00",
    "keys": "#009E73",
    "values": "#0072B2",
    "v-raw": "#0072B2",
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


def colour(variant: str, taken: Collection[Any] = ()) -> str:
    """The variant's colour in every figure; of one that is not among the presets, by its name.

    Args:
        taken: colours that one not among the presets leaves to others, as long as there are more.
    """
    first = crc32(variant.encode()) % len(OTHERS)
    others = (*OTHERS[first:], *OTHERS[:first], *COLOURS.values())
    free = (each for each in others if each not in taken)
    return COLOURS.get(variant) or next(free, others[0])


def plain(name: str) -> str:
    """A name as words: matplotlib would read what stands between two $ as a formula."""
    return name.replace("$", r"\$")


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
    """``figure`` as a PNG, SVG or PDF, the same bytes each time.

    An SVG's words are text, and its colours follow the reader's light or dark theme.
    """
    if kind == "svg":
        return vector(figure).encode()
    clean_words(figure)
    written = io.BytesIO()
    dates: Any = {"CreationDate": None} if kind == "pdf" else None
    figure.savefig(
        written, format=kind, dpi=dpi, bbox_inches="tight", facecolor="white", metadata=dates
    )
    return written.getvalue()


def logarithmic(axes: Axes, *which: str, at: Sequence[float] | None = None) -> None:
    """Makes axes of drawn data logarithmic, with plain ticks: 1, 10, 100, 1,000.

    Where they span less than two decades 2 and 5 have ticks, too.

    Args:
        which: "x", "y".
        at: the ticks, where they are to be others.
    """
    for name in which:
        axes.set(**{f"{name}scale": "log"})
        low, high = sorted(getattr(axes, f"get_{name}lim")())
        axis = getattr(axes, f"{name}axis")
        if at is None:
            axis.set_major_locator(LogLocator(subs=(1,) if high >= 100 * low else (1, 2, 5)))
        else:
            axis.set_major_locator(FixedLocator(at))
            axis.set_minor_locator(FixedLocator([]))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}"))
        axis.set_minor_formatter(NullFormatter())


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
    shade = colour(name, {drawn.get_color() for drawn in axes.lines})
    for line in lines:
        at = [step / unit for step in line]
        axes.plot(at, list(line.values()), color=shade, alpha=alpha, lw=0.8)
    steps = [step for step in lines[0] if all(step in line for line in lines)]
    at = [step / unit for step in steps]
    mean = [float(np.mean([line[step] for line in lines])) for step in steps]
    axes.plot(at, mean, dashes, color=shade, lw=2, label=plain(name))
    texts = [f"{name}, step {step:,}: {number(y)}" for step, y in zip(steps, mean, strict=True)]
    points(axes, at, mean, texts, shade)
