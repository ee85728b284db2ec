"""The induction head written down beside its closed form (arXiv 2412.11459, sections 3 and 4).

A constructed model should attend and answer as :func:`~resval_lens.memory.predictions.predict`
says: to rounding with dual vectors (exact), up to crosstalk of order 1/√d with random ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from resval_lens.analyses.memory.knowledge import (
    ANY_TOKEN,
    FLOOR,
    MOST,
    Subject,
    check_seed,
    flip_point,
    global_knowledge,
    margins,
)
from resval_lens.memory.config import Positions, memory_config
from resval_lens.memory.construct import construct
from resval_lens.memory.model import MemoryTransformer
from resval_lens.memory.predictions import Prediction, predict, previous_token_attention
from resval_lens.memory.probes import followers
from resval_lens.tasks.bigrams import Bigrams, tiny_shakespeare
from resval_lens.tasks.knowledge_prompts import knowledge_prompts
from resval_lens.tasks.triggers import TriggerBatch, TriggerTask

KINDS: tuple[tuple[Positions, str], ...] = (
    ("absolute", ""),
    ("relative", ""),
    ("absolute", "v"),
    ("relative", "v"),
)
"""Positions and streams that are constructed."""

WIDTHS = (128, 256, 512, 1024, 2048)
"""d_model of the models of random vectors."""

THRESHOLDS = ((2, 1), (3, 1), (3, 2))
"""Counts (n1, n2) at which the flip of the winner is measured."""

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
        trained_length, known: as in :func:`~resval_lens.memory.construct.construct`.

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


def deviations(
    prediction: Prediction,
    alpha: Float[Tensor, "batch pos pos"],
    beta: Float[Tensor, "batch pos pos"],
    logits: Float[Tensor, "batch pos V"],
) -> dict[str, dict[str, float]]:
    """Largest and mean |measured − predicted| of α and β (keys s ≤ t) and of logits (nats)."""
    causal = torch.ones_like(alpha[0], dtype=torch.bool).tril()
    gaps = {
        "alpha": (alpha.double() - prediction.previous)[:, causal],
        "beta": (beta.double() - prediction.induction)[:, causal],
        "logits": logits.double() - prediction.logits,
    }
    return {
        name: {"largest": float(gap.abs().max()), "mean": float(gap.abs().mean())}
        for name, gap in gaps.items()
    }


def heads_summary(
    batch: TriggerBatch,
    trained: int,
    alpha: Float[Tensor, "batch pos pos"],
    beta: Float[Tensor, "batch pos pos"],
    logits: Float[Tensor, "batch pos V"],
) -> dict[str, Any]:
    """What is compared of a run on ``batch``, or of its prediction.

    attention       mean α_{t,t−1} of t = 2, 3, ... (counted from 1)
    target          mean attention right after earlier occurrences of a repeated trigger
    accuracy        share of in-context positions with the right answer, t ≤ trained
    accuracy_later  the same for t > trained
    """
    known, hits = batch.in_context, logits.argmax(-1) == batch.targets
    early = torch.zeros_like(known)
    early[:, :trained] = True

    def share(where: Tensor) -> float | None:
        return float(hits[where].double().mean()) if where.any() else None

    on_target = (beta * followers(batch.inputs)).sum(-1)[known]
    return {
        "attention": alpha.diagonal(-1, 1, 2).double().mean(0).tolist(),
        "target": float(on_target.double().mean()) if known.any() else None,
        "accuracy": share(known & early),
        "accuracy_later": share(known & ~early),
    }


def thresholds(
    d_vocab: int, generator: Generator, strengths: Strengths, d_model: int | None, n: int = 1_000
) -> dict[str, Any]:
    """The global gap against B1 at which B2 wins, n1 times B1 against n2 times B2 in the context.

    The model's global knowledge is made up: log π_b(v|u) ~ N(0, (τ3/3)²), normalised and
    floored, so that gaps are of the size of what the context says.

    Returns:
        for each "n1:n2" what is ``predicted``, τ3 (n1 − n2)/(n1 + n2), where the winner flips
        (``flip_point``), what the context adds to the margin, and shares of prompts that B1 wins
        by bins of the gap.
    """
    tau3 = strengths.tau3
    drawn = torch.randn(d_vocab, d_vocab, generator=generator, dtype=torch.float64) * tau3 / 3
    made_up = drawn.softmax(-1)
    every = torch.full((d_vocab,), 1 / d_vocab, dtype=torch.float64)
    bigrams = Bigrams.from_probabilities([str(i) for i in range(d_vocab)], every, made_up)
    longest = max(3 * sum(counts) + 2 for counts in THRESHOLDS)
    model = constructed_model(
        global_knowledge(bigrams), generator, n_ctx=longest, d_model=d_model, strengths=strengths
    )
    found = {}
    for n1, n2 in THRESHOLDS:
        prompts = knowledge_prompts(bigrams, n1, n2, n, generator)
        against, margin = -prompts.global_margin(bigrams, FLOOR), margins(model, prompts)
        edges = torch.arange(-4, 25, dtype=torch.float64) * tau3 / 20
        bins = torch.bucketize(against, edges)
        inside = [(bins == i).nonzero().flatten() for i in range(1, len(edges))]
        found[f"{n1}:{n2}"] = {
            "predicted": tau3 * prompts.context_margin,
            **flip_point(against, margin > 0),
            "context": float((margin + against).mean()),
            "gap": [float(a + b) / 2 for a, b in pairwise(edges)],
            "wins": [float((margin[i] > 0).double().mean()) if len(i) else None for i in inside],
        }
    return found


@torch.no_grad()
def construction_study(
    seed: int = 0,
    widths: Sequence[int] = WIDTHS,
    strengths: Strengths | None = None,
    *,
    bigrams: Bigrams | None = None,
    trained: int = 128,
    sequences: int = 6,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Constructed models beside the closed form, on sequences of twice the trained length.

    Args:
        widths: d_model of the models with random vectors; beside them an exact one of each kind.
        trained: T, the positions that an absolute previous-token head knows.
        sequences: of Tiny Shakespeare's bigrams with triggers (or of ``bigrams``).

    Raises:
        ValueError: no widths or one below 1, fewer than 2 trained positions, no sequences, or a
            seed below 0 or too large.
    """
    check_seed(seed)
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must be numbers above 0; got {list(widths)}")
    if trained < 2:
        raise ValueError(f"trained must be 2 positions or more; got {trained}")
    if sequences < 1:
        raise ValueError(f"sequences must be 1 or more; got {sequences}")
    taus, bigrams = strengths or Strengths(), bigrams or tiny_shakespeare()
    generator = Generator().manual_seed(seed)
    task = TriggerTask(bigrams, length=trained)
    batch = task.batch(sequences, generator, 2 * trained)
    logs = global_knowledge(bigrams)
    kinds = []
    for positions, streams in KINDS:
        prediction = predict(
            batch.inputs, logs, **asdict(taus),
            trained_length=trained, relative=positions == "relative",
        )  # fmt: skip
        predicted = (prediction.previous, prediction.induction, prediction.logits)
        runs = []
        for d_model in (None, *widths):
            note(f"{positions}{', values' if streams else ''}: d_model = {d_model or 'exact'}")
            model = constructed_model(
                logs, generator, positions, streams,
                n_ctx=2 * trained, d_model=d_model, strengths=taus, trained_length=trained,
            )  # fmt: skip
            measured = run_heads(model, batch.inputs)
            runs.append(
                {
                    "exact": d_model is None,
                    "d_model": model.cfg.d_model,
                    "deviation": deviations(prediction, *measured),
                    **heads_summary(batch, trained, *measured),
                }
            )
        kinds.append(
            {
                "positions": positions,
                "streams": streams,
                "predicted": heads_summary(batch, trained, *predicted),
                "constructed": runs,
            }
        )
    flips = {}
    for name, width in {"exact": None, "random": max(widths)}.items():
        note(f"thresholds: {name}")
        flips[name] = thresholds(bigrams.d_vocab, generator, taus, width)
    result = {
        "seed": seed,
        "strengths": asdict(taus),
        "trained_length": trained,
        "length": 2 * trained,
        "sequences": sequences,
        "floor": FLOOR,
        "widths": list(widths),
        "closed_form": {
            "on": [previous_token_attention(t, taus.tau1) for t in range(2, 2 * trained + 1)],
            "off": [1 / t for t in range(2, 2 * trained + 1)],
        },
        "kinds": kinds,
        "thresholds": flips,
    }
    return {**result, "predictions": predictions(result)}


def predictions(study: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a prediction: what is predicted, of the exact model, of the widest random one."""
    trained, length = study["trained_length"], study["length"]
    rows = []

    def add(name: str, unit: str, predicted: Any, exact: Any, random: Any) -> None:
        rows.append(
            {"prediction": name, "unit": unit, "predicted": predicted, "exact": exact,
             "random": random}
        )  # fmt: skip

    for kind in study["kinds"]:
        if kind["streams"]:
            continue
        short = {"absolute": "APE", "relative": "RPE"}[kind["positions"]]
        exact = next(run for run in kind["constructed"] if run["exact"])
        widest = max(
            (run for run in kind["constructed"] if not run["exact"]), key=lambda r: r["d_model"]
        )
        for t in (trained, trained + 1, length):
            on = kind["positions"] == "relative" or t <= trained
            add(f"{short}: attention at t − 1, t = {t}", "attention",
                study["closed_form"]["on" if on else "off"][t - 2],
                exact["attention"][t - 2], widest["attention"][t - 2])  # fmt: skip
        for name, text in {
            "target": "attention on what followed",
            "accuracy": f"in-context accuracy, t ≤ {trained}",
            "accuracy_later": f"in-context accuracy, t > {trained}",
        }.items():
            add(f"{short}: {text}", "accuracy" if "accuracy" in name else "attention",
                kind["predicted"][name], exact[name], widest[name])  # fmt: skip
    for counts, row in study["thresholds"]["exact"].items():
        add(f"{counts.replace(':', ' B1, ')} B2: gap at which B2 wins", "nats",
            row["predicted"], row["at"], study["thresholds"]["random"][counts]["at"])  # fmt: skip
    return rows


def constructed_subjects(
    bigrams: Bigrams, tau3: float = 10.0, seed: int = 0, d_model: int = 1024
) -> list[Subject]:
    """Constructed relative models to ask what they know: an exact one, one of random vectors.

    Raises:
        ValueError: a τ3 that :class:`Strengths` refuses; a seed below 0 or too large.
    """
    check_seed(seed)
    length = 3 * 2 * MOST + 2
    subjects = []
    for name, width in {
        "constructed, exact": None,
        f"constructed, d = {d_model:,}": d_model,
    }.items():
        model = constructed_model(
            global_knowledge(bigrams), Generator().manual_seed(seed),
            n_ctx=length, d_model=width, strengths=Strengths(tau3=tau3),
        )  # fmt: skip
        subjects.append(Subject(name, model, bigrams, {ANY_TOKEN: None}, seed, tau3=tau3))
    return subjects
