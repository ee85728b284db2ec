"""Random circuits: what a circuit's faithfulness is to be held against.

Edges drawn anywhere seldom make a way from the input to the logits, and without one a circuit is
the corrupted run. A stronger baseline has as many edges that all lie on such ways; the strongest is
the circuit itself with other heads in the places of its heads, which asks whether it matters which
heads these are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.config import ResValConfig

TRIES = 100
"""Beginnings of a connected circuit before there is said to be none of its size."""

Ear = tuple[list[int], list[str]]
"""Edges and nodes that are added together."""


def random_circuits(graph: Graph, size: int, n: int, generator: Generator) -> list[Circuit]:
    """``n`` circuits of ``size`` edges, any as likely as any other.

    Raises:
        ValueError: a size that no circuit has, or ``n`` below 1.
    """
    _check(graph, size, n)
    return [
        Circuit.of(graph, torch.randperm(len(graph), generator=generator)[:size].tolist())
        for _ in range(n)
    ]


def connected_circuits(graph: Graph, size: int, n: int, generator: Generator) -> list[Circuit]:
    """``n`` circuits of ``size`` edges, each of which lies on a way from the input to the logits.

    Edges are drawn in random order. One that joins no two nodes of the circuit comes with what
    makes a way of it: from its source back, and from its target on, one of the edges there at
    random, until the circuit is met. It is passed over where that is more than is left.

    Raises:
        ValueError: a size that no such circuit is found of, or ``n`` below 1.
    """
    _check(graph, size, n)
    drawing = _Drawing(graph, generator)
    return [drawing.draw(size) for _ in range(n)]


def permuted_circuits(circuit: Circuit, n: int, generator: Generator) -> list[Circuit]:
    """The circuit ``n`` times, the heads of each layer put in one another's places at random.

    Each has as many edges between the same layers and of the same kinds, and as many of them on
    ways from the input to the logits. Heads that share keys and values stay together; in a model
    with links, which run from head to head, all layers' heads move alike.

    Raises:
        ValueError: ``n`` below 1.
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more; got {n}")
    graph = circuit.graph
    edges = [graph.edges[number] for number in circuit.numbers]
    found = []
    for _ in range(n):
        moved = _moved(graph.cfg, generator)
        ends = ([_renamed(node, moved) for node in (edge.source, edge.target)] for edge in edges)
        found.append(Circuit.of(graph, ["->".join(each) for each in ends]))
    return found


Places = Int[Tensor, "layer head"]


def _moved(cfg: ResValConfig, generator: Generator) -> dict[str, Places]:
    """New numbers of heads ("q"), and of the keys and values that they share."""
    layers = 1 if cfg.streams else cfg.n_layers
    shared = cfg.n_heads_of("k")
    each = cfg.n_heads // shared
    groups = torch.stack([torch.randperm(shared, generator=generator) for _ in range(layers)])
    within = torch.stack(
        [
            torch.stack([torch.randperm(each, generator=generator) for _ in range(shared)])
            for _ in range(layers)
        ]
    )
    heads = (groups[:, :, None] * each + within).flatten(1)
    groups, heads = (x.expand(cfg.n_layers, -1) for x in (groups, heads))
    return {"q": heads, "k": groups, "v": groups}


def _renamed(node: str, moved: Mapping[str, Places]) -> str:
    """A head, or its queries, keys or values, by its new number; other names are their own."""
    parsed = re.fullmatch(r"(a(\d+)|t)\.h(\d+)(?:<([qkv])>)?", node)
    if parsed is None:
        return node
    place, layer, head, port = parsed.groups()
    number = int(moved[port or "q"][int(layer or 0), int(head)])
    return f"{place}.h{number}" + f"<{port}>" * (port is not None)


def _check(graph: Graph, size: int, n: int) -> None:
    if not 1 <= size <= len(graph) or n < 1:
        raise ValueError(
            f"size must lie between 1 and {len(graph)} and n be 1 or more; got {size}, {n}"
        )


class _Drawing:
    """Connected circuits of one graph."""

    def __init__(self, graph: Graph, generator: Generator) -> None:
        self.graph, self.generator = graph, generator
        self.ends: list[tuple[str, str]] = [("", "")] * len(graph)
        for source, target, data in graph.flow.edges(data=True):
            if "edge" in data:
                self.ends[data["edge"]] = source, target
        backwards = graph.flow.reverse(copy=False)
        self.before, self.after = (
            {node: [(to, data.get("edge")) for to, data in flow[node].items()] for node in flow}
            for flow in (backwards, graph.flow)
        )

    def draw(self, size: int) -> Circuit:
        for _ in range(TRIES):
            kept = self._grown(size)
            if len(kept) == size:
                return Circuit.of(self.graph, kept)
        raise ValueError(
            f"no circuit of {size:,} edges that all lie on paths from the input to the logits was "
            f"found in {TRIES} tries"
        )

    def _grown(self, size: int) -> set[int]:
        """Fewer edges where none that is left would fit."""
        kept: set[int] = set()
        joined = {"input", "logits"}
        grows = True
        while grows and len(kept) < size:
            before = len(kept)
            for edge in torch.randperm(len(self.graph), generator=self.generator).tolist():
                if edge in kept:
                    continue
                edges, nodes = self._ear(edge, joined, size - len(kept))
                if len(edges) <= size - len(kept):
                    kept.update(edges)
                    joined.update(nodes)
                if len(kept) == size:
                    break
            grows = len(kept) > before
        return kept

    def _ear(self, edge: int, joined: set[str], most: int) -> Ear:
        """The edge and what joins it to the circuit; more than ``most`` edges if that takes more.

        No way back meets one on: the graph has no cycles.
        """
        edges, nodes = [edge], []
        for node, steps in zip(self.ends[edge], (self.before, self.after), strict=True):
            while node not in joined and len(edges) <= most:
                nodes.append(node)
                node, number = self._one(steps[node])
                edges += [] if number is None else [number]
        return edges, nodes

    def _one(self, of: Sequence[tuple[str, int | None]]) -> tuple[str, int | None]:
        return of[int(torch.randint(len(of), (), generator=self.generator))]
