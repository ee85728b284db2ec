"""How well a circuit stands for the model: faithfulness, completeness, minimality.

Every number comes from exact runs in which the edges outside the circuit carry what they carry on
the corrupted prompts (edge patching). With m the mean metric over prompts:

    faithfulness  f(C) = (m(C) − m(corrupted)) / (m(clean) − m(corrupted))
    completeness  |m(C∖K) − m(M∖K)| for sets K of heads and MLPs that are knocked out of the
                  circuit C and of the model M alike (Wang et al. 2022)
    minimality    m(C) − m(C∖e) of each edge e of the circuit
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Generator

from resval_lens.analyses.circuits.baselines import (
    connected_circuits,
    permuted_circuits,
    random_circuits,
)
from resval_lens.analyses.circuits.circuit import Circuit, NamedCircuit
from resval_lens.analyses.circuits.graph import Graph, graph_of
from resval_lens.analyses.circuits.running import EdgeRuns, MeasuredBy
from resval_lens.analyses.results.result import FLAT, OPTIONAL
from resval_lens.hooks.prompts import vanishes
from resval_lens.notes import Note

MOST_EDGES = 256
"""Edges of a circuit that :func:`evaluate` measures the minimality of; others are left out."""
MOST_NODES = 64
"""Heads and MLPs that it knocks out for completeness."""
AT_ONCE = 2**26
"""Numbers that are held at once of which edges circuits keep."""

Progress = Callable[[int, int], None]
Item = TypeVar("Item")


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


def counting(note: Note, what: str) -> Progress:
    """Notes ``what``, and how many of how many are done."""
    return lambda done, total: note(f"{what}: {done:,} of {total:,}")


def faithfulness(
    runs: EdgeRuns, circuits: Sequence[Circuit], progress: Progress = lambda done, total: None
) -> list[Faithfulness]:
    """f of each circuit; invalid where clean and corrupted prompts hardly differ.

    Args:
        progress: called with how many circuits were run, and of how many.

    Raises:
        ValueError: a circuit of another model.
    """
    for circuit in circuits:
        graph_of(runs.model, circuit.graph)
    metrics = _metrics(runs, circuits, progress)
    reason = vanishing_gap(runs)
    gap = runs.clean - runs.corrupted
    return [
        Faithfulness(None if reason else (metric - runs.corrupted) / gap, metric, reason)
        for metric in metrics
    ]


def _metrics(
    runs: EdgeRuns,
    circuits: Sequence[Circuit],
    progress: Progress = lambda done, total: None,
    near: Circuit | None = None,
) -> list[float]:
    """The mean metric of each circuit, all ``near`` one; of a large graph's, some at a time."""
    found: list[float] = []
    at_once = max(1, AT_ONCE // len(runs.graph))
    for start in range(0, len(circuits), at_once):

        def told(done: int, before: int = start) -> None:
            progress(before + done, len(circuits))

        kept = torch.stack([each.kept for each in circuits[start : start + at_once]])
        found += runs.means(kept, told, None if near is None else near.kept).tolist()
    return found


def vanishing_gap(runs: EdgeRuns) -> str | None:
    """Why f cannot be computed on these prompts; None if it can."""
    if not vanishes(runs.clean, runs.corrupted):
        return None
    return (
        f"the metric is {runs.clean:.6g} on the clean prompts and {runs.corrupted:.6g} on the "
        "corrupted: their gap vanishes; corrupted prompts must change what the model answers"
    )


def check_gap(runs: EdgeRuns) -> None:
    """Raises ValueError where f cannot be computed, with the reason."""
    reason = vanishing_gap(runs)
    if reason is not None:
        raise ValueError(reason)


def minimality(
    runs: EdgeRuns,
    circuit: Circuit,
    numbers: Sequence[int] | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, float]:
    """m(C) − m(C∖e) of each edge e: what the circuit loses without it.

    Args:
        numbers: of the edges that are measured; by default all of the circuit.
        progress: called with how many circuits were run, and of how many.
    """
    wanted = circuit.numbers if numbers is None else list(numbers)
    circuits = [circuit, *(circuit.without([number]) for number in wanted)]
    own, *without = _metrics(runs, circuits, progress, circuit)
    edges = runs.graph.edges
    return {
        str(edges[number]): own - metric for number, metric in zip(wanted, without, strict=True)
    }


@dataclass(frozen=True)
class KnockedOut:
    """m(C∖K) of the circuit, m(M∖K) of the model, and |m(C∖K) − m(M∖K)|, of one set K."""

    knocked_out: tuple[str, ...]
    circuit: float
    model: float
    difference: float


def completeness(
    runs: EdgeRuns,
    circuit: Circuit,
    knocked_out: Sequence[Sequence[str]],
    progress: Progress = lambda done, total: None,
) -> tuple[KnockedOut, ...]:
    """m(C∖K) beside m(M∖K) for each set K of writers, like ``["a1.h2", "m1"]``.

    A writer that is knocked out brings nobody anything of the clean run; so do links out of its
    values, those of a key-value head once its whole group is knocked out.

    Raises:
        ValueError: a set names a writer that the model does not have.
    """
    cut = [edges_out_of(runs.graph, names) for names in knocked_out]
    whole = Circuit.whole(runs.graph)
    both = [each.without(edges) for each in (circuit, whole) for edges in cut]
    metrics = _metrics(runs, both, progress, circuit)
    of_circuit, of_model = metrics[: len(cut)], metrics[len(cut) :]
    return tuple(
        KnockedOut(tuple(names), c, m, abs(c - m))
        for names, c, m in zip(knocked_out, of_circuit, of_model, strict=True)
    )


def edges_out_of(graph: Graph, names: Sequence[str]) -> list[int]:
    """Numbers of all edges out of these writers, and of links out of the values of groups that
    they fill.

    Raises:
        ValueError: a name of no head or MLP.
    """
    nodes = graph.nodes
    for name in names:
        if name not in nodes or name in ("input", "logits"):
            raise ValueError(f"{name!r} is not a head or MLP of this model, like a0.h1 or m0")
    knocked_out = set(names)
    return [
        number
        for number, edge in enumerate(graph.edges)
        if knocked_out.issuperset(graph.heads_of(edge.source))
    ]


@dataclass(frozen=True)
class Ends:
    """A mean metric on the clean and on the corrupted prompts."""

    clean: float
    corrupted: float


@dataclass(frozen=True)
class CircuitMetric:
    """The mean metric of a circuit, beside those of the whole model."""

    circuit: float
    clean: float
    corrupted: float


@dataclass(frozen=True)
class RandomCircuits:
    """Mean and largest f of ``n`` random circuits of the same size; None where invalid."""

    n: int
    mean: float | None
    max: float | None


@dataclass(frozen=True)
class EdgesTried:
    """How many edges minimality is of, and of how many."""

    edges: int
    of: int


@dataclass(frozen=True)
class NodesTried:
    """How many heads and MLPs were knocked out alone, and of how many."""

    alone: int
    of: int


@dataclass(frozen=True)
class Measured:
    """How much of a circuit was measured."""

    minimality: EdgesTried
    completeness: NodesTried


@dataclass(frozen=True)
class EvaluatedCircuit(NamedCircuit):
    """A circuit with what it keeps of the metric.

    Attributes:
        status, reason: as of :class:`Faithfulness`.
        random: drawn among all edges.
        minimality: m(C) − m(C∖e) by edge.
        completeness: each head and MLP of the circuit knocked out alone, then all of them.
        connected: drawn so that every edge lies on a way from the input to the logits, as many as
            the circuit has on such ways; None where it has none.
        permuted: the circuit with other heads of the same layers in the places of its heads.
    """

    metric: CircuitMetric
    prompts: int
    status: str
    reason: str | None
    faithfulness: float | None
    faithfulness_without_links: float | None
    random: RandomCircuits
    minimality: Mapping[str, float]
    completeness: tuple[KnockedOut, ...]
    measured: Measured
    measured_by: MeasuredBy = field(metadata=FLAT)
    connected: RandomCircuits | None = field(default=None, metadata=OPTIONAL, kw_only=True)
    permuted: RandomCircuits | None = field(default=None, metadata=OPTIONAL, kw_only=True)


def evaluate(
    runs: EdgeRuns,
    circuit: Circuit,
    generator: Generator,
    n_random: int = 10,
    most_edges: int = MOST_EDGES,
    most_nodes: int = MOST_NODES,
    note: Note = lambda text: None,
) -> EvaluatedCircuit:
    """Faithfulness, minimality, completeness and random baselines of one circuit.

    Of a circuit with more than ``most_edges`` edges, minimality is that of so many, drawn by
    ``generator``; of one with more than ``most_nodes`` heads and MLPs, so many are knocked out
    alone.

    Args:
        note: called with what is being done.
    """
    nodes = [node for node in circuit.nodes if node not in ("input", "logits")]
    baseline = random_circuits(runs.graph, max(1, len(circuit)), n_random, generator)
    edges = _some(circuit.numbers, most_edges, generator)
    alone = _some(nodes, most_nodes, generator)
    sets = [[node] for node in alone] + ([nodes] if len(nodes) > 1 else [])
    joined = len(circuit.pruned())
    connected = connected_circuits(runs.graph, joined, n_random, generator) if joined else []
    # Random edges seldom make a way from the input: pruned, most are circuits that are known.
    permuted = permuted_circuits(circuit, n_random, generator)
    circuits = [
        circuit, circuit.without_links(),
        *(each.pruned() for each in baseline), *permuted, *connected,
    ]  # fmt: skip
    own, without, *drawn = faithfulness(runs, circuits, counting(note, "faithfulness"))
    return EvaluatedCircuit(
        **vars(circuit.named()),
        metric=CircuitMetric(own.metric, runs.clean, runs.corrupted),
        prompts=len(runs.pairs),
        status=own.status,
        reason=own.reason,
        faithfulness=own.value,
        faithfulness_without_links=without.value,
        random=_of_random(drawn[:n_random]),
        minimality=minimality(runs, circuit, edges, counting(note, "minimality")),
        completeness=completeness(runs, circuit, sets, counting(note, "completeness")),
        measured=Measured(EdgesTried(len(edges), len(circuit)), NodesTried(len(alone), len(nodes))),
        measured_by=runs.measured_by,
        connected=_of_random(drawn[2 * n_random :]) if joined else None,
        permuted=_of_random(drawn[n_random : 2 * n_random]),
    )


def _of_random(drawn: Sequence[Faithfulness]) -> RandomCircuits:
    values = [each.value for each in drawn if each.value is not None]
    mean, most = (float(of(values)) if values else None for of in (np.mean, np.max))
    return RandomCircuits(len(drawn), mean, most)


def _some(all_: list[Item], most: int, generator: Generator) -> list[Item]:
    """At most so many, drawn without replacement, in their order."""
    if len(all_) <= most:
        return all_
    drawn = torch.randperm(len(all_), generator=generator)[:most].sort().values
    return [all_[i] for i in drawn.tolist()]
