"""Grafts on a pretrained model: the results page's section, from the runs that ship."""

from __future__ import annotations

from resval_lens.analyses.comparison.grafts import grafts
from resval_lens.analyses.report.markdown import as_markdown, bullets
from resval_lens.training.graft_run import GraftRun
from resval_lens.training.recorded import load_runs

AGAINST = "link"


def graft_section() -> str:
    """What was found, in words, then every table."""
    study = grafts(load_runs(GraftRun), AGAINST)
    return "\n\n".join([bullets(study.sentences()), *as_markdown(study.tables())]).replace(
        "[", "\\["
    )
