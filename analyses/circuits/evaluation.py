"""How well a circuit stands for the model: faithfulness, CPR, CMD, completeness, minimality.

Every number comes from exact runs in which the edges outside the circuit carry what they carry on
the corrupted twins (edge patching). With m the mean metric over prompts:

    faithfulness  f(C) = (m(C) − m(corrupted)) / (m(clean) − m(corrupted))
    CPR           ∫ f(C_x) dx, C_x the highest-ranking share x of edges (MIB, arXiv 2504.13151)
    CMD           ∫ |1 − f(C_x)| dx
    completeness  |m(C∖K) − m(M∖K)| for sets K of heads and MLPs that are knocked out of the
                  circuit C and of the model M alike (Wang et al. 2022)
    minimality    m(C) − m(C∖e) of each edge e of the circuit
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from resval_lens.analyses.circuits.circuit import Circuit, Rank, ranked
from resval_lens.analyses.circuits.graph import Graph, graph_of
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.hooks.prompts import vanishes

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of edges at which circuits are compared (MIB)."""


MOST_TRIED = 2**14
"""Circuits that :func:`exact_best` tries at most."""


@dataclass(frozen=True)
class Faithfulness:
    """f, or None and the reason why there is none.

    Attributes:
        value: 1 for the whole model, 0 for none of its edges.
        metric: the circuit's mean metric.
        reason: why ``value`` is None.
    """

    value: float | None
    metric: float
    reason: str | None = None

    @property
    def status(self) -> str:
        """``"valid"`` or ``"invalid"``."""
        return "valid" if self.reason is None else "invalid"


def faithfulness(runs: EdgeRuns, circuits: Sequence[Circuit]) -> list[Faithfulness]:
    """f of each circuit; invalid where clean and corrupted prompts hardly differ.

    Raises:
        ValueError: a circuit of another model.
    """
    if not circuits:
        return []
    for circuit in circuits:
        graph_of(runs.model, circuit.graph)
    metrics = runs.means(torch.stack([circuit.kept for circuit in circuits])).tolist()
    reason = vanishing_gap(runs)
    gap = runs.clean - runs.corrupted
    return [
        Faithfulness(None if reason else (metric - runs.corrupted) / gap, metric, reason)
        for metric in metrics
    ]


def vanishing_gap(runs: EdgeRuns) -> str | None:
    """Why f cannot be computed on these prompts; None if it can."""
    if not vanishes(runs.clean, runs.corrupted):
        return None
    return (
        f"the metric is {runs.clean:.6g} on the clean prompts and {runs.corrupted:.6g} on the "
        "corrupted: their gap vanishes"
    )


def check_gap(runs: EdgeRuns) -> None:
    """Raises ValueError where f cannot be computed, with the reason."""
    reason = vanishing_gap(runs)
    if reason is not None:
        raise ValueError(reason)


@dataclass(frozen=True)
class Curve:
    """Faithfulness over circuit size.

    Attributes:
        fractions: shares of the model's edges.
        sizes: edges before pruning.
        values: f at each; None where invalid.
        cpr, cmd: areas by the trapezoid rule from the first share to the last; None where invalid.
        measured_by: ablation, granularity and data set.
    """

    fractions: tuple[float, ...]
    sizes: tuple[int, ...]
    values: tuple[float | None, ...]
    cpr: float | None
    cmd: float | None
    reason: str | None
    measured_by: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "fractions": list(self.fractions),
            "sizes": list(self.sizes),
            "faithfulness": list(self.values),
            "cpr": self.cpr,
            "cmd": self.cmd,
            "reason": self.reason,
            **self.measured_by,
        }


def curve(
    runs: EdgeRuns,
    values: Float[Tensor, " edge"],
    rank: Rank = "absolute",
    fractions: Sequence[float] = FRACTIONS,
) -> Curve:
    """f of the highest-ranking edges at each share of all.

    Raises:
        ValueError: shares that do not rise from above 0 to at most 1.
    """
    shares = list(fractions)
    if not shares or shares != sorted(set(shares)) or shares[0] <= 0 or shares[-1] > 1:
        raise ValueError(f"fractions must rise from above 0 to at most 1; got {fractions}")
    order = ranked(runs.graph, values, rank).argsort(descending=True, stable=True).tolist()
    sizes = [max(1, round(share * len(order))) for share in shares]
    circuits = [Circuit.of(runs.graph, order[:size]) for size in sizes]
    found = [each.value for each in faithfulness(runs, circuits)]
    reason = vanishing_gap(runs)
    cpr = cmd = None
    if reason is None:
        f = np.array(found, dtype=float)
        cpr, cmd = (float(np.trapezoid(y, shares)) for y in (f, np.abs(1 - f)))
    return Curve(tuple(shares), tuple(sizes), tuple(found), cpr, cmd, reason, runs.measured_by)


def smallest(
    runs: EdgeRuns, values: Float[Tensor, " edge"], least: float = 0.85, rank: Rank = "absolute"
) -> Circuit:
    """The fewest highest-ranking edges, pruned, at which f first reaches ``least``.

    Sizes are tried one by one from the smallest, so that a circuit is not missed where f rises
    and falls.

    Raises:
        ValueError: the gap between clean and corrupted vanishes, or no size reaches ``least``.
    """
    check_gap(runs)
    order = ranked(runs.graph, values, rank).argsort(descending=True, stable=True).tolist()
    at_once = 16
    for first in range(1, len(order) + 1, at_once):
        sizes = range(first, min(first + at_once, len(order) + 1))
        circuits = [Circuit.of(runs.graph, order[:size]) for size in sizes]
        for circuit, each in zip(circuits, faithfulness(runs, circuits), strict=True):
            if each.value is not None and each.value >= least:
                return circuit.pruned()
    raise ValueError(f"no circuit has a faithfulness of {least}")


def exact_best(runs: EdgeRuns, size: int) -> tuple[Circuit, Faithfulness]:
    """Of all circuits of ``size`` edges the most faithful, |1 − f| least, by trying every one.

    Raises:
        ValueError: a size that no circuit has, or more than ``MOST_TRIED`` circuits to try.
    """
    if not 1 <= size <= len(runs.graph):
        raise ValueError(f"size must lie between 1 and {len(runs.graph)}; got {size}")
    count = math.comb(len(runs.graph), size)
    if count > MOST_TRIED:
        raise ValueError(
            f"there are {count} circuits of {size} of {len(runs.graph)} edges; at most "
            f"{MOST_TRIED} are tried"
        )
    check_gap(runs)
    best: tuple[Circuit, Faithfulness] | None = None
    every = combinations(range(len(runs.graph)), size)
    while chosen := list(islice(every, 512)):
        circuits = [Circuit.of(runs.graph, edges) for edges in chosen]
        for found in zip(circuits, faithfulness(runs, circuits), strict=True):
            if best is None or _gap(found[1]) < _gap(best[1]):
                best = found
    assert best is not None
    return best


def _gap(found: Faithfulness) -> float:
    return abs(1 - (found.value or 0.0))


def minimality(runs: EdgeRuns, circuit: Circuit) -> dict[str, float]:
    """m(C) − m(C∖e) of each edge e: what the circuit loses without it."""
    circuits = [circuit, *(circuit.without([number]) for number in circuit.numbers)]
    metrics = runs.means(torch.stack([each.kept for each in circuits])).tolist()
    return {
        edge: metrics[0] - metric for edge, metric in zip(circuit.edges, metrics[1:], strict=True)
    }


def completeness(
    runs: EdgeRuns, circuit: Circuit, knocked_out: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """m(C∖K) beside m(M∖K) for each set K of writers, like ``["a1.h2", "m1"]``.

    A writer that is knocked out brings nobody anything of the clean run; so do links out of its
    values, those of a key-value head once its whole group is knocked out.

    Raises:
        ValueError: a set names a writer that the model does not have.
    """
    cut = [_edges_out_of(runs.graph, names) for names in knocked_out]
    whole = Circuit.whole(runs.graph)
    both = [each.without(edges).kept for each in (circuit, whole) for edges in cut]
    if not both:
        return []
    of_circuit, of_model = runs.means(torch.stack(both)).split(len(cut))
    return [
        {"knocked_out": list(names), "circuit": c, "model": m, "difference": abs(c - m)}
        for names, c, m in zip(knocked_out, of_circuit.tolist(), of_model.tolist(), strict=True)
    ]


def _edges_out_of(graph: Graph, names: Sequence[str]) -> list[int]:
    for name in names:
        if name not in graph.writers or name == "input":
            raise ValueError(f"{name!r} is no head or MLP of this model, like a0.h1 or m0")
    knocked_out = set(names)
    return [
        number
        for number, edge in enumerate(graph.edges)
        if knocked_out.issuperset(graph.heads_of(edge.source))
    ]


def random_circuits(graph: Graph, size: int, n: int, generator: Generator) -> list[Circuit]:
    """``n`` circuits of ``size`` edges, any as likely as any other: the baseline.

    Raises:
        ValueError: a size that no circuit has, or ``n`` below 1.
    """
    if not 1 <= size <= len(graph) or n < 1:
        raise ValueError(
            f"size must lie between 1 and {len(graph)} and n be 1 or more; got {size}, {n}"
        )
    return [
        Circuit.of(graph, torch.randperm(len(graph), generator=generator)[:size].tolist())
        for _ in range(n)
    ]


def evaluate(
    runs: EdgeRuns, circuit: Circuit, generator: Generator, n_random: int = 10
) -> dict[str, Any]:
    """Faithfulness, minimality, completeness and the random baseline of one circuit, as JSON.

    Completeness knocks out each head and MLP of the circuit alone, then all of them.
    """
    nodes = [node for node in circuit.nodes if node not in ("input", "logits")]
    sets = [[node] for node in nodes] + ([nodes] if len(nodes) > 1 else [])
    drawn = random_circuits(runs.graph, max(1, len(circuit)), n_random, generator)
    own, without, *baseline = faithfulness(runs, [circuit, circuit.without_links(), *drawn])
    values = [each.value for each in baseline if each.value is not None]
    return {
        **circuit.to_dict(),
        "metric": {"circuit": own.metric, "clean": runs.clean, "corrupted": runs.corrupted},
        "prompts": len(runs.pairs),
        "status": own.status,
        "reason": own.reason,
        "faithfulness": own.value,
        "faithfulness_without_links": without.value,
        "random": {
            "n": n_random,
            "mean": float(np.mean(values)) if values else None,
            "max": float(np.max(values)) if values else None,
        },
        "minimality": minimality(runs, circuit),
        "completeness": completeness(runs, circuit, sets),
        **runs.measured_by,
    }
