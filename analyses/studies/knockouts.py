"""Nodes of a model knocked out by role, beside as many others: do they make the answer?

A role is a name for some heads and MLPs. On prompts that did not give the roles, by every metric:

    knocked out   all nodes of a role together; beside them as many nodes without a role, of the
                  same kind and layers or the nearest that have any, drawn several times
    edges         what all nodes of one role send to all of another's, or to the logits: those edges
                  corrupted (path patching, Goldowsky-Dill et al. 2023, arXiv 2304.05969)
    circuit       every node without a role knocked out: faithfulness f; beside it as many others
    complete      |m(C∖K) − m(M∖K)| of each role K: the circuit C without it, the model M without it
    minimal       |m(C∖(K ∪ v)) − m(C∖K)| of each node v, K being the others of its first role

as Wang et al. 2022 (arXiv 2211.00593, section 4 and appendix). What is knocked out, or an edge that
is corrupted, carries what it does on the corrupted prompt (resample), or the mean of that over
corrupted prompts whose places stand at the same positions (mean).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator

from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.evaluation import edges_out_of
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.running import Ablation, EdgeRuns
from resval_lens.analyses.results.intervals import Interval, mean_interval
from resval_lens.analyses.results.result import OPTIONAL
from resval_lens.analyses.tasks.problem import Problem
from resval_lens.hooks.prompts import Metric
from resval_lens.notes import Note

Nodes = tuple[str, ...]
"""Heads and MLPs, like ``("a1.h2", "m1")``."""


@dataclass(frozen=True)
class Effect:
    """The change of a mean metric, with its 95% interval over prompts.

    Attributes:
        drawn: the same change of other nodes, for each draw.
    """

    change: Interval
    drawn: tuple[float, ...]

    @property
    def lowers(self) -> bool:
        """Whether the interval lies below 0, and the change below that of every draw."""
        return self.change.high < 0 and self.change.value < min(self.drawn)


@dataclass(frozen=True)
class RoleEffect:
    """A role's nodes knocked out: what that does to each metric, and how far the circuit agrees.

    Attributes:
        incomplete: |m(C∖K) − m(M∖K)| by metric.
    """

    role: str
    heads: Nodes
    effects: Mapping[str, Effect]
    incomplete: Mapping[str, float]


@dataclass(frozen=True)
class RoleCircuit:
    """What all nodes with a role keep of a metric, and as many others.

    Attributes:
        clean, corrupted, circuit: mean metrics of the model, on corrupted prompts, of the circuit.
        faithfulness: f, and ``drawn``, of each draw of other nodes.
    """

    clean: float
    corrupted: float
    circuit: float
    faithfulness: float
    drawn: tuple[float, ...]


@dataclass(frozen=True)
class EdgesEffect:
    """The edges from some nodes into others corrupted: what that does to each metric."""

    senders: Nodes
    receivers: Nodes
    effects: Mapping[str, Effect]


@dataclass(frozen=True)
class Knockouts:
    """Everything under one ablation.

    Attributes:
        circuit: by metric.
        minimality: by node and metric.
        edges: None where none were asked for.
    """

    roles: tuple[RoleEffect, ...]
    circuit: Mapping[str, RoleCircuit]
    minimality: Mapping[str, Mapping[str, float]]
    edges: tuple[EdgesEffect, ...] | None = field(default=None, metadata=OPTIONAL)


class Others:
    """Nodes without a role."""

    def __init__(self, among: Iterable[str], taken: Iterable[str], generator: Generator) -> None:
        """``among``: layer by layer, what can be drawn but for what is ``taken``."""
        inside = set(taken)
        self.free = [node for node in among if node not in inside]
        self.generator = generator

    def draw(self, nodes: Iterable[str]) -> Nodes:
        """As many, each of the kind and layer of one of ``nodes`` or the nearest that has any left.

        Fewer where there are no more.
        """
        free, drawn = list(self.free), []
        for node in nodes:
            alike = [each for each in free if is_head(each) == is_head(node)]
            if not alike:
                continue
            far = [abs(layer_of(each) - layer_of(node)) for each in alike]
            near = [each for each, away in zip(alike, far, strict=True) if away == min(far)]
            which = int(torch.randint(len(near), (), generator=self.generator))
            free.remove(near[which])
            drawn.append(near[which])
        return tuple(drawn)


def is_head(node: str) -> bool:
    """Whether it is a head; else it is an MLP."""
    return node.startswith("a")


def layer_of(node: str) -> int:
    """The layer of a head or an MLP."""
    found = re.match(r"[am](\d+)", node)
    assert found is not None, node
    return int(found[1])


def edges_between(graph: Graph, senders: Iterable[str], receivers: Iterable[str]) -> list[int]:
    """Numbers of the edges, links too, from heads and MLPs into heads, MLPs or "logits".

    Keys and values that several heads share are those of each of them; what leaves shared values
    along a link is sent where all heads that share them send.
    """
    sending, reading = set(senders), set(receivers)
    return [
        number
        for number, edge in enumerate(graph.edges)
        if sending.issuperset(graph.heads_of(edge.source))
        and reading.intersection(graph.heads_of(edge.target))
    ]


@dataclass(frozen=True)
class Sent:
    """Senders, receivers, and others that send to the same: :attr:`Knockouts.edges` asks for it."""

    senders: Nodes
    receivers: Nodes
    drawn: tuple[Nodes, ...]


def knock_out(
    held_out: Problem,
    ablation: Ablation,
    among: Sequence[str],
    by_role: Mapping[str, Nodes],
    drawn: Mapping[str, Sequence[Nodes]],
    sent: Sequence[Sent] | None = None,
    note: Note = lambda text: None,
) -> Knockouts:
    """What the roles are worth on these prompts.

    Args:
        among: what is knocked out of the circuit unless it has a role.
        drawn: other nodes, of each role and ("") of the circuit of all.
        sent: edges that are corrupted.
    """
    runs = EdgeRuns(held_out.model, held_out.pairs, ablation=ablation)
    graph, metrics = runs.graph, held_out.metrics
    inside = tuple(dict.fromkeys(node for several in by_role.values() for node in several))
    model, nothing = Circuit.whole(graph), Circuit.of(graph, [])

    def only(nodes: Nodes) -> Circuit:
        return _without(model, [node for node in among if node not in nodes])

    circuit = only(inside)
    sets: dict[tuple[object, ...], Circuit] = {
        ("model",): model, ("nothing",): nothing, ("circuit",): circuit
    }  # fmt: skip
    sets |= {("drawn", i): only(nodes) for i, nodes in enumerate(drawn[""])}
    for role, nodes in by_role.items():
        sets["model", role] = _without(model, nodes)
        sets["circuit", role] = _without(circuit, nodes)
        sets |= {("drawn", role, i): _without(model, each) for i, each in enumerate(drawn[role])}
    first = {
        node: next(role for role, nodes in by_role.items() if node in nodes) for node in inside
    }
    for node, role in first.items():
        sets["rest", node] = _without(circuit, [each for each in by_role[role] if each != node])
    for n, path in enumerate(sent or ()):
        for i, nodes in enumerate((path.senders, *path.drawn)):
            sets["sent", n, i] = model.without(edges_between(graph, nodes, path.receivers))
    found = _Found(runs, sets, metrics, f"roles knocked out, {ablation}", note)
    roles = tuple(
        RoleEffect(
            role,
            nodes,
            found.effects(("model", role), [("drawn", role, i) for i in range(len(drawn[role]))]),
            {
                name: abs(found.mean(name, "circuit", role) - found.mean(name, "model", role))
                for name in metrics
            },
        )
        for role, nodes in by_role.items()
    )
    minimality = {
        node: {
            name: abs(found.mean(name, "circuit", role) - found.mean(name, "rest", node))
            for name in metrics
        }
        for node, role in first.items()
    }
    edges = tuple(
        EdgesEffect(
            path.senders,
            path.receivers,
            found.effects(("sent", n, 0), [("sent", n, i + 1) for i in range(len(path.drawn))]),
        )
        for n, path in enumerate(sent or ())
    )
    whole = {name: found.kept(name, len(drawn[""])) for name in metrics}
    return Knockouts(roles, whole, minimality, None if sent is None else edges)


def _without(of: Circuit, nodes: Iterable[str]) -> Circuit:
    return of.without(edges_out_of(of.graph, tuple(nodes)))


class _Found:
    """Every metric of every prompt in every run."""

    def __init__(
        self,
        runs: EdgeRuns,
        sets: Mapping[tuple[object, ...], Circuit],
        metrics: Mapping[str, Metric],
        what: str,
        note: Note,
    ) -> None:
        def told(done: int) -> None:
            note(f"{what}: {done:,} of {len(sets):,}")

        kept = torch.stack([circuit.kept for circuit in sets.values()])
        measured = runs.by_metrics(kept, metrics, told)
        self.values = {name: x.double().cpu().numpy() for name, x in measured.items()}
        self.number = {key: row for row, key in enumerate(sets)}

    def of(self, name: str, *key: object) -> Float[np.ndarray, " prompt"]:
        values: np.ndarray = self.values[name][self.number[key]]
        return values

    def mean(self, name: str, *key: object) -> float:
        return float(self.of(name, *key).mean())

    def effects(
        self, key: tuple[object, ...], drawn: Iterable[tuple[object, ...]]
    ) -> dict[str, Effect]:
        """The changes of each metric that a run makes, and what runs of drawn nodes make."""
        return {
            name: Effect(
                mean_interval(self.of(name, *key) - self.of(name, "model")),
                tuple(self.mean(name, *each) - self.mean(name, "model") for each in drawn),
            )
            for name in self.values
        }

    def kept(self, name: str, draws: int) -> RoleCircuit:
        low, high = self.mean(name, "nothing"), self.mean(name, "model")

        def share(*key: object) -> float:
            return (self.mean(name, *key) - low) / (high - low)

        return RoleCircuit(
            high,
            low,
            self.mean(name, "circuit"),
            share("circuit"),
            tuple(share("drawn", i) for i in range(draws)),
        )
