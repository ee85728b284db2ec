"""AMICL, the one-layer associative memory that learns in context (arXiv 2412.15113, section 2)."""

from resval_lens.analyses.papers.amicl.model.memory import (
    AMICL,
    READINGS,
    SEPARATIONS,
    SIMILARITIES,
    AMICLConfig,
    fit_value_map,
)
from resval_lens.analyses.papers.amicl.model.transformer import best_classic, recall_transformer
from resval_lens.analyses.papers.amicl.model.trials import PairTask, Trials, exact, nearest

__all__ = [
    "AMICL",
    "READINGS",
    "SEPARATIONS",
    "SIMILARITIES",
    "AMICLConfig",
    "PairTask",
    "Trials",
    "best_classic",
    "exact",
    "fit_value_map",
    "nearest",
    "recall_transformer",
]
