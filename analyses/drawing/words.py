"""Words that a document may hold."""

from __future__ import annotations

import re

from matplotlib.figure import Figure
from matplotlib.text import Text

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
