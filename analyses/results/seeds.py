"""Statistics over seeds: mean and deviation, t-tests of two variants, effect sizes, Holm."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import scipy
from jaxtyping import Float

from resval_lens.analyses.results.intervals import (
    LARGEST,
    Ends,
    bootstrap,
    standardised_interval,
)

SURE = 0.05
"""A corrected p below this counts."""

Key = TypeVar("Key", bound=Hashable)
BySeed = Mapping[Any, float | None]
"""A number of each seed; None where it has none."""


@dataclass(frozen=True)
class Spread:
    """Numbers ``by_seed``; ``mean`` and population ``sd`` (ddof = 0) of those that are there."""

    by_seed: BySeed
    mean: float | None
    sd: float | None

    @property
    def there(self) -> list[float]:
        """The numbers of the seeds that have one."""
        return present(self.by_seed.values())

    def told(self, form: str, seeds: int | None = None) -> str:
        """Mean ± sd, of one number itself, and how many of ``seeds`` are there if some are not.

        Args:
            seeds: how many there are, by default those of ``by_seed``.
        """
        if self.mean is None:
            return "never"
        count, every = len(self.there), seeds or len(self.by_seed)
        unsigned = form.removeprefix("+")
        text = f"{self.mean:{form}}" + (f" ± {self.sd:{unsigned}}" if count > 1 else "")
        return text if count == every else f"{text} ({count} of {every})"


def present(numbers: Iterable[float | None]) -> list[float]:
    """Those that are not None."""
    return [number for number in numbers if number is not None]


def spread(by_seed: BySeed) -> Spread:
    """The :class:`Spread` of numbers by seed; without any, mean and sd are None."""
    there = present(by_seed.values())
    return Spread(dict(by_seed), *(mean_and_sd(there) if there else (None, None)))


def mean_and_sd(numbers: Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation (ddof = 0), the paper's."""
    return float(np.mean(numbers)), float(np.std(numbers))


@dataclass(frozen=True)
class TTests:
    """Two-sided t-tests of two variants; t is negative where the first has less.

    Attributes:
        t, p: Student's test of independent samples with equal variances.
        t_paired, p_paired: numbers of the same seed paired (runs of one seed share what is drawn,
            which the independent test counts as noise); seeds of one variant only are left out.
        p_holm, p_paired_holm: the same, :func:`corrected` for the tests of one table.

    None where a seed has no number, there are fewer than two, or all differences are equal.
    """

    t: float | None = None
    p: float | None = None
    t_paired: float | None = None
    p_paired: float | None = None
    p_holm: float | None = None
    p_paired_holm: float | None = None


def t_tests(first: BySeed, second: BySeed) -> TTests:
    """:class:`TTests` of numbers by seed.

    None of them where a seed has no number: of runs that never got there, a test of the others
    would say too little or too much.
    """
    both = [np.array(list(numbers.values())) for numbers in (first, second)]
    if None in (*first.values(), *second.values()) or min(map(len, both)) < 2:
        return TTests()
    found = TTests()
    if any(map(np.ptp, both)):
        with warnings.catch_warnings():  # of a variant without spread: the other's is enough
            warnings.filterwarnings("ignore", message="Precision loss", category=RuntimeWarning)
            t, p = map(float, scipy.stats.ttest_ind(*both))
        found = replace(found, t=t, p=p)
    pairs = np.array([(number, second[seed]) for seed, number in first.items() if seed in second])
    if len(pairs) > 1 and np.ptp(pairs[:, 0] - pairs[:, 1]):
        t, p = map(float, scipy.stats.ttest_rel(*pairs.T))
        found = replace(found, t_paired=t, p_paired=p)
    return found


@dataclass(frozen=True)
class Effect:
    """By how many standard deviations two variants differ; negative where the first has less.

    Attributes:
        g: of independent runs, Hedges' g = J(n + m − 2) (mean₁ − mean₂) / s, s the pooled deviation
            (ddof = 1): Cohen's d without its bias in small samples.
        g_paired: of numbers of the same seed, J(n − 1) mean / s of the differences: d_z, corrected
            like g.
        interval, interval_paired: 95%, exact for normal numbers
            (:func:`~resval_lens.analyses.results.intervals.standardised_interval`).
        bootstrap, bootstrap_paired: 95%, from resampled seeds
            (:func:`~resval_lens.analyses.results.intervals.bootstrap`).

    None where :class:`TTests` has none, and of fewer than three seeds or pairs.
    """

    g: float | None = None
    interval: Ends | None = None
    bootstrap: Ends | None = None
    g_paired: float | None = None
    interval_paired: Ends | None = None
    bootstrap_paired: Ends | None = None


def effect(first: BySeed, second: BySeed) -> Effect:
    """The :class:`Effect` of numbers by seed."""
    found, tests = Effect(), t_tests(first, second)
    one, other = (np.array(present(numbers.values()), float) for numbers in (first, second))
    n, m = len(one), len(other)
    if tests.t is not None and min(n, m) > 2:
        found = replace(
            found,
            g=float(hedges_g(one, other)),
            interval=standardised_interval(tests.t, n + m - 2, math.sqrt(1 / n + 1 / m)),
            bootstrap=bootstrap(hedges_g, one, other),
        )
    pairs = [(number, second[seed]) for seed, number in first.items() if seed in second]
    n = len(pairs)
    if tests.t_paired is not None and n > 2:
        differences = np.subtract(*np.array(pairs, float).T)
        found = replace(
            found,
            g_paired=float(hedges_g_paired(differences)),
            interval_paired=standardised_interval(tests.t_paired, n - 1, math.sqrt(1 / n)),
            bootstrap_paired=bootstrap(hedges_g_paired, differences),
        )
    return found


def hedges_g(
    first: Float[np.ndarray, "*batch n"], second: Float[np.ndarray, "*batch m"], axis: int = -1
) -> Float[np.ndarray, "*batch"]:
    """J(n + m − 2) (mean₁ − mean₂) / s of independent samples, s pooled."""
    n, m = first.shape[axis], second.shape[axis]
    squares = (n - 1) * first.var(axis, ddof=1) + (m - 1) * second.var(axis, ddof=1)
    apart = first.mean(axis) - second.mean(axis)
    deviation = np.sqrt(squares / (n + m - 2))
    return np.asarray(_unbiased(n + m - 2) * _in_deviations(apart, deviation))


def hedges_g_paired(
    differences: Float[np.ndarray, "*batch n"], axis: int = -1
) -> Float[np.ndarray, "*batch"]:
    """J(n − 1) mean / s of the differences of pairs."""
    n = differences.shape[axis]
    in_deviations = _in_deviations(differences.mean(axis), differences.std(axis, ddof=1))
    return np.asarray(_unbiased(n - 1) * in_deviations)


def _unbiased(freedom: int) -> float:
    """J(f) = Γ(f/2) / (√(f/2) Γ((f − 1)/2)) (Hedges 1981)."""
    logarithm = scipy.special.gammaln(freedom / 2) - scipy.special.gammaln((freedom - 1) / 2)
    return float(np.exp(logarithm) / math.sqrt(freedom / 2))


def _in_deviations(apart: Any, deviation: Any) -> Any:
    """``apart`` / ``deviation``; of a resample without spread more than any other."""
    spread_out = deviation > 1e-12 * (1 + np.abs(apart))
    infinite = np.sign(apart) * LARGEST**2
    return np.where(spread_out, apart / np.where(spread_out, deviation, 1), infinite)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p values of m tests, corrected for being m, so that the chance that any errs keeps its size.

    The i-th smallest becomes max over j ≤ i of min(1, (m − j + 1) p_j) (Holm 1979). None stays
    None, and is no test.

    >>> [round(x, 3) for x in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    there = sorted((value, place) for place, value in enumerate(p) if value is not None)
    found: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, place) in enumerate(there):
        largest = max(largest, min(1.0, (len(there) - rank) * value))
        found[place] = largest
    return found


def corrected(tests: Mapping[Key, TTests]) -> dict[Key, TTests]:
    """The tests of one table with Holm's correction, each kind (independent, paired) on its own."""
    single = holm([test.p for test in tests.values()])
    paired = holm([test.p_paired for test in tests.values()])
    return {
        key: replace(test, p_holm=one, p_paired_holm=other)
        for (key, test), one, other in zip(tests.items(), single, paired, strict=True)
    }
