"""Tables and lines of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from resval_lens.analyses.results.tables import cells


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Rows as a Markdown table, whose first ``words`` columns are words and the others numbers."""
    rule = ["---" if i < words else "--:" for i in range(len(columns))]
    lines = [columns, rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def made(how: Mapping[str, Any]) -> str:
    """Which command made a document, when, on which commit: its ``provenance`` in a sentence."""
    versions = ", ".join(f"{name} {number}" for name, number in how["versions"].items())
    return (
        f"Made by `{how['command']}` on {how['created'][:10]}, commit "
        f"`{how['git_commit'][:7]}` ({versions}).\n"
    )


def as_markdown(tables: Iterable[Table | str]) -> list[str]:
    """A study's tables, each below its title and caption; numbers to the right, as they stand."""
    parts = []
    for table in tables:
        if isinstance(table, str):
            parts.append(table)
            continue
        headings, *rows = cells(table)
        words = sum(column.justify == "left" for column in table.columns)
        words += len(headings) - len(table.columns)  # the groups' own column
        caption = f" ({table.caption})" if table.caption else ""
        parts += [f"**{table.title}**{caption}", markdown_table(headings, rows, words)]
    return parts
