"""Every scoring method of edges: how much each edge matters, in the unit of the metric.

A method is a class, of a file of its own if it is long, and one entry in ``METHODS``; the command
line, its help and completion, the documentation's table and the tests' sweeps read it from there.
Nothing here needs torch before edges are scored: import it where scores are made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from resval_lens.analyses.circuits.graph import Graph
    from resval_lens.hooks.prompts import PromptPairs
    from resval_lens.transformer import ResValTransformer


class Scoring(NamedTuple):
    """What edges are scored by.

    Attributes:
        max_tokens: rows × positions of one model call, one prompt at least.
        progress: to be called with how much is done, of how much.
        steps, threshold: of methods that take them.
        by_prompt: whether each prompt's own scores are wanted, instead of their mean.
    """

    model: ResValTransformer
    pairs: PromptPairs
    graph: Graph
    max_tokens: int
    progress: Callable[[int, int], None]
    steps: int = 1
    threshold: float = 0.0
    by_prompt: bool = False

    def zeros(self) -> Float[Tensor, "*prompt edge"]:
        """A sum to begin with, for each edge (of each prompt, if each prompt's own scores are
        wanted), of float32 at least, where the last layer is."""
        import torch

        from resval_lens.hooks.answers import layer_device

        dtype = torch.promote_types(self.model.cfg.dtype, torch.float32)
        shape = (len(self.pairs),) * self.by_prompt + (len(self.graph),)
        return torch.zeros(shape, dtype=dtype, device=layer_device(self.model, -1))


class Method(ABC):
    """How edges are scored. A score below zero: the clean edge helps the metric.

    Attributes:
        name: what ``score_edges`` and ``circuit --method`` call it.
        what: what a score is, in a line.
        cost: model runs that it takes.
        steps: runs that it averages over, if nothing else is asked for; None: it takes no number.
        by_threshold: whether it drops what is worth less than a threshold, which must be given:
            its circuit is the edges whose scores reach it.
        has_prompts: whether its score is a mean over prompts, each of which has scores of its own.
    """

    name: ClassVar[str]
    what: ClassVar[str]
    cost: ClassVar[str]
    steps: ClassVar[int | None] = None
    by_threshold: ClassVar[bool] = False
    has_prompts: ClassVar[bool] = False

    def settle(self, steps: int | None, threshold: float | None) -> tuple[int, float]:
        """``steps`` and ``threshold`` in full; 1 and 0 where the method takes none.

        Raises:
            ValueError: one that is for other methods, or that this one needs or cannot have.
        """
        if steps is not None and self.steps is None:
            raise ValueError(f"steps={steps}: the method {self.name} does not average over runs")
        if threshold is not None and not self.by_threshold:
            raise ValueError(f"threshold={threshold:g}: the method {self.name} has no threshold")
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise ValueError(f"steps must be a whole number from 1 up; got {steps}")
        if self.by_threshold and (threshold is None or not threshold > 0):
            raise ValueError(f"threshold must be above 0 for {self.name}; got {threshold}")
        return steps or self.steps or 1, threshold or 0.0

    @abstractmethod
    def scores(self, at: Scoring) -> Float[Tensor, "*prompt edge"]:
        """The score of each of the graph's edges, the mean over prompts; each prompt's own, where
        ``at.by_prompt`` wants them and the method has them."""


class EAP(Method):
    """Σ (x_corrupted − x_clean) · ∂metric/∂x, x what an edge carries (Syed et al. 2023)."""

    name = "eap"
    what = "difference × gradient at the clean run"
    cost = "2 forward, 1 backward"
    has_prompts = True

    def scores(self, at: Scoring) -> Float[Tensor, "*prompt edge"]:
        from resval_lens.analyses.circuits.eap import gradient_scores

        return gradient_scores(at)


class EAPIG(EAP):
    """EAP, its gradient averaged over runs whose input embeddings are corrupted + k/m (clean −
    corrupted), k = 1..m (Hanna et al. 2024, arXiv 2403.17806)."""

    name = "eap-ig"
    what = "the gradient averaged between corrupted and clean embeddings"
    cost = "1 forward, `steps` × (forward, backward)"
    steps = 5


class Exact(Method):
    """metric(edge corrupted) − metric(clean), in a run for each edge."""

    name = "exact"
    what = "each edge patched alone"
    cost = "a (resumed) forward each"
    has_prompts = True

    def scores(self, at: Scoring) -> Float[Tensor, "*prompt edge"]:
        import torch

        from resval_lens.analyses.circuits.running import EdgeRuns

        edges, parts, total = len(at.graph), at.pairs.within(at.max_tokens), at.zeros()
        alone, before = ~torch.eye(edges, dtype=torch.bool), 0
        for number, part in enumerate(parts):

            def shown(done: int, number: int = number) -> None:
                at.progress(number * edges + done, len(parts) * edges)

            runs = EdgeRuns(at.model, part, at.graph, at.max_tokens)
            found = runs.values(alone, shown) - runs.clean_values  # [edge, prompt]
            if at.by_prompt:
                total[before : before + len(part)] = found.T
            else:
                total += found.sum(1)
            before += len(part)
        return total if at.by_prompt else total / len(at.pairs)


class ACDC(Method):
    """What the metric changes by when the edge goes, too, after all that were dropped before it
    (Conmy et al. 2023, arXiv 2304.14997)."""

    name = "acdc"
    what = "from the logits back, drop what changes the metric by less than a threshold"
    cost = "a (resumed) forward each"
    by_threshold = True

    def scores(self, at: Scoring) -> Float[Tensor, " edge"]:
        from resval_lens.analyses.circuits.acdc import acdc_scores
        from resval_lens.analyses.circuits.running import EdgeRuns

        runs = EdgeRuns(at.model, at.pairs, at.graph, at.max_tokens)
        return acdc_scores(runs, at.threshold, at.progress)


METHODS: dict[str, Method] = {method.name: method for method in (EAP(), EAPIG(), Exact(), ACDC())}
"""Every method by its name, those of your own, too: ``METHODS["mine"] = Mine()``."""


def method_of(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {name!r}")
    return METHODS[name]
