"""Numbers with their intervals over prompts or seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A number, and the ends of its interval over resamples."""

    value: float
    low: float
    high: float

    def told(self, form: str = "z.3f") -> str:
        """As tables have it."""
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


def mean_interval(
    values: Float[np.ndarray, " n"], level: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Interval:
    """A mean, with the percentiles of the means of resamples (bootstrap; Efron 1979).

    Of one value, or of equal ones, both ends are the mean itself.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("an interval needs one value or more; got none")
    mean = float(np.mean(values))
    if len(values) < 2 or not np.ptp(values):
        return Interval(mean, mean, mean)
    found = stats.bootstrap(
        (values,), np.mean, confidence_level=level, n_resamples=resamples, method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Interval(mean, float(found.low), float(found.high))
