"""Grafts on a pretrained model: the results page's section, from the runs that ship."""

from __future__ import annotations

from rich.table import Table

from resval_lens.analyses.comparison.grafts import grafts
from resval_lens.analyses.report.markdown import markdown_table
from resval_lens.analyses.results.tables import cells
from resval_lens.training.graft_run import GraftRun
from resval_lens.training.recorded import load_runs

AGAINST = "link"


def graft_section() -> str:
    """What was found, in words, then every table."""
    study = grafts(load_runs(GraftRun), AGAINST)
    said = "\n".join(f"- {sentence}" for sentence in study.sentences())
    return "\n\n".join([said, *(_markdown(each) for each in study.tables())]).replace("[", "\\[")


def _markdown(table: Table) -> str:
    heads, *rows = cells(table)
    words = sum(column.justify != "right" for column in table.columns)
    caption = " ".join(str(table.caption or "").split())
    signed = [[*row[:words], *(cell.replace("-", "−") for cell in row[words:])] for row in rows]
    shown = markdown_table(heads, signed, words)
    return f"**{' '.join(str(table.title).split())}** ({caption})\n\n{shown}"
