"""What every writer writes and every link carries, in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.analyses.circuits.graph import Graph, Receiver
from resval_lens.attention import StreamAttention
from resval_lens.hook_names import handing_point
from resval_lens.hooks.answers import answer_logits
from resval_lens.transformer import ResValTransformer

Parts = Float[Tensor, "slot row pos head d_head"]


@dataclass
class Recording:
    """One run.

    Attributes:
        writers: what each writer adds to the residual stream, without b_O, where its layer is.
        links: hook point of each receiver to what each of its slots brings.
        handed: what each layer hands on, by stream.
        residual: the residual stream before each layer, and after the last.
        logits: at the answers.
    """

    writers: list[Float[Tensor, "row pos d_model"]]
    links: dict[str, Parts]
    handed: dict[str, Tensor]
    residual: list[Float[Tensor, "row pos d_model"]]
    logits: Float[Tensor, "row d_vocab"]

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        held = [*self.writers, *self.links.values(), *self.handed.values(), *self.residual]
        return sum(x.numel() for x in held)


class Recorder:
    """Keeps everything that edges carry in one run, under its ``hooks``; without gradients."""

    def __init__(self, model: ResValTransformer, graph: Graph) -> None:
        self.writers: list[Tensor] = []
        self.residual: list[Tensor] = []
        self.links: dict[str, Parts] = {}
        self.handed: dict[str, Tensor] = {}
        last = model.cfg.n_layers - 1
        self.hooks: list[Any] = [
            *((f"blocks.{layer}.hook_resid_pre", self._keep) for layer in range(last + 1)),
            (f"blocks.{last}.hook_resid_post", self._keep),
            *writing_hooks(model, lambda layer, written: self.writers.extend(written)),
            *link_hooks(model, graph, self.handed, self._arrived),
        ]

    def _keep(self, x: Tensor, hook: HookPoint) -> None:
        if not self.residual:
            self.writers.append(x.detach())
        self.residual.append(x.detach())

    @torch.no_grad()
    def _arrived(self, to: Receiver, link: Tensor, parts: Callable[[], Parts]) -> None:
        self.links[to.hook] = parts().detach()

    def recording(self, logits: Float[Tensor, "row d_vocab"]) -> Recording:
        """What was kept; ``logits`` are the run's."""
        return Recording(self.writers, self.links, self.handed, self.residual, logits.detach())


@torch.no_grad()
def record(
    model: ResValTransformer, graph: Graph, inputs: Tensor, answers: Int[Tensor, " row"]
) -> Recording:
    """Runs ``inputs`` and keeps everything that edges carry."""
    recorder = Recorder(model, graph)
    with model.hooks(fwd_hooks=recorder.hooks):
        logits = answer_logits(model, inputs, answers)
    return recorder.recording(logits)


def writing_hooks(
    model: ResValTransformer, wrote: Callable[[int, list[Tensor]], None]
) -> list[tuple[str, Callable[..., None]]]:
    """Hooks that hand over what a layer's heads, then its MLP, write: [row, pos, d_model] each."""

    @torch.no_grad()
    def heads(z: Float[Tensor, "row pos head d_head"], hook: HookPoint) -> None:
        layer = hook.layer()
        W_O = model.blocks[layer].attn.W_O
        wrote(layer, [z[:, :, head] @ W_O[head] for head in range(z.shape[2])])

    def mlp(out: Float[Tensor, "row pos d_model"], hook: HookPoint) -> None:
        wrote(hook.layer(), [out.detach()])

    hooks: list[tuple[str, Callable[..., None]]] = []
    for layer in range(model.cfg.n_layers):
        hooks.append((f"blocks.{layer}.attn.hook_z", heads))
        if not model.cfg.attn_only:
            hooks.append((f"blocks.{layer}.hook_mlp_out", mlp))
    return hooks


def link_hooks(
    model: ResValTransformer,
    graph: Graph,
    handed: dict[str, Tensor],
    arrived: Callable[[Receiver, Tensor, Callable[[], Parts]], Tensor | None],
) -> list[tuple[str, Callable[..., Tensor | None]]]:
    """Hooks that call ``arrived`` with what arrives in each receiver, whole and (when asked) in
    parts; what it returns, if anything, arrives instead. ``handed`` is filled on the way."""

    def keep(x: Tensor, hook: HookPoint) -> None:
        handed[str(hook.name)] = x.detach()

    hooks: list[tuple[str, Any]] = [
        (handing_point(stream, layer), keep)
        for stream in model.cfg.streams
        for layer in range(model.cfg.n_layers)
    ]
    for receiver in graph.receivers:
        sources = sorted({source for source, _ in receiver.slots})
        stream = next(stream for stream in model.cfg.streams if stream.of == receiver.stream)
        names = [handing_point(stream, source) for source in sources]
        attention = cast("StreamAttention", model.blocks[receiver.layer].attn)

        def arrive(
            link: Tensor,
            hook: HookPoint,
            to: Receiver = receiver,
            names: list[str] = names,
            attention: StreamAttention = attention,
        ) -> Tensor | None:
            def parts() -> Parts:
                return _parts(
                    attention, to, link, tuple(handed[name].to(link.device) for name in names)
                )

            return arrived(to, link, parts)

        hooks.append((receiver.hook, arrive))
    return hooks


def _parts(
    attention: StreamAttention, receiver: Receiver, link: Tensor, handed: tuple[Tensor, ...]
) -> Parts:
    """What each slot brings; together they are ``link``."""
    if len(receiver.slots) == 1:  # a gate among them, whose weight only the layer knows
        return link[None]
    mix = attention.mix(receiver.stream)
    assert mix is not None
    if receiver.slots[0][1] is None:
        return torch.stack(mix.parts(handed))
    brought = []
    for index, x in enumerate(handed):  # each head of each source alone
        for head in range(x.shape[2]):
            alone = torch.zeros_like(x)
            alone[:, :, head] = x[:, :, head]
            others = [torch.zeros_like(x)] * len(handed)
            brought.append(mix.parts((*others[:index], alone, *others[index + 1 :]))[index])
    return torch.stack(brought)


@contextmanager
def inputs_per_head(model: ResValTransformer) -> Iterator[None]:
    """Every reader with an input of its own to hook; as before afterwards."""
    cfg = model.cfg
    before = cfg.use_split_qkv_input, cfg.use_hook_mlp_in
    cfg.use_split_qkv_input = cfg.use_hook_mlp_in = True
    try:
        yield
    finally:
        cfg.use_split_qkv_input, cfg.use_hook_mlp_in = before
