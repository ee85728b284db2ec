"""Language models in training: how well they predict, and when indirect objects emerge."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product, takewhile
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resval_lens.analyses.comparison.link_controls import has_links
from resval_lens.analyses.comparison.lm_compared import (
    Compared,
    Difference,
    Measured,
    both_p,
)
from resval_lens.analyses.results.emergence import Share, first_above, saving
from resval_lens.analyses.results.result import FLAT, Result
from resval_lens.analyses.results.seeds import (
    Effect,
    TTests,
    corrected,
    effect,
    present,
    spread,
    t_tests,
)
from resval_lens.config import ResValConfig
from resval_lens.models.presets import PAPER_VARIANTS
from resval_lens.streams import architecture, architectures_of
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import RecordedRun

if TYPE_CHECKING:
    from rich.table import Table

Line = dict[str, Any]

Measure = Callable[[Sequence[Line]], float | None] | Mapping[Path, float | None]
"""Of a run's evaluations; or numbers of other studies, by the run's folder."""

SCORES = {"accuracy": "accuracy", "accuracy_top1": "top-1", "p_io": "P(IO)",
          "log_p_io": "log P(IO)", "p_subject": "P(S)"}  # fmt: skip
"""Scores of :func:`~resval_lens.analyses.studies.ioi.means`, and what they are called."""
THRESHOLDS = (
    ("accuracy", 0.95), ("accuracy_top1", 0.95), ("p_io", 0.5), ("p_io", 0.9), ("log_p_io", -1.0),
)  # fmt: skip
"""Scores and what they must exceed to count as emerged."""
NAMING = "step: P(IO) > 0.5"
"""The measure of having learned to name the indirect object."""
LOSSES = (3.0, 2.0, 1.5, 1.2, 1.1)
"""Validation losses, in nats; the steps to those that any run falls to are measured."""


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
        direct: steps to a loss of every architecture with links, held against every control: one
            without links that is not the first, and the paper's stream, of its formula (``sum``)
            and of its code (``raw``). Corrected for all these tests.
    """

    architectures: tuple[str, ...]
    seeds: Mapping[str, int]
    steps: int
    evaluate_every: int
    compared: Compared = field(metadata=FLAT)
    matched: Matched
    direct: tuple[Difference, ...] = ()

    def sentences(self) -> list[str]:
        """Which differences stand after correction, in training and at equal loss."""
        counts = ", ".join(f"{name} {count}" for name, count in self.seeds.items())
        steps = [row for row in self.compared.rows if row.measure.startswith("step:")]
        losses = list(dict.fromkeys(row.measure for row in steps if not row.prompts))
        naming = [row.prompts for row in steps if row.measure == NAMING]
        return [
            f"Seeds: {counts}. p are by Holm, within each table and the direct comparisons.",
            *(each for low in losses[-2:] for each in self.compared.savings(low)),
            *(each for low in losses[:-3:-1] for each in self._directly(low)),
            *(each for last in naming[-1:] for each in self.compared.savings(NAMING, last)),
            *self.compared.said("In training"),
            *(f"At the end, {each}." for each in self.compared.compares("validation loss")),
            *self.matched.compared.said("At equal validation loss"),
        ]

    def _directly(self, measure: str) -> list[str]:
        """What models with links save of a control's steps, or of the paper's streams'."""
        by_control: dict[str, list[str]] = {}
        for each in self.direct:
            if each.measure == measure and each.saving:
                p = both_p(each.tests.p_holm, each.tests.p_paired_holm)
                by_control.setdefault(each.second, []).append(
                    f"{each.first} {each.saving.percent()} ({p})"
                )
        return [
            f"Steps saved to {measure.removeprefix('step: ')}, directly against {control}: "
            f"{', '.join(told)}."
            for control, told in by_control.items()
        ]

    def tables(self) -> list[Table]:
        """By step, at equal validation loss, and what is saved."""
        seeds = ", ".join(f"{name} {count}" for name, count in self.seeds.items())
        effects = self.compared.effects()
        return [
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
            *([effects] if effects.row_count else []),
        ]


def lm_emergence(runs: Sequence[RecordedRun[LMRun]]) -> LMEmergence:
    """What training recorded, by architecture over seeds.

    Raises:
        ValueError: runs that differ in more than seed and streams, two of one seed and
            architecture, or which were evaluated on different sets.
    """
    check_alike(runs)
    labels = model_names(runs)
    architectures = tuple(dict.fromkeys(labels))
    sets = list(runs[0].evaluations[-1].get("ioi", {}))
    loss = _emerging_loss(runs, sets)
    in_training = compared(runs, labels, _measures(sets, runs))
    configs = {label: each.run.config for label, each in zip(labels, runs, strict=True)}
    return LMEmergence(
        architectures,
        {name: labels.count(name) for name in architectures},
        runs[0].run.steps,
        runs[0].run.evaluate_every,
        in_training,
        Matched(loss, compared(runs, labels, _matched(sets, loss, _measured(sets, runs)))),
        tuple(_direct(in_training, configs)),
    )


def _direct(found: Compared, configs: Mapping[str, ResValConfig]) -> Iterator[Difference]:
    """Steps to a loss, of architectures with these configurations; the first is no control."""
    numbers = {(row.measure, row.architecture): row.spread.by_seed for row in found.rows
               if row.measure.startswith("step: loss")}  # fmt: skip
    linked = [name for name, cfg in configs.items() if has_links(cfg)]
    papers = [name for name in linked if architecture(configs[name].streams) == "values"]
    controls = [name for name in list(configs)[1:] if name not in linked] + papers
    place = {name: at for at, name in enumerate(papers)}
    pairs = [(one, other) for one, other in product(linked, controls)
             if place.get(one, len(papers)) > place.get(other, -1)]  # fmt: skip
    both = {
        (measure, *pair): tuple(numbers[measure, name] for name in pair)
        for measure in dict.fromkeys(measure for measure, _ in numbers)
        for pair in pairs
    }
    tests = corrected({key: t_tests(*own) for key, own in both.items()})
    for key, own in both.items():
        yield Difference("", *key, tests[key], effect(*own), saving(*own))


def model_names(runs: Sequence[RecordedRun[LMRun]]) -> list[str]:
    """What each run's architecture is called: as in the paper, else by the name of its runs.

    Of the name without what all names begin with, and only where no other architecture has it.
    """
    labels = architectures_of([recorded.run.config.streams for recorded in runs])
    names = short_names([recorded.run.name for recorded in runs])
    of: dict[str, set[str]] = {}
    for label, name in zip(labels, names, strict=True):
        of.setdefault(name, set()).add(label)
    return [
        name if label not in PAPER_VARIANTS and len(of[name]) == 1 else label
        for label, name in zip(labels, names, strict=True)
    ]


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the words, between hyphens, that all of them begin with.

    >>> short_names(["small-classic", "small-v-raw"])
    ['classic', 'v-raw']
    """
    words = [name.split("-") for name in names]
    columns = zip(*(own[:-1] for own in words), strict=False)
    same = sum(1 for _ in takewhile(lambda several: len(set(several)) == 1, columns))
    return ["-".join(own[same:]) for own in words]


def _measured(sets: Sequence[str], runs: Sequence[RecordedRun[LMRun]]) -> list[str]:
    """The scores that any run recorded."""
    lines = [recorded.evaluations[-1] for recorded in runs]
    return [
        score for score in SCORES if any(score in line["ioi"][of] for of in sets for line in lines)
    ]


def compared(
    runs: Sequence[RecordedRun[LMRun]],
    labels: Sequence[str],
    measures: dict[tuple[str, str], Measure],
) -> Compared:
    """Some measures of every architecture, and tests that are corrected for being so many.

    Those of the last step (:func:`_last`) leave out runs that were ended before it; each leaves out
    runs that did not record what it is of. A measure of no run is left out.
    """
    rows: list[Measured] = []
    tests: dict[tuple[str, str, str, str], TTests] = {}
    sizes: dict[tuple[str, str, str, str], tuple[Effect, Share | None]] = {}
    for what, of in measures.items():
        numbers: dict[str, dict[int, float | None]] = {name: {} for name in labels}
        for label, recorded in zip(labels, runs, strict=True):
            whole = recorded.run.last_step == recorded.run.steps
            if whole or not (isinstance(of, partial) and of.func is _last):
                with suppress(KeyError):
                    numbers[label][recorded.run.seed] = (
                        of[recorded.folder] if isinstance(of, Mapping) else of(recorded.evaluations)
                    )
        if not any(numbers.values()):
            continue
        rows += [Measured(*what, name, spread(by_seed)) for name, by_seed in numbers.items()]
        base, *others = numbers
        for each in others:
            pair, both = (*what, each, base), (numbers[each], numbers[base])
            tests[pair] = t_tests(*both)
            sizes[pair] = effect(*both), saving(*both) if what[1].startswith("step") else None
    found = (Difference(*pair, each, *sizes[pair]) for pair, each in corrected(tests).items())
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


def _measures(
    sets: Sequence[str], runs: Sequence[RecordedRun[LMRun]]
) -> dict[tuple[str, str], Measure]:
    """(set of prompts, name) to what it is of a run's evaluations."""
    measures: dict[tuple[str, str], Measure] = {
        ("", "validation loss"): partial(_last, itemgetter("valid_loss"))
    }
    lowest = min(line["valid_loss"] for recorded in runs for line in recorded.evaluations)
    highest = min(recorded.evaluations[0]["valid_loss"] for recorded in runs)
    for loss in LOSSES:
        if lowest <= loss < highest:
            measures["", f"step: loss ≤ {loss:g}"] = partial(
                at_loss, loss=loss, of=itemgetter("step")
            )
    known = _measured(sets, runs)
    for prompts in sets:
        for score in known:
            measures[prompts, SCORES[score]] = partial(_last, partial(score_of, prompts, score))
        for score, above in THRESHOLDS:
            if score in known:
                measures[prompts, f"step: {SCORES[score]} > {above}"] = partial(
                    first_step, prompts, score, above
                )
    return measures


def _matched(
    sets: Sequence[str], loss: float | None, known: Sequence[str]
) -> dict[tuple[str, str], Measure]:
    measures: dict[tuple[str, str], Measure] = {}
    if loss is not None:
        at = partial(at_loss, loss=loss)
        measures["", f"step: loss ≤ {loss:.3f}"] = partial(at, of=itemgetter("step"))
    for prompts in sets:
        for score, above in THRESHOLDS:
            if score in known:
                name = f"loss: {SCORES[score]} > {above}"
                measures[prompts, name] = partial(_loss, prompts, score, above)
        for score in known if loss is not None else ():
            of = partial(score_of, prompts, score)
            measures[prompts, f"{SCORES[score]} at {loss:.3f}"] = partial(at, of=of)
    return measures


def score_of(prompts: str, score: str, line: Line) -> float:
    """A score on a set of prompts at one evaluation."""
    return float(line["ioi"][prompts][score])


def _loss(prompts: str, score: str, above: float, lines: Sequence[Line]) -> float | None:
    """The validation loss of the first evaluation whose score exceeds ``above``."""
    return first_above(
        ((float(line["valid_loss"]), score_of(prompts, score, line)) for line in lines), above
    )


def _last(of: Callable[[Line], float], lines: Sequence[Line]) -> float:
    return of(lines[-1])


def first_step(prompts: str, score: str, above: float, lines: Sequence[Line]) -> float | None:
    """The step of the first evaluation whose score on these prompts exceeds ``above``."""
    return first_above(((line["step"], score_of(prompts, score, line)) for line in lines), above)


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
