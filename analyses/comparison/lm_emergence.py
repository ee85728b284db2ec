"""Language models in training: how well they predict, and when indirect objects emerge."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from resval_lens.analyses.results.emergence import first_above
from resval_lens.analyses.results.result import FLAT, Result
from resval_lens.analyses.results.seeds import Spread, TTests, corrected, present, spread, t_tests
from resval_lens.analyses.results.tables import NARROW, in_sections, table
from resval_lens.streams import architectures_of
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import RecordedRun

if TYPE_CHECKING:
    from rich.table import Table

Line = dict[str, Any]

Measure = Callable[[Sequence[Line]], float | None]

SCORES = {"accuracy": "accuracy", "accuracy_top1": "top-1", "p_io": "P(IO)",
          "p_subject": "P(S)"}  # fmt: skip
"""Scores of :func:`~resval_lens.analyses.studies.ioi.means`, and what they are called."""
THRESHOLDS = (("accuracy", 0.95), ("accuracy_top1", 0.95), ("p_io", 0.5), ("p_io", 0.9))
"""Scores and what they must exceed to count as emerged."""


@dataclass(frozen=True)
class Measured:
    """One measure of one architecture; ``prompts``: of which set ("": of text)."""

    prompts: str
    measure: str
    architecture: str
    spread: Spread = field(metadata=FLAT)

    def told(self, seeds: int) -> str:
        """Mean ± sd, and how many of ``seeds`` have a number if some have not."""
        form = ",.0f" if self.measure.startswith("step:") else ".3f"
        told = self.spread.told(form, seeds) if self.spread.by_seed else ""
        return told.replace(" (", "\n(")


@dataclass(frozen=True)
class Difference:
    """Tests of one measure of two architectures."""

    prompts: str
    measure: str
    first: str
    second: str
    tests: TTests = field(metadata=FLAT)


@dataclass(frozen=True)
class Compared:
    """Measures over seeds and, of every architecture with the first, tests; corrected together."""

    rows: tuple[Measured, ...]
    tests: tuple[Difference, ...]

    def lines(self) -> list[tuple[list[Measured], list[TTests]]]:
        """Of each set of prompts and measure, all architectures and the tests of all but one."""
        by: dict[tuple[str, str], tuple[list[Measured], list[TTests]]] = {}
        for row in self.rows:
            by.setdefault((row.prompts, row.measure), ([], []))[0].append(row)
        for test in self.tests:
            by[test.prompts, test.measure][1].append(test.tests)
        return list(by.values())

    def table(self, seeds: Mapping[str, int], title: str, caption: str) -> Table:
        """Mean ± sd of each architecture, and p of their tests; ``seeds``: how many of each."""
        _, *others = seeds
        rows = [
            (
                own[0].prompts,
                own[0].measure,
                *(row.told(seeds[row.architecture]) for row in own),
                *(
                    _told_p(p)
                    for each in tests
                    for p in (each.p, each.p_paired, each.p_paired_holm)
                ),
            )
            for own, tests in self.lines()
        ]
        whose = [f" ({name})" if others[1:] else "" for name in others]
        columns = [heading + name for name in whose for heading in ("p", "pairs", "Holm")]
        return table(title, ("prompts", ""), (*seeds, *columns), in_sections(rows), caption, NARROW)


def _told_p(p: float | None) -> str:
    if p is None:
        return ""
    return "<.001" if p < 0.0005 else f"{p:.3f}".removeprefix("0")


@dataclass(frozen=True)
class Matched:
    """What is left of a difference once the model that learns faster is not ahead.

    Attributes:
        loss: the mean over all runs of the validation loss at which the last set passes the first
            threshold; None where a run never passes it.
        compared: for each set and threshold the loss of the first evaluation above it; and, where
            the loss falls to ``loss``, the scores (:func:`at_loss`) and the step.
    """

    loss: float | None
    compared: Compared = field(metadata=FLAT)


@dataclass(frozen=True)
class LMEmergence(Result):
    """Final losses and IOI scores, the steps at which they emerge, and both at equal loss.

    A step is that of the first evaluation above the threshold: it is known no better than the
    steps between evaluations. Losses and scores at the end are of the runs that went there: some
    may have been ended before (``LMRun.until``).

    Attributes:
        seeds: how many, by architecture.
        evaluate_every: steps between evaluations.
    """

    architectures: tuple[str, ...]
    seeds: Mapping[str, int]
    steps: int
    evaluate_every: int
    compared: Compared = field(metadata=FLAT)
    matched: Matched

    def tables(self) -> tuple[Table, Table]:
        """By step, and at equal validation loss."""
        seeds = ", ".join(f"{name} {count}" for name, count in self.seeds.items())
        return (
            self.compared.table(
                self.seeds,
                f"After {self.steps:,} steps, evaluated every {self.evaluate_every:,}\n"
                f"(seeds: {seeds})",
                "(mean ± population sd over seeds; loss in nats; accuracy: share of prompts with\n"
                "P(IO) > P(S); top-1: whose likeliest token is IO; p: t-test of independent runs;\n"
                "pairs: by seed; Holm: pairs, corrected for the tests of this table)",
            ),
            self.matched.compared.table(
                self.seeds,
                "At equal validation loss\n(loss: that of the first evaluation above the "
                f"threshold; at {self.matched.loss or 0:.3f}: where the\nloss falls to that, its "
                "mean at the first threshold of the last prompts)",
                "(Holm: pairs, corrected for the tests of this table)",
            ),
        )


def lm_emergence(runs: Sequence[RecordedRun[LMRun]]) -> LMEmergence:
    """What training recorded, by architecture over seeds.

    Raises:
        ValueError: runs that differ in more than seed and streams, two of one seed and
            architecture, or which were evaluated on different sets.
    """
    check_alike(runs)
    labels = architectures_of([recorded.run.config.streams for recorded in runs])
    architectures = tuple(dict.fromkeys(labels))
    sets = list(runs[0].evaluations[-1].get("ioi", {}))
    loss = _emerging_loss(runs, sets)
    return LMEmergence(
        architectures,
        {name: labels.count(name) for name in architectures},
        runs[0].run.steps,
        runs[0].run.evaluate_every,
        _compared(runs, labels, _measures(sets)),
        Matched(loss, _compared(runs, labels, _matched(sets, loss))),
    )


def _compared(
    runs: Sequence[RecordedRun[LMRun]],
    labels: Sequence[str],
    measures: dict[tuple[str, str], Measure],
) -> Compared:
    """Some measures of every architecture, and tests that are corrected for being so many.

    Those of the last step (:func:`_last`) leave out runs that were ended before it.
    """
    rows: list[Measured] = []
    tests: dict[tuple[str, str, str, str], TTests] = {}
    for what, of in measures.items():
        numbers: dict[str, dict[int, float | None]] = {name: {} for name in labels}
        for label, recorded in zip(labels, runs, strict=True):
            whole = recorded.run.last_step == recorded.run.steps
            if whole or not (isinstance(of, partial) and of.func is _last):
                numbers[label][recorded.run.seed] = of(recorded.evaluations)
        rows += [Measured(*what, name, spread(by_seed)) for name, by_seed in numbers.items()]
        base, *others = numbers
        tests |= {(*what, each, base): t_tests(numbers[each], numbers[base]) for each in others}
    found = (Difference(*pair, each) for pair, each in corrected(tests).items())
    return Compared(tuple(rows), tuple(found))


def at_loss(lines: Sequence[Line], loss: float, of: Callable[[Line], float]) -> float | None:
    """What ``of`` an evaluation is where the validation loss first falls to ``loss``.

    Between the last evaluation above it and the first that is not, linear in the loss; None if
    the loss never gets there.
    """
    after = next((i for i, line in enumerate(lines) if line["valid_loss"] <= loss), None)
    if after is None:
        return None
    low, high = lines[after], lines[max(after - 1, 0)]
    if low["valid_loss"] == high["valid_loss"]:
        return of(low)
    share = (high["valid_loss"] - loss) / (high["valid_loss"] - low["valid_loss"])
    return (1 - share) * of(high) + share * of(low)


def _emerging_loss(runs: Sequence[RecordedRun[LMRun]], sets: Sequence[str]) -> float | None:
    """The mean over runs of the loss at which the last set passes the first threshold."""
    found = [_loss(sets[-1], *THRESHOLDS[0], run.evaluations) for run in runs] if sets else []
    there = present(found)
    return float(np.mean(there)) if there and len(there) == len(runs) else None


def _measures(sets: Sequence[str]) -> dict[tuple[str, str], Measure]:
    """(set of prompts, name) to what it is of a run's evaluations."""
    measures: dict[tuple[str, str], Measure] = {
        ("", "validation loss"): partial(_last, itemgetter("valid_loss"))
    }
    for prompts in sets:
        for score, name in SCORES.items():
            measures[prompts, name] = partial(_last, partial(_score, prompts, score))
        for score, above in THRESHOLDS:
            measures[prompts, f"step: {SCORES[score]} > {above}"] = partial(
                first_step, prompts, score, above
            )
    return measures


def _matched(sets: Sequence[str], loss: float | None) -> dict[tuple[str, str], Measure]:
    measures: dict[tuple[str, str], Measure] = {}
    if loss is not None:
        at = partial(at_loss, loss=loss)
        measures["", f"step: loss ≤ {loss:.3f}"] = partial(at, of=itemgetter("step"))
    for prompts in sets:
        for score, above in THRESHOLDS:
            name = f"loss: {SCORES[score]} > {above}"
            measures[prompts, name] = partial(_loss, prompts, score, above)
        for score, name in SCORES.items() if loss is not None else ():
            of = partial(_score, prompts, score)
            measures[prompts, f"{name} at {loss:.3f}"] = partial(at, of=of)
    return measures


def _score(prompts: str, score: str, line: Line) -> float:
    return float(line["ioi"][prompts][score])


def _loss(prompts: str, score: str, above: float, lines: Sequence[Line]) -> float | None:
    """The validation loss of the first evaluation whose score exceeds ``above``."""
    return first_above(
        ((float(line["valid_loss"]), _score(prompts, score, line)) for line in lines), above
    )


def _last(of: Callable[[Line], float], lines: Sequence[Line]) -> float:
    return of(lines[-1])


def first_step(prompts: str, score: str, above: float, lines: Sequence[Line]) -> float | None:
    """The step of the first evaluation whose score on these prompts exceeds ``above``."""
    return first_above(((line["step"], _score(prompts, score, line)) for line in lines), above)


def check_alike(runs: Sequence[RecordedRun[LMRun]]) -> None:
    """Raises ValueError for runs that differ in more than seed, name and streams, or that are
    unfinished or the same.
    """
    first = runs[0]
    seen: dict[tuple[Any, int], RecordedRun[LMRun]] = {}
    for recorded in runs:
        streams, settings = _settings(recorded)
        for name, other in _settings(first)[1].items():
            if settings[name] != other:
                raise ValueError(
                    f"{recorded.folder} has {name}={settings[name]!r}, {first.folder} {other!r}; "
                    "runs that are compared must agree in it"
                )
        first_of = seen.setdefault((streams, recorded.run.seed), recorded)
        if first_of is not recorded:
            raise ValueError(
                f"{recorded.folder} and {first_of.folder} have the same streams and seed; compare "
                "one"
            )
        if not recorded.done:
            raise ValueError(f"{recorded.folder} has not reached step {recorded.run.last_step}")
        own, other = (set(each.evaluations[-1].get("ioi", {})) for each in (recorded, first))
        if own != other:
            raise ValueError(f"{recorded.folder} and {first.folder} have different sets of prompts")


def _settings(recorded: RecordedRun[LMRun]) -> tuple[Any, dict[str, Any]]:
    """The streams, and everything else but seed, name and what does not change the outcome."""
    settings = recorded.run.to_dict()
    for name in ("name", "seed", "model", "snapshot_every", "log_every", "compile", "until"):
        del settings[name]
    model = json.loads(recorded.run.model)
    model.pop("streams")
    return recorded.run.config.streams, settings | model
