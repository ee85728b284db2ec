"""Tables and lines of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from resval_lens.analyses.results.result import Result
from resval_lens.analyses.results.tables import cells
from resval_lens.numbers import number


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Rows as a Markdown table, whose first ``words`` columns are words and the others numbers."""
    rule = ["---" if i < words else "--:" for i in range(len(columns))]
    lines = [columns, rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number_cell(x: float | None, form: str) -> str:
    """A number in its form, with a true minus; blank if there is none."""
    return "" if x is None else number(x, form)


def bullets(sentences: Iterable[str]) -> str:
    """Sentences as a list in Markdown."""
    return "\n".join(f"- {each}" for each in sentences)


def in_full(study: Result) -> str:
    """What a study found, in words, then every table."""
    return "\n\n".join([bullets(study.sentences()), *as_markdown(study.tables())])


def made(how: Mapping[str, Any]) -> str:
    """Which command made a document, when, on which commit: its ``provenance`` in a sentence."""
    versions = ", ".join(f"{name} {number}" for name, number in how["versions"].items())
    return (
        f"Made by `{how['command']}` on {how['created'][:10]}, commit "
        f"`{how['git_commit'][:7]}` ({versions}).\n"
    )


def as_markdown(tables: Iterable[Table | str]) -> list[str]:
    """A study's tables, each below its title and caption; numbers have a true minus."""
    parts = []
    for table in tables:
        if isinstance(table, str):
            parts.append(table)
            continue
        heads, *rows = cells(table)
        words = sum(column.justify != "right" for column in table.columns)
        words += len(heads) - len(table.columns)  # the groups' own column
        signed = [[*row[:words], *(x.replace("-", "−") for x in row[words:])] for row in rows]
        title, caption = (" ".join(str(x or "").split()) for x in (table.title, table.caption))
        parts += [f"**{title}**" + f" ({caption})" * bool(caption)]
        parts += [markdown_table(heads, signed, words)]
    return parts
