"""When in-context learning emerges in training: Tables 1, 5 and 6 and Figure 3 of the paper."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from resval_lens.presets import PAPER_VARIANTS
from resval_lens.recorded import RecordedRun

# arXiv 2412.15113, Tables 1, 5 and 6: accuracy threshold to {task: {variant: (mean, sd)}}, in
# snapshots of 500 steps, over four seeds.
PUBLISHED: dict[float, dict[str, dict[str, tuple[float, float]]]] = {
    0.95: {
        "ic": {"classic": (64.5, 5.12), "queries": (52.5, 1.5), "keys": (61.75, 0.83),
               "values": (49.0, 2.12)},
        "ic2": {"classic": (63.25, 4.15), "queries": (51.75, 1.92), "keys": (61.25, 0.83),
                "values": (47.75, 1.3)},
    },
    0.5: {
        "ic": {"classic": (51.0, 4.24), "queries": (41.5, 2.29), "keys": (49.75, 0.43),
               "values": (32.75, 0.83)},
        "ic2": {"classic": (51.5, 4.39), "queries": (41.5, 1.66), "keys": (49.25, 0.83),
                "values": (33.25, 1.09)},
    },
    0.9: {
        "ic": {"classic": (59.25, 4.49), "queries": (48.25, 1.48), "keys": (57.5, 0.5),
               "values": (42.25, 1.3)},
        "ic2": {"classic": (59.0, 4.53), "queries": (48.0, 1.87), "keys": (57.25, 0.83),
                "values": (42.0, 0.71)},
    },
}  # fmt: skip
TABLES = {"table-1": 0.95, "table-5": 0.5, "table-6": 0.9}


@dataclass(frozen=True)
class Crossing:
    """When the runs of one variant first exceed a threshold on one task.

    Attributes:
        snapshots: per seed, the number of the first snapshot above it (None: never).
        mean, sd: over the seeds that got there; sd is the population's (ddof = 0), which the
            paper's numbers are, too.
    """

    variant: str
    task: str
    threshold: float
    snapshots: tuple[float | None, ...]
    seeds: tuple[int, ...]

    @property
    def reached(self) -> list[float]:
        return [number for number in self.snapshots if number is not None]

    @property
    def mean(self) -> float:
        return float(np.mean(self.reached)) if self.reached else float("nan")

    @property
    def sd(self) -> float:
        return float(np.std(self.reached)) if self.reached else float("nan")


def first_above(recorded: RecordedRun, task: str, threshold: float) -> float | None:
    """Steps/500 of the first snapshot whose accuracy on ``task`` exceeds ``threshold``.

    Counted in the paper's snapshots of 500 steps, however often this run took one.
    """
    steps = (line["step"] for line in recorded.metrics if line[task]["accuracy"] > threshold)
    first = next(steps, None)
    return None if first is None else first / 500


def crossings(runs: Sequence[RecordedRun], threshold: float) -> list[Crossing]:
    """One :class:`Crossing` for each variant and each of the tasks IC and IC2.

    Raises:
        ValueError: a threshold that is not between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1; got {threshold!r}")
    variants = list(dict.fromkeys(recorded.run.name for recorded in runs))
    found = []
    for task, variant in itertools.product(("ic", "ic2"), variants):
        own = [recorded for recorded in runs if recorded.run.name == variant]
        found.append(
            Crossing(
                variant,
                task,
                threshold,
                tuple(first_above(recorded, task, threshold) for recorded in own),
                tuple(recorded.run.seed for recorded in own),
            )
        )
    return found


@dataclass(frozen=True)
class Comparison:
    """Two-sided t-tests of two variants; t is negative when ``first`` gets there earlier.

    Attributes:
        t, p: Student's test of independent samples with equal variances, the paper's.
        t_paired, p_paired: runs of the same seed paired (here they share the task's vectors,
            batches and initial weights, which the independent test counts as noise); seeds that
            only one variant has are left out.
        p_holm, p_paired_holm: the same, corrected for the tests of one table (:func:`holm`).

    None where a seed never got there, there are fewer than two, or all differences are equal.
    """

    first: str
    second: str
    task: str
    t: float | None = None
    p: float | None = None
    t_paired: float | None = None
    p_paired: float | None = None
    p_holm: float | None = None
    p_paired_holm: float | None = None


def t_tests(found: Sequence[Crossing]) -> list[Comparison]:
    """Every pair of variants, per task; corrected for being so many."""
    tests = [
        _compared(first, second)
        for second, first in itertools.combinations(found, 2)
        if first.task == second.task
    ]
    return [
        replace(test, **corrected)  # type: ignore[arg-type]
        for test, corrected in zip(tests, holm_of_both(list(map(vars, tests))), strict=True)
    ]


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


def holm_of_both(tests: Sequence[Mapping[str, Any]]) -> list[dict[str, float | None]]:
    """``p_holm`` and ``p_paired_holm`` of each of the tests of a table; each kind on its own."""
    single, paired = (holm([test[name] for test in tests]) for name in ("p", "p_paired"))
    return [
        {"p_holm": one, "p_paired_holm": other} for one, other in zip(single, paired, strict=True)
    ]


def _compared(first: Crossing, second: Crossing) -> Comparison:
    names = first.variant, second.variant, first.task
    if None in first.snapshots + second.snapshots:
        return Comparison(*names)
    numbers = (dict(zip(each.seeds, each.reached, strict=True)) for each in (first, second))
    tests = two_t_tests(*numbers)
    return Comparison(*names, tests["t"], tests["p"], tests["t_paired"], tests["p_paired"])


def two_t_tests(first: Mapping[int, float], second: Mapping[int, float]) -> dict[str, float | None]:
    """``t``, ``p``, ``t_paired``, ``p_paired`` of numbers by seed; see :class:`Comparison`."""
    tests: dict[str, float | None] = dict.fromkeys(("t", "p", "t_paired", "p_paired"))
    both = [np.array(list(numbers.values())) for numbers in (first, second)]
    if min(map(len, both)) < 2:
        return tests
    if any(map(np.ptp, both)):
        with warnings.catch_warnings():  # of a variant without spread: the other's is enough
            warnings.filterwarnings("ignore", message="Precision loss", category=RuntimeWarning)
            tests["t"], tests["p"] = map(float, stats.ttest_ind(*both))
    pairs = [(number, second[seed]) for seed, number in first.items() if seed in second]
    if len(pairs) > 1 and np.ptp(np.subtract(*np.transpose(pairs))):
        tests["t_paired"], tests["p_paired"] = map(float, stats.ttest_rel(*np.transpose(pairs)))
    return tests


def saving(found: Sequence[Crossing], variant: str, task: str, baseline: str = "classic") -> float:
    """The share of training steps that ``variant`` saves against ``baseline``, on shared seeds."""
    by_seed = {
        crossing.variant: {
            seed: number
            for seed, number in zip(crossing.seeds, crossing.snapshots, strict=True)
            if number is not None
        }
        for crossing in found
        if crossing.task == task
    }
    shared = by_seed[variant].keys() & by_seed[baseline].keys()
    if not shared:
        return float("nan")
    mean, reference = (
        np.mean([by_seed[name][seed] for seed in shared]) for name in (variant, baseline)
    )
    return float(1 - mean / reference)


def table_data(runs: Sequence[RecordedRun], threshold: float) -> dict[str, Any]:
    """Everything a table shows, as JSON: ours, the paper's, and the tests."""
    found = crossings(runs, threshold)
    published = PUBLISHED.get(threshold, {})
    rows = []
    for crossing in found:
        paper = published.get(crossing.task, {}).get(crossing.variant)
        rows.append(
            {
                "task": crossing.task,
                "variant": crossing.variant,
                "seeds": crossing.seeds,
                "snapshots": crossing.snapshots,
                "mean": crossing.mean if crossing.reached else None,
                "sd": crossing.sd if crossing.reached else None,
                "published": None if paper is None else {"mean": paper[0], "sd": paper[1]},
            }
        )
    tests = [vars(comparison) for comparison in t_tests(found)]
    names = list(dict.fromkeys(crossing.variant for crossing in found))
    savings: dict[str, dict[str, float | None]] = {}
    for task in ("ic", "ic2") if "classic" in names else ():
        shares = {name: saving(found, name, task) for name in names if name != "classic"}
        savings[task] = {name: None if np.isnan(share) else share for name, share in shares.items()}
    return {"threshold": threshold, "unit": "snapshots of 500 steps", "rows": rows,
            "t_tests": tests, "saving_against_classic": savings}  # fmt: skip


def paper_runs(runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """The runs of the paper's four variants."""
    return [recorded for recorded in runs if recorded.run.name in PAPER_VARIANTS]
