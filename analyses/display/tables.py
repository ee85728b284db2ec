"""The terminal's tables as HTML."""

from __future__ import annotations

import re

from rich.errors import MarkupError
from rich.table import Table
from rich.text import Text

from resval_lens.analyses.display.page import words


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
        first, *rest = (_text(cells[number]) for cells in columns)
        group = _is_bold(columns[0][number]) and not any(text.plain.strip() for text in rest)
        if group:
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


def _text(cell: object) -> Text:
    try:
        return cell if isinstance(cell, Text) else Text.from_markup(str(cell))
    except MarkupError:  # rich's own escape lets some names with backslashes through
        return Text(str(cell))


def _heading(cell: object) -> str:
    first, _, rest = _text(cell).plain.partition("\n")
    return _plain(f"{first}: {rest}" if rest else first)


def _plain(cell: object) -> str:
    return words(" ".join(_text(cell).plain.split()))


def _is_bold(cell: object) -> bool:
    return isinstance(cell, str) and cell.startswith("[bold]")
