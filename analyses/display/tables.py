"""The terminal's tables as HTML."""

from __future__ import annotations

import re

from rich.table import Table

from resval_lens.analyses.display.page import words
from resval_lens.analyses.results.tables import heads_group, text_of


def html_table(table: Table) -> str:
    """A rich table as a ``<table>`` that a narrow screen scrolls; bold rows head those below.

    Headings of several lines become one, what follows the first after a colon; the title and the
    caption stand together above, outside of what scrolls.
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
    title = _plain(table.title) if table.title else ""
    caption = f"<br>{_plain(table.caption)}" if table.caption else ""
    return (
        f'<div><p class="rv-caption">{title}{caption}</p>'
        f'<div class="rv-scroll" role="region" tabindex="0" aria-label="{title}">'
        f'<table aria-label="{title}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></div>"
    )


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
