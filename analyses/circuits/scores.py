"""How much each edge matters: EAP, EAP-IG and exact single-edge patching.

The score of an edge is what corrupting it alone does to the metric, on average over prompts:

    exact     metric(edge corrupted) − metric(clean)
    eap       Σ (x_corrupted − x_clean) · ∂metric/∂x   at the clean run (Syed et al. 2023)
    eap-ig    the same, the gradient averaged over m runs whose input embeddings are
              corrupted + k/m (clean − corrupted), k = 1..m (Hanna et al. 2024, arXiv 2403.17806)

x is what the edge carries: what its writer writes, with the gradient taken at its reader's input;
or what its link brings, with the gradient taken where the link arrives. A score below zero: the
clean edge helps the metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.analyses.circuits.graph import Graph, Reader, graph_of
from resval_lens.analyses.circuits.recording import Recorder, inputs_per_head, record
from resval_lens.analyses.circuits.running import MOST_NUMBERS, EdgeRuns
from resval_lens.attention import StreamAttention
from resval_lens.hooks.answers import answer_logits, layer_device
from resval_lens.hooks.prompts import MAX_TOKENS, PromptPairs, ready, refuse_hooks, wide
from resval_lens.mixing import StreamMix
from resval_lens.runtime import evaluating
from resval_lens.transformer import ResValTransformer

Method = Literal["eap", "eap-ig", "exact"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EdgeScores:
    """A number for each edge of a graph, and how it was found.

    Attributes:
        values: in the unit of the metric.
        steps: of eap-ig; None for the others.
    """

    graph: Graph
    values: Float[Tensor, " edge"]
    method: Method
    steps: int | None
    prompts: int

    def __getitem__(self, edge: str) -> float:
        """The score of the edge of this name, like ``"a0.h1->logits"``.

        Raises:
            ValueError: there is none.
        """
        if edge not in self.graph.number:
            raise ValueError(f"this graph has no edge {edge!r}")
        return self.values[self.graph.number[edge]].item()

    def top(self, n: int) -> list[tuple[str, float]]:
        """The ``n`` edges with the largest absolute scores, largest first."""
        order = self.values.abs().argsort(descending=True, stable=True)[:n]
        return [(str(self.graph.edges[i]), self.values[i].item()) for i in order.tolist()]


@torch.inference_mode(False)  # what is made here is differentiated, or added to, in place
def score_edges(
    model: ResValTransformer,
    pairs: PromptPairs,
    method: Method = "eap-ig",
    *,
    graph: Graph | None = None,
    steps: int = 5,
    max_tokens: int = MAX_TOKENS,
    progress: Progress = lambda done, total: None,
) -> EdgeScores:
    """The score of every edge.

    ``eap`` takes one clean and one corrupted run and one backward pass for all edges together,
    ``eap-ig`` ``steps`` runs and backward passes and one corrupted run, ``exact`` a (resumed) run
    for each edge.

    Args:
        max_tokens: rows × positions of one model call, one prompt at least; fewer where what is
            held of a call would be more than ``MOST_NUMBERS``.
        progress: called with how much is done, of how much.

    Raises:
        ValueError: an unknown method, ``steps`` below 1, a metric without a gradient (exact needs
            none), hooks on the model, or what the graph, the prompts or the metric refuse.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number from 1 up; got {steps}")
    pairs, graph = ready(model, pairs), graph_of(model, graph)
    refuse_hooks(model)
    if method != "exact":
        max_tokens = min(max_tokens, max(1, MOST_NUMBERS // _numbers_per_token(graph)))
    parts = pairs.within(max_tokens)
    dtype = torch.promote_types(model.cfg.dtype, torch.float32)
    total = torch.zeros(len(graph), dtype=dtype, device=layer_device(model, -1))
    for number, part in enumerate(parts):
        if method == "exact":

            def shown(done: int, number: int = number) -> None:
                progress(number * len(graph) + done, len(parts) * len(graph))

            runs = EdgeRuns(model, part, graph, max_tokens)
            alone = ~torch.eye(len(graph), dtype=torch.bool)
            total += (runs.values(alone, shown) - runs.clean_values).sum(1)
        else:
            total += _approximate(model, part, graph, 1 if method == "eap" else steps)
            progress(number + 1, len(parts))
    of_steps = steps if method == "eap-ig" else None
    return EdgeScores(graph, total / len(pairs), method, of_steps, len(pairs))


def _numbers_per_token(graph: Graph) -> int:
    """What is held of one position: two runs' writers, and each reader's input through a norm."""
    readers = sum(len(reader.names) for reader in graph.readers)
    return graph.cfg.d_model * (3 * len(graph.writers) + 5 * readers)


def _approximate(
    model: ResValTransformer, pairs: PromptPairs, graph: Graph, steps: int
) -> Float[Tensor, " edge"]:
    """Σ over prompts of difference · mean gradient, over ``steps`` inputs up to the clean ones.

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
        scores = torch.zeros(
            len(graph), dtype=torch.promote_types(start.dtype, torch.float32), device=device
        )

        def scored(hook: str, gradient: Tensor) -> None:
            nonlocal written
            gradient = wide(gradient).to(device)
            if not len(written):  # the forward pass is done
                written = _differences(corrupted.writers, recorder.writers, device)
            group = groups[hook]
            if isinstance(group, Reader):
                heads = gradient if gradient.ndim == 4 else gradient[:, :, None]
                flat = heads.movedim(2, 0).flatten(1)  # [head, row * pos * d_model]
                found = flat @ written[: group.writers].T
            else:
                difference = wide(corrupted.links[hook]) - wide(recorder.links[hook])
                found = torch.einsum("sbphd,bphd->sh", difference.to(device), gradient)
            scores[group.edges] += found.flatten()

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

    def put_in(x: Tensor, hook: HookPoint) -> Tensor:
        inputs.append((x if embedding is None else embedding).detach().requires_grad_())
        return inputs[0]

    def keep(x: Tensor, hook: HookPoint) -> None:
        x.register_hook(partial(scored, str(hook.name)))

    hooks: list[Any] = [("blocks.0.hook_resid_pre", put_in), *recording]
    hooks += [(group.hook, keep) for group in graph.groups]
    with (
        torch.enable_grad(),
        inputs_per_head(model),
        _links_differentiable(model),
        model.hooks(fwd_hooks=hooks),
    ):
        metric = pairs.measure(answer_logits(model, pairs.clean, pairs.answers)).sum()
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
