"""HTML that stands alone: style and script inside, nothing fetched."""

from __future__ import annotations

import io
import json
import re
from base64 import b64encode
from functools import cache
from html import escape
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from resval_lens.analyses.drawing.words import clean

# Nothing may leave a page. CircuitsVis runs TensorFlow.js, which wants blobs for its workers.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' blob:; "
    "img-src data: blob:; worker-src blob:; base-uri 'none'; form-action 'none'"
)


HEADS, CIRCUITSVIS = 'class="rv-heads"', 'class="rv-circuitsvis"'
OWN = {HEADS: "attention", '<div class="rv-circuit"': "circuit"}
"""What a body has where it needs more than ``page.js``, and the files that it needs; words of
others have no such quotes."""


def style(body: str) -> str:
    """The ``<style>`` that ``body`` needs, on a page or in a notebook."""
    more = "".join(_own(f"{name}.css") for sign, name in OWN.items() if sign in body)
    return f"<style>{_own('page.css')}{more}</style>"


def script(body: str) -> str:
    """The ``<script>`` that ``body`` needs: marks say their tips, heads and circuits are drawn."""
    more = "".join(_own(f"{name}.js") for sign, name in OWN.items() if sign in body)
    return f"<script>{_own('page.js')}{more}</script>"


@cache
def export_script() -> str:
    """The ``<script>`` of pages that saves figures and tables as files."""
    return f"<script>{_own('export.js')}</script>"


@cache
def circuitsvis_script() -> str:
    """CircuitsVis's bundle as a ``<script>``; ``page.js`` draws, whichever of the two is first."""
    bundle = (files("circuitsvis") / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    bundle = bundle.replace("</script", "<\\/script")
    return (
        f"<script>window.CircuitsVis ??= (() => {{{bundle}\nreturn CircuitsVis;}})();"
        "window.resvalDraw?.();</script>"
    )


def circuitsvis(element: str, name: str, **props: Any) -> str:
    """One of CircuitsVis's elements, for a page that has :func:`circuitsvis_script`, too.

    Args:
        element: like ``"AttentionPatterns"``.
        name: its accessible name.
        props: as JSON types; ``attention`` in ten-thousandths.
    """
    return (
        f'<div {CIRCUITSVIS} role="region" tabindex="0" aria-label="{words(name)}">'
        f"{data({'element': element, 'props': props})}</div>"
    )


def heads(name: str, content: Any) -> str:
    """Where ``attention.js`` draws; ``content`` is what it reads, as JSON types."""
    return f'<div {HEADS} role="region" aria-label="{words(name)}">{data(content)}</div>'


def slug(name: str) -> str:
    """``name`` as a part of an address: small ASCII letters, digits and hyphens."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def permalink(place: str, name: str) -> str:
    """The ¶ that names a place of a page, and leads to it; its id is the place's."""
    own = slug(place)
    return (
        f'<a class="rv-permalink" id="{own}" href="#{own}" aria-label="Link to {words(name)}">¶</a>'
    )


def tools(place: str, name: str) -> str:
    """The line above a figure or a table: its ¶, to which ``export.js`` adds buttons."""
    own = permalink(place, name)
    return f'<div class="rv-tools" data-of="{words(name)}">{own}</div>'


def told_apart(body: str) -> str:
    """``body`` with a number after each permalink's id that an earlier one has, too."""
    seen: set[str] = set()

    def own(found: re.Match[str]) -> str:
        names = (f"{found[1]}-{number}" if number > 1 else found[1] for number in count(1))
        name = next(name for name in names if name not in seen)
        seen.add(name)
        return f'id="{name}" href="#{name}"'

    return re.sub(r'id="([a-z0-9-]+)" href="#\1"', own, body)


def later(body: str) -> str:
    """HTML that ``page.js`` puts here; where no script runs it is not there, not even as words."""
    return f'<div class="rv-later" hidden>{data(body)}</div>'


def data(content: Any, of: str = "") -> str:
    """JSON that scripts read and no browser takes for anything else; ``of`` is its class."""
    text = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    kind = f' class="{of}"' if of else ""
    return f'<script type="application/json"{kind}>{text}</script>'


def still(image: bytes, name: str) -> str:
    """A PNG inside of HTML, before what ``page.js`` shows in its place."""
    text = b64encode(image).decode()
    return f'<img class="rv-still" alt="{words(name)}" src="data:image/png;base64,{text}">'


def small(image: bytes) -> bytes:
    """A PNG in at most 32 colours."""
    written = io.BytesIO()
    few = Image.open(io.BytesIO(image)).convert("RGB").quantize(32, Image.Quantize.MAXCOVERAGE)
    few.save(written, format="png", optimize=True)
    return written.getvalue()


def words(text: str) -> str:
    """``text`` as HTML, in an element or in an attribute: everything that is not ours, by this."""
    return escape(clean(text))


def scrolled(svg: str) -> str:
    """A figure that a narrow screen scrolls sideways; its marks take the keyboard there."""
    return f'<div class="rv-scroll">{svg}</div>'


def page(title: str, body: str) -> str:
    """A whole HTML document around ``body``, light or dark as the reader's system is."""
    bundle = circuitsvis_script() if CIRCUITSVIS in body else ""
    return (
        '<!doctype html>\n<html lang="en" class="rv-page">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<link rel="icon" href="data:,">\n<title>{words(title)}</title>\n{style(body)}\n{bundle}\n'
        f'</head>\n<body class="rv">\n<main>\n{told_apart(body)}\n</main>\n{script(body)}\n'
        f"{export_script()}\n</body>\n</html>\n"
    )


@cache
def _own(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
