"""HTML that stands alone: style and script inside, nothing fetched."""

from __future__ import annotations

import json
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

# Nothing may leave a page. CircuitsVis runs TensorFlow.js, which wants blobs for its workers.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' blob:; "
    "img-src data: blob:; worker-src blob:; base-uri 'none'; form-action 'none'"
)


@cache
def style() -> str:
    """The ``<style>`` of pages and of displays in a notebook."""
    return f"<style>{_own('page.css')}</style>"


@cache
def script() -> str:
    """The ``<script>`` by which marks say their tips."""
    return f"<script>{_own('page.js')}</script>"


@cache
def circuitsvis_script() -> str:
    """CircuitsVis's bundle as a ``<script>`` that defines ``CircuitsVis`` once in a page."""
    bundle = (files("circuitsvis") / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    bundle = bundle.replace("</script", "<\\/script")
    return f"<script>window.CircuitsVis ??= (() => {{{bundle}\nreturn CircuitsVis;}})();</script>"


def circuitsvis(element: str, place: str, name: str, **props: Any) -> str:
    """One of CircuitsVis's elements, for a page that has :func:`circuitsvis_script` before it.

    Args:
        element: like ``"AttentionHeads"``.
        place: what the id of the ``<div>`` it is drawn into begins with.
        name: its accessible name.
        props: as JSON types.
    """
    data = json.dumps(props).replace("</", "<\\/").replace("<!--", "<\\!--")
    # A notebook may hold the same output twice: each <div> gets an id of its own as it is drawn.
    draw = (
        f"for (const place of document.querySelectorAll('[data-place=\"{place}\"]')) {{"
        " if (place.resvalDrawn) continue; place.resvalDrawn = true;"
        " window.resvalPlaces = (window.resvalPlaces ?? 0) + 1;"
        " place.id = `${place.dataset.place}-${window.resvalPlaces}`;"
        f" CircuitsVis.render(place.id, CircuitsVis.{element}, {data}); }}"
    )
    return (
        f'<div class="rv-circuitsvis" data-place="{escape(place)}" role="region" tabindex="0" '
        f'aria-label="{escape(name)}"></div><script>{draw}</script>'
    )


def scrolled(svg: str) -> str:
    """A figure that a narrow screen scrolls sideways; its marks take the keyboard there."""
    return f'<div class="rv-scroll">{svg}</div>'


def page(title: str, body: str, with_circuitsvis: bool = False) -> str:
    """A whole HTML document around ``body``, light or dark as the reader's system is."""
    bundle = circuitsvis_script() if with_circuitsvis else ""
    return (
        '<!doctype html>\n<html lang="en" class="rv-page">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n{style()}\n{bundle}\n'
        f'</head>\n<body class="rv">\n<main>\n{body}\n</main>\n{script()}\n</body>\n</html>\n'
    )


def _own(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
