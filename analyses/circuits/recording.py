"""What every writer writes and every link carries, in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.analyses.circuits.graph import Graph, Receiver
from resval_lens.attention import StreamAttention
from resval_lens.hooks.answers import answer_logits
from resval_lens.transformer import ResValTransformer

Parts = Float[Tensor, "slot row pos head d_head"]


@dataclass
class Recording:
    """One run.

    Attributes:
        writers: what each writer adds to the residual stream, without b_O, where its layer is.
        links: hook point of each receiver to what each of its slots brings.
        read: the residual stream that readers read, by ``Reader.reads``.
        logits: at the answers.
    """

    writers: list[Float[Tensor, "row pos d_model"]]
    links: dict[str, Parts]
    read: dict[str, Float[Tensor, "row pos d_model"]]
    logits: Float[Tensor, "row d_vocab"]


class Recorder:
    """Keeps everything that edges carry in one run, under its ``hooks``; without gradients.

    Attributes:
        writers, links, read: as of the :class:`Recording`.
    """

    def __init__(self, model: ResValTransformer, graph: Graph) -> None:
        self.model, self.graph = model, graph
        self.writers: list[Tensor] = []
        self.links: dict[str, Parts] = {}
        self.read: dict[str, Tensor] = {}

    # Hooks are made when they are asked for: kept, they and the recorder would hold each other, and
    # what was recorded would stay until the garbage collector comes by.
    @property
    def writing(self) -> list[Any]:
        """Hooks that keep writers alone."""
        return [
            (self.model.cfg.input_point, self._embedded),
            *writing_hooks(self.model, lambda layer, written: self.writers.extend(written)),
        ]

    @property
    def hooks(self) -> list[Any]:
        """Hooks that keep everything."""
        arriving = arriving_hooks(self.model, self.graph, self._arrived)
        reading = [(name, self._read) for name in {reader.reads for reader in self.graph.readers}]
        return [*self.writing, *arriving, *reading]

    def _embedded(self, x: Tensor, hook: HookPoint) -> None:
        self.writers.append(x.detach())

    def _read(self, x: Tensor, hook: HookPoint) -> None:
        self.read[str(hook.name)] = x.detach()

    @torch.no_grad()
    def _arrived(self, to: Receiver, link: Tensor, parts: Callable[[], Parts]) -> None:
        self.links[to.hook] = parts().detach()


@torch.no_grad()
def record(
    model: ResValTransformer, graph: Graph, inputs: Tensor, answers: Int[Tensor, " row"]
) -> Recording:
    """Runs ``inputs`` and keeps everything that edges carry."""
    recorder = Recorder(model, graph)
    with model.hooks(fwd_hooks=recorder.hooks):
        logits = answer_logits(model, inputs, answers)
    return Recording(recorder.writers, recorder.links, recorder.read, logits)


def writing_hooks(
    model: ResValTransformer, wrote: Callable[[int, Float[Tensor, "writer row pos d_model"]], None]
) -> list[tuple[str, Callable[..., None]]]:
    """Hooks that hand over what a layer's heads, then its MLP, write."""

    @torch.no_grad()
    def heads(z: Float[Tensor, "row pos head d_head"], hook: HookPoint) -> None:
        layer = hook.layer()
        of_head = z.permute(2, 0, 1, 3)
        written = of_head.flatten(1, 2) @ model.blocks[layer].attn.W_O
        wrote(layer, written.unflatten(1, of_head.shape[1:3]))

    def mlp(out: Float[Tensor, "row pos d_model"], hook: HookPoint) -> None:
        wrote(hook.layer(), out.detach()[None])

    hooks: list[tuple[str, Callable[..., None]]] = []
    for layer in range(model.cfg.n_layers):
        hooks.append((f"blocks.{layer}.attn.hook_z", heads))
        if not model.cfg.attn_only:
            hooks.append((f"blocks.{layer}.hook_mlp_out", mlp))
    return hooks


def arriving_hooks(
    model: ResValTransformer,
    graph: Graph,
    arrived: Callable[[Receiver, Tensor, Callable[[], Parts]], Tensor | None],
) -> list[tuple[str, Callable[..., Tensor | None]]]:
    """Hooks that call ``arrived`` with what arrives in each receiver, whole and (when asked) in
    parts; what it returns, if anything, arrives instead."""

    def arrive(to: Receiver, link: Tensor, hook: HookPoint) -> Tensor | None:
        attention = cast("StreamAttention", model.blocks[to.layer].attn)
        return arrived(to, link, partial(_parts, attention, to, link))

    return [(receiver.hook, partial(arrive, receiver)) for receiver in graph.receivers]


def _parts(attention: StreamAttention, receiver: Receiver, link: Tensor) -> Parts:
    """What each slot brings of what the layer is being passed; together they are ``link``."""
    if len(receiver.slots) == 1:  # a gate among them, whose weight only the layer knows
        return link[None]
    mix = attention.mix(receiver.stream)
    assert mix is not None
    assert attention.delivery is not None
    passed = tuple(x.detach().to(link.device) for x in attention.delivery.arriving[receiver.stream])
    if receiver.slots[0][1] is None:
        return torch.stack(mix.parts(passed))
    brought = []
    for index, x in enumerate(passed):  # each head of each source alone
        for head in range(x.shape[2]):
            alone = torch.zeros_like(x)
            alone[:, :, head] = x[:, :, head]
            others = [torch.zeros_like(x)] * len(passed)
            brought.append(mix.parts((*others[:index], alone, *others[index + 1 :]))[index])
    return torch.stack(brought)


@contextmanager
def inputs_per_head(model: ResValTransformer, of_heads: bool = True) -> Iterator[None]:
    """Every reader with an input of its own to hook, or MLPs alone; as before afterwards."""
    cfg = model.cfg
    before = cfg.use_split_qkv_input, cfg.use_hook_mlp_in
    cfg.use_split_qkv_input, cfg.use_hook_mlp_in = of_heads, True
    try:
        yield
    finally:
        cfg.use_split_qkv_input, cfg.use_hook_mlp_in = before
