"""The terminal's tables as HTML."""

from __future__ import annotations

import re

from rich.table import Table

from resval_lens.analyses.display.page import data, tools, words
from resval_lens.analyses.results.tables import as_csv, heads_group, text_of

LONG = 12
"""Tables of more rows are folded."""


def html_table(table: Table) -> str:
    """A rich table as a ``<table>`` that a narrow screen scrolls; bold rows head those below.

    Headings of several lines become one, what follows the first after a colon; the title and the
    caption stand together above, outside of what scrolls. A table of more than ``LONG`` rows is
    folded. Its CSV, the same as in the file beside the page, is what ``export.js`` saves.
    """
    columns = [list(column.cells) for column in table.columns]
    left_of = [column.justify not in ("right", "center") for column in table.columns]
    head = "".join(
        f'<th scope="col"{_side(left)}>{_heading(column.header)}</th>'
        for column, left in zip(table.columns, left_of, strict=True)
    )
    lines = []
    for number, row in enumerate(table.rows):
        own = [cells[number] for cells in columns]
        first, *rest = map(text_of, own)
        if heads_group(own):
            lines.append(
                f'<tr class="rv-group"><th scope="rowgroup" colspan="{len(columns)}">'
                f"{words(first.plain)}</th></tr>"
            )
            continue
        cells = "".join(
            f"<td{_side(left)}>{words(text.plain if left else _minus(text.plain))}</td>"
            for text, left in zip(rest, left_of[1:], strict=True)
        )
        last = ' class="rv-section"' if row.end_section else ""
        lines.append(f'<tr{last}><th scope="row">{words(first.plain.strip())}</th>{cells}</tr>')
    title = _plain(table.title) if table.title else "Table"
    caption = f"<p>{_plain(table.caption)}</p>" if table.caption else ""
    body = (
        f'<div class="rv-scroll" role="region" tabindex="0" aria-label="{title}">'
        f'<table aria-label="{title}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
    count = len(lines)
    shown = (
        f"<details><summary>{title} ({count} rows)</summary>{caption}{body}</details>"
        if count > LONG
        else f"<p>{title}</p>{caption}{body}"
    )
    named = text_of(table.title or "Table").plain.split("\n")[0]
    above, csv = tools(f"table {named}", named), data(as_csv(table), "rv-csv")
    return f'<div class="rv-table">{above}{shown}{csv}</div>'


def _minus(cell: str) -> str:
    """Numbers with the minus sign that figures have (U+2212)."""
    return re.sub(r"(?<![\w-])-(?=\.?\d)", "\N{MINUS SIGN}", cell)


def _side(left: bool) -> str:
    return ' class="rv-words"' if left else ""


def _heading(cell: object) -> str:
    first, _, rest = text_of(cell).plain.partition("\n")
    return _plain(f"{first}: {rest}" if rest else first)


def _plain(cell: object) -> str:
    return words(" ".join(text_of(cell).plain.split()))
