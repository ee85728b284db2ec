"""Which memory of an induction head is there before which, at several levels and triggers.

arXiv 2306.00802 reports that W_O² is learned first and that W_K² is easier than W_K¹. What comes
first can depend on the level above which a memory counts as there, on whether all sequences have
the same triggers, and on the probe: what W_O² alone says, as in the paper, or what the readout
hears of it via W_F. So each pair is counted at each level, for each kind of triggers. With fixed
triggers, W_K² is recalled over these few tokens only, so that some levels are the same for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from resval_lens.analyses.papers.memory.comparable import narrow_table
from resval_lens.analyses.papers.memory.curves import (
    MEASURES,
    PUBLISHED,
    Count,
    Measure,
    VariantCurves,
    before,
    curve_study,
)
from resval_lens.analyses.papers.memory.training import MemoryRun
from resval_lens.analyses.results.result import Result
from resval_lens.training.recorded import RecordedRun

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Precedence:
    """One pair of memories in the two-layer runs of one kind of triggers and one variant.

    Attributes:
        triggers: what the runs were trained on.
        variant: "all": every variant of that kind.
        runs: of it, whether they pass or not.
        counts: by level.
    """

    triggers: str
    variant: str
    runs: int
    first: Measure
    second: Measure
    counts: Mapping[float, Count]

    def told(self) -> str:
        """Levels at which the first is earlier than the second more often than later, and not."""
        first, second = (MEASURES[name].label for name in (self.first, self.second))
        by_outcome: dict[str, list[float]] = {}
        for level, count in self.counts.items():
            by_outcome.setdefault(count.outcome(first, second), []).append(level)
        parts = (
            f"{outcome} above {', '.join(f'{level:g}' for level in levels)}"
            for outcome, levels in by_outcome.items()
        )
        return f"{self.triggers} ({self.runs} runs), {first} and {second}: {'; '.join(parts)}."


@dataclass(frozen=True)
class MemoryOrders(Result):
    """Every published pair, by triggers, variant and level."""

    snapshot_every: int
    rows: tuple[Precedence, ...]

    def tables(self) -> list[Table]:
        """Counts over all variants; those of each variant are in the document."""
        table = narrow_table(
            "Which memory passes a level first",
            ["triggers (runs)", "first", "second", *(f"{x:g}" for x in self.rows[0].counts)],
            words=3,
            caption="(a + b / c: of c runs in which one of both passes, the first passes before\n"
            "the second in a, and at the same snapshot in b)",
        )
        for row in self._over_variants():
            labels = (MEASURES[name].label for name in (row.first, row.second))
            cells = (count.told() for count in row.counts.values())
            table.add_row(f"{row.triggers} ({row.runs})", *labels, *cells)
        return [table]

    def sentences(self) -> list[str]:
        """Of each kind of triggers and pair: at which levels the first is earlier more often."""
        return [
            *(row.told() for row in self._over_variants()),
            f"Snapshots are {self.snapshot_every} steps apart; at a low level many runs pass both "
            "memories within one.",
        ]

    def _over_variants(self) -> list[Precedence]:
        return [row for row in self.rows if row.variant == "all"]


def memory_orders(
    runs: Sequence[RecordedRun[MemoryRun]], levels: Sequence[float] = LEVELS
) -> MemoryOrders:
    """In how many two-layer runs one memory passes each level before another.

    Raises:
        ValueError: no run has two layers, a level is not between 0 and 1, or two runs of a kind
            cannot be compared (:func:`curve_study`).
    """
    kinds: dict[str, list[RecordedRun[MemoryRun]]] = {}
    for each in runs:
        if each.run.n_layers == 2:
            kinds.setdefault(_kind(each.run), []).append(each)
    if not kinds:
        raise ValueError("the order of learning is of two-layer runs; got none")
    curves = {
        triggers: {level: curve_study(own, level).variants for level in levels}
        for triggers, own in kinds.items()
    }
    rows = [
        Precedence(
            triggers,
            variant,
            sum(len(one.steps) for one in chosen[levels[0]]),
            *pair,
            {level: before(ones, *pair) for level, ones in chosen.items()},
        )
        for pair in PUBLISHED
        for triggers, at in curves.items()
        for variant, chosen in _by_variant(at)
    ]
    return MemoryOrders(runs[0].run.snapshot_every, tuple(rows))


def _by_variant(
    at: Mapping[float, Mapping[str, VariantCurves]],
) -> Iterator[tuple[str, dict[float, list[VariantCurves]]]]:
    """By level the curves of all variants together, then of each."""
    names = list(next(iter(at.values())))
    for variant, own in [("all", names), *((name, [name]) for name in names)]:
        yield variant, {level: [found[name] for name in own] for level, found in at.items()}


def _kind(run: MemoryRun) -> str:
    """What a run was trained on."""
    if run.task.output_range != (0, 1):
        return f"{run.task.triggers} triggers, some outputs held out"
    return f"{run.task.triggers} triggers"
