"""ACDC (Conmy et al. 2023, arXiv 2304.14997): from the logits back, drop what does not matter."""

from __future__ import annotations

from collections.abc import Callable

import torch

from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.graph import Graph, Reader, Receiver
from resval_lens.analyses.circuits.running import EdgeRuns

AT_ONCE = 16


def acdc(
    runs: EdgeRuns,
    tau: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Circuit:
    """The edges that stay when each is dropped whose loss changes the mean metric by less than tau.

    Readers are visited from the logits to the input, each reader's edges from the last writer to
    the first; an edge is tried with everything gone that was dropped before it.

    Args:
        tau: in the unit of the metric.
        progress: called with the edges that were visited, of all.

    Raises:
        ValueError: ``tau`` is not above 0.
    """
    if not tau > 0:
        raise ValueError(f"tau must be above 0; got {tau!r}")
    graph = runs.graph
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
            if abs(metric - before) >= tau:
                break
            kept[edge], before = False, metric
        progress(visited, len(order))
    return Circuit(graph, kept)


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
