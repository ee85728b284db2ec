"""A matplotlib figure as SVG that a page can hold: its marks speak, its colours follow the page."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from resval_lens.analyses.drawing.figures import clean, clean_words
from resval_lens.analyses.drawing.marks import TIP

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)

INKS = {
    "#1a1a1a": "currentColor",
    "#555555": "var(--rv-grey, #555555)",
    "#888888": "var(--rv-faint, #888888)",
    "#999999": "var(--rv-faint, #999999)",
    "#0072b2": "var(--rv-blue, #0072b2)",
    "#d55e00": "var(--rv-red, #d55e00)",
    "#e8f1f8": "var(--rv-head, #e8f1f8)",
    "#f4f0e6": "var(--rv-mlp, #f4f0e6)",
}
"""Colours of figures that a page in dark mode shows otherwise."""


def svg(figure: Figure, name: str, prefix: str) -> str:
    """``figure`` as an ``<svg>`` element.

    It has an accessible name; each mark (:mod:`resval_lens.analyses.drawing.marks`) is a
    ``.rv-mark`` with its tip in ``aria-label``, one of which is reached with Tab and the others
    from there with the arrow keys (``page.js``).

    Args:
        name: what a screen reader says of it.
        prefix: of all ids, so that several figures can stand on one page.
    """
    clean_words(figure)
    written = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(
            written, format="svg", bbox_inches="tight", transparent=True, metadata=nothing
        )
    root = ElementTree.fromstring(clean(written.getvalue()))
    for child in (*root.findall(f"{{{SVG}}}metadata"), root.find(f"{{{SVG}}}defs")):
        if child is not None:  # its one rule of style would be the whole page's
            root.remove(child)
    width, height = (
        float(root.attrib.pop(side).removesuffix("pt")) for side in ("width", "height")
    )
    root.attrib.pop("version", None)
    root.set("viewBox", f"0 0 {width:g} {height:g}")
    root.set("style", f"--rv-width: {width:.0f}px")
    root.set("class", "rv-figure")
    root.set("role", "group")
    root.set("aria-label", clean(name))
    marks = 0
    for element in root.iter():
        _recolour(element)
        own = element.get("id")
        if own is not None and own.startswith(TIP):
            del element.attrib["id"]
            element.set("class", "rv-mark")
            if "fill: none" in ElementTree.tostring(element, encoding="unicode"):
                element.set("data-line", "")
            element.set("role", "img")
            element.set("aria-label", own.removeprefix(TIP))
            element.set("tabindex", "0" if marks == 0 else "-1")
            marks += 1
        elif own is not None:
            element.set("id", f"{prefix}-{own}")
        for attribute, value in element.attrib.items():
            if attribute == f"{{{XLINK}}}href" and value.startswith("#"):
                element.set(attribute, f"#{prefix}-{value[1:]}")
            elif "url(#" in value:
                element.set(attribute, value.replace("url(#", f"url(#{prefix}-"))
    return ElementTree.tostring(root, encoding="unicode")


def _recolour(element: ElementTree.Element) -> None:
    style = element.get("style")
    if style is None:
        return
    style = re.sub(
        r"(fill|stroke): (#[0-9a-f]{6})",
        lambda found: f"{found[1]}: {INKS.get(found[2], found[2])}",
        style,
    )
    # The page's own font; only sizes and weights are the figure's.
    element.set("style", re.sub(r"'[^';]*'(, ?'[^';]*')*(, ?[\w-]+)*", "inherit", style, count=1)
                if element.tag == f"{{{SVG}}}text" else style)  # fmt: skip
