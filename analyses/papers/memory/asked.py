"""Models that are asked for the next token: what they know, what tips their answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from resval_lens.analyses.papers.memory.comparable import by_variant, check_seed
from resval_lens.analyses.papers.memory.construction import Strengths, constructed_model
from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.tasks.bigrams import Bigrams
from resval_lens.analyses.papers.memory.tasks.knowledge_prompts import KnowledgePrompts
from resval_lens.analyses.papers.memory.training import MemoryRun, batch_logits
from resval_lens.training.recorded import RecordedRun

FLOOR = 1e-3
"""What counts as the probability of a bigram that is rarer."""

MOST = 5
"""Counts go from 1 to this."""

ANY_TOKEN = "any token"
"""The group of A's that leaves no token out."""


@dataclass(frozen=True, eq=False)
class AskedModel:
    """A model that is asked for the next token: trained, or constructed.

    Attributes:
        name: "constructed" or a variant.
        seed: of its training; of a constructed model the one that drew its vectors.
        groups: token ids that A is drawn from, by name; None is all.
        no_fillers: tokens that are never the filler: fixed triggers.
        tau3: where it is known.
    """

    name: str
    model: MemoryTransformer
    bigrams: Bigrams
    groups: dict[str, Sequence[int] | None]
    seed: int = 0
    no_fillers: Sequence[int] = ()
    tau3: float | None = None


def trained_model(recorded: RecordedRun[MemoryRun]) -> AskedModel:
    """A recorded run's model; its A's are triggers, and apart from them tokens that never were.

    Where each sequence draws its triggers among all tokens, A is any token.

    Raises:
        ValueError: its model was not kept.
    """
    task = recorded.run.task
    triggers = task.trigger_tokens
    rest = [u for u in range(task.bigrams.d_vocab) if u not in set(triggers)]
    groups: dict[str, Sequence[int] | None] = {"triggers": triggers, "others": rest}
    groups = {name: ids for name, ids in groups.items() if ids}
    if task.triggers == "drawn" and task.candidates is None:
        groups = {ANY_TOKEN: None}
    return AskedModel(
        recorded.run.name,
        recorded.model(),
        task.bigrams,
        groups,
        recorded.run.seed,
        triggers if task.triggers == "fixed" else (),
    )


def trained_models(runs: Sequence[RecordedRun[MemoryRun]]) -> list[AskedModel]:
    """:func:`trained_model` of each of runs that can be compared.

    Raises:
        ValueError: runs that cannot be compared; a model that was not kept.
    """
    by_variant(runs, ("triggers", "output_range"))
    return [trained_model(recorded) for recorded in runs]


def constructed_models(
    bigrams: Bigrams, tau3: float = 10.0, seed: int = 0, d_model: int = 1024
) -> list[AskedModel]:
    """Constructed relative models to ask what they know: an exact one, one of random vectors.

    Raises:
        ValueError: a τ3 that :class:`Strengths` refuses; a seed below 0 or too large.
    """
    check_seed(seed)
    length = 3 * 2 * MOST + 2
    models = []
    for name, width in {
        "constructed, exact": None,
        f"constructed, d = {d_model:,}": d_model,
    }.items():
        model = constructed_model(
            global_knowledge(bigrams), Generator().manual_seed(seed),
            n_ctx=length, d_model=width, strengths=Strengths(tau3=tau3),
        )  # fmt: skip
        models.append(AskedModel(name, model, bigrams, {ANY_TOKEN: None}, seed, tau3=tau3))
    return models


def global_knowledge(bigrams: Bigrams) -> Float[Tensor, "d_vocab d_vocab"]:
    """log max(π_b(v|u), FLOOR) at [u, v] (nats, float64), less each row's mean.

    What all tokens have in common changes no probability, but a memory of random vectors would
    hear it from every vector that is like some key.
    """
    logs = bigrams.log_conditional(FLOOR)
    return logs - logs.mean(1, keepdim=True)


def margins(model: MemoryTransformer, prompts: KnowledgePrompts) -> Float[Tensor, " prompt"]:
    """ξ_B1 − ξ_B2 after each prompt, in nats, float64."""
    last = batch_logits(model, prompts.tokens)[:, -1].double()
    rows = torch.arange(len(last))
    return last[rows, prompts.first] - last[rows, prompts.second]


def least_squares(
    x: Float[Tensor, "n k"], y: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"], float | None]:
    """b = argmin |y − x b|², its standard errors, and R².

        se_i = √(σ² (xᵀx)⁻¹_ii),  σ² = |y − x b|²/(n − k),  R² = 1 − |y − x b|²/|y − ȳ|²

    Without an intercept, unless x has one. R² is None where y does not vary.

    Raises:
        ValueError: no more rows than columns, or columns that depend on one another.
    """
    n, k = x.shape
    if n <= k or int(torch.linalg.matrix_rank(x)) < k:
        raise ValueError(f"x must have more rows than columns, independent ones; got [{n}, {k}]")
    inverse = torch.linalg.inv(x.T @ x)
    b = inverse @ (x.T @ y)
    left = (y - x @ b).square().sum()
    errors = (left / (n - k) * inverse.diagonal()).sqrt()
    varies = (y - y.mean()).square().sum()
    return b, errors, float(1 - left / varies) if varies > 0 else None


@dataclass(frozen=True)
class FlipPoint:
    """The gap at which the winner flips; see :func:`flip_point`.

    Attributes:
        at: the gap; None where one beyond all gaps does best: nothing flips.
        errors: share of prompts that it gets wrong.
    """

    at: float | None
    errors: float


def flip_point(against: Float[Tensor, " n"], wins: Bool[Tensor, " n"]) -> FlipPoint:
    """The gap g at which the winner flips: ``wins = against < g`` is wrong least often.

    ``at`` is the middle between the two gaps that enclose g, of several equally good g their mean.
    """
    order = against.argsort()
    gaps, won = against[order], wins[order].long()
    lost_before = torch.cat([won.new_zeros(1), (1 - won).cumsum(0)])
    wrong = lost_before + won.sum() - torch.cat([won.new_zeros(1), won.cumsum(0)])
    # A cut stands between two different gaps, or beyond all of them.
    possible = torch.ones_like(wrong, dtype=torch.bool)
    possible[1:-1] = gaps[1:] > gaps[:-1]
    least = wrong[possible].min()
    best = (possible & (wrong == least)).nonzero().flatten()
    share = float(least) / len(gaps)
    if best[0] == 0 or best[-1] == len(gaps):
        return FlipPoint(None, share)
    return FlipPoint(float(((gaps[best - 1] + gaps[best]) / 2).mean()), share)
