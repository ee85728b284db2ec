"""Circuits: some of a graph's edges, chosen by their scores."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.selection import Rank
from resval_lens.analyses.results.result import OPTIONAL, Result
from resval_lens.hooks.links import Link

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True)
class NamedCircuit(Result):
    """A circuit by the names of its edges, as documents and pictures have it.

    Attributes:
        n_edges_of_model: edges of the whole graph.
        links: those of ``edges`` that are links.
        nodes: heads, MLPs, input and logits that some edge touches, in the order of the model.
        groups: key-value heads that several heads share, and those heads.
        path_lengths: how many ways there are from input to logits, by their number of edges.
        raw, gated: the model's streams with ``carry="raw"`` and those whose link passes a gate,
            like ``"v"``; None where there are none.
    """

    edges: tuple[str, ...]
    n_edges: int
    n_edges_of_model: int
    links: tuple[str, ...]
    nodes: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    path_lengths: Mapping[int, int]
    raw: str | None = field(default=None, metadata=OPTIONAL, kw_only=True)
    gated: str | None = field(default=None, metadata=OPTIONAL, kw_only=True)


@dataclass(frozen=True, eq=False)
class Circuit:
    """Edges of a graph that are kept; the others are corrupted when it is run.

    >>> # Circuit.of(graph, ["input->a0.h1<v>", "a0.h1<v>->a1.h1<v>", "a1.h1->logits"])
    """

    graph: Graph
    kept: Bool[Tensor, " edge"]

    @classmethod
    def of(cls, graph: Graph, edges: Iterable[str | int]) -> Circuit:
        """From the names or the numbers of its edges.

        Raises:
            ValueError: the graph has no such edge.
        """
        kept = torch.zeros(len(graph), dtype=torch.bool)
        for edge in edges:
            number = graph.number.get(edge, -1) if isinstance(edge, str) else edge
            if not 0 <= number < len(graph):
                raise ValueError(f"this graph has no edge {edge!r}")
            kept[number] = True
        return cls(graph, kept)

    @classmethod
    def whole(cls, graph: Graph) -> Circuit:
        """Every edge: the model itself."""
        return cls(graph, torch.ones(len(graph), dtype=torch.bool))

    def __len__(self) -> int:
        return int(self.kept.sum())

    @property
    def numbers(self) -> list[int]:
        """The edges' numbers."""
        return self.kept.nonzero()[:, 0].tolist()

    @property
    def edges(self) -> list[str]:
        """The edges' names."""
        return [str(self.graph.edges[number]) for number in self.numbers]

    @property
    def links(self) -> list[Link]:
        """Those that are links, by part; ``str(link)`` is the edge's name.

        ``cut_links(model, circuit.links)`` cuts them in the model, and
        :func:`~resval_lens.hooks.edit_links` edits them.
        """
        edges = (self.graph.edges[number] for number in self.numbers)
        return [link for edge in edges if (link := edge.link)]

    @property
    def nodes(self) -> list[str]:
        """Heads, MLPs, tables, input and logits that some edge touches, in the model's order."""
        touched = set()
        for number in self.numbers:
            edge = self.graph.edges[number]
            touched |= {*self.graph.heads_of(edge.source), *self.graph.heads_of(edge.target)}
        return [name for name in self.graph.nodes if name in touched]

    def without(self, edges: Iterable[int]) -> Circuit:
        """The circuit less the edges of these numbers.

        Raises:
            ValueError: the graph has no such edge.
        """
        numbers = list(edges)
        for number in numbers:
            if not 0 <= number < len(self.graph):
                raise ValueError(f"this graph has no edge {number!r}")
        kept = self.kept.clone()
        kept[numbers] = False
        return Circuit(self.graph, kept)

    def without_links(self) -> Circuit:
        """The circuit less its links."""
        return self.without(range(self.graph.n_residual, len(self.graph)))

    def pruned(self) -> Circuit:
        """Only edges on a way from the input to the logits, links and heads' insides included.

        A gated link stays, too, where only the gate's own input comes from the input.
        """
        import networkx as nx

        flow = self.flow()
        useful = _reach(flow, "input", nx.descendants) & _reach(flow, "logits", nx.ancestors)
        gated = {stream.of for stream in self.graph.cfg.streams if stream.how.is_gated}
        numbers = []
        for source, target, data in flow.edges(data=True):
            if "edge" in data and target in useful:
                edge = self.graph.edges[data["edge"]]
                if source in useful or (edge.link and edge.link.stream in gated):
                    numbers.append(data["edge"])
        return Circuit.of(self.graph, numbers)

    def flow(self) -> nx.DiGraph:
        """What reaches what along the circuit's edges: see ``Graph.flow``."""
        import networkx as nx

        kept = self.kept.tolist()
        flow = nx.DiGraph()
        flow.add_nodes_from(self.graph.flow)
        flow.add_edges_from(
            (source, target, data)
            for source, target, data in self.graph.flow.edges(data=True)
            if "edge" not in data or kept[data["edge"]]
        )
        return flow

    def path_lengths(self) -> dict[int, int]:
        """How many ways there are from the input to the logits, by their number of edges."""
        import networkx as nx

        flow = self.flow()
        ways: dict[str, Counter[int]] = {node: Counter() for node in flow}
        ways["input"][0] = 1
        for node in nx.topological_sort(flow):
            for target in flow.successors(node):
                step = "edge" in flow.edges[node, target]
                for length, count in ways[node].items():
                    ways[target][length + step] += count
        return dict(sorted(ways["logits"].items()))

    def named(self) -> NamedCircuit:
        """The same without its graph."""
        edges = [self.graph.edges[number] for number in self.numbers]
        ports = {port for edge in edges for port in (edge.source, edge.target)}
        heads = {port: tuple(self.graph.heads_of(port)) for port in sorted(ports)}
        streams = self.graph.cfg.streams
        return NamedCircuit(
            tuple(self.edges),
            len(self),
            len(self.graph),
            tuple(map(str, self.links)),
            tuple(self.nodes),
            {port: several for port, several in heads.items() if len(several) > 1},
            self.path_lengths(),
            raw="".join(stream.of for stream in streams if stream.carry == "raw") or None,
            gated="".join(stream.of for stream in streams if stream.how.is_gated) or None,
        )


def _reach(flow: nx.DiGraph, node: str, way: Any) -> set[str]:
    return {node, *way(flow, node)}


def ranked(
    graph: Graph, values: Float[Tensor, " edge"], rank: Rank = "absolute"
) -> Float[Tensor, " edge"]:
    """What edges are chosen by: |score|, or −score (corrupting the edge lowers the metric).

    Raises:
        ValueError: an unknown rank, another number of scores than edges, or NaN among them.
    """
    if rank not in get_args(Rank):
        raise ValueError(f"rank must be absolute or helpful; got {rank!r}")
    if values.shape != (len(graph),):
        raise ValueError(f"{len(graph)} edges need as many scores; got {list(values.shape)}")
    if values.isnan().any():
        raise ValueError(f"the score of {graph.edges[int(values.isnan().nonzero()[0])]} is NaN")
    return values.abs() if rank == "absolute" else -values


def top_n(graph: Graph, values: Float[Tensor, " edge"], n: int, rank: Rank = "absolute") -> Circuit:
    """The ``n`` edges that rank highest.

    Raises:
        ValueError: ``n`` below 1 or above the number of edges.
    """
    check_count(graph, n)
    order = ranked(graph, values, rank).argsort(descending=True, stable=True)
    return Circuit.of(graph, order[:n].tolist())


def threshold(
    graph: Graph, values: Float[Tensor, " edge"], least: float, rank: Rank = "absolute"
) -> Circuit:
    """The edges that rank at ``least`` or above."""
    return Circuit(graph, (ranked(graph, values, rank) >= least).cpu())


def greedy(
    graph: Graph, values: Float[Tensor, " edge"], n: int, rank: Rank = "absolute"
) -> Circuit:
    """``n`` edges from the logits backwards: each time the highest that leads into the circuit.

    Every edge of the result leads to the logits; fewer than ``n`` if no more do.

    Raises:
        ValueError: ``n`` below 1 or above the number of edges.
    """
    check_count(graph, n)
    worth = ranked(graph, values, rank).tolist()
    chosen: list[int] = []
    waiting: list[tuple[float, int, str]] = []
    reached: set[str] = set()

    def enter(node: str) -> None:
        if node in reached:
            return
        reached.add(node)
        for source in graph.flow.predecessors(node):
            data = graph.flow.edges[source, node]
            if "edge" in data:
                heapq.heappush(waiting, (-worth[data["edge"]], data["edge"], source))
            else:
                enter(source)

    enter("logits")
    while waiting and len(chosen) < n:
        _, number, source = heapq.heappop(waiting)
        chosen.append(number)
        enter(source)
    return Circuit.of(graph, chosen)


def by_ratio(graph: Graph, values: Float[Tensor, " edge"], n: int, share: float) -> Circuit:
    """``n`` edges: round(share · n) that help most (the lowest scores, below 0), the others those
    that harm most (the highest, above 0).

    Where one kind runs out, the other fills up; edges of score 0 come last.

    Raises:
        ValueError: ``n`` below 1 or above the number of edges.
    """
    check_count(graph, n)
    ranked(graph, values)  # refuses what are no scores of this graph
    order = values.argsort(stable=True)
    helping, harming = int((values < 0).sum()), int((values > 0).sum())
    first = min(round(share * n), helping)
    last = min(n - round(share * n), harming)
    if first + last < n:
        first = min(n - last, helping)
        last = min(n - first, harming)
    rest = n - first - last
    zeros = order[helping : helping + rest]
    return Circuit.of(graph, torch.cat([order[:first], order[len(order) - last :], zeros]).tolist())


def check_count(graph: Graph, n: int, name: str = "n") -> None:
    """Raises ValueError for a number of edges that no circuit of the graph has."""
    if not isinstance(n, int) or not 1 <= n <= len(graph):
        raise ValueError(f"{name} must lie between 1 and {len(graph)}, all edges; got {n!r}")
