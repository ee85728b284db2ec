"""ACDC (Conmy et al. 2023, arXiv 2304.14997): from the logits back, drop what does not matter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.analyses.circuits.graph import Graph, Reader, Receiver
from resval_lens.analyses.circuits.running import EdgeRuns

AT_ONCE = 16


def acdc_scores(
    runs: EdgeRuns,
    threshold: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Float[Tensor, " edge"]:
    """What dropping each edge does to the mean metric, all gone that was dropped before.

    An edge stays dropped if that is less than ``threshold``; the others are ACDC's circuit. Readers
    are visited from the logits to the input, each reader's edges from the last writer to the first.

    Args:
        threshold: in the unit of the metric.
        progress: called with the edges that were visited, of all.
    """
    graph = runs.graph
    scores = torch.zeros(len(graph), dtype=torch.float64)
    kept = torch.ones(len(graph), dtype=torch.bool)
    before = runs.clean
    order = _order(graph)
    visited = 0
    while visited < len(order):
        # As if all were dropped: right up to the first that is not, and most are.
        trial = order[visited : visited + AT_ONCE]
        tried = kept.repeat(len(trial), 1)
        for row in range(len(trial)):
            tried[row, trial[: row + 1]] = False
        for edge, metric in zip(trial, runs.means(tried).tolist(), strict=True):
            visited += 1
            scores[edge] = metric - before
            if abs(metric - before) >= threshold:
                break
            kept[edge], before = False, metric
        progress(visited, len(order))
    return scores


def _order(graph: Graph) -> list[int]:
    """The edges' numbers, those nearest to the logits first."""
    ports = ("logits", "mlp", "link", "v", "k", "q")

    def place(group: Reader | Receiver) -> tuple[int, int]:
        port = group.port if isinstance(group, Reader) else "link"
        layer = group.layer + (port == "logits")
        return (-layer, ports.index(port))

    order: list[int] = []
    for group in sorted(graph.groups, key=place):
        span = group.edges
        if isinstance(group, Reader):
            rows = torch.arange(span.start, span.stop).view(len(group.names), group.writers)
            order += rows.flip(1).flatten().tolist()
        else:
            order += range(span.stop - 1, span.start - 1, -1)
    return order
