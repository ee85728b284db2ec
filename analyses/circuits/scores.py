"""How much each edge matters, by any of ``METHODS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.analyses.circuits.graph import Graph, graph_of
from resval_lens.analyses.circuits.methods import Scoring, method_of
from resval_lens.hooks.prompts import MAX_TOKENS, PromptPairs, ready, refuse_hooks
from resval_lens.transformer import ResValTransformer

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EdgeScores:
    """A number for each edge of a graph, and how it was found.

    Attributes:
        values: in the unit of the metric.
        steps: runs that the method averages over; None of one that takes no number.
        by_prompt: each prompt's own scores, whose mean ``values`` is, where they were asked for.
    """

    graph: Graph
    values: Float[Tensor, " edge"]
    method: str
    steps: int | None
    prompts: int
    by_prompt: Float[Tensor, "prompt edge"] | None = None

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
    method: str = "eap-ig",
    *,
    graph: Graph | None = None,
    steps: int | None = None,
    threshold: float | None = None,
    max_tokens: int = MAX_TOKENS,
    by_prompt: bool = False,
    progress: Progress = lambda done, total: None,
) -> EdgeScores:
    """The score of every edge: what corrupting it does to the metric, on average over prompts.

    Args:
        method: one of :data:`~resval_lens.analyses.circuits.methods.METHODS`.
        steps: runs that ``eap-ig`` averages over; by default 5.
        threshold: what ``acdc`` drops edges below, in the unit of the metric.
        max_tokens: rows × positions of one model call, one prompt at least.
        by_prompt: keep each prompt's own scores, too, at no further run but prompts × edges numbers
            (256 prompts of 400,000 edges: .4 GB).
        progress: called with how much is done, of how much.

    Raises:
        ValueError: an unknown method, one whose prompts have no scores of their own where they are
            wanted, ``steps`` or a ``threshold`` that it does not take, or cannot
            have, a metric without a gradient (exact needs none), hooks on the model, or what the
            graph, the prompts or the metric refuse.
    """
    how = method_of(method)
    chosen = how.settle(steps, threshold)
    if by_prompt and not how.has_prompts:
        raise ValueError(f"by_prompt: there are no scores by prompt with the method {method}")
    pairs, graph = ready(model, pairs), graph_of(model, graph)
    refuse_hooks(model)
    found = how.scores(Scoring(model, pairs, graph, max_tokens, progress, *chosen, by_prompt))
    values, own = (found.mean(0), found) if by_prompt else (found, None)
    steps = None if how.steps is None else chosen[0]
    return EdgeScores(graph, values, method, steps, len(pairs), own)
