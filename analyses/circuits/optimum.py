"""The circuit of the largest sum: edge selection as an integer program (arXiv 2510.25786).

    maximise    Σ w_e x_e                            w_e what edges are ranked by, x_e ∈ {0, 1}
    subject to  Σ x_e ≤ n
                x_e ≤ r_u,  x_e ≤ s_v                of an edge e from u to v
                r_v ≤ Σ x_e + Σ r_u                  over edges, and ways inside heads, into v
                s_u ≤ Σ x_e + Σ s_v                  over edges, and ways inside heads, out of u

r says of a node that the input reaches it, s that it reaches the logits, along edges that are kept:
so every edge lies on a way from the input to the logits, links and heads' insides included, as in
:meth:`~resval_lens.analyses.circuits.circuit.Circuit.pruned`. A gated link e from u to v, which
acts without its source, too, needs x_e ≤ r_v and x_e ≤ s_v, and carries on y_e ≤ x_e, r_u in place
of x_e.
"""

from __future__ import annotations

from time import monotonic
from typing import NamedTuple

import numpy as np
import scipy
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from resval_lens.analyses.circuits.circuit import Circuit, Rank, check_count, greedy, ranked
from resval_lens.analyses.circuits.graph import Graph

SECONDS = 60.0
"""How long the solver may take."""
OF_HIGHEST = 8
"""Times as many edges as a circuit may have: those that are tried first."""
TOLERANCE = 5e-4
"""A sum that is this close to the bound, as a share of it, is not improved any more."""
EPSILON = 1e-9
"""Of the largest rank: sums that differ by less are equal."""


class Optimal(NamedTuple):
    """A circuit, and how large a sum any of as many edges could have.

    Attributes:
        circuit: pruned, of the largest sum that was found.
        total: its sum of ranks.
        bound: no circuit has more; ``total`` where the circuit is proved to be the best.
    """

    circuit: Circuit
    total: float
    bound: float

    @property
    def gap(self) -> float:
        """(bound − total) / bound: 0 of a circuit that is proved to be the best."""
        return (self.bound - self.total) / self.bound if self.bound > self.total else 0.0


def optimum(
    graph: Graph,
    values: Float[Tensor, " edge"],
    n: int,
    rank: Rank = "absolute",
    seconds: float = SECONDS,
    tolerance: float = TOLERANCE,
) -> Optimal:
    """At most ``n`` edges, all on ways from the input to the logits, whose ranks have the largest
    sum.

    What no better circuit can have is left out before: with U the sum of the n highest ranks, and L
    that of a circuit that is known, an edge whose rank lies more than U − L below the n-th highest
    is in none, and one that lies more above the next is in all of them.

    Args:
        rank: by −score, edges that harm the metric are taken only where they connect others.
        seconds: of the solver; if it is stopped, the best circuit so far and the bound are given.
        tolerance: the :attr:`~.Optimal.gap` that is small enough; 0: only a proof is.

    Raises:
        ValueError: ``n`` below 1 or above the number of edges; ``seconds`` not above 0, or a
            ``tolerance`` below 0.
    """
    check_count(graph, n)
    if not seconds > 0 or not tolerance >= 0:
        raise ValueError(
            f"seconds must be above 0 and tolerance 0 or more; got {seconds}, {tolerance}"
        )
    worth = ranked(graph, values, rank).double().cpu().numpy()
    ways = _Ways(graph)
    kept = max(_known(ways, graph, values, worth, n, rank), key=lambda each: worth[each].sum())
    total = float(worth[kept].sum())
    highest = np.sort(np.append(worth, 0.0))[::-1].clip(0)  # one more than there are edges
    bound, equal = float(highest[:n].sum()), EPSILON * np.abs(worth).max()
    until = monotonic() + seconds
    # Of the edges that rank highest alone a solver soon has a circuit that all others must beat.
    some = (highest[OF_HIGHEST * n],) if OF_HIGHEST * n < len(worth) else ()
    for least in (*some, -np.inf):
        if bound - total <= max(equal, tolerance * bound):
            break
        slack = bound - total + equal
        allowed = (highest[n - 1] - worth <= slack) & (worth >= least)
        forced = (worth - highest[n] > slack) & allowed
        left = max(1.0, until - monotonic())
        found, above = ways.solve(worth, n, allowed, forced, left, tolerance)
        if found is not None and worth[found].sum() > total:
            kept, total = found, float(worth[found].sum())
        if least == -np.inf:
            bound = max(min(bound, above), total)
    proved = bound - total <= equal
    return Optimal(Circuit(graph, torch.from_numpy(kept)), total, total if proved else bound)


def _known(
    ways: _Ways,
    graph: Graph,
    values: Float[Tensor, " edge"],
    worth: Float[np.ndarray, " edge"],
    n: int,
    rank: Rank,
) -> list[Bool[np.ndarray, " edge"]]:
    """Circuits that other rules choose: greedily, and as many of the highest as, pruned, are n."""
    order = np.argsort(-worth, kind="stable")

    def highest(size: int) -> Bool[np.ndarray, " edge"]:
        kept = np.zeros(len(worth), dtype=bool)
        kept[order[:size]] = True
        return ways.pruned(kept)

    few, many = n, len(worth)  # of n edges, pruned, at most n are left; of more edges, no fewer
    while few < many:
        middle = (few + many + 1) // 2
        few, many = (middle, many) if highest(middle).sum() <= n else (few, middle - 1)
    grown = greedy(graph, values, n, rank).kept.numpy()
    return [highest(n), highest(few), ways.pruned(grown), np.zeros(len(worth), dtype=bool)]


class _Ways:
    """A graph's :attr:`~.Graph.flow` as arrays: an arc of each edge, and those inside heads."""

    def __init__(self, graph: Graph) -> None:
        node = {name: number for number, name in enumerate(graph.flow)}
        gated = {stream.of for stream in graph.cfg.streams if stream.how.is_gated}
        self.source = np.zeros(len(graph), dtype=np.int64)
        self.target = np.zeros(len(graph), dtype=np.int64)
        inner = []
        for source, target, data in graph.flow.edges(data=True):
            arc = node[source], node[target]
            if "edge" in data:
                self.source[data["edge"]], self.target[data["edge"]] = arc
            else:
                inner.append(arc)
        self.inner = np.array(inner).reshape(-1, 2)
        self.nodes, self.input, self.logits = len(node), node["input"], node["logits"]
        self.gated = np.array([bool(e.link and e.link.stream in gated) for e in graph.edges])

    def pruned(self, kept: Bool[np.ndarray, " edge"]) -> Bool[np.ndarray, " edge"]:
        """As :meth:`.Circuit.pruned`."""
        source = np.append(self.source[kept], self.inner[:, 0])
        target = np.append(self.target[kept], self.inner[:, 1])
        useful = self._reached(source, target, self.input)
        useful &= self._reached(target, source, self.logits)
        return kept & useful[self.target] & (useful[self.source] | self.gated)

    def _reached(self, source: np.ndarray, target: np.ndarray, start: int) -> np.ndarray:
        shape = (self.nodes, self.nodes)
        arcs = scipy.sparse.csr_array((np.ones(len(source)), (source, target)), shape=shape)
        reached = np.zeros(self.nodes, dtype=bool)
        reached[
            scipy.sparse.csgraph.breadth_first_order(arcs, start, return_predecessors=False)
        ] = True
        return reached

    def solve(
        self,
        worth: Float[np.ndarray, " edge"],
        n: int,
        allowed: Bool[np.ndarray, " edge"],
        forced: Bool[np.ndarray, " edge"],
        seconds: float,
        tolerance: float,
    ) -> tuple[Bool[np.ndarray, " edge"] | None, float]:
        """The best edges that were found, if any were, and the largest sum that there can be."""
        edges = np.flatnonzero(allowed)
        source, target, gated = self.source[edges], self.target[edges], self.gated[edges]
        gates = np.flatnonzero(gated)
        # Columns: x of each edge, y of each gated one, r and s of each node.
        x, y = np.arange(len(edges)), len(edges) + np.arange(len(gates))
        r = len(edges) + len(gates) + np.arange(self.nodes)
        s = r + self.nodes
        carries = x.copy()
        carries[gates] = y
        into, out = (np.array(each) for each in (r, s))
        rows: list[np.ndarray] = []
        columns: list[np.ndarray] = []
        signs: list[np.ndarray] = []
        count = 0

        def at_most(left: np.ndarray, right: np.ndarray) -> None:
            """left ≤ right, one row each."""
            nonlocal count
            each = count + np.arange(len(left))
            rows.extend((each, each))
            columns.extend((left, right))
            signs.extend((np.ones(len(left)), -np.ones(len(left))))
            count += len(left)

        at_most(x, np.where(gated, r[target], r[source]))
        at_most(x, s[target])
        at_most(y, x[gates])
        at_most(y, r[source[gates]])
        inside, outside = self.inner.T
        for own, terms in (
            (into, ((target, carries), (outside, r[inside]))),
            (out, ((source, x), (inside, s[outside]))),
        ):
            rows.append(count + np.arange(self.nodes))
            columns.append(own)
            signs.append(np.ones(self.nodes))
            for where, what in terms:
                rows.append(count + where)
                columns.append(what)
                signs.append(-np.ones(len(where)))
            count += self.nodes
        above = np.zeros(count + 1)
        above[count - 2 * self.nodes + self.input] = 1  # the input is reached, and the logits reach
        above[count - self.nodes + self.logits] = 1
        rows.append(np.full(len(edges), count))
        columns.append(x)
        signs.append(np.ones(len(edges)))
        above[count] = n
        width = s[-1] + 1
        matrix = scipy.sparse.csr_array(
            (np.concatenate(signs), (np.concatenate(rows), np.concatenate(columns))),
            shape=(count + 1, width),
        )
        lower = np.zeros(width)
        lower[x] = forced[edges]
        # The solver stops at a gap of 1e-6 of its objective: the largest rank is made 1000.
        scale = 1000 / np.abs(worth).max()
        objective = np.zeros(width)
        objective[x] = -scale * worth[edges]
        found = scipy.optimize.milp(
            objective,
            integrality=(np.arange(width) < len(edges)).astype(int),
            bounds=scipy.optimize.Bounds(lower, np.ones(width)),
            constraints=scipy.optimize.LinearConstraint(matrix, -np.inf, above),
            options={"time_limit": seconds, "mip_rel_gap": tolerance},
        )
        bound = np.inf if found.mip_dual_bound is None else -found.mip_dual_bound / scale
        if found.x is None:
            return None, float(bound)
        kept = np.zeros(len(worth), dtype=bool)
        kept[edges[found.x[x] > 0.5]] = True
        kept = self.pruned(kept)
        exact = found.status == 0 and tolerance == 0
        return kept, float(worth[kept].sum() if exact else bound)
