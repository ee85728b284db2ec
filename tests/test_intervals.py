"""Effect sizes and intervals over seeds, against closed forms, scipy and all resamples."""

import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from resval_lens.analyses.results import intervals
from resval_lens.analyses.results.emergence import Share, saved, saving, share_of_saving
from resval_lens.analyses.results.intervals import (
    Ends,
    bootstrap,
    ratio_interval,
    standardised_interval,
)
from resval_lens.analyses.results.seeds import Effect, effect, hedges_g, t_tests


def by_seed(numbers: Sequence[float]) -> dict[int, float]:
    return dict(enumerate(numbers))


NUMBERS = st.lists(st.integers(-50, 50), min_size=3, max_size=7)

# Effect sizes


def shaped(mean: float, deviation: float, n: int) -> np.ndarray:
    """Numbers that have exactly this mean and deviation (ddof = 1)."""
    numbers = np.arange(n) - (n - 1) / 2
    return np.asarray(mean + deviation * numbers / numbers.std(ddof=1))


def test_a_published_effect_size() -> None:
    """Borenstein et al. 2009, chapter 4: d = 0.5970, J = 0.9923 (by 1 − 3/(4f − 1)), g = 0.5924."""
    found = hedges_g(shaped(103, 5.5, 50), shaped(100, 4.5, 50))
    assert found == pytest.approx(0.5924, abs=2e-4)


def correction(freedom: int) -> float:
    """Hedges' J by the gamma function itself."""
    return math.gamma(freedom / 2) / math.sqrt(freedom / 2) / math.gamma((freedom - 1) / 2)


@settings(max_examples=40)
@given(NUMBERS, NUMBERS)
def test_effect_sizes_are_what_t_says_of_them(first: list[int], second: list[int]) -> None:
    one, other = by_seed(first), by_seed(second)
    n, m, pairs = len(first), len(second), min(len(first), len(second))
    tests, found = t_tests(one, other), effect(one, other)
    if tests.t is None:
        assert found.g is None
    else:
        d = tests.t * math.sqrt(1 / n + 1 / m)
        assert found.g == pytest.approx(correction(n + m - 2) * d, abs=1e-9)
    if tests.t_paired is None:
        assert found.g_paired is None
    else:
        d = tests.t_paired / math.sqrt(pairs)
        assert found.g_paired == pytest.approx(correction(pairs - 1) * d, abs=1e-9)


def test_an_effect_by_hand() -> None:
    """Means 2 and 4, both variances 1; differences −2, −3, −1."""
    found = effect(by_seed([1, 2, 3]), by_seed([3, 5, 4]))
    assert found.g == pytest.approx(-2 * correction(4))
    assert found.g_paired == pytest.approx(-2 * correction(2))
    other = effect(by_seed([3, 5, 4]), by_seed([1, 2, 3]))
    assert other.g == pytest.approx(2 * correction(4))
    assert found.interval is not None
    assert other.interval is not None
    assert (other.interval.low, other.interval.high) == pytest.approx(
        (-(found.interval.high or 0), -(found.interval.low or 0))
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [({0: 1, 1: None, 2: 3}, {0: 2, 1: 3, 2: 4}), ({0: 1, 1: 2}, {0: 3, 1: 5}), ({}, {}),
     ({0: 1, 1: 1, 2: 1}, {0: 1, 1: 1, 2: 1})],
    ids=["never", "two seeds", "none", "no spread"],
)  # fmt: skip
def test_what_has_no_effect_size(
    first: dict[int, float | None], second: dict[int, float | None]
) -> None:
    assert effect(first, second) == Effect()


def test_pairs_are_of_the_seeds_that_both_have() -> None:
    first, second = by_seed([1, 2, 4, 90]), by_seed([3, 5, 4])
    found, shared = effect(first, second), effect(by_seed([1, 2, 4]), second)
    assert found.g_paired == shared.g_paired
    assert found.bootstrap_paired == shared.bootstrap_paired
    assert found.g != shared.g


# Intervals that stand on t


@pytest.mark.parametrize("freedom", [3, 6, 14])
@pytest.mark.parametrize("t", [0.5, 3.0, 9.0])
def test_the_ends_of_an_effect_are_where_scipys_noncentral_t_has_its_tails(
    t: float, freedom: int
) -> None:
    found = standardised_interval(t, freedom, 0.5)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.5 * t < found.high
    assert stats.nct.cdf(t, freedom, 2 * found.high) == pytest.approx(0.025, abs=1e-4)
    if found.low > 0:  # scipy has no others
        assert stats.nct.cdf(t, freedom, 2 * found.low) == pytest.approx(0.975, abs=1e-4)


def test_without_a_difference_the_interval_is_the_normals() -> None:
    found = standardised_interval(0, 5, 1)
    end = NormalDist().inv_cdf(0.975)
    assert (found.low, found.high) == (pytest.approx(-end), pytest.approx(end))


@given(st.lists(st.tuples(st.floats(1, 9), st.floats(20, 30)), min_size=3, max_size=9, unique=True))
def test_the_ends_of_a_ratio_are_where_a_t_test_is_on_the_edge(
    pairs: list[tuple[float, float]],
) -> None:
    top, bottom = np.array(pairs).T
    assume(np.ptp(top) > 0.1)
    found = ratio_interval(top, bottom)
    if found is None:
        return
    for end in (found.low, found.high):
        assert end is not None
        assert stats.ttest_1samp(top - end * bottom, 0).pvalue == pytest.approx(0.05, rel=1e-6)
    assert found.low < top.mean() / bottom.mean() < found.high


def test_a_ratio_to_what_may_be_nothing_has_no_interval() -> None:
    assert ratio_interval(np.array([1.0, 2, 3]), np.array([-1.0, 1, 0.1])) is None


def test_an_interval_says_its_ends() -> None:
    assert Ends(-1.25, 2).told(".1f") == "[-1.2, 2.0]"
    assert Ends(None, 2).told(".1f") == "[-∞, 2.0]"
    assert Ends(1, None).times(100).told(".0f") == "[100, ∞]"


# The bootstrap


def bca(numbers: np.ndarray, statistic, every: np.ndarray) -> tuple[float, float]:
    """BCa by its formulas, from all resamples: no chance is left."""
    n, normal, found = len(numbers), NormalDist(), statistic(numbers)
    below = (every < found).mean() + (every == found).mean() / 2
    left_out = np.array([statistic(np.delete(numbers, i)) for i in range(n)])
    away = left_out.mean() - left_out
    bias, a = normal.inv_cdf(below), (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    ends = []
    for z in (normal.inv_cdf(0.025), normal.inv_cdf(0.975)):
        at = normal.cdf(bias + (bias + z) / (1 - a * (bias + z)))
        ends.append(float(np.quantile(every, at)))
    return ends[0], ends[1]


@pytest.mark.parametrize("seed", range(3))
def test_the_bootstrap_is_that_of_all_resamples(seed: int) -> None:
    """46,656 resamples of six skewed numbers, and of their pairs."""
    rng = np.random.default_rng(seed)
    numbers, base = rng.exponential(size=6) + 1, rng.normal(9, 1, size=6)
    rows = np.array(list(itertools.product(range(6), repeat=6)))
    low, high = bca(numbers, np.mean, numbers[rows].mean(1))
    found = bootstrap(lambda x, axis=-1: x.mean(axis), numbers)
    assert found is not None
    spread = high - low
    assert found.low == pytest.approx(low, abs=0.05 * spread)
    assert found.high == pytest.approx(high, abs=0.05 * spread)

    order = np.arange(6)  # a statistic of places, so that both are resampled together
    of = lambda places: numbers[places].mean() / base[places].mean()  # noqa: E731
    low, high = bca(order, of, numbers[rows].mean(1) / base[rows].mean(1))
    found = bootstrap(
        lambda x, y, axis=-1: x.mean(axis) / y.mean(axis),
        numbers, base, paired=True,
    )  # fmt: skip
    assert found is not None
    spread = high - low
    assert found.low == pytest.approx(low, abs=0.05 * spread)
    assert found.high == pytest.approx(high, abs=0.05 * spread)


def test_the_bootstrap_is_the_same_each_time_and_needs_spread() -> None:
    def mean(x: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(x.mean(axis))

    three = np.array([1.0, 2, 4])
    assert bootstrap(mean, three) == bootstrap(mean, three)
    assert bootstrap(mean, three) != bootstrap(mean, three, seed=1)
    assert bootstrap(mean, np.full(3, 2.0)) is None


def test_where_resamples_lose_all_spread_an_effect_has_no_end() -> None:
    found = effect(by_seed([1, 1, 1, 2]), by_seed([3, 3, 3, 3]))
    assert found.bootstrap is not None
    assert found.bootstrap.low is None
    assert found.bootstrap.high is not None
    assert found.interval is not None
    assert found.interval.low is not None


def test_what_is_said_of_few_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module's own words: intervals by t hold the truth in 95% of draws, resampled in fewer."""
    monkeypatch.setattr(intervals, "RESAMPLES", 199)
    rng, draws = np.random.default_rng(0), 150
    held = dict.fromkeys(("ratio", "ratio resampled", "g", "g resampled"), 0)
    for _ in range(draws):
        one, base = by_seed(rng.normal(48, 2, 4)), by_seed(rng.normal(60, 3, 4))
        share, size = saving(one, base), effect(one, base)
        truth = {"ratio": (share.interval, 0.2), "ratio resampled": (share.bootstrap, 0.2),
                 "g": (size.interval, -12 / math.sqrt(6.5)),
                 "g resampled": (size.bootstrap, -12 / math.sqrt(6.5))}  # fmt: skip
        for name, (interval, true) in truth.items():
            assert interval is not None
            low = -math.inf if interval.low is None else interval.low
            high = math.inf if interval.high is None else interval.high
            held[name] += low <= true <= high
    assert min(held["ratio"], held["g"]) > 0.91 * draws
    assert held["ratio resampled"] < 0.85 * draws
    assert held["g resampled"] < 0.75 * draws


# Savings


def test_a_saving_by_hand() -> None:
    values, classic = by_seed([50, 54, 40]), by_seed([60, 70, 50])
    found = saving(values, classic)
    assert found.share == pytest.approx(1 - 144 / 180)
    assert saved(values, classic) == pytest.approx(found.share)
    assert found.seeds == 3
    assert found.interval == ratio_interval(np.array([10.0, 16, 10]), np.array([60.0, 70, 50]))


def test_a_saving_is_of_the_seeds_that_both_have() -> None:
    found = saving({0: 50, 1: None, 2: 40, 7: 1}, {0: 60, 1: 61, 2: 50, 3: 90})
    assert found == Share(pytest.approx(1 - 90 / 110), None, None, 2)
    assert saving({0: None}, {0: 60}) == Share(None, None, None, 0)
    assert found.told() == "18"


def test_a_share_of_a_saving_by_hand() -> None:
    classic, values = by_seed([60, 70, 50, 64]), by_seed([50, 54, 40, 52])
    gain = by_seed([55, 60, 44, 57])
    found = share_of_saving(gain, values, classic)
    assert found.share == pytest.approx((5 + 10 + 6 + 7) / (10 + 16 + 10 + 12))
    assert share_of_saving(values, values, classic).share == 1
    assert share_of_saving(classic, values, classic).share == 0
    assert share_of_saving(gain, classic, classic).share is None  # in parts of nothing
    told = found.told()
    assert told.startswith("58 [")
    half = found.times(0.5)
    assert half.share == pytest.approx(found.share / 2)
    assert half.bootstrap is not None
    assert found.bootstrap is not None
    assert half.bootstrap.low == pytest.approx((found.bootstrap.low or 0) / 2)
