"""Marks: parts of a figure that say their numbers to whoever points at them.

A mark is any matplotlib artist with a tip. A PNG shows it as always; a page
(:mod:`resval_lens.analyses.display`) says the tip on hover, on touch and by keyboard.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.patches import Rectangle

TIP = "tip:"
"""What the gid of a mark begins with; the tip follows."""


def tip(artist: Artist, text: str) -> None:
    """Makes ``artist`` a mark that says ``text``."""
    artist.set_gid(TIP + text)


def points(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    texts: Sequence[str],
    shade: str,
    most: int = 40,
) -> None:
    """Marks along a curve, unseen until a reader points at one.

    Args:
        texts: what each point says.
        shade: of the dot that appears.
        most: so many at most, evenly spread, the last among them.
    """
    chosen = np.unique(np.linspace(len(x) - 1, 0, min(most, len(x))).round().astype(int))
    for i in chosen:
        (dot,) = axes.plot(x[i], y[i], "o", color=shade, ms=7, alpha=0.0)
        tip(dot, texts[i])


def cells(
    axes: Axes,
    values: Float[np.ndarray, "row column"],
    texts: Sequence[Sequence[str]],
    cmap: Colormap,
    norm: Normalize,
) -> ScalarMappable:
    """A heat map whose every cell is a mark; row 0 is above.

    Args:
        texts: what each cell says.

    Returns:
        What a colour bar needs.
    """
    shades = ScalarMappable(norm, cmap)
    for (i, j), value in np.ndenumerate(values):
        cell = Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=shades.to_rgba(value), lw=0)
        tip(cell, texts[i][j])
        axes.add_patch(cell)
    rows, columns = values.shape
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    return shades
