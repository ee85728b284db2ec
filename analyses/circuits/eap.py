"""EAP and EAP-IG: every edge's score from one backward pass, or from a few.

    eap       Σ (x_corrupted − x_clean) · ∂metric/∂x   at the clean run (Syed et al. 2023)
    eap-ig    the same, the gradient averaged over m runs whose input embeddings (and what tables
              hold of the tokens) are corrupted + k/m (clean − corrupted), k = 1..m (Hanna et al.
              2024, arXiv 2403.17806)

x is what the edge carries: what its writer writes, with the gradient taken at its reader's input;
or what its link brings, with the gradient taken where the link arrives. With residual mixing a
reader's gradient counts with its weight of the writer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.analyses.circuits.gradients import Enlarged
from resval_lens.analyses.circuits.graph import Graph, Reader, Receiver
from resval_lens.analyses.circuits.methods import Scoring
from resval_lens.analyses.circuits.recording import (
    Parts,
    arriving_hooks,
    inputs_per_head,
    writing_hooks,
)
from resval_lens.analyses.circuits.running import most_numbers
from resval_lens.attention import StreamAttention
from resval_lens.hooks.answers import answer_logits, layer_device, right_padding
from resval_lens.hooks.processes import dividing, summed
from resval_lens.hooks.prompts import PromptPairs, wide
from resval_lens.mixing import StreamMix
from resval_lens.runtime import evaluating
from resval_lens.streams import TABLE
from resval_lens.transformer import ResValTransformer


def gradient_scores(at: Scoring) -> Float[Tensor, "*prompt edge"]:
    """Difference · gradient, averaged over ``at.steps`` inputs up to the clean ones, and prompts
    (unless ``at.by_prompt`` wants each prompt's own, which take no further run).

    Calls of the model are smaller than ``max_tokens`` where what is held of one would be more than
    ``MOST_NUMBERS``.

    Raises:
        ValueError: a metric without a gradient.
    """
    process, count = dividing(), len(at.pairs)
    if process.of == 1:
        scores = _summed_over(at)
    else:
        rows, scores = process.rows(count), at.zeros()
        if len(rows):
            own = _summed_over(at._replace(pairs=at.pairs.rows(rows.to(at.pairs.clean.device))))
            scores[rows.to(own.device) if at.by_prompt else ...] = own
        scores = summed(scores, process)
    return scores if at.by_prompt else scores / count


def _summed_over(at: Scoring) -> Float[Tensor, "*prompt edge"]:
    """Difference · gradient, summed over prompts or each prompt's own."""
    held = most_numbers(layer_device(at.model, -1))
    most = min(at.max_tokens, max(1, held // numbers_per_token(at.graph)))
    parts = at.pairs.within(most)
    found: list[Tensor] = []
    for number, part in enumerate(parts):
        own = _Scored(at.model, at.graph, part, at.by_prompt).scores(at.steps)
        found = [*found, own] if at.by_prompt or not found else [found[0] + own]
        at.progress(number + 1, len(parts))
    return torch.cat(found) if at.by_prompt else found[0]


def numbers_per_token(graph: Graph) -> int:
    """What is held of one position: every writer's difference, what autograd keeps of one run, and
    the gradients of one layer's readers."""
    cfg = graph.cfg
    kept = cfg.n_layers * (16 * cfg.d_model + 5 * (cfg.d_mlp or 0))
    return cfg.d_model * (len(graph.writers) + 6 * graph.most_readers) + kept


class _Scored:
    """Some prompts, whose edges are scored.

    Differences and sums are those of :func:`~resval_lens.hooks.prompts.wide` numbers, on the device
    of the last layer.

    Attributes:
        written: what each writer writes in the corrupted run, less what it writes in the clean one.
        links: the same of what each slot of a receiver brings.
    """

    written: Float[Tensor, "writer row pos d_model"]

    def __init__(
        self, model: ResValTransformer, graph: Graph, pairs: PromptPairs, by_prompt: bool
    ) -> None:
        self.model, self.graph, self.pairs, self.by_prompt = model, graph, pairs, by_prompt
        self.device = layer_device(model, -1)
        self.written_weights = model.written_weights()
        self.links: dict[str, Parts] = {}
        self.enlarged = Enlarged(model.cfg.dtype)
        # A gate reads what its head reads: the gradient goes through it, too.
        self.splits = any(stream.how.is_gated for stream in model.cfg.streams)
        self.inputs = {model.cfg.input_point: torch.empty(0)}  # all that is made of the tokens
        self.inputs |= {
            f"blocks.{to.layer}.attn.hook_{to.stream}_table": torch.empty(0)
            for to in graph.receivers
            if to.slots[0][0] == TABLE
        }
        received = {(receiver.stream, receiver.layer) for receiver in graph.receivers}
        self.sites = {group.hook: group.hook for group in graph.groups}
        for reader in graph.readers:
            if reader.port in ("q", "k", "v") and not self.splits:
                local = "_local" * ((reader.port, reader.layer) in received)
                self.sites[reader.hook] = f"blocks.{reader.layer}.attn.hook_{reader.port}{local}"

    def scores(self, steps: int) -> Float[Tensor, "*prompt edge"]:
        """Σ over prompts, or each prompt's own, of difference · mean gradient.

        The last input is the clean one, in whose run what edges carry is recorded.
        """
        with evaluating(self.model):
            start = self._corrupted()
            total = self._dotted(self._gradients(self._recording(sign=-1)))
            end = self.inputs
            for step in range(1, steps):
                between = {
                    name: torch.lerp(x, end[name], step / steps) for name, x in start.items()
                }
                total += self._dotted(self._gradients([], between))
        return total / steps

    @torch.no_grad()
    def _corrupted(self) -> dict[str, Tensor]:
        """The corrupted run, recorded; what in it is made of the tokens."""
        model = self.model
        with model.hooks(fwd_hooks=self._recording(sign=1)):
            model(self.pairs.corrupted, stop_at_layer=model.cfg.n_layers, **right_padding(model))
        return dict(self.inputs)

    def _recording(self, sign: int) -> list[Any]:
        """Hooks that keep what is written and arrives in one run (1), or take it off (−1)."""
        count = 0

        def wrote(layer: int, outputs: Float[Tensor, "writer row pos d_model"]) -> None:
            nonlocal count
            outputs = wide(outputs).to(self.device)
            if count == 0 and sign > 0:
                self.written = outputs.new_empty(len(self.graph.writers), *outputs.shape[1:])
            where = self.written[count : count + len(outputs)]
            if sign > 0:
                where.copy_(outputs)
            else:
                where -= outputs
            count += len(outputs)

        def embedded(x: Tensor, hook: HookPoint) -> None:
            wrote(-1, x.detach()[None])

        def entered(x: Tensor, hook: HookPoint) -> None:
            self.inputs[str(hook.name)] = x.detach()

        @torch.no_grad()
        def arrived(to: Receiver, link: Tensor, parts: Any) -> None:
            brought = wide(parts().detach()).to(self.device)
            self.links[to.hook] = brought if sign > 0 else self.links[to.hook] - brought

        first = (self.model.cfg.input_point, embedded)
        return [
            first,
            *((name, entered) for name in self.inputs),
            *writing_hooks(self.model, wrote),
            *arriving_hooks(self.model, self.graph, arrived),
        ]

    def _gradients(
        self, recording: list[Any], inputs: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """∂(Σ metric)/∂x at every site of a run of the clean prompts.

        Args:
            recording: further hooks of the forward pass.
            inputs: what there is instead of what is made of the clean prompts' tokens.
        """
        model, found = self.model, dict[str, Tensor]()
        sites = set(self.sites.values())
        reads = {reader.reads for reader in self.graph.readers if reader.port == "q"}

        def put_in(x: Tensor, hook: HookPoint) -> Tensor:
            return (x if inputs is None else inputs[str(hook.name)]).detach().requires_grad_()

        def keep(x: Tensor, hook: HookPoint) -> None:
            found.setdefault(str(hook.name), x)  # not what the backward pass makes once more

        hooks: list[Any] = [(name, put_in) for name in self.inputs]
        hooks += [(name, keep) for name in (*sites, *reads)]
        with (
            torch.enable_grad(),
            inputs_per_head(model, self.splits),
            _links_differentiable(model),
            model.hooks(fwd_hooks=hooks),
        ):
            with model.hooks(fwd_hooks=recording):  # nor are its runs recorded
                logits = answer_logits(model, self.pairs.clean, self.pairs.answers)
            self.enlarged.enter(logits)
            metric = self.pairs.measure(logits).sum()
            if not metric.requires_grad:
                raise ValueError('this metric has no gradient; score edges by method="exact"')
            self.read = {name: found[name].detach() for name in reads}
            wanted = {site: x for site, x in found.items() if site in sites}
            given = torch.autograd.grad(metric, list(wanted.values()), allow_unused=True)
        return {
            site: torch.zeros_like(x) if own is None else own
            for (site, x), own in zip(wanted.items(), given, strict=True)
        }

    @torch.no_grad()
    def _dotted(self, gradients: dict[str, Tensor]) -> Float[Tensor, "*prompt edge"]:
        """Σ over positions (and prompts, unless each is wanted) of difference · gradient."""
        shape = (len(self.pairs),) * self.by_prompt + (len(self.graph),)
        scores = self.written.new_zeros(shape)

        def add(group: Reader | Receiver, found: Float[Tensor, "row reader writer"]) -> None:
            found = found.flatten(1)
            scores[..., group.edges] = found if self.by_prompt else found.sum(0)

        for layer in range(self.graph.cfg.n_layers):
            readers = [reader for reader in self.graph.readers if reader.layer == layer]
            with self.model.blocks[layer].fetched():
                at_readers = self._at_readers(layer, readers, gradients)
            rows = torch.cat([x.to(self.device) for x in at_readers])
            writers = max(reader.writers for reader in readers)
            # One pass over what is written for all readers of a layer.
            found = torch.einsum("hbn,wbn->bhw", rows.flatten(2), self.written[:writers].flatten(2))
            heads = [len(reader.names) for reader in readers]
            for reader, own in zip(readers, found.split(heads, 1), strict=True):
                own = own[..., : reader.writers]
                weights = self.graph.weights(self.written_weights, reader)
                add(reader, own if weights is None else own * weights.to(own))
        for to in self.graph.receivers:
            gradient = self.enlarged.read(gradients[to.hook], to.hook).to(self.device)
            add(to, torch.einsum("sbphd,bphd->bsh", self.links[to.hook], gradient))
        return scores

    def _at_readers(
        self, layer: int, readers: list[Reader], gradients: dict[str, Tensor]
    ) -> list[Float[Tensor, "head row pos d_model"]]:
        """The gradient at each input of a layer's readers.

        That of an attention input is the gradient of its projection, back through the weights and
        the norm.
        """
        found, projected = [], []
        for reader in readers:
            gradient = gradients[self.sites[reader.hook]]
            heads = (gradient if gradient.ndim == 4 else gradient[:, :, None]).movedim(2, 0)
            if self.sites[reader.hook] == reader.hook:
                found.append(self.enlarged.read(heads, reader.hook))
                continue
            weights = self._projection(layer, reader.port)
            back = heads.flatten(1, 2) @ weights.transpose(1, 2)
            projected.append(back.unflatten(1, heads.shape[1:3]))
        if not projected:
            return found
        back = torch.cat(projected)
        with torch.enable_grad():
            x = self.read[readers[0].reads].expand_as(back).detach().requires_grad_()
            (through,) = torch.autograd.grad(self.model.blocks[layer].ln1(x), x, back)
        return [self.enlarged.read(through, readers[0].reads), *found]

    def _projection(self, layer: int, port: str) -> Float[Tensor, "head d_model d_head"]:
        attention = cast("Any", self.model.blocks[layer].attn)
        grouped = self.graph.cfg.n_heads_of(port) != self.graph.cfg.n_heads
        return getattr(attention, f"_W_{port.upper()}" if grouped else f"W_{port.upper()}")


@contextmanager
def _links_differentiable(model: ResValTransformer) -> Iterator[None]:
    """Streams that block the gradient in training let it through: values do flow there."""
    mixes = [
        mix
        for block in model.blocks
        if isinstance(block.attn, StreamAttention)
        for mix in block.attn.mixes.values()
        if isinstance(mix, StreamMix)
    ]
    before = [mix.stream for mix in mixes]
    try:
        for mix in mixes:
            mix.stream = replace(mix.stream, detach=False)
        yield
    finally:
        for mix, stream in zip(mixes, before, strict=True):
            mix.stream = stream
