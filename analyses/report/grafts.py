"""Grafts on a pretrained model: the results page's section, from the runs that ship."""

from __future__ import annotations

from functools import cache

from resval_lens.analyses.comparison.grafts import Grafts, grafts
from resval_lens.analyses.report.markdown import in_full
from resval_lens.training.graft_run import GraftRun
from resval_lens.training.recorded import load_runs

AGAINST = "link"


@cache
def recorded_grafts(against: str = AGAINST) -> Grafts:
    """The study of the grafts that ship, each beside the one of the name ``against``."""
    return grafts(load_runs(GraftRun), against)


def graft_section() -> str:
    """What was found, in words, then every table."""
    return in_full(recorded_grafts()).replace("[", "\\[")
