"""Gain or stream? What larger values save without any link, beside what the value stream saves.

A stream also makes layer 1's values larger. So beside classic and values there are classifiers
whose layer 1 has larger values and no link, and one with the link and values of the old size:

    own-root-2, own-2, own-half     V₁ = g W₁ᵛ X, g = √2, 2, ½: gain alone
    size-root-2, rate-2             V₁ = W₁ᵛ X, W₁ᵛ √2 times as large at first, or learning twice
                                    as fast: the two parts of gain √2 under SGD
    values-norm-matched             V₁ = (W₁ᵛ X + V₀) / √2: the stream without gain
    values-half                     V₁ = (W₁ᵛ X + V₀) / 2: the even mix of ResFormer, smaller
    values-detached                 V₁ = W₁ᵛ X + V₀, no gradient through V₀
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from resval_lens.analyses.comparison.icl_emergence import IN_CONTEXT, PUBLISHED
from resval_lens.analyses.results.emergence import (
    Share,
    first_above,
    saved,
    saving,
    share_of_saving,
)
from resval_lens.analyses.results.result import FLAT, Result
from resval_lens.analyses.results.seeds import (
    BySeed,
    Effect,
    Spread,
    TTests,
    corrected,
    effect,
    present,
    spread,
    t_tests,
)
from resval_lens.models.presets import PART_OF_GAIN
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.recorded import RecordedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

LEVELS = (0.5, 0.9, 0.95)
"""Accuracies that count as learned: of Tables 5, 6 and 1 of arXiv 2412.15113."""
CLASSIC, STREAM = "classic", "values"
GAIN_ALONE = ("own-root-2", "own-2")
"""Larger values and no link."""
PARTS = tuple(PART_OF_GAIN)
LESS, MIXED = "own-half", "values-half"
VARIANTS = (
    CLASSIC, LESS, *GAIN_ALONE, *PARTS, MIXED, "values-norm-matched", "values-detached", STREAM,
)  # fmt: skip
PUBLISHED_RATE = 0.01


@dataclass(frozen=True)
class Reached:
    """The first snapshot (of 500 steps) above ``level``, by seed; None: never."""

    task: str
    level: float
    variant: str
    first: Spread

    @property
    def never(self) -> int:
        """How many seeds did not get there."""
        return len(self.first.by_seed) - len(self.first.there)


@dataclass(frozen=True)
class Against:
    """One variant's steps to a level against another's.

    Attributes:
        saving: the share of the second's steps that the first saves, on the seeds that both have
            and on which both get there.
        at_most: where some runs of the first never get there, the saving if they did with the last
            step of theirs; None where all do.
        tests, effect: of the steps, negative where the first is sooner; None where a run never gets
            there. p are :func:`~resval_lens.analyses.results.seeds.corrected` for all tests of the
            study.
    """

    task: str
    level: float
    first: str
    second: str
    saving: Share
    at_most: float | None
    tests: TTests = field(metadata=FLAT)
    effect: Effect


@dataclass(frozen=True)
class ShareOfStream:
    """What a variant saves, in parts of what the value stream saves.

    Attributes:
        variant: any but those of smaller values.
        ours: of the stream's saving here, on the seeds that classic, values and the variant have.
        published: of the published saving, which counts as known; None at other learning rates.
    """

    task: str
    level: float
    variant: str
    ours: Share
    published: Share | None


@dataclass(frozen=True)
class AtRate:
    """Runs of one learning rate; they went to ``steps``."""

    lr: float
    steps: int
    reached: tuple[Reached, ...]
    against: tuple[Against, ...]
    shares: tuple[ShareOfStream, ...]

    def sentences(self) -> list[str]:
        """The answers at each level on IC, and from the lowest to the highest."""
        from resval_lens.analyses.comparison.gain_tables import answers, between

        said = [each for level in LEVELS for each in answers(self, "ic", level)]
        return [*said, *between(self, "ic")]

    def row(self, task: str, level: float, variant: str) -> Reached | None:
        """When a variant gets there; None if it is not among the runs."""
        return next(_chosen(self.reached, task=task, level=level, variant=variant), None)

    def compared(self, task: str, level: float, first: str, second: str) -> Against | None:
        """One variant against another; None if one is not among the runs."""
        return next(_chosen(self.against, task=task, level=level, first=first, second=second), None)

    def share(self, task: str, level: float, variant: str) -> ShareOfStream | None:
        """A variant's saving in parts of the stream's; None if one is not among the runs."""
        return next(_chosen(self.shares, task=task, level=level, variant=variant), None)


@dataclass(frozen=True)
class GainOrStream(Result):
    """What gain alone saves and what the stream saves, at each learning rate that was trained."""

    rates: tuple[AtRate, ...]

    @property
    def tests(self) -> int:
        """How many t-tests of each kind the correction is for."""
        return len(present(each.tests.p for rate in self.rates for each in rate.against))

    def tables(self) -> list[Table]:
        """Steps and savings, tests against classic and against values, parts of the saving."""
        from resval_lens.analyses.comparison.gain_tables import rate_tables

        return [each for rate in self.rates for each in rate_tables(rate)]

    def sentences(self) -> list[str]:
        """The answers at each level on IC, and from the lowest to the highest, at each rate."""
        several = len(self.rates) > 1
        return [
            (f"Learning rate {rate.lr:g}: {each}" if several else each)
            for rate in self.rates
            for each in rate.sentences()
        ]

    def figures(self) -> dict[str, Figure]:
        """Savings with their intervals, by variant and level."""
        from resval_lens.analyses.comparison.gain_tables import gain_figure

        return {"gain-or-stream.png": gain_figure(self)}


def _chosen(rows: Sequence[Any], **wanted: object) -> Iterator[Any]:
    return (row for row in rows if all(getattr(row, name) == x for name, x in wanted.items()))


def gain_or_stream(runs: Sequence[RecordedRun[ICLRun]]) -> GainOrStream:
    """What gain alone saves and what the stream saves, of finished runs of ``VARIANTS``.

    Raises:
        ValueError: no such run, two of the same variant, seed and learning rate, or runs of a
            learning rate that differ in more than variant, seed and steps.
    """
    chosen = [each for each in runs if each.run.name in VARIANTS and each.done]
    if not chosen:
        raise ValueError(f"there is no finished run of {', '.join(VARIANTS)}")
    tests: dict[Any, TTests] = {}
    rates = {}
    for lr in sorted({each.run.lr for each in chosen}, key=lambda lr: (lr != PUBLISHED_RATE, lr)):
        own = [each for each in chosen if each.run.lr == lr]
        _check_alike(own)
        rates[lr] = own, _firsts(own)
        for (task, level), by in rates[lr][1].items():
            for second, first in product((CLASSIC, STREAM), by):
                if second in by and first not in (second, CLASSIC):
                    tests[lr, task, level, first, second] = t_tests(by[first], by[second])
    tests = corrected(tests)
    found = (_at_rate(lr, own, firsts, tests) for lr, (own, firsts) in rates.items())
    return GainOrStream(tuple(found))


Firsts = dict[tuple[str, float], dict[str, BySeed]]
"""By task and level, then by variant and seed: the first snapshot above the level."""


def _firsts(runs: Sequence[RecordedRun[ICLRun]]) -> Firsts:
    names = [name for name in VARIANTS if any(each.run.name == name for each in runs)]
    return {
        (task, level): {
            name: {
                each.run.seed: _snapshot(each, task, level)
                for each in sorted(runs, key=lambda each: each.run.seed)
                if each.run.name == name
            }
            for name in names
        }
        for task, level in product(IN_CONTEXT, LEVELS)
    }


def _snapshot(recorded: RecordedRun[ICLRun], task: str, level: float) -> float | None:
    curve = ((line["step"], line[task]["accuracy"]) for line in recorded.metrics)
    step = first_above(curve, level)
    return None if step is None else step / 500


def _at_rate(
    lr: float, runs: Sequence[RecordedRun[ICLRun]], firsts: Firsts, tests: dict[Any, TTests]
) -> AtRate:
    last = {(each.run.name, each.run.seed): each.run.last_step / 500 for each in runs}
    reached, against, shares = [], [], []
    for (task, level), by in firsts.items():
        reached += [Reached(task, level, name, spread(steps)) for name, steps in by.items()]
        for second, first in product((CLASSIC, STREAM), by):
            key = lr, task, level, first, second
            if key not in tests:
                continue
            steps, base = by[first], by[second]
            lowest = {
                seed: last[first, seed] if step is None else step for seed, step in steps.items()
            }
            bound = saved(lowest, base) if None in steps.values() else None
            against.append(
                Against(
                    task, level, first, second, saving(steps, base), bound, tests[key],
                    effect(steps, base),
                )
            )  # fmt: skip
        if CLASSIC in by and STREAM in by:
            theirs = PUBLISHED[level][task]
            published = 1 - theirs[STREAM][0] / theirs[CLASSIC][0]
            shares += [
                ShareOfStream(
                    task, level, name, share_of_saving(steps, by[STREAM], by[CLASSIC]),
                    saving(steps, by[CLASSIC]).times(1 / published)
                    if lr == PUBLISHED_RATE else None,
                )
                for name, steps in by.items()
                if name not in (CLASSIC, LESS) and None not in steps.values()
            ]  # fmt: skip
    end = max(each.run.last_step for each in runs)
    return AtRate(lr, end, tuple(reached), tuple(against), tuple(shares))


def _check_alike(runs: Sequence[RecordedRun[ICLRun]]) -> None:
    seen: dict[tuple[str, int], RecordedRun[ICLRun]] = {}
    for recorded in runs:
        for name, value in _settings(recorded).items():
            expected = _settings(runs[0])[name]
            if value != expected:
                raise ValueError(
                    f"{recorded.folder} has {name}={value!r}, {runs[0].folder} {expected!r}; runs "
                    "of one learning rate must agree in it"
                )
        earlier = seen.setdefault((recorded.run.name, recorded.run.seed), recorded)
        if earlier is not recorded:
            raise ValueError(
                f"{recorded.folder} and {earlier.folder} have the same variant, seed and "
                "learning rate"
            )


def _settings(recorded: RecordedRun[ICLRun]) -> dict[str, Any]:
    """Everything but what names a run, its length and how often it was measured."""
    settings = recorded.run.to_dict()
    for name in ("name", "streams", "v_size", "v_rate", "seed", "steps", "snapshot_every"):
        settings.pop(name, None)
    return settings
