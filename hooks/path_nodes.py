"""Senders and receivers of path patching: by name, where they are found, and what reaches what."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from resval_lens.hooks.links import LINK, Link, LinkLike, head_name, links, whole_links
from resval_lens.transformer import ResValTransformer

Nodes = LinkLike | Iterable[LinkLike]
Kind = Literal["input", "head", "mlp", "link", "projection", "logits"]
Side = Literal["senders", "receivers"]

PATTERN = re.compile(
    r"input|logits|m(?P<mlp>\d+)|a(?P<layer>\d+)\.h(?P<head>\d+)(<(?P<projection>[qkv])>)?"
)
KINDS: dict[Side, tuple[Kind, ...]] = {
    "senders": ("input", "head", "mlp", "link"),
    "receivers": ("projection", "mlp", "link", "logits"),
}
LIKE: dict[Side, str] = {
    "senders": "a2.h1 (a head), m2 (an MLP), v2.h1 (a link) or input",
    "receivers": "a2.h1<q>, <k> or <v>, m2 (an MLP), v2.h1 (a link) or logits",
}


@dataclass(frozen=True)
class Node:
    """A sender or receiver, and where it is found: a hook point and, if it has heads, a head.

    An MLP is found at its output when it receives, too: a function of its input alone, which has a
    hook point in every architecture.
    """

    kind: Kind
    name: str
    layer: int
    hook_name: str
    head: int | None = None
    projection: str | None = None  # of a link, its stream

    def part(self, activations: Mapping[str, Tensor]) -> Tensor:
        """What is this node's in its hook point's activation, [row, pos, d]."""
        activation = activations[self.hook_name]
        return activation if self.head is None else activation[:, :, self.head]


def parse_nodes(model: ResValTransformer, given: Nodes, side: Side) -> list[Node]:
    """The nodes of these names, each once.

    Raises:
        ValueError: an empty selection, a name that this side or the model does not have, or
            "logits" beside other receivers.
    """
    several = [given] if isinstance(given, str | Link) else list(given)
    if not several:
        raise ValueError(f"{side}: the selection is empty; name one or more")
    nodes = list(dict.fromkeys(_node(model, str(name), side) for name in several))
    if len(nodes) > 1 and any(node.kind == "logits" for node in nodes):
        raise ValueError("receivers: 'logits' is all that the metric reads; it must be alone")
    return nodes


def _node(model: ResValTransformer, name: str, side: Side) -> Node:
    if LINK.fullmatch(name):
        return _link(model, Link.parse(name), side)
    parsed = PATTERN.fullmatch(name)
    node = None if parsed is None else _found(model, parsed)
    if node is None or node.kind not in KINDS[side]:
        raise ValueError(f"{side}: {name!r} is not a name like {LIKE[side]}")
    layers, heads = model.cfg.n_layers, model.cfg.n_heads_of(node.projection or "q")
    if node.kind != "logits" and node.layer >= layers:
        raise ValueError(f"{side}: {name}: layer {node.layer} is not among 0 to {layers - 1}")
    if node.kind == "mlp" and model.cfg.attn_only:
        raise ValueError(f"{side}: {name}: this model has no MLPs")
    if node.head is not None and node.head >= heads:
        raise ValueError(f"{side}: {name}: head {node.head} is not among 0 to {heads - 1}")
    return node


def _link(model: ResValTransformer, link: Link, side: Side) -> Node:
    try:
        links(model, of=link.stream, layers=link.layer, heads=link.head)
        (link,) = whole_links(model.cfg, [link])
    except ValueError as error:
        raise ValueError(f"{side}: {link}: {error}") from None
    return Node("link", str(link), link.layer, link.hook_name, link.head, link.stream)


def _found(model: ResValTransformer, parsed: re.Match[str]) -> Node:
    name = parsed[0]
    if name == "input":
        return Node("input", name, -1, model.cfg.input_point)
    if name == "logits":
        last = model.cfg.n_layers - 1
        return Node("logits", name, last + 1, model.cfg.final_point)
    if parsed["mlp"]:
        layer = int(parsed["mlp"])
        return Node("mlp", f"m{layer}", layer, f"blocks.{layer}.hook_mlp_out")
    layer, head, projection = int(parsed["layer"]), int(parsed["head"]), parsed["projection"]
    name, place = head_name(layer, head, projection or ""), f"blocks.{layer}.attn.hook_"
    if projection is None:
        return Node("head", name, layer, f"{place}z", head)
    return Node("projection", name, layer, place + projection, head, projection)


def entered_heads(model: ResValTransformer, link: Node) -> range:
    """The heads whose attention a link enters: under grouped queries, all of a key-value head's."""
    assert link.head is not None
    assert link.projection is not None
    group = model.cfg.n_heads // model.cfg.n_heads_of(link.projection)
    return range(link.head * group, (link.head + 1) * group)


def check_reach(
    model: ResValTransformer, senders: Sequence[Node], receivers: Sequence[Node]
) -> None:
    """Raises ValueError for a sender from which nothing flows into a receiver, or the reverse."""
    flows = [[_reaches(model, sender, receiver) for receiver in receivers] for sender in senders]
    for sender, into in zip(senders, flows, strict=True):
        if not any(into):
            raise ValueError(f"senders: nothing flows from {sender.name} into {_list(receivers)}")
    for i, receiver in enumerate(receivers):
        if not any(into[i] for into in flows):
            raise ValueError(f"receivers: nothing flows into {receiver.name} from {_list(senders)}")


def _list(nodes: Sequence[Node]) -> str:
    return ", ".join(node.name for node in nodes)


def _reaches(model: ResValTransformer, sender: Node, receiver: Node) -> bool:
    """Whether anything can flow from ``sender`` into ``receiver``, whatever is let through."""
    if receiver.kind == "logits":
        return True
    if receiver.kind == "mlp":
        follows = sender.kind != "mlp" and not model.cfg.parallel_attn_mlp
        return sender.layer < receiver.layer + follows
    same = sender.kind == "link" and sender.projection == receiver.projection
    if receiver.kind == "projection":
        part = same and sender.layer == receiver.layer and sender.head == receiver.head
        return sender.layer < receiver.layer or part
    stream = next(stream for stream in model.cfg.streams if stream.of == receiver.projection)
    if stream.how.is_gated and sender.layer < receiver.layer:  # its gate reads what the layer does
        return True
    sources = stream.sources(receiver.layer)
    passed_on = same and stream.carry == "sum" and sender.layer in sources
    aligned = sender.head == receiver.head or stream.how.crosses_heads
    return sender.layer < sources[-1] or (passed_on and aligned)
