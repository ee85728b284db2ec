"""A figure as an SVG file: words are text, colours follow the reader's light or dark theme."""

from __future__ import annotations

import io
import re

import matplotlib
from matplotlib.figure import Figure

from resval_lens.analyses.drawing.words import clean, clean_words

INKS = {
    "#000000": ("", "#e6e6e6"),
    "#1a1a1a": ("", "#e6e6e6"),
    "#333333": ("grey", "#b4b4b4"),
    "#555555": ("grey", "#b4b4b4"),
    "#666666": ("grey", "#b4b4b4"),
    "#888888": ("faint", "#858585"),
    "#999999": ("faint", "#858585"),
    "#0072b2": ("blue", "#58a9dd"),
    "#d55e00": ("red", "#f08438"),
    "#e8f1f8": ("head", "#24384a"),
    "#f4f0e6": ("mlp", "#3d382a"),
}
"""Colours of figures that are others in the dark: their names in page.css ("": the page's own
words), and what they are there."""
GROUND = "patch_1"
"""What matplotlib calls the ground of a figure."""
PAPER = "#16191d"
"""Of a figure in the dark."""
THEME = "".join(
    f'[style*="{part}: {light}"] {{ {part}: {dark} !important }}\n'
    for light, (_, dark) in INKS.items()
    for part in ("fill", "stroke")
)
STYLE = (
    "<style>@media (prefers-color-scheme: dark) {\n"
    f"{THEME}#{GROUND} path {{ fill: {PAPER} !important }}\n}}</style>"
)
_PLACES = re.compile(r'(?<=\s)(?:d|x|y|points)="[^"]*"')
_LONG = re.compile(r"-?\d+\.\d{3,}")


def vector(figure: Figure) -> str:
    """``figure`` as an SVG document, the same each time.

    Places are rounded to hundredths of a point. In the dark the colours of :data:`INKS` are others;
    programs that know no style for it, like those that print, show the light ones.
    """
    clean_words(figure)
    written = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "resval-lens"}):
        figure.savefig(
            written, format="svg", bbox_inches="tight", transparent=True, facecolor="white",
            metadata=nothing,
        )  # fmt: skip
    text = _PLACES.sub(lambda found: _LONG.sub(_short, found[0]), clean(written.getvalue()))
    return text.replace("<defs>", f"{STYLE}\n <defs>", 1)


def _short(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")
