"""EAP and EAP-IG: every edge's score from one backward pass, or from a few.

    eap       Σ (x_corrupted − x_clean) · ∂metric/∂x   at the clean run (Syed et al. 2023)
    eap-ig    the same, the gradient averaged over m runs whose input embeddings are
              corrupted + k/m (clean − corrupted), k = 1..m (Hanna et al. 2024, arXiv 2403.17806)

x is what the edge carries: what its writer writes, with the gradient taken at its reader's input;
or what its link brings, with the gradient taken where the link arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.analyses.circuits.gradients import Enlarged
from resval_lens.analyses.circuits.graph import Graph, Reader
from resval_lens.analyses.circuits.methods import Scoring
from resval_lens.analyses.circuits.recording import Recorder, inputs_per_head, record
from resval_lens.analyses.circuits.running import MOST_NUMBERS
from resval_lens.attention import StreamAttention
from resval_lens.hooks.answers import answer_logits, layer_device
from resval_lens.hooks.prompts import PromptPairs, wide
from resval_lens.mixing import StreamMix
from resval_lens.runtime import evaluating
from resval_lens.transformer import ResValTransformer


def gradient_scores(at: Scoring) -> Float[Tensor, "*prompt edge"]:
    """Difference · gradient, averaged over ``at.steps`` inputs up to the clean ones, and prompts
    (unless ``at.by_prompt`` wants each prompt's own, which take no further run).

    Calls of the model are smaller than ``max_tokens`` where what is held of one would be more than
    ``MOST_NUMBERS``.

    Raises:
        ValueError: a metric without a gradient.
    """
    most = min(at.max_tokens, max(1, MOST_NUMBERS // _numbers_per_token(at.graph)))
    parts = at.pairs.within(most)
    total, before = at.zeros(), 0
    for number, part in enumerate(parts):
        found = _approximate(at.model, part, at.graph, at.steps, at.by_prompt)
        if at.by_prompt:
            total[before : before + len(part)] = found
        else:
            total += found
        before += len(part)
        at.progress(number + 1, len(parts))
    return total if at.by_prompt else total / len(at.pairs)


def _numbers_per_token(graph: Graph) -> int:
    """What is held of one position: two runs' writers, and each reader's input through a norm."""
    readers = sum(len(reader.names) for reader in graph.readers)
    return graph.cfg.d_model * (3 * len(graph.writers) + 5 * readers)


def _approximate(
    model: ResValTransformer, pairs: PromptPairs, graph: Graph, steps: int, by_prompt: bool
) -> Float[Tensor, "*prompt edge"]:
    """Σ over prompts of difference · mean gradient, over ``steps`` inputs up to the clean ones; or
    each prompt's own.

    The last of these is the clean run itself, in whose pass what edges carry is recorded.
    Differences and sums are those of :func:`~resval_lens.hooks.prompts.wide` numbers, on the device
    of the last layer.
    """
    device = layer_device(model, -1)
    groups = {group.hook: group for group in graph.groups}
    recorder = Recorder(model, graph)

    with evaluating(model):
        corrupted = record(model, graph, pairs.corrupted, pairs.answers)
        start = corrupted.writers[0]
        written = torch.empty(0)
        shape = (len(pairs),) * by_prompt + (len(graph),)
        dtype = torch.promote_types(start.dtype, torch.float32)
        scores = torch.zeros(shape, dtype=dtype, device=device)

        def scored(hook: str, gradient: Tensor) -> None:
            nonlocal written
            gradient = gradient.to(device)
            if not len(written):  # the forward pass is done
                written = _differences(corrupted.writers, recorder.writers, device)
            group = groups[hook]
            if isinstance(group, Reader):
                heads = gradient if gradient.ndim == 4 else gradient[:, :, None]
                theirs = written[: group.writers]
                if by_prompt:
                    own = heads.movedim(2, 1).flatten(2)  # [row, head, pos * d_model]
                    theirs = theirs.unflatten(1, (len(pairs), -1))
                    found = torch.einsum("bhn,wbn->bhw", own, theirs)
                else:
                    flat = heads.movedim(2, 0).flatten(1)  # [head, row * pos * d_model]
                    found = flat @ theirs.T
            else:
                difference = wide(corrupted.links[hook]) - wide(recorder.links[hook])
                to = "bsh" if by_prompt else "sh"
                found = torch.einsum(f"sbphd,bphd->{to}", difference.to(device), gradient)
            scores[..., group.edges] += found.flatten(-2)

        _backward(model, pairs, graph, scored, recorder.hooks)
        clean = recorder.embedding
        for step in range(1, steps):
            inputs = torch.lerp(start, clean, step / steps)
            _backward(model, pairs, graph, scored, embedding=inputs)
    return scores / steps


def _differences(
    corrupted: list[Tensor], clean: list[Tensor], device: torch.device
) -> Float[Tensor, "writer row_pos_d_model"]:
    """What each writer writes in the corrupted run, less what it does in the clean one.

    Both lists are emptied: one of the two, and this, are all that is held.
    """
    corrupted.reverse()
    clean.reverse()
    rows = []
    while clean:
        rows.append((wide(corrupted.pop()) - wide(clean.pop())).flatten().to(device))
    return torch.stack(rows)


def _backward(
    model: ResValTransformer,
    pairs: PromptPairs,
    graph: Graph,
    scored: Callable[[str, Tensor], None],
    recording: Sequence[Any] = (),
    embedding: Tensor | None = None,
) -> None:
    """Calls ``scored`` with ∂(Σ metric)/∂x at every reader's input and wherever a link arrives, one
    after the other, as the backward pass of the prompts' run comes to them.

    Args:
        recording: further hooks of the forward pass.
        embedding: what layer 0 reads, instead of the clean prompts' embeddings.
    """
    inputs: list[Tensor] = []
    enlarged = Enlarged(model.cfg.dtype)

    def put_in(x: Tensor, hook: HookPoint) -> Tensor:
        inputs.append((x if embedding is None else embedding).detach().requires_grad_())
        return inputs[0]

    def keep(x: Tensor, hook: HookPoint) -> None:
        name = str(hook.name)
        x.register_hook(lambda gradient: scored(name, enlarged.read(gradient, name)))

    hooks: list[Any] = [("blocks.0.hook_resid_pre", put_in), *recording]
    hooks += [(group.hook, keep) for group in graph.groups]
    with (
        torch.enable_grad(),
        inputs_per_head(model),
        _links_differentiable(model),
        model.hooks(fwd_hooks=hooks),
    ):
        logits = answer_logits(model, pairs.clean, pairs.answers)
        enlarged.enter(logits)
        metric = pairs.measure(logits).sum()
        if not metric.requires_grad:
            raise ValueError('this metric has no gradient; score edges by method="exact"')
        torch.autograd.grad(metric, inputs, allow_unused=True)


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
