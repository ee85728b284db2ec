"""A matplotlib figure as SVG that a page can hold: its marks speak, its colours follow the page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from matplotlib.figure import Figure

from resval_lens.analyses.drawing.marks import TIP
from resval_lens.analyses.drawing.vector import GROUND, INKS, vector
from resval_lens.analyses.drawing.words import clean

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)


def svg(figure: Figure, name: str, prefix: str) -> str:
    """``figure`` as an ``<svg>`` element (:func:`inlined`)."""
    return inlined(vector(figure), name, prefix)


def inlined(document: str, name: str, prefix: str) -> str:
    """An SVG file of :func:`~resval_lens.analyses.drawing.vector.vector` as an ``<svg>`` element.

    It has an accessible name; each mark (:mod:`resval_lens.analyses.drawing.marks`) is a
    ``.rv-mark`` with its tip in ``aria-label``, one of which is reached with Tab and the others
    from there with the arrow keys (``page.js``).

    Args:
        name: what a screen reader says of it.
        prefix: of all ids, so that several figures can stand on one page.
    """
    root = ElementTree.fromstring(document)
    for child in (*root.findall(f"{{{SVG}}}style"), root.find(f"{{{SVG}}}defs")):
        if child is not None:  # rules of style would be the whole page's
            root.remove(child)
    for parent in root.iter():
        for ground in parent.findall(f"{{{SVG}}}g[@id='{GROUND}']"):
            parent.remove(ground)  # the page's own
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
        lambda found: f"{found[1]}: {_ink(found[2])}",
        style,
    )
    # The page's own font; only sizes and weights are the figure's.
    element.set("style", re.sub(r"'[^';]*'(, ?'[^';]*')*(, ?[\w-]+)*", "inherit", style, count=1)
                if element.tag == f"{{{SVG}}}text" else style)  # fmt: skip


def _ink(colour: str) -> str:
    if colour not in INKS:
        return colour
    name, _ = INKS[colour]
    return f"var(--rv-{name}, {colour})" if name else "currentColor"
