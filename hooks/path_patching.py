"""Path patching: what senders do to the answer through chosen receivers alone.

    effects = path_patch_each(model, pairs, ["a0.h1", "m0", "v1.h0"], ["a2.h1<q>"])
    effects.effect.mean(1)  # of each sender, in units of the metric

Algorithm 1 of Wang et al. 2022 (arXiv 2211.00593), with links:

    A   corrupted prompts   what the senders send
    B   clean prompts       everything
    C   clean prompts       senders as in A; every other head's output (z) as in B, and every other
                            link, too, unless let through; MLPs and norms recomputed: what arrives
                            in the receivers, before anything is held there
    D   clean prompts       receivers as in C, nothing held: the metric

Senders and receivers have names; a :class:`~resval_lens.hooks.links.Link` stands for its own:

    sender     a2.h1      a head's output (z)         receiver   a2.h1<q>  what a head has as its q,
               m2         an MLP's output                        <k> <v>   k or v, links included
               v2.h1      a link of q, k or v                    m2        an MLP's input
               input      the embeddings                         v2.h1     what arrives along a link
                                                                 logits    the last residual stream

Keys, values and their links have key-value heads. A sending link acts through the head it enters
alone: that head gives out what it gives on the clean prompts when this link is as in A. The link is
part of what its head has as q, k or v, too, and with ``carry="sum"`` of what its layer passes on:
to a receiving link or, let through, to every next one. In run D a receiver's q, k or v is patched
at ``hook_q``, ``hook_k`` or ``hook_v``, and travels on where its layer passes on the total.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.hooks.links import links as links_of
from resval_lens.hooks.path_nodes import Node, Nodes, check_reach, entered_heads, parse_nodes
from resval_lens.hooks.prompts import (
    MAX_TOKENS,
    PromptPairs,
    check_model,
    ready,
    refuse_hooks,
)
from resval_lens.hooks.runs import Run, resumed
from resval_lens.runtime import evaluating
from resval_lens.transformer import ResValTransformer

LinkMode = Literal["frozen", "through"]
Edits = dict[str, list[tuple[int, int | None, Tensor]]]
"""At a hook point: in which copy of the prompts, for which head (None: for all), which value."""


@dataclass(frozen=True)
class PathEffects:
    """What path patching did to the metric.

    Attributes:
        senders, receivers: their names.
        links: whether links were "frozen" to the clean run or let "through" in run C.
        clean: the metric of each clean prompt.
        patched: the metric of run D; of :func:`path_patch_each`, with an axis of senders.
    """

    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    links: LinkMode
    clean: Float[Tensor, " prompt"]
    patched: Float[Tensor, "*sender prompt"]

    @property
    def effect(self) -> Float[Tensor, "*sender prompt"]:
        """patched − clean: below 0 where the clean metric needs this path."""
        return self.patched - self.clean


def path_patch(
    model: ResValTransformer,
    pairs: PromptPairs,
    senders: Nodes,
    receivers: Nodes,
    links: LinkMode = "frozen",
    max_tokens: int = MAX_TOKENS,
) -> PathEffects:
    """One path patch from all senders together; ``patched`` is [prompt].

    Args:
        senders, receivers: names or links, one or several; see the module.
        links: hold the links that do not send "frozen" to the clean run in run C, or let them
            "through".
        max_tokens: rows × positions of one model call; one prompt at least.

    Raises:
        ValueError: a sender or receiver that the model does not have; one from or into which
            nothing flows; "logits" beside other receivers; another word for ``links``; what
            :func:`~resval_lens.hooks.prompts.ready` refuses.
    """
    check_model(model)
    sending = parse_nodes(model, senders, "senders")
    effects = _path_effects(model, pairs, [sending], receivers, links, max_tokens)
    return PathEffects(**{**effects.__dict__, "patched": effects.patched[0]})


def path_patch_each(
    model: ResValTransformer,
    pairs: PromptPairs,
    senders: Nodes,
    receivers: Nodes,
    links: LinkMode = "frozen",
    max_tokens: int = MAX_TOKENS,
) -> PathEffects:
    """A path patch for each sender alone, to the same receivers; ``patched`` is [sender, prompt].

    Runs A and B are made once; C and D hold many senders at a time, and begin at the first layer
    that is not as in B. Arguments and errors are :func:`path_patch`'s.
    """
    check_model(model)
    groups = [[sender] for sender in parse_nodes(model, senders, "senders")]
    return _path_effects(model, pairs, groups, receivers, links, max_tokens)


@torch.no_grad()
def _path_effects(
    model: ResValTransformer,
    pairs: PromptPairs,
    groups: Sequence[Sequence[Node]],
    receivers: Nodes,
    links: LinkMode,
    max_tokens: int,
) -> PathEffects:
    """A path patch for each group of senders."""
    pairs = ready(model, pairs)
    receiving = parse_nodes(model, receivers, "receivers")
    senders = [node for group in groups for node in group]
    if links not in get_args(LinkMode):
        raise ValueError(f"links must be 'frozen' or 'through'; got {links!r}")
    check_reach(model, senders, receiving)
    refuse_hooks(model, "hook_resid_pre")
    clean, patched = [], []
    with evaluating(model):
        for part in pairs.within(max_tokens):
            runs = _Runs(model, part, senders, links == "frozen")
            clean.append(runs.clean_metric)
            size = max(1, max_tokens // (len(part) * part.length))
            patched.append(_each(runs, groups, receiving, size))
    return PathEffects(
        senders=tuple(node.name for node in senders),
        receivers=tuple(node.name for node in receiving),
        links=links,
        clean=torch.cat(clean),
        patched=torch.cat(patched, 1),
    )


def _each(
    runs: _Runs, groups: Sequence[Sequence[Node]], receivers: Sequence[Node], size: int
) -> Float[Tensor, "group prompt"]:
    """The metric of each group, ``size`` groups of the same first layer at a time."""
    starts: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        starts.setdefault(max(0, min(node.layer for node in group)), []).append(i)
    found: dict[int, Tensor] = {}
    for start, members in starts.items():
        for first in range(0, len(members), size):
            chunk = members[first : first + size]
            values = runs.measure([groups[i] for i in chunk], receivers, start)
            found.update(zip(chunk, values, strict=True))
    return torch.stack([found[i] for i in range(len(groups))])


class _Runs:
    """Runs A and B of some prompts, and C and D of several copies of them, one below the other."""

    def __init__(
        self, model: ResValTransformer, pairs: PromptPairs, senders: Sequence[Node], frozen: bool
    ) -> None:
        self.model, self.pairs = model, pairs
        self.links = {link.hook_name for link in links_of(model)} if model.cfg.streams else set()
        self.held = {f"blocks.{i}.attn.hook_z" for i in range(model.cfg.n_layers)}
        self.held |= self.links if frozen else set()
        sent = {node.hook_name for node in senders}
        self.a, _ = self._kept(pairs.corrupted, sent)
        self.b, self.clean = self._kept(pairs.clean, self.held)
        self.clean_metric = self._metric(self.clean.states[-1].residual)[0]

    def _kept(self, inputs: Tensor, names: Iterable[str]) -> tuple[dict[str, Tensor], Run]:
        kept, hooks, _ = self.model.get_caching_hooks(list(names))
        with self.model.hooks(fwd_hooks=hooks):
            return kept, Run(self.model, inputs)

    def _metric(self, residual: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "copy prompt"]:
        return self.pairs.measure(self.model.read_out(residual, self.pairs.answers))

    def _resume(self, copies: int, start: int, stop: int | None, hooks: list[Any]) -> Tensor:
        """The residual stream after layers start..stop of the clean run, with hooks."""
        rows = self.clean.states[start].repeated(copies)
        with self.model.hooks(fwd_hooks=hooks):
            return resumed(self.model, rows, stop).residual

    def measure(
        self, groups: Sequence[Sequence[Node]], receivers: Sequence[Node], start: int
    ) -> Float[Tensor, "group prompt"]:
        """The metric of run D for each group of senders, of which none is below layer ``start``."""
        edits = self._sent(groups)
        holding = self._placing(edits, self.held | edits.keys())
        if receivers[0].kind == "logits":  # D, with its last residual stream patched, is C
            return self._metric(self._resume(len(groups), start, None, holding))
        arrived, reading, _ = self.model.get_caching_hooks([node.hook_name for node in receivers])
        last = max(node.layer for node in receivers)
        # Hooks of one point run in this order: what arrives is read before it is held.
        self._resume(len(groups), start, last + 1, [*reading, *holding])
        patches: Edits = {}
        reached = [node for node in receivers if node.hook_name in arrived]
        for node in reached:
            patches.setdefault(node.hook_name, []).append((0, node.head, node.part(arrived)))
        rows = len(groups) * len(self.pairs)  # each its own: all of them are the one copy
        patching = [(name, partial(_placed, None, rows, own)) for name, own in patches.items()]
        first = min(node.layer for node in reached)
        return self._metric(self._resume(len(groups), first, None, patching))

    def _sent(self, groups: Sequence[Sequence[Node]]) -> Edits:
        """What run C has in place of each sender, and of each head that a sending link enters."""
        edits: Edits = {}
        entered: dict[int, list[tuple[int, Node]]] = {}
        for i, group in enumerate(groups):
            for node in group:
                edits.setdefault(node.hook_name, []).append((i, node.head, node.part(self.a)))
                if node.kind == "link":
                    entered.setdefault(node.layer, []).append((i, node))
        for layer, several in entered.items():
            name = f"blocks.{layer}.attn.hook_z"
            z, reading, _ = self.model.get_caching_hooks([name])
            hooks = self._placing(edits, self.links & edits.keys())
            self._resume(len(groups), layer, layer + 1, [*hooks, *reading])
            copies = z[name].unflatten(0, (len(groups), -1))
            given = [
                (i, head, copies[i, :, :, head])
                for i, link in several
                for head in entered_heads(self.model, link)
            ]
            # A head that sends itself sends what it is, not what a link makes of it: it comes last.
            edits[name] = given + edits.get(name, [])
        return edits

    def _placing(self, edits: Edits, names: Iterable[str]) -> list[Any]:
        """Hooks that hold what is to be held, and put each edit in its place."""
        held = {name: self.b[name] for name in self.held}
        return [
            (name, partial(_placed, held.get(name), len(self.pairs), edits.get(name, [])))
            for name in names
        ]


def _placed(
    held: Tensor | None,
    prompts: int,
    edits: Sequence[tuple[int, int | None, Tensor]],
    activation: Tensor,
    hook: HookPoint,
) -> Tensor:
    """The activation, or what it is held to, with each edit in its copy of the prompts."""
    copies = len(activation) // prompts
    placed = activation.clone() if held is None else held.repeat(copies, 1, 1, 1)
    rows = placed.unflatten(0, (copies, prompts))
    for copy, head, value in edits:
        rows[(copy,) if head is None else (copy, ..., head, slice(None))] = value
    return placed
