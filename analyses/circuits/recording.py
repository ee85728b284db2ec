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
from resval_lens.hooks.prompts import answer_logits
from resval_lens.transformer import ResValTransformer

Parts = Float[Tensor, "slot row pos head d_head"]


@dataclass
class Recording:
    """One run.

    Attributes:
        writers: what each writer adds to the residual stream, without b_O.
        links: hook point of each receiver to what each of its slots brings.
        handed: what each layer hands on, by stream.
        residual: the residual stream before each layer, and after the last.
        logits: at the answers.
    """

    writers: Float[Tensor, "writer row pos d_model"]
    links: dict[str, Parts]
    handed: dict[str, Tensor]
    residual: list[Float[Tensor, "row pos d_model"]]
    logits: Float[Tensor, "row d_vocab"]


@torch.no_grad()
def record(
    model: ResValTransformer, graph: Graph, inputs: Tensor, answers: Int[Tensor, " row"]
) -> Recording:
    """Runs ``inputs`` and keeps everything that edges carry."""
    writers: list[Tensor] = []
    residual: list[Tensor] = []
    links: dict[str, Parts] = {}
    handed: dict[str, Tensor] = {}

    def keep_residual(x: Tensor, hook: HookPoint) -> None:
        if not residual:
            writers.append(x)
        residual.append(x)

    last = model.cfg.n_layers - 1
    hooks: list[Any] = [(f"blocks.{i}.hook_resid_pre", keep_residual) for i in range(last + 1)]
    hooks.append((f"blocks.{last}.hook_resid_post", keep_residual))
    hooks += writing_hooks(model, lambda layer, written: writers.extend(written))
    hooks += link_hooks(model, graph, handed, lambda to, x, parts: links.update({to.hook: parts()}))
    with model.hooks(fwd_hooks=hooks):
        logits = answer_logits(model, inputs, answers)
    return Recording(torch.stack(writers), links, handed, residual, logits)


def writing_hooks(
    model: ResValTransformer, wrote: Callable[[int, list[Tensor]], None]
) -> list[tuple[str, Callable[..., None]]]:
    """Hooks that hand over what a layer's heads, then its MLP, write: [row, pos, d_model] each."""

    def heads(z: Float[Tensor, "row pos head d_head"], hook: HookPoint) -> None:
        layer = hook.layer()
        W_O = model.blocks[layer].attn.W_O
        wrote(layer, [z[:, :, head] @ W_O[head] for head in range(z.shape[2])])

    def mlp(out: Float[Tensor, "row pos d_model"], hook: HookPoint) -> None:
        wrote(hook.layer(), [out])

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
        handed[str(hook.name)] = x

    hooks: list[tuple[str, Any]] = [
        (handing_point(model, stream.of, layer), keep)
        for stream in model.cfg.streams
        for layer in range(model.cfg.n_layers)
    ]
    for receiver in graph.receivers:
        sources = sorted({source for source, _ in receiver.slots})
        names = [handing_point(model, receiver.stream, source) for source in sources]
        attention = cast("StreamAttention", model.blocks[receiver.layer].attn)

        def arrive(
            link: Tensor,
            hook: HookPoint,
            to: Receiver = receiver,
            names: list[str] = names,
            attention: StreamAttention = attention,
        ) -> Tensor | None:
            def parts() -> Parts:
                return _parts(attention, to, link, tuple(handed[name] for name in names))

            return arrived(to, link, parts)

        hooks.append((receiver.hook, arrive))
    return hooks


def handing_point(model: ResValTransformer, stream: str, layer: int) -> str:
    """The hook point that holds what ``layer`` hands on along ``stream``."""
    settings = next(s for s in model.cfg.streams if s.of == stream)
    own = settings.carry == "raw" and settings.receives(layer)
    return f"blocks.{layer}.attn.hook_{stream}{'_local' if own else ''}"


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
