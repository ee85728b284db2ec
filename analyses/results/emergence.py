"""When a score emerges in training: the first step above a level, and what one variant saves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from resval_lens.analyses.results.seeds import BySeed, present

Step = TypeVar("Step", int, float)


def first_above(curve: Iterable[tuple[Step, float | None]], level: float) -> Step | None:
    """The first step whose score exceeds ``level``; None if none does.

    Args:
        curve: (step, score), oldest first; a step without a score is passed over.
    """
    above = (step for step, score in curve if score is not None and score > level)
    return next(above, None)


def saved(first: BySeed, baseline: BySeed) -> float | None:
    """1 − mean of ``first`` / mean of ``baseline``: the share of steps that ``first`` saves.

    Means are over the seeds that got there in both; None without any.
    """
    shared = [seed for seed, step in first.items()
              if step is not None and baseline.get(seed) is not None]  # fmt: skip
    if not shared:
        return None
    total, base = (sum(present(steps[seed] for seed in shared)) for steps in (first, baseline))
    return 1 - total / base
