"""Attention and accuracy by the position in a sequence, beside the constructed head's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from resval_lens.analyses.papers.memory.model.config import IN_THE_STREAM
from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.model.predictions import previous_token_attention
from resval_lens.analyses.papers.memory.model.probes import followers
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerBatch, TriggerTask

CHUNK = 2**22
"""Attention weights that are looked at, at once: one sequence of 2,048 tokens."""


@dataclass(frozen=True)
class AttentionMap:
    """Both layers' attention on one sequence, row t up to position t, to four decimals."""

    trained_length: int
    seed: int
    tokens: list[str]
    layers: list[list[list[float]]]


def position_bins(longest: int, trained: int) -> list[tuple[int, int]]:
    """(first, last) positions of bins whose ends are near 2^(k/2), ``trained`` and ``longest``.

    >>> position_bins(8, 5)
    [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 8)]
    """
    ends = {round(2 ** (k / 2)) for k in range(2 * longest.bit_length())} | {trained, longest}
    kept = sorted(end for end in ends if end <= longest)
    return [(before + 1, end) for before, end in zip([0, *kept[:-1]], kept, strict=True)]


def binned(
    values: Sequence[Float[Tensor, "_ _"]],
    counted: Sequence[Bool[Tensor, "_ _"]],
    bins: Sequence[tuple[int, int]],
) -> list[tuple[float | None, int]]:
    """Mean and count of the values that count, of all batches together, in each bin of positions.

    Args:
        values, counted: [row, pos] of each batch, of any length.
    """
    longest = bins[-1][1]
    sums, counts = np.zeros(longest), np.zeros(longest, dtype=np.int64)
    for x, there in zip(values, counted, strict=True):
        sums[: x.shape[1]] += (x.double() * there).sum(0).numpy()
        counts[: x.shape[1]] += there.sum(0).numpy()
    found = []
    for first, last in bins:
        count = int(counts[first - 1 : last].sum())
        found.append((float(sums[first - 1 : last].sum() / count) if count else None, count))
    return found


@torch.no_grad()
def attention_by_position(
    model: MemoryTransformer, batch: TriggerBatch
) -> dict[str, Float[Tensor, "row pos"]]:
    """Where the two heads look from each position, in double precision.

        previous_mass   layer 0's attention to t − 1; NaN at the first position
        target_mass     the last layer's attention, all together, to what followed earlier
                        occurrences of z_t

    A few sequences at a time: a pattern has length² numbers.
    """
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    found: dict[str, list[Tensor]] = {"previous_mass": [], "target_mass": []}
    rows = max(1, CHUNK // batch.inputs.shape[1] ** 2)
    for inputs in batch.inputs.split(rows):

        def previous(pattern: Tensor, hook: Any) -> None:
            looked = pattern[:, 0].diagonal(-1, 1, 2).double()
            found["previous_mass"].append(F.pad(looked, (1, 0), value=math.nan))

        def target(pattern: Tensor, hook: Any, inputs: Tensor = inputs) -> None:
            after = followers(inputs)
            found["target_mass"].append((pattern[:, 0] * after).sum(-1, dtype=torch.float64))

        hooks: Any = [(names[0], previous), (names[-1], target)]
        model.run_with_hooks(inputs, return_type=None, fwd_hooks=hooks)
    return {name: torch.cat(parts) for name, parts in found.items()}


def fitted_tau1(masses: Float[Tensor, " pos"]) -> float:
    """τ1 of the constructed head nearest to a measured one, by least squares.

        min over τ1 of Σ_t (α_t − e^τ1 / (e^τ1 + t − 1))²

    Args:
        masses: α_t, mean attention to t − 1 from positions t = 2, 3, ..., in that order.
    """
    alpha = np.asarray(masses, dtype=np.float64)
    others = np.arange(1, len(alpha) + 1)  # t − 1

    def misfit(tau1: float) -> float:
        return float(np.square(alpha - 1 / (1 + others * np.exp(-tau1))).sum())

    # Far from its minimum the misfit is flat: a grid says where to look.
    start = min(np.arange(-10.0, 30.0), key=misfit)
    best = scipy.optimize.minimize_scalar(misfit, bounds=(start - 1, start + 1), method="bounded",
                           options={"xatol": 1e-9})  # fmt: skip
    return float(best.x)


def predicted_previous(t: int, tau1: float, positions: str, trained: int) -> float | None:
    """The constructed head's attention from position t ≥ 2 to t − 1; None where there is none.

    Absolute positions are unknown beyond the ``trained`` ones, where attention is uniform, 1/t;
    relative ones are the same at any length. Rotary positions and ALiBi have no such construction.
    """
    if positions in ("rotary", "alibi"):
        return None
    off = positions in IN_THE_STREAM and t > trained
    return previous_token_attention(t, 0.0 if off else tau1)


def attention_map(
    model: MemoryTransformer, task: TriggerTask, length: int, seed: int
) -> AttentionMap:
    """Both layers' attention on one sequence of ``task``."""
    batch = task.batch(1, Generator().manual_seed(seed), length)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(batch.inputs, names_filter=names, return_type=None)
    layers = [
        [[round(x, 4) for x in row[: t + 1]] for t, row in enumerate(cache[name][0, 0].tolist())]
        for name in names
    ]
    text = [task.bigrams.tokens[token] for token in batch.inputs[0].tolist()]
    return AttentionMap(task.length, seed, text, layers)
