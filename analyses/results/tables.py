"""Tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.table import Table

STYLE: Any = {"title_justify": "left", "caption_justify": "left", "box": box.SIMPLE_HEAD}
WIDE: Any = STYLE | {"min_width": 64}
NARROW: Any = STYLE | {"pad_edge": False, "padding": (0, 1, 0, 0)}

Row = Sequence[str] | None
"""Cells; None begins a section."""


def table(
    title: str,
    words: Sequence[str],
    numbers: Iterable[str],
    rows: Iterable[Row],
    caption: str = "",
    style: Any = STYLE,
) -> Table:
    """A table of ``words``, the columns on the left, and ``numbers``, which stand to the right.

    Args:
        rows: a cell for each column; where there are fewer, the last are blank.
    """
    made = Table(title=title or None, caption=caption or None, **style)
    for name in words:
        made.add_column(name, no_wrap=True)
    for name in numbers:
        made.add_column(name, justify="right")
    for row in rows:
        if row is None:
            made.add_section()
        else:
            made.add_row(*row)
    return made


def in_sections(rows: Iterable[Sequence[str]]) -> Iterator[Row]:
    """``rows`` with a section for each first cell, which only its first row says."""
    for _, own in groupby(rows, key=lambda row: row[0]):
        yield None
        for number, (first, *cells) in enumerate(own):
            yield [first if not number else "", *cells]


def optional(number: float | None, form: str) -> str:
    """The number in its form; blank if there is none."""
    return "" if number is None else format(number, form)
