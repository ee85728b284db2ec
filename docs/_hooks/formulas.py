r"""Formulas become MathML when the site is built: no script runs in the page, no font is fetched.

Pages write $...$ and $$...$$; pymdownx.arithmatex (generic) finds them, latex2mathml converts them.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def mathml(latex: str, display: str = "inline") -> str:
    """MathML of a formula, with its LaTeX as the annotation that readers copy.

    Raises:
        ValueError: a command that latex2mathml does not know (it would print it as it is).
    """
    made = convert(latex, display=display)
    unknown = re.search(r"<mi>(\\[a-zA-Z]+)</mi>", made)
    if unknown or "<mi>&</mi>" in made:
        what = unknown[1] if unknown else "&"
        raise ValueError(f"formula {latex!r}: {what!r} has no MathML")
    return made


def with_mathml(page: str) -> str:
    """HTML with every formula of arithmatex as MathML."""
    page = _INLINE.sub(lambda found: mathml(html.unescape(found[1]).strip()), page)
    return _BLOCK.sub(
        lambda found: '<div class="formula">' + mathml(html.unescape(found[1]).strip(), "block")
        + "</div>",
        page,
    )  # fmt: skip


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with each page's HTML."""
    return with_mathml(content)
