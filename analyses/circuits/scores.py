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
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.analyses.circuits.graph import Graph, graph_of
from resval_lens.analyses.circuits.recording import Recorder, inputs_per_head, record
from resval_lens.analyses.circuits.running import MAX_TOKENS, EdgeRuns
from resval_lens.attention import StreamAttention
from resval_lens.hooks.prompts import PromptPairs, answer_logits, ready, refuse_hooks
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


def score_edges(
    model: ResValTransformer,
    pairs: PromptPairs,
    method: Method = "eap-ig",
    *,
    graph: Graph | None = None,
    steps: int = 5,
    chunk: int = 64,
    progress: Progress = lambda done, total: None,
) -> EdgeScores:
    """The score of every edge.

    ``eap`` takes one clean and one corrupted run and one backward pass for all edges together,
    ``eap-ig`` ``steps`` runs and backward passes and one corrupted run, ``exact`` a (resumed) run
    for each edge.

    Args:
        chunk: prompts at a time.
        progress: called with how much is done, of how much.

    Raises:
        ValueError: an unknown method, ``steps`` below 1, a metric without a gradient (exact needs
            none), hooks on the model, or what the graph, the prompts or the metric refuse.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number from 1 up; got {steps}")
    graph, pairs = graph_of(model, graph), ready(model, pairs)
    refuse_hooks(model)
    parts = pairs.split(chunk)
    total = torch.zeros(len(graph), dtype=model.cfg.dtype, device=pairs.clean.device)
    for number, part in enumerate(parts):
        if method == "exact":

            def shown(done: int, number: int = number) -> None:
                progress(number * len(graph) + done, len(parts) * len(graph))

            total += _exact(model, part, graph, shown)
        else:
            total += _approximate(model, part, graph, 1 if method == "eap" else steps)
            progress(number + 1, len(parts))
    of_steps = steps if method == "eap-ig" else None
    return EdgeScores(graph, total / len(pairs), method, of_steps, len(pairs))


def _exact(
    model: ResValTransformer, pairs: PromptPairs, graph: Graph, progress: Callable[[int], None]
) -> Float[Tensor, " edge"]:
    runs = EdgeRuns(model, pairs, graph, MAX_TOKENS)
    alone = ~torch.eye(len(graph), dtype=torch.bool, device=pairs.clean.device)
    return (runs.values(alone, progress) - runs.clean_values).sum(1)


def _approximate(
    model: ResValTransformer, pairs: PromptPairs, graph: Graph, steps: int
) -> Float[Tensor, " edge"]:
    """Σ over prompts of difference · mean gradient, over ``steps`` inputs up to the clean ones.

    The last of these is the clean run itself, in whose pass what edges carry is recorded.
    """
    with evaluating(model):
        corrupted = record(model, graph, pairs.corrupted, pairs.answers)
        recorder = Recorder(model, graph)
        gradients, logits = _gradients(model, pairs, graph, recorder.hooks)
        clean = recorder.recording(logits)
        written = (corrupted.writers - clean.writers).flatten(1)  # [writer, row * pos * d_model]
        scores = written.new_zeros(len(graph))
        for step in range(steps, 0, -1):
            if step < steps:
                inputs = torch.lerp(corrupted.residual[0], clean.residual[0], step / steps)
                gradients, _ = _gradients(model, pairs, graph, embedding=inputs)
            for reader in graph.readers:
                gradient = gradients[reader.hook]
                heads = gradient if gradient.ndim == 4 else gradient[:, :, None]
                flat = heads.movedim(2, 0).flatten(1)  # [head, row * pos * d_model]
                scores[reader.edges] += (flat @ written[: reader.writers].T).flatten()
            for receiver in graph.receivers:
                difference = corrupted.links[receiver.hook] - clean.links[receiver.hook]
                along = torch.einsum("sbphd,bphd->sh", difference, gradients[receiver.hook])
                scores[receiver.edges] += along.flatten()
    return scores / steps


def _gradients(
    model: ResValTransformer,
    pairs: PromptPairs,
    graph: Graph,
    recording: Sequence[Any] = (),
    embedding: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """∂(Σ metric)/∂x at every reader's input and wherever a link arrives; the run's logits.

    Args:
        recording: further hooks of the forward pass.
        embedding: what layer 0 reads, instead of the clean prompts' embeddings.
    """
    points: dict[str, Tensor] = {}

    def put_in(x: Tensor, hook: HookPoint) -> Tensor:
        return (x if embedding is None else embedding).detach().requires_grad_()

    def keep(x: Tensor, hook: HookPoint) -> None:
        points[str(hook.name)] = x

    hooks: list[Any] = [("blocks.0.hook_resid_pre", put_in), *recording]
    hooks += [(group.hook, keep) for group in graph.groups]
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        inputs_per_head(model),
        _links_differentiable(model),
        model.hooks(fwd_hooks=hooks),
    ):
        logits = answer_logits(model, pairs.clean, pairs.answers)
        metric = pairs.measure(logits).sum()
        if not metric.requires_grad:
            raise ValueError('this metric has no gradient; score edges by method="exact"')
        found = torch.autograd.grad(metric, list(points.values()), allow_unused=True)
    gradients = {
        name: torch.zeros_like(points[name]) if gradient is None else gradient
        for name, gradient in zip(points, found, strict=True)
    }
    return gradients, logits


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
