"""When in-context learning emerges: crossings, tests and savings against numbers made by hand."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from resval_lens.analyses.comparison.icl_emergence import (
    PUBLISHED,
    TABLES,
    Comparison,
    Crossing,
    emergence,
    paper_runs,
)
from resval_lens.analyses.results.emergence import first_above, saved
from resval_lens.analyses.results.seeds import holm
from resval_lens.models.presets import ICL_VARIANTS, PAPER_VARIANTS
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.recorded import RecordedRun

NEVER = 10**9


def recorded(
    name: str, seed: int = 0, ic: Sequence[float] = (), ic2: Sequence[float] = (), every: int = 500
) -> RecordedRun[ICLRun]:
    """A run with these accuracies, a snapshot each."""
    lines = [
        {"step": every * i, "ic": {"accuracy": x}, "ic2": {"accuracy": y}}
        for i, (x, y) in enumerate(zip(ic, ic2 or ic, strict=True))
    ]
    return RecordedRun(ICLRun(name, seed=seed), [], lines, Path("nowhere"))


def crossing_at(name: str, snapshots: Sequence[int]) -> list[RecordedRun[ICLRun]]:
    """A run for each number of the snapshot that first exceeds every threshold (or NEVER)."""
    return [
        recorded(name, seed, [float(i >= at) for i in range(100)])
        for seed, at in enumerate(snapshots)
    ]


def row(runs: Sequence[RecordedRun[ICLRun]], task: str, threshold: float = 0.5) -> Crossing:
    """Of runs of values."""
    found = emergence(runs, threshold).row(task, "values")
    assert found is not None
    return found


def first_of(run: RecordedRun, task: str, threshold: float) -> float | None:
    return row([run], task, threshold).snapshots[run.run.seed]


# The first step or snapshot above a level


@given(st.lists(st.none() | st.floats(0, 1), max_size=8), st.floats(0.01, 0.99))
def test_the_first_step_is_the_first_that_exceeds(
    values: list[float | None], threshold: float
) -> None:
    steps = [7 * i + 1 for i in range(len(values))]
    expected = None
    for step, value in reversed(list(zip(steps, values, strict=True))):
        if value is not None and value > threshold:
            expected = step
    assert first_above(zip(steps, values, strict=True), threshold) == expected


@pytest.mark.parametrize(
    ("accuracies", "first"),
    [
        ([0.1, 0.5, 0.96, 0.97], 2),
        ([0.1, 0.95, 0.95, 0.951], 3),  # above, not at
        ([0.96, 0.1, 0.1], 0),
        ([0.1, 0.97, 0.2, 0.98], 1),  # the first, though accuracy falls again
        ([0.1, 0.2, 0.95], None),
        ([], None),
    ],
)
def test_the_first_snapshot_above_a_threshold(accuracies: list[float], first: int | None) -> None:
    assert first_of(recorded("values", ic=accuracies), "ic", 0.95) == first


def test_each_task_is_read_on_its_own() -> None:
    run = recorded("values", ic=[0.0, 0.0, 1.0], ic2=[0.0, 1.0, 0.0])
    assert (first_of(run, "ic", 0.5), first_of(run, "ic2", 0.5)) == (2, 1)


@pytest.mark.parametrize(("every", "first"), [(250, 1.5), (500, 3.0), (1000, 6.0)])
def test_crossings_are_counted_in_snapshots_of_500_steps(every: int, first: float) -> None:
    run = recorded("values", ic=[0.0, 0.0, 0.0, 1.0], every=every)
    assert first_of(run, "ic", 0.5) == first


# Crossings of variants


def test_a_crossing_gathers_the_seeds_of_a_variant() -> None:
    runs = [*crossing_at("classic", [64, 70]), *crossing_at("values", [48, 49, 53])]
    found = emergence(runs, 0.95)
    assert [(c.task, c.variant) for c in found.rows] == [
        ("ic", "classic"), ("ic", "values"), ("ic2", "classic"), ("ic2", "values"),
    ]  # fmt: skip
    values = found.row("ic", "values")
    assert values is not None
    assert values.snapshots == {0: 48, 1: 49, 2: 53}
    assert found.threshold == 0.95


def test_mean_and_deviation_of_the_population() -> None:
    values = row(crossing_at("values", [48, 49, 53]), "ic").first
    assert values.mean == 50
    assert values.sd == pytest.approx(math.sqrt((2**2 + 1**2 + 3**2) / 3))


def test_seeds_that_never_got_there_are_kept_and_left_out_of_the_mean() -> None:
    values = row(crossing_at("values", [48, NEVER, 52]), "ic").first
    assert values.by_seed == {0: 48, 1: None, 2: 52}
    assert values.there == [48, 52]
    assert (values.mean, values.sd) == (50, 2)


def test_a_variant_that_never_got_there_has_no_mean() -> None:
    values = row(crossing_at("values", [NEVER, NEVER]), "ic").first
    assert values.there == []
    assert values.mean is None
    assert values.sd is None


@pytest.mark.parametrize("threshold", [0, 1, -0.5, 95, float("nan")])
def test_a_threshold_that_is_no_share_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=f"threshold must lie between 0 and 1; got {threshold}"):
        emergence(crossing_at("values", [3]), threshold)


# t-tests


def on_ic(first: Sequence[int], second: Sequence[int]) -> Comparison:
    runs = [*crossing_at("classic", second), *crossing_at("values", first)]
    comparison = emergence(runs, 0.5).t_tests[0]
    assert (comparison.first, comparison.second) == ("values", "classic")
    assert comparison.task == "ic"
    return comparison


def compared(first: Sequence[int], second: Sequence[int]) -> tuple[float | None, float | None]:
    """t and p of ``first`` against ``second`` on IC."""
    tests = on_ic(first, second).tests
    return tests.t, tests.p


def test_a_case_computed_by_hand() -> None:
    t, p = compared([1, 2, 3], [3, 4, 5])  # means 2 and 4, both variances 1, n = 3
    assert t == pytest.approx(-2 / math.sqrt(1 * (1 / 3 + 1 / 3)))
    assert p == pytest.approx(0.070484, abs=1e-6)  # two-sided, t(4)


@pytest.mark.parametrize("seed", range(5))
def test_t_and_p_are_the_formulas(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (rng.integers(30, 70, size) for size in rng.integers(2, 6, 2))
    n, m = len(first), len(second)
    pooled = ((n - 1) * first.var(ddof=1) + (m - 1) * second.var(ddof=1)) / (n + m - 2)
    expected = (first.mean() - second.mean()) / np.sqrt(pooled * (1 / n + 1 / m))
    t, p = compared(first.tolist(), second.tolist())
    assert t == pytest.approx(expected)
    assert p == pytest.approx(2 * stats.t.sf(abs(expected), n + m - 2))


def test_t_is_negative_for_the_one_that_gets_there_first() -> None:
    t, p = compared([46, 48, 50, 52], [59, 62, 64, 73])  # means 49 and 64.5, as published
    assert t is not None
    assert t < -4
    assert p is not None
    assert p < 0.01
    assert compared([59, 62, 64, 73], [46, 48, 50, 52]) == pytest.approx((-t, p))


@pytest.mark.parametrize(
    ("first", "second"),
    [([40, 41, NEVER], [50, 51, 52]), ([40, 41, 42], [50, NEVER, NEVER]), ([40], [50, 51]),
     ([NEVER, NEVER], [50, 51])],
)  # fmt: skip
def test_what_cannot_be_compared_is_not(first: list[int], second: list[int]) -> None:
    assert compared(first, second) == (None, None)


@pytest.mark.parametrize("second", [[40, 40], [50, 50]])
def test_without_any_spread_there_is_no_t_test(second: list[int]) -> None:
    assert compared([40, 40], second) == (None, None)


def paired(first: Sequence[int], second: Sequence[int]) -> tuple[float | None, float | None]:
    """t and p of ``first`` against ``second`` on IC, seed by seed."""
    tests = on_ic(first, second).tests
    return tests.t_paired, tests.p_paired


def test_a_paired_case_computed_by_hand() -> None:
    t, p = paired([1, 2, 3], [3, 5, 4])  # differences −2, −3, −1: mean −2, variance 1, n = 3
    assert t == pytest.approx(-2 / math.sqrt(1 / 3))
    assert p == pytest.approx(1 - math.sqrt(12 / 14))  # two-sided, t(2)


def test_pairs_are_of_one_seed() -> None:
    assert paired([1, 2, 3], [5, 3, 4]) != pytest.approx(paired([1, 2, 3], [3, 5, 4]))
    assert compared([1, 2, 3], [5, 3, 4]) == pytest.approx(compared([1, 2, 3], [3, 5, 4]))


def test_seeds_of_one_variant_only_are_left_out_of_the_pairs() -> None:
    assert paired([1, 2, 3, 90], [3, 5, 4]) == pytest.approx(paired([1, 2, 3], [3, 5, 4]))


@pytest.mark.parametrize(
    ("first", "second"),
    [([1, 2, 3], [3, 4, 5]), ([40, 41, NEVER], [50, 53, 51]), ([40], [50]), ([1, 2, 3], [3])],
    ids=["equal differences", "never", "one seed", "one seed in both"],
)
def test_what_cannot_be_paired_is_not(first: list[int], second: list[int]) -> None:
    assert paired(first, second) == (None, None)


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        # 4 × .005; then 3 × .01; then 2 × .03; then .04, held up to what the one before it has.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.6], [1, 1]),
        ([None, 0.02, None], [None, 0.02, None]),
        ([], []),
    ],
    ids=str,
)
def test_holms_correction_worked_by_hand(p: list[float | None], corrected: list[Any]) -> None:
    assert holm(p) == [None if x is None else pytest.approx(x) for x in corrected]


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_what_its_procedure_rejects(p: list[float], size: float) -> None:
    """Step down: reject the smallest while p ≤ size / (tests that are left), then stop."""
    left, rejected = dict(enumerate(p)), set()
    while left:
        place = min(left, key=left.__getitem__)
        threshold = size / len(left)
        if abs(left[place] - threshold) < 1e-9:
            return  # a tie with the threshold is rounding's to break
        if left.pop(place) > threshold:
            break
        rejected.add(place)
    assert {place for place, x in enumerate(holm(p)) if x is not None and x <= size} == rejected


def test_a_tables_tests_are_corrected_together_each_kind_on_its_own() -> None:
    names = ["classic", "keys", "values"]
    steps = ([60, 64, 65], [61, 63, 66], [50, 51, 50])
    runs = [run for each in zip(names, steps, strict=True) for run in crossing_at(*each)]
    tests = [each.tests for each in emergence(runs, 0.5).t_tests]
    assert [t.p_holm for t in tests] == holm([t.p for t in tests])
    assert [t.p_paired_holm for t in tests] == holm([t.p_paired for t in tests])
    assert any(t.p_holm > t.p for t in tests if t.p_holm is not None and t.p is not None)


def test_every_pair_is_compared_on_every_task() -> None:
    names = ["classic", "keys", "values"]
    runs = [run for i, name in enumerate(names) for run in crossing_at(name, [40 + i, 50 - i])]
    found = [(c.task, c.first, c.second) for c in emergence(runs, 0.5).t_tests]
    pairs = [("keys", "classic"), ("values", "classic"), ("values", "keys")]
    assert found == [(task, *pair) for task in ("ic", "ic2") for pair in pairs]


# Savings


def test_saving_is_the_share_of_steps_not_needed() -> None:
    runs = [*crossing_at("classic", [60, 70]), *crossing_at("values", [50, 54])]
    assert emergence(runs, 0.5).saving("ic", "values") == pytest.approx(1 - 52 / 65)
    values, classic = {0: 50, 1: 54}, {0: 60, 1: 70}
    assert saved(values, values) == 0
    assert saved(classic, values) == pytest.approx(1 - 65 / 52)


def test_a_variant_that_never_got_there_saves_nothing_that_is_known() -> None:
    runs = [*crossing_at("classic", [60, 70]), *crossing_at("values", [NEVER])]
    assert emergence(runs, 0.5).saving_against_classic["ic"] == {"values": None}


# The published numbers


# Tables 1, 5 and 6: classic, queries, keys, values.
PAPER = """
0.95 ic   64.5  ± 5.12   52.5  ± 1.5    61.75 ± 0.83   49.0  ± 2.12
0.95 ic2  63.25 ± 4.15   51.75 ± 1.92   61.25 ± 0.83   47.75 ± 1.3
0.5  ic   51.0  ± 4.24   41.5  ± 2.29   49.75 ± 0.43   32.75 ± 0.83
0.5  ic2  51.5  ± 4.39   41.5  ± 1.66   49.25 ± 0.83   33.25 ± 1.09
0.9  ic   59.25 ± 4.49   48.25 ± 1.48   57.5  ± 0.5    42.25 ± 1.3
0.9  ic2  59.0  ± 4.53   48.0  ± 1.87   57.25 ± 0.83   42.0  ± 0.71
"""


@pytest.mark.parametrize("line", PAPER.strip().splitlines())
def test_the_published_numbers_are_the_papers(line: str) -> None:
    threshold, task, *numbers = line.replace("±", "").split()
    cells = zip(map(float, numbers[::2]), map(float, numbers[1::2]), strict=True)
    expected = dict(zip(["classic", "queries", "keys", "values"], cells, strict=True))
    assert PUBLISHED[float(threshold)][task] == expected


def test_every_table_of_the_paper_has_its_threshold() -> None:
    assert TABLES == {"table-1": 0.95, "table-5": 0.5, "table-6": 0.9}
    assert set(TABLES.values()) == PUBLISHED.keys()


def seeds_with(mean: float, sd: float) -> list[int]:
    """Four whole numbers with this mean and, rounded, this deviation (of the population)."""
    near = range(round(mean) - 12, round(mean) + 13)
    for snapshots in itertools.combinations_with_replacement(near, 4):
        if sum(snapshots) == 4 * mean and abs(np.std(snapshots) - sd) < 0.0051:
            return list(snapshots)
    raise AssertionError(f"no four snapshots have mean {mean} and deviation {sd}")


@pytest.fixture(scope="module")
def papers_t_tests() -> dict[tuple[str, str, str], tuple[float, float]]:
    """(t, p) of (task, first, second), from seeds that have the means and deviations of Table 1."""
    found = {}
    for task in ("ic", "ic2"):
        cells = PUBLISHED[0.95][task].items()
        runs = [run for name, cell in cells for run in crossing_at(name, seeds_with(*cell))]
        for c in emergence(runs, 0.95).t_tests:
            if c.task == task and c.tests.t is not None and c.tests.p is not None:
                found[task, c.first, c.second] = (c.tests.t, c.tests.p)
    return found


@pytest.mark.parametrize(
    ("task", "first", "second", "most", "p_below"),
    [
        ("ic", "queries", "classic", -3.9, 0.01),
        ("ic", "values", "classic", -3.9, 0.01),
        ("ic2", "queries", "classic", -3.9, 0.01),
        ("ic2", "values", "classic", -3.9, 0.01),
        ("ic", "values", "keys", -3.0, 0.03),
        ("ic2", "values", "keys", -3.0, 0.03),
        ("ic2", "values", "queries", -3.0, 0.03),
    ],
)
def test_the_differences_that_the_paper_calls_significant_are(
    papers_t_tests: dict[tuple[str, str, str], tuple[float, float]],
    task: str,
    first: str,
    second: str,
    most: float,
    p_below: float,
) -> None:
    t, p = papers_t_tests[task, first, second]
    assert round(t, 1) <= most
    assert p < p_below


def test_the_differences_that_the_paper_calls_insignificant_are(
    papers_t_tests: dict[tuple[str, str, str], tuple[float, float]],
) -> None:
    for task in ("ic", "ic2"):
        t, p = papers_t_tests[task, "keys", "classic"]
        assert t > -1.0
        assert p > 0.39
    t, p = papers_t_tests["ic", "values", "queries"]
    assert (round(t, 2), round(p, 2)) == (-2.33, 0.06)


def test_values_save_the_24_percent_of_steps_that_the_paper_states() -> None:
    published = PUBLISHED[0.95]["ic"]
    saving = saved({0: published["values"][0]}, {0: published["classic"][0]})
    assert saving == pytest.approx(1 - 49 / 64.5)
    assert saving is not None
    assert round(100 * saving) == 24


@pytest.mark.parametrize("threshold", PUBLISHED)
def test_published_numbers_are_of_four_variants_on_two_tasks(threshold: float) -> None:
    assert PUBLISHED[threshold].keys() == {"ic", "ic2"}
    for variants in PUBLISHED[threshold].values():
        assert variants.keys() == PAPER_VARIANTS.keys()
        assert all((4 * mean).is_integer() for mean, _ in variants.values())  # of four seeds


@pytest.mark.parametrize("task", ["ic", "ic2"])
@pytest.mark.parametrize("variant", PAPER_VARIANTS)
def test_a_higher_published_threshold_is_crossed_later(task: str, variant: str) -> None:
    means = [PUBLISHED[threshold][task][variant][0] for threshold in sorted(PUBLISHED)]
    assert means == sorted(means)


# What a table shows


def test_a_table_holds_ours_and_the_published_numbers() -> None:
    runs = [*crossing_at("classic", [60, 70]), *crossing_at("values", [50, 54])]
    data = emergence(runs, 0.95).to_dict()
    own = next(row for row in data["rows"] if (row["task"], row["variant"]) == ("ic", "values"))
    assert json.loads(json.dumps(own)) == {
        "task": "ic", "variant": "values", "seeds": [0, 1], "snapshots": [50, 54], "mean": 52,
        "sd": 2, "published": {"mean": 49.0, "sd": 2.12},
        "last": {"by_seed": {"0": 1, "1": 1}, "mean": 1, "sd": 0},
    }  # fmt: skip
    assert data["saving_against_classic"]["ic"] == {"values": pytest.approx(1 - 52 / 65)}
    assert [(test["first"], test["second"]) for test in data["t_tests"]] == [
        ("values", "classic")
    ] * 2


def test_variants_that_never_pass_are_named_with_where_they_end() -> None:
    runs = [*crossing_at("classic", [NEVER]), *crossing_at("values", [50])]
    said = emergence(runs, 0.95).sentences()
    end = runs[0].metrics[-1]["ic"]["accuracy"]
    assert said == [
        f"IC passes 0.95 in no run of classic; at the last snapshot it is: classic {end:.3f}."
    ]
    assert emergence(runs, 0.95).sooner() == []  # a page's headline


def test_what_the_paper_has_not_measured_has_no_published_number() -> None:
    for name, threshold in (("values-half", 0.95), ("values", 0.8)):
        rows = emergence(crossing_at(name, [40, 50]), threshold).rows
        assert [row.published for row in rows] == [None, None]


def test_without_a_baseline_there_are_no_savings() -> None:
    assert emergence(crossing_at("values", [40, 50]), 0.95).saving_against_classic == {}


def test_a_table_is_json_even_where_a_variant_never_got_there() -> None:
    runs = [*crossing_at("classic", [60, 70]), *crossing_at("values", [NEVER, NEVER])]
    json.dumps(emergence(runs, 0.95).to_dict(), allow_nan=False)  # NaN is no JSON


def test_savings_stand_in_the_order_of_the_runs() -> None:
    runs = [run for name in ICL_VARIANTS for run in crossing_at(name, [40, 41])]
    savings = emergence(runs, 0.95).saving_against_classic
    assert list(savings["ic"]) == [name for name in ICL_VARIANTS if name != "classic"]


def test_the_papers_runs_are_those_of_its_four_variants() -> None:
    runs = [recorded(name) for name in ICL_VARIANTS]
    assert [run.run.name for run in paper_runs(runs)] == list(PAPER_VARIANTS)
    assert paper_runs([replace(runs[0], run=ICLRun("mine"))]) == []


def test_savings_compare_the_same_seeds() -> None:
    runs = [*crossing_at("classic", [60, 70, 90, 90]), *crossing_at("values", [30, 35])]
    assert emergence(runs, 0.5).saving("ic", "values") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("snapshots", "told"),
    [
        ([48, 50], "49.00 ± 1.00"),
        ([48, NEVER], "48.00 (1 of 2)"),
        ([NEVER, NEVER], "never"),
    ],
)
def test_a_crossing_says_how_many_seeds_got_there(snapshots: list[int], told: str) -> None:
    assert row(crossing_at("values", snapshots), "ic").told() == told
