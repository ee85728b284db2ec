"""The bootstrap over prompts: which scores keep their sign, and how sure a measured number is.

Prompts are drawn again and again, as many as there are, with replacement (Efron 1979). A mean over
drawn prompts is a weighted mean over all of them, so nothing is run again:

    means of resamples [resample, ...] = weights [resample, prompt] @ values [prompt, ...]
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from resval_lens.analyses.circuits.scores import EdgeScores
from resval_lens.checks import check_whole
from resval_lens.hooks.prompts import wide

RESAMPLES = 1000
LEVEL = 0.95
AT_ONCE = 2**24
"""Numbers that are held at once of resampled scores."""


@dataclass(frozen=True)
class Stable:
    """How many ``edges`` of all have a mean score that keeps its sign over ``level`` of the
    resamples of prompts, drawn by ``seed``."""

    resamples: int
    level: float
    seed: int
    edges: int
    of: int


@dataclass(frozen=True)
class Bootstrap:
    """How prompts are resampled.

    Attributes:
        level: of intervals: the share of resamples inside, as many left out below as above.
    """

    resamples: int = RESAMPLES
    seed: int = 0
    level: float = LEVEL

    def __post_init__(self) -> None:
        check_whole("resamples", self.resamples, 1)
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie between 0 and 1; got {self.level}")

    def weights(self, prompts: int) -> Float[Tensor, "resample prompt"]:
        """How often each prompt is drawn, of all draws: rows add up to 1."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randint(prompts, (self.resamples, prompts), generator=generator)
        counts = torch.zeros(self.resamples, prompts, dtype=torch.float64)
        return counts.scatter_add_(1, drawn, torch.ones_like(counts)) / prompts

    def interval(self, values: Float[Tensor, "resample *any"]) -> Float[Tensor, "2 *any"]:
        """Of numbers of each resample: the quantiles (1 − level) / 2 and (1 + level) / 2."""
        ends = torch.tensor([(1 - self.level) / 2, (1 + self.level) / 2], dtype=values.dtype)
        return values.quantile(ends, 0)

    def stable(self, by_prompt: Float[Tensor, "prompt edge"]) -> Bool[Tensor, " edge"]:
        """Whose mean score keeps its sign: at least (1 + level) / 2 of its resamples lie above 0,
        or as many below it, so that 0 is outside its :meth:`interval`.

        Raises:
            ValueError: scores of a single prompt, which no resample changes.
        """
        if len(by_prompt) < 2:
            raise ValueError(f"the bootstrap needs 2 prompts or more; got {len(by_prompt)}")
        scores = wide(by_prompt)
        weights = self.weights(len(scores)).to(scores)
        least = (1 + self.level) / 2 * self.resamples
        found = []
        for part in scores.split(max(1, AT_ONCE // self.resamples), dim=1):
            means = weights @ part
            signs = torch.stack([(means > 0).sum(0), (means < 0).sum(0)])
            found.append(signs.amax(0) >= least)
        return torch.cat(found)

    def stable_first(self, scores: EdgeScores) -> tuple[EdgeScores, Stable]:
        """Scores by which edges that are not :meth:`stable` are chosen last, in their order.

        Theirs are made smaller, all by one factor, so that the largest is below the smallest of the
        stable ones.

        Raises:
            ValueError: scores without those of each prompt, or of one prompt.
        """
        if scores.by_prompt is None:
            raise ValueError(
                "the bootstrap needs each prompt's own scores: score_edges(..., by_prompt=True); "
                "these have none"
            )
        kept = self.stable(scores.by_prompt)
        found = Stable(self.resamples, self.level, self.seed, int(kept.sum()), len(kept))
        if kept.all() or not kept.any():
            return scores, found
        size = scores.values.abs()
        factor = 0.5 * (size[kept].min() / size[~kept].max()).clamp(max=1)
        return replace(scores, values=scores.values * torch.where(kept, 1, factor)), found
