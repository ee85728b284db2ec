"""A transformer as a graph of edges, value links among them.

    writers   input, a{l}.h{h}, m{l}
    readers   a{l}.h{h}<q>, a{l}.h{h}<k>, a{l}.h{h}<v>, m{l}, logits
    edges     a0.h1->a1.h0<v>          residual: what a writer adds to the residual stream
              a0.h1<v>->a1.h1<v>       link: what a head receives along a stream
              t.h1<v>->a1.h1<v>        link: what a layer's table holds of the token

Each reader reads the sum of what its edges bring; with residual mixing, each with the reader's
weight of it (:meth:`Graph.weights`). A link edge bypasses that sum: it goes from
values (queries, keys) to values, head by head. Under grouped-query attention the heads of <k> and
<v> are key-value heads.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from resval_lens.attention import OLMO_QK_NORM
from resval_lens.config import ResValConfig
from resval_lens.hooks.links import Link, LinkLike, head_name, parts_of
from resval_lens.transformer import ResValTransformer

if TYPE_CHECKING:
    import networkx as nx

Port = Literal["q", "k", "v", "mlp", "logits"]


@dataclass(frozen=True, order=True)
class Edge:
    """From one node to another; ``str(edge)`` is ``"a0.h1->m2"``."""

    source: str
    target: str

    @property
    def is_link(self) -> bool:
        """Whether it is a link, from the q, k or v of one layer to those of another."""
        return self.source.endswith(">")

    @property
    def link(self) -> Link | None:
        """The part of a link that it is, of the same name; None of a residual edge."""
        return Link.parse(str(self)) if self.is_link else None

    def __str__(self) -> str:
        return f"{self.source}->{self.target}"


@dataclass(frozen=True)
class Reader:
    """The readers of one kind in one layer; their edges lie side by side, ``[head, writer]``.

    Attributes:
        hook: the hook point that holds what they read, each head its own.
        reads: the one where that is one residual stream.
        writers: how many writers stand before them: the first so many of ``Graph.writers``.
        start: the number of their first edge.
    """

    hook: str
    reads: str
    layer: int
    port: Port
    names: tuple[str, ...]
    writers: int
    start: int

    @property
    def edges(self) -> slice:
        """Their edges' numbers."""
        return slice(self.start, self.start + len(self.names) * self.writers)


@dataclass(frozen=True)
class Receiver:
    """The links into one layer along one stream; their edges lie side by side, ``[slot, head]``.

    A slot is a source layer; with a head-mixing matrix, a source layer and head.

    Attributes:
        hook: the hook point that holds what arrives.
        slots: (source layer, source head) of each slot; the head is None where each head receives
            from its own.
        start: the number of their first edge.
    """

    hook: str
    layer: int
    stream: str
    heads: int
    slots: tuple[tuple[int, int | None], ...]
    start: int

    @property
    def edges(self) -> slice:
        """Their edges' numbers."""
        return slice(self.start, self.start + self.heads * len(self.slots))


class Graph:
    """Every edge of a model, numbered: residual edges first, then links.

    Attributes:
        writers: in the order in which they write.
        readers, receivers: whose edges they are.
        edges: :class:`Edge` of each number.
    """

    def __init__(self, cfg: ResValConfig) -> None:
        """The graph of every model of this configuration.

        Raises:
            ValueError: an architecture in which a reader does not read a sum of writers.
        """
        _check(cfg)
        self.cfg = cfg
        self.writers = ("input", *(name for i in range(cfg.n_layers) for name in self._layer(i)))
        self.readers: list[Reader] = []
        self.receivers: list[Receiver] = []
        self.edges: list[Edge] = []
        for layer in range(cfg.n_layers):
            before = self.written_before(layer)
            ports: tuple[Port, ...] = ("q", "k", "v")
            for port in ports:
                heads = range(cfg.n_heads_of(port))
                names = tuple(head_name(layer, head, port) for head in heads)
                self._add(f"hook_{port}_input", "hook_resid_pre", layer, port, names, before)
            if not cfg.attn_only:
                name, reads, seen = f"m{layer}", "hook_resid_mid", before + cfg.n_heads
                if cfg.parallel_attn_mlp:
                    reads, seen = "hook_resid_pre", before
                self._add("hook_mlp_in", reads, layer, "mlp", (name,), seen)
        last, reads = cfg.n_layers - 1, cfg.final_point
        self._add(reads, reads, last, "logits", ("logits",), len(self.writers))
        self.n_residual = len(self.edges)
        for stream in cfg.streams:
            for layer in range(cfg.n_layers):
                if stream.receives(layer):
                    self._receive(stream.of, layer, stream.sources(layer), stream.how.crosses_heads)
        self.number = {str(edge): i for i, edge in enumerate(self.edges)}

    @property
    def nodes(self) -> tuple[str, ...]:
        """The writers, the heads of tables (``t.h1``) that links come from, and the logits."""
        looked_up = {name for edge in self.edges for name in self.heads_of(edge.source)}
        tables = sorted(looked_up.difference(self.writers), key=lambda name: int(name[3:]))
        return (self.writers[0], *tables, *self.writers[1:], "logits")

    @classmethod
    def of(cls, model: ResValTransformer) -> Graph:
        """The graph of a model."""
        return cls(model.cfg)

    def __len__(self) -> int:
        return len(self.edges)

    @property
    def most_readers(self) -> int:
        """How many readers a layer has, the logits counted with the last."""
        layers = Counter[int]()
        for reader in self.readers:
            layers[reader.layer] += len(reader.names)
        return max(layers.values())

    @property
    def groups(self) -> list[Reader | Receiver]:
        """All readers and receivers."""
        return [*self.readers, *self.receivers]

    def _layer(self, layer: int) -> list[str]:
        heads = [head_name(layer, head) for head in range(self.cfg.n_heads)]
        return heads if self.cfg.attn_only else [*heads, f"m{layer}"]

    def _add(
        self, hook: str, reads: str, layer: int, port: Port, names: tuple[str, ...], writers: int
    ) -> None:
        if port != "logits":
            hook, reads = (f"blocks.{layer}.{name}" for name in (hook, reads))
        self.readers.append(Reader(hook, reads, layer, port, names, writers, len(self.edges)))
        self.edges += [Edge(writer, name) for name in names for writer in self.writers[:writers]]

    def _receive(self, stream: str, layer: int, sources: tuple[int, ...], crossed: bool) -> None:
        heads = self.cfg.n_heads_of(stream)
        slots: tuple[tuple[int, int | None], ...] = tuple((j, None) for j in sources)
        if crossed:
            slots = tuple((j, head) for j in sources for head in range(heads))
        into = [Link(stream, layer, head) for head in range(heads)]
        start = len(self.edges)
        self.receivers.append(Receiver(into[0].hook_name, layer, stream, heads, slots, start))
        for slot in zip(*(parts_of(self.cfg, link) for link in into), strict=True):
            self.edges += [Edge(*str(part).split("->")) for part in slot]

    def first_layer(self, edges: Bool[Tensor, " edge"]) -> int:
        """The first layer that one of these edges leads into; n_layers if only the logits read."""
        into = (
            self.cfg.n_layers
            if isinstance(group, Reader) and group.port == "logits"
            else group.layer
            for group in self.groups
            if edges[group.edges].any()
        )
        return min(into, default=self.cfg.n_layers)

    def written_before(self, layer: int) -> int:
        """How many writers stand before a layer: the first so many of ``writers``."""
        return 1 + layer * len(self._layer(0))

    def weights(
        self, written: Float[Tensor, "reader written"], reader: Reader
    ) -> Float[Tensor, " writer"] | None:
        """With which weight ``reader`` reads each of its writers; None where all are 1.

        Args:
            written: the model's :meth:`~resval_lens.ResValTransformer.written_weights`.
        """
        if not self.cfg.residual_mixing:
            return None
        number = self.cfg.n_layers if reader.port == "logits" else reader.layer
        read = written[number].clone()
        if reader.port == "mlp":  # it reads its own layer's heads as they are
            read[reader.layer + 1] = 1
        layer = len(self._layer(0))
        return read[[-(-writer // layer) for writer in range(reader.writers)]]

    def edges_of(self, link: LinkLike) -> tuple[Edge, ...]:
        """The edges that a link is, one for each head that it comes from; of a part, that one.

        Raises:
            ValueError: a link that this graph's models do not have, or what names none.
        """
        return tuple(self.edges[self.number[str(part)]] for part in parts_of(self.cfg, link))

    def heads_of(self, port: str) -> list[str]:
        """The heads whose q, k or v ``a1.h0<v>`` is: one, or a key-value head's whole group.

        Of a table's values, ``t.h0<v>``, its head; other names are their own.
        """
        if port.startswith("t."):
            return [port.partition("<")[0]]
        parsed = re.fullmatch(r"a(\d+)\.h(\d+)<([qkv])>", port)
        if parsed is None:
            return [port]
        layer, head, projection = int(parsed[1]), int(parsed[2]), parsed[3]
        group = self.cfg.n_heads // self.cfg.n_heads_of(projection)
        return [head_name(layer, query) for query in range(head * group, (head + 1) * group)]

    @cached_property
    def flow(self) -> nx.DiGraph:
        """What can reach what, as a directed graph of nodes and, inside heads, of their parts.

        A circuit's edge has its number as ``edge``; an inner one (from a head's values to its
        output) has none. A head's values are two nodes where a stream meets them: what its layer
        computes, ``a1.h0<v>``, and the total ``a1.h0<v>+``. ``carry="raw"`` passes on the first,
        ``"sum"`` the second.
        """
        import networkx as nx

        flow = nx.DiGraph()
        flow.add_nodes_from((*self.writers, "logits"))
        received = {(receiver.stream, receiver.layer) for receiver in self.receivers}
        for reader in self.readers:
            for name in reader.names:
                if reader.port not in ("q", "k", "v"):
                    continue
                total = name
                if (reader.port, reader.layer) in received:
                    total = f"{name}+"
                    flow.add_edge(name, total)
                for query_head in self.heads_of(name):
                    flow.add_edge(total, query_head)
        flow.add_edges_from(  # what is looked up is looked up by the input, too
            ("input", edge.source) for edge in self.edges if edge.source.startswith("t.")
        )
        raw = {stream.of for stream in self.cfg.streams if stream.carry == "raw"}
        for number, edge in enumerate(self.edges):
            source, target = edge.source, edge.target
            if edge.link:
                target = f"{target}+"
                if f"{source}+" in flow and edge.link.stream not in raw:
                    source = f"{source}+"
            flow.add_edge(source, target, edge=number)
        return flow


def graph_of(model: ResValTransformer, graph: Graph | None = None) -> Graph:
    """The model's graph; ``graph`` if it is that.

    Raises:
        ValueError: another model's.
    """
    if graph is None:
        return Graph.of(model)
    if graph.cfg is not model.cfg and graph.edges != Graph.of(model).edges:
        raise ValueError("this graph is that of another model")
    return graph


def _check(cfg: ResValConfig) -> None:
    if cfg.use_normalization_before_and_after or cfg.original_architecture in OLMO_QK_NORM:
        raise ValueError(
            "a layer's output is normalised before it is added: the residual stream is not a "
            "sum of heads, so this model has no graph of edges"
        )
    if cfg.use_attn_in:
        raise ValueError("use_attn_in=True: q, k and v share an input; turn it off for edges")
    if cfg.positional_embedding_type == "shortformer" and cfg.n_key_value_heads is not None:
        raise ValueError("shortformer positions with grouped heads have no inputs per head")
