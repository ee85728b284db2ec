"""The induction head written down (arXiv 2412.11459, sections 3 and 4), and what it computes.

A constructed model should attend and answer as
:func:`~resval_lens.analyses.papers.memory.model.predictions.predict`
says: to rounding with dual vectors (exact), up to crosstalk of order 1/√d with random ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import isfinite

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from resval_lens.analyses.papers.memory.model.config import memory_config
from resval_lens.analyses.papers.memory.model.construct import construct
from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.model.predictions import Prediction
from resval_lens.analyses.papers.memory.model.probes import followers, mean
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerBatch
from resval_lens.models.presets import Positions

LARGEST = 500
"""|τ| that a strength may have, in nats."""


@dataclass(frozen=True)
class Strengths:
    """τ1, τ2, τ3 of previous-token head, induction head and its output, in nats.

    Raises:
        ValueError: one that is not finite or beyond ±500 (e^τ must be a number), or a τ3 that is
            not above 0: without what the context says, nothing competes.
    """

    tau1: float = 10.0
    tau2: float = 10.0
    tau3: float = 10.0

    def __post_init__(self) -> None:
        for name, strength in asdict(self).items():
            if not isfinite(strength) or abs(strength) > LARGEST:
                raise ValueError(
                    f"{name} must be a finite number from −{LARGEST} to {LARGEST}; got {strength!r}"
                )
        if self.tau3 <= 0:
            raise ValueError(f"tau3 must be above 0; got {self.tau3!r}")


def exact_width(d_vocab: int, n_ctx: int, positions: Positions = "relative") -> int:
    """The d_model that an exact construction is given: 5/4 of the vectors that must be told apart.

    With n vectors that enter layer 0 (tokens, and absolute positions), 2n + V arrive at the
    readout; relative positions need V + n_ctx. A quarter more keeps their duals short.
    """
    entering = d_vocab if positions == "relative" else d_vocab + n_ctx
    told_apart = max(2 * entering + d_vocab, d_vocab + n_ctx)
    return 8 * -(-told_apart * 5 // 32)


def constructed_model(
    log_bigrams: Float[Tensor, "d_vocab d_vocab"],
    generator: Generator,
    positions: Positions = "relative",
    streams: str = "",
    *,
    n_ctx: int,
    d_model: int | None = None,
    strengths: Strengths | None = None,
    trained_length: int | None = None,
    known: Iterable[int] | None = None,
) -> MemoryTransformer:
    """A model with an induction head written into it; its embeddings have length 1 on average.

    Args:
        d_model: width of random vectors (float32); None: the exact construction, wide enough for
            duals (float64).
        trained_length, known: as in
            :func:`~resval_lens.analyses.papers.memory.model.construct.construct`.

    Raises:
        ValueError: as ``memory_config`` and ``construct``.
    """
    exact = d_model is None
    d_vocab = len(log_bigrams)
    width = exact_width(d_vocab, n_ctx, positions) if d_model is None else d_model
    cfg = memory_config(
        d_vocab, positions, streams, d_model=width, n_ctx=n_ctx, embed_std=width**-0.5,
        dtype=torch.float64 if exact else torch.float32,
    )  # fmt: skip
    model = MemoryTransformer(cfg, generator=generator)
    taus = asdict(strengths or Strengths())
    return construct(
        model, log_bigrams, **taus, trained_length=trained_length, known=known, exact=exact
    )


@torch.no_grad()
def run_heads(
    model: MemoryTransformer, tokens: Int[Tensor, "batch pos"]
) -> tuple[
    Float[Tensor, "batch pos pos"], Float[Tensor, "batch pos pos"], Float[Tensor, "batch pos V"]
]:
    """α and β, attention of the first and the last head, and the logits."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in (0, model.cfg.n_layers - 1)]
    logits, cache = model.run_with_cache(tokens, names_filter=names)
    return cache[names[0]][:, 0], cache[names[1]][:, 0], logits


@dataclass(frozen=True)
class Deviation:
    """Largest and mean |measured − predicted|."""

    largest: float
    mean: float


@dataclass(frozen=True)
class Deviations:
    """Of α and β (keys s ≤ t), attention of the first and the last head, and of logits (nats)."""

    alpha: Deviation
    beta: Deviation
    logits: Deviation


def deviations(
    prediction: Prediction,
    alpha: Float[Tensor, "batch pos pos"],
    beta: Float[Tensor, "batch pos pos"],
    logits: Float[Tensor, "batch pos V"],
) -> Deviations:
    """How far what was measured is from ``prediction``."""
    causal = torch.ones_like(alpha[0], dtype=torch.bool).tril()

    def deviation(gap: Tensor) -> Deviation:
        return Deviation(float(gap.abs().max()), float(gap.abs().mean()))

    return Deviations(
        deviation((alpha.double() - prediction.previous)[:, causal]),
        deviation((beta.double() - prediction.induction)[:, causal]),
        deviation(logits.double() - prediction.logits),
    )


@dataclass(frozen=True)
class Heads:
    """What is compared of a run on a batch, or of its prediction.

    Attributes:
        attention: mean α_{t,t−1} of t = 2, 3, ... (counted from 1).
        target: mean attention right after earlier occurrences of a repeated trigger.
        accuracy: share of in-context positions with the right answer, t ≤ trained.
        accuracy_later: the same for t > trained.
    """

    attention: list[float]
    target: float | None
    accuracy: float | None
    accuracy_later: float | None


def heads_summary(
    batch: TriggerBatch,
    trained: int,
    alpha: Float[Tensor, "batch pos pos"],
    beta: Float[Tensor, "batch pos pos"],
    logits: Float[Tensor, "batch pos V"],
) -> Heads:
    """:class:`Heads` of attention and logits on ``batch``, with ``trained`` positions."""
    known, hits = batch.in_context, logits.argmax(-1) == batch.targets
    early = torch.zeros_like(known)
    early[:, :trained] = True

    on_target = (beta * followers(batch.inputs)).sum(-1)[known]
    return Heads(
        alpha.diagonal(-1, 1, 2).double().mean(0).tolist(),
        mean(on_target),
        mean(hits[known & early]),
        mean(hits[known & ~early]),
    )
