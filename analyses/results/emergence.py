"""When a score emerges in training: the first step above a level, and what one variant saves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from resval_lens.analyses.results.intervals import Ends, bootstrap, ratio_interval
from resval_lens.analyses.results.seeds import BySeed

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
    one, base = _shared(first, baseline)
    return 1 - float(one.sum() / base.sum()) if len(one) else None


@dataclass(frozen=True)
class Share:
    """A share, from means over the seeds that all of its variants have.

    Attributes:
        share: None without such seeds.
        interval: 95%, exact for normal numbers, paired by seed
            (:func:`~resval_lens.analyses.results.intervals.ratio_interval`).
        bootstrap: 95%, from resampled seeds, of all variants the same
            (:func:`~resval_lens.analyses.results.intervals.bootstrap`).
        seeds: how many there are; of fewer than three there is no interval.
    """

    share: float | None
    interval: Ends | None
    bootstrap: Ends | None
    seeds: int

    def told(self, unit: str = "") -> str:
        """In percent with the interval, like ``19 [15, 22]``; blank if there is none.

        Args:
            unit: that follows the share.
        """
        if self.share is None:
            return ""
        percent = self.times(100)
        told = f"{percent.share:z.0f}{unit}"
        return told if percent.interval is None else f"{told} {percent.interval.told('z.0f')}"

    def percent(self) -> str:
        """The same for a sentence, like ``−19% [−22, −15]``: with the unit and true minuses."""
        return self.told("%").replace("-", "−")

    def times(self, factor: float) -> Share:
        """The same in other parts; the factor, above 0, counts as known."""
        return Share(
            None if self.share is None else factor * self.share,
            self.interval and self.interval.times(factor),
            self.bootstrap and self.bootstrap.times(factor),
            self.seeds,
        )


def saving(first: BySeed, baseline: BySeed) -> Share:
    """The share of the baseline's steps that ``first`` saves (:func:`saved`), with intervals."""
    one, base = _shared(first, baseline)
    return _ratio(base - one, base)


def share_of_saving(first: BySeed, whole: BySeed, baseline: BySeed) -> Share:
    """What ``first`` saves of the baseline's steps, in parts of what ``whole`` saves.

    (mean of baseline − mean of first) / (mean of baseline − mean of whole), over the seeds that all
    three have; more than 1 where ``first`` saves more.
    """
    one, most, base = _shared(first, whole, baseline)
    return _ratio(base - one, base - most)


def _shared(*variants: BySeed) -> list[Any]:
    """Numbers of the seeds that got there in all of them, an array each."""
    seeds = [seed for seed in variants[0] if all(steps.get(seed) is not None for steps in variants)]
    return [np.array([steps[seed] for seed in seeds], float) for steps in variants]


def _ratio(top: Any, bottom: Any) -> Share:
    """mean(top) / mean(bottom), paired by seed."""
    if not len(top) or not bottom.mean():
        return Share(None, None, None, len(top))
    found = float(top.mean() / bottom.mean())
    if len(top) < 3:
        return Share(found, None, None, len(top))
    resampled = bootstrap(
        lambda x, y, axis=-1: x.mean(axis) / y.mean(axis), top, bottom, paired=True
    )
    return Share(found, ratio_interval(top, bottom), resampled, len(top))
