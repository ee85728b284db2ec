"""When in-context learning emerges in training: Tables 1, 5 and 6 of the paper."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from resval_lens.analyses.results.emergence import first_above, saved
from resval_lens.analyses.results.result import FLAT, Result, plain
from resval_lens.analyses.results.seeds import Spread, TTests, corrected, spread, t_tests
from resval_lens.analyses.results.tables import STYLE, in_sections, optional, p_cell, p_told, table
from resval_lens.models.presets import PAPER_VARIANTS
from resval_lens.tasks.icl import TASKS
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.recorded import RecordedRun

if TYPE_CHECKING:
    from rich.table import Table

IN_CONTEXT = ("ic", "ic2")
"""The tests on which in-context learning emerges."""
UNIT = "snapshots of 500 steps"
NO_GAIN_CONTROL = (
    "Among these runs is no classic model whose second layer's values are merely larger: how much "
    "of the difference the stream's route makes, and how much the gain, "
    "`resval-lens reproduce gain-or-stream` tells."
)
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


class Published(NamedTuple):
    """Over four seeds, with the population's sd."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Crossing(Result):
    """When the runs of one variant first exceed a threshold on one task.

    Attributes:
        first: the first snapshot above it, by seed, in the paper's snapshots of 500 steps, however
            often a run took one (None: never).
        published: the paper's, if it has this threshold, task and variant.
        last: accuracy at the last snapshot.
    """

    task: str
    variant: str
    first: Spread
    published: Published | None
    last: Spread

    @property
    def snapshots(self) -> Mapping[int, float | None]:
        return self.first.by_seed

    def to_dict(self) -> dict[str, Any]:
        """Seeds and their snapshots in two lists."""
        return {
            "task": self.task,
            "variant": self.variant,
            "seeds": list(self.snapshots),
            "snapshots": list(self.snapshots.values()),
            "mean": self.first.mean,
            "sd": self.first.sd,
            "published": self.published and self.published._asdict(),
            "last": plain(self.last),
        }

    def told(self) -> str:
        """The mean snapshot ± sd, and how many seeds got there if not all."""
        return self.first.told(".2f")


@dataclass(frozen=True)
class Comparison:
    """Two variants on one task; t < 0: ``first`` gets there earlier."""

    first: str
    second: str
    task: str
    tests: TTests = field(metadata=FLAT)


@dataclass(frozen=True)
class Emergence(Result):
    """First snapshots above a threshold, ours beside the paper's, and the tests of all pairs.

    Attributes:
        rows: of each task and variant.
        t_tests: every pair of variants, per task; corrected for being so many.
        saving_against_classic: by task and variant, the share of training steps saved on the seeds
            that both have (:func:`~resval_lens.analyses.results.emergence.saved`).
    """

    threshold: float
    unit: str
    rows: tuple[Crossing, ...]
    t_tests: tuple[Comparison, ...]
    saving_against_classic: Mapping[str, Mapping[str, float | None]]

    def row(self, task: str, variant: str) -> Crossing | None:
        """The row of a variant on a task; None if it is not among the runs."""
        rows = (row for row in self.rows if (row.task, row.variant) == (task, variant))
        return next(rows, None)

    def test(self, task: str, first: str, second: str) -> TTests | None:
        """The tests of one pair; None if not both are among the runs."""
        pair = task, first, second
        tests = (
            each.tests for each in self.t_tests if (each.task, each.first, each.second) == pair
        )
        return next(tests, None)

    def saving(self, task: str, variant: str) -> float | None:
        """The share of the classic model's steps that a variant saves."""
        return self.saving_against_classic.get(task, {}).get(variant)

    def tables(self) -> tuple[Table, Table]:
        """Ours beside the paper's; the tests of every pair of the paper's variants, or of more only
        those against classic and values.
        """
        few = {row.variant for row in self.rows} <= set(PAPER_VARIANTS)
        return self.table(), self.test_table(None if few else ("classic", "values"))

    def table(self) -> Table:
        """Ours beside the paper's, if it has any of these."""
        theirs = any(row.published for row in self.rows)
        rows = [
            (
                TASKS[row.task],
                row.variant,
                str(len(row.snapshots)),
                row.told(),
                *["{:.2f} ± {:.2f}".format(*row.published) if row.published else ""] * theirs,
                optional(self.saving(row.task, row.variant), ".0%"),
            )
            for row in self.rows
        ]
        title = f"First snapshot (of 500 steps) above {self.threshold} accuracy"
        columns = ("seeds", "ours (± sd)", *["published"] * theirs, "saved")
        return table(title, ("task", "variant"), columns, in_sections(rows))

    def test_table(self, against: Sequence[str] | None = None) -> Table:
        """The tests of every pair of variants, or only those ``against`` some."""
        return table(
            "t-tests, also paired by seed (t < 0: the first is earlier)",
            ("task", "first", "second"),
            ("t", "p", "Holm", "paired\nt", "paired\np", "Holm"),
            (
                (
                    TASKS[each.task],
                    each.first,
                    each.second,
                    optional(each.tests.t, ".2f"),
                    p_cell(each.tests.p),
                    p_cell(each.tests.p_holm),
                    optional(each.tests.t_paired, ".2f"),
                    p_cell(each.tests.p_paired),
                    p_cell(each.tests.p_paired_holm),
                )
                for each in self.t_tests
                if against is None or each.second in against
            ),
            f"Holm: the p to its left, corrected for the {len(self.t_tests)} tests.",
            STYLE | {"padding": 0},
        )

    def sentences(self) -> list[str]:
        """How much sooner values get to IC than classic, and which variants never do."""
        return [*self.sooner(), *self._never()]

    def _never(self) -> list[str]:
        rows = [row for row in self.rows if row.task == "ic" and row.first.mean is None]
        told = [f"{row.variant} {row.last.told('.3f')}" for row in rows]
        return [
            f"IC passes {self.threshold} in no run of {', '.join(row.variant for row in rows)}; at "
            f"the last snapshot it is: {', '.join(told)}."
        ] * bool(rows)

    def sooner(self) -> list[str]:
        """How much sooner values get to IC than classic; nothing if that is unknown."""
        values, classic = self.row("ic", "values"), self.row("ic", "classic")
        tests, saving = self.test("ic", "values", "classic"), self.saving("ic", "values")
        if values is None or classic is None or tests is None or tests.p is None or saving is None:
            return []
        seeds = min(len(values.snapshots), len(classic.snapshots))
        said = [
            f"The values stream reaches {self.threshold} on IC with {saving:.0%} fewer training "
            f"steps than the classic model ({seeds} seeds).",
            f"A t-test of independent runs gives {p_told(tests.p)} (t = {tests.t:.1f}; corrected "
            f"by Holm for {len(self.t_tests)} tests {p_told(tests.p_holm)}).",
        ]
        if tests.p_paired is not None:
            said.append(
                f"Paired by seed it gives {p_told(tests.p_paired)} (t = {tests.t_paired:.1f}; "
                f"corrected {p_told(tests.p_paired_holm)})."
            )
        if values.published and classic.published:
            theirs = 1 - values.published.mean / classic.published.mean
            said.append(f"The published saving is {theirs:.0%}.")
        return [*(each.replace("= -", "= −") for each in said), NO_GAIN_CONTROL]


def emergence(runs: Sequence[RecordedRun[ICLRun]], threshold: float) -> Emergence:
    """When each variant exceeds ``threshold`` accuracy on the tasks IC and IC2.

    Raises:
        ValueError: a threshold that is not between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1; got {threshold!r}")
    variants = list(dict.fromkeys(recorded.run.name for recorded in runs))
    rows = [
        _crossing(runs, variant, task, threshold)
        for task, variant in itertools.product(IN_CONTEXT, variants)
    ]
    tests = {
        (first.variant, second.variant, first.task): t_tests(first.snapshots, second.snapshots)
        for second, first in itertools.combinations(rows, 2)
        if first.task == second.task
    }
    classic = {row.task: row.snapshots for row in rows if row.variant == "classic"}
    savings: dict[str, dict[str, float | None]] = {task: {} for task in classic}
    for row in rows:
        if row.variant != "classic" and row.task in classic:
            savings[row.task][row.variant] = saved(row.snapshots, classic[row.task])
    compared = (Comparison(*pair, found) for pair, found in corrected(tests).items())
    return Emergence(threshold, UNIT, tuple(rows), tuple(compared), savings)


def _crossing(
    runs: Sequence[RecordedRun[ICLRun]], variant: str, task: str, threshold: float
) -> Crossing:
    first, last = {}, {}
    for recorded in runs:
        if recorded.run.name == variant:
            curve = [(line["step"], line[task]["accuracy"]) for line in recorded.metrics]
            last[recorded.run.seed] = float(curve[-1][1]) if curve else None
            step = first_above(curve, threshold)
            first[recorded.run.seed] = None if step is None else step / 500
    cell = PUBLISHED.get(threshold, {}).get(task, {}).get(variant)
    return Crossing(task, variant, spread(first), cell and Published(*cell), spread(last))


def paper_runs(runs: Sequence[RecordedRun[ICLRun]]) -> list[RecordedRun[ICLRun]]:
    """The runs of the paper's four variants."""
    return [recorded for recorded in runs if recorded.run.name in PAPER_VARIANTS]
