"""Tables in the terminal, and the same as CSV and as data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich import box
from rich.errors import MarkupError
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pandas import DataFrame

STYLE: Any = {"title_justify": "left", "caption_justify": "left", "box": box.SIMPLE_HEAD}
WIDE: Any = STYLE | {"min_width": 64}
NARROW: Any = STYLE | {"pad_edge": False, "padding": (0, 1, 0, 0)}

MOST_WORDS = 50
"""Width of words beside which a terminal of 80 has room for numbers."""

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

    Words stay on one line, unless they would leave no room for the numbers.

    Args:
        rows: a cell for each column; where there are fewer, the last are blank.
    """
    made = Table(title=title or None, caption=caption or None, **style)
    for name in words:
        made.add_column(name, overflow="fold")
    for name in numbers:
        made.add_column(name, justify="right")
    for row in rows:
        if row is None:
            made.add_section()
        else:
            made.add_row(*row)
    said = made.columns[: len(words)]
    widths = (max((text_of(cell).cell_len for cell in each.cells), default=0) for each in said)
    short = sum(widths) <= MOST_WORDS
    for column in said:
        column.no_wrap = short
    return made


def in_sections(rows: Iterable[Sequence[str]]) -> Iterator[Row]:
    """``rows`` with a section for each first cell, which only its first row says."""
    for _, own in groupby(rows, key=lambda row: row[0]):
        yield None
        for number, (first, *cells) in enumerate(own):
            yield [first if not number else "", *cells]


def in_groups(rows: Iterable[Sequence[str]]) -> Iterator[Row]:
    """``rows`` without their first cells, which stand in bold above those that have them."""
    for group, own in groupby(rows, key=lambda row: row[0]):
        yield None
        yield [f"[bold]{group}[/bold]"]
        yield from ([f" {name}", *cells] for _, name, *cells in own)


def optional(number: float | None, form: str) -> str:
    """The number in its form; blank if there is none."""
    return "" if number is None else format(number, form)


def p_cell(p: float | None) -> str:
    """A p-value as tables have it, like ``.023``, ``.0008`` and ``<.0001``; blank if there is none.

    Three decimals, four below .001.
    """
    if p is None:
        return ""
    if p < 1e-4:
        return "<.0001"
    told = f"{p:.3f}" if p >= 0.001 else f"{p:.4f}"
    return "1" if told == "1.000" else told.removeprefix("0")


def p_told(p: float | None) -> str:
    """A p-value as sentences have it, like ``p = .023`` and ``p < .0001``, or ``no test``."""
    if p is None:
        return "no test"
    told = p_cell(p)
    return f"p < {told[1:]}" if told.startswith("<") else f"p = {told}"


def text_of(cell: object) -> Text:
    """A cell without its markup."""
    try:
        return cell if isinstance(cell, Text) else Text.from_markup(str(cell))
    except MarkupError:  # rich's own escape lets some names with backslashes through
        return Text(str(cell))


def heads_group(row: Sequence[object]) -> bool:
    """Whether a row is a bold name alone, which the rows below belong to."""
    first, *rest = row
    bold = isinstance(first, str) and first.startswith("[bold]")
    return bold and not any(text_of(cell).plain.strip() for cell in rest)


def cells(table: Table) -> list[list[str]]:
    """The headings of a table, then its rows, as shown: numbers are rounded.

    Each row says its name, where only the first of several shows it, and the group that it is in,
    in a column of its own, where a table has groups.
    """
    shown: list[list[str]] = []
    group, name = "", ""
    for row in zip(*(column.cells for column in table.columns), strict=True):
        first, *rest = (" ".join(text_of(cell).plain.split()) for cell in row)
        if heads_group(row):
            group, name = first, ""
            continue
        name = first or name
        shown.append([group, name, *rest])
    headings = [" ".join(text_of(column.header).plain.split()) for column in table.columns]
    if group:
        return [["group", *headings], *shown]
    return [headings, *(row[1:] for row in shown)]


def as_csv(table: Table) -> str:
    """The :func:`cells` of a table as CSV."""
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(cells(table))
    return written.getvalue()


def as_frame(table: Table) -> DataFrame:
    """The :func:`cells` of a table as a pandas data frame; ``attrs["title"]`` is its title.

    A column of numbers, which may have gaps, is one of numbers; others are text.
    """
    from pandas import DataFrame, to_numeric

    headings, *rows = cells(table)
    frame = DataFrame(rows, columns=headings)
    for place in range(len(headings)):
        column = (
            frame.iloc[:, place]
            .str.replace(r"(?<=\d),(?=\d{3}\b)", "", regex=True)
            .replace("", None)
        )
        numbers = to_numeric(column, errors="coerce")
        if numbers.notna().any() and (numbers.notna() == column.notna()).all():
            frame.isetitem(place, numbers)
    frame.attrs["title"] = " ".join(text_of(table.title or "").plain.split())
    return frame
