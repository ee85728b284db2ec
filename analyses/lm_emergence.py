"""Language models in training: how well they predict, and when indirect objects emerge."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

from resval_lens.analyses.emergence import holm_of_both, two_t_tests
from resval_lens.recorded_lm import RecordedLMRun
from resval_lens.streams import architectures_of

Line = dict[str, Any]

Measure = Callable[[Sequence[Line]], float | None]

SCORES = {"accuracy": "accuracy", "accuracy_top1": "top-1", "p_io": "P(IO)",
          "p_subject": "P(S)"}  # fmt: skip
"""Scores of :func:`~resval_lens.analyses.ioi.means`, and what they are called."""
THRESHOLDS = (("accuracy", 0.95), ("accuracy_top1", 0.95), ("p_io", 0.5), ("p_io", 0.9))
"""Scores and what they must exceed to count as emerged."""


def first_step(line_of: Sequence[Line], score: Callable[[Line], float], above: float) -> int | None:
    """The step of the first evaluation whose score exceeds ``above``; None if none does."""
    return next((int(line["step"]) for line in line_of if score(line) > above), None)


def lm_study(runs: Sequence[RecordedLMRun]) -> dict[str, Any]:
    """Final losses and IOI scores, the steps at which they emerge, and both at equal loss, as JSON.

    ``rows`` hold, for each set of prompts, measure and architecture, the numbers ``by_seed``,
    their ``mean`` and ``sd`` (the population's) over the seeds that have one; ``tests`` compare
    every architecture with the first by t-tests, independent and paired by seed, each also
    corrected for the tests of its table (:func:`~resval_lens.analyses.emergence.two_t_tests`,
    :func:`~resval_lens.analyses.emergence.holm`; all None where a seed has no number).

    ``matched`` is a second table of ``rows`` and ``tests``: what is left of a difference between
    models once the one that learns faster is not ahead. For each set and threshold the validation
    loss of the first evaluation above it; and, at ``loss``, the mean over all runs of the loss at
    which the last set passes the first threshold, the scores (:func:`at_loss`) and the step. None
    where a run never passes it.

    A step is that of the first evaluation above the threshold: it is known no better than the
    steps between evaluations.

    Raises:
        ValueError: runs that differ in more than seed and streams, two of one seed and
            architecture, or which were evaluated on different sets.
    """
    _check_alike(runs)
    labels = architectures_of([recorded.run.config.streams for recorded in runs])
    architectures = list(dict.fromkeys(labels))
    sets = list(runs[0].evaluations[-1].get("ioi", {}))
    loss = _emerging_loss(runs, sets)
    return {
        "architectures": architectures,
        "seeds": {name: labels.count(name) for name in architectures},
        "steps": runs[0].run.steps,
        "evaluate_every": runs[0].run.evaluate_every,
        **_table(runs, labels, _measures(sets)),
        "matched": {"loss": loss, **_table(runs, labels, _matched(sets, loss))},
    }


def _table(
    runs: Sequence[RecordedLMRun], labels: Sequence[str], measures: dict[tuple[str, str], Measure]
) -> dict[str, Any]:
    """``rows`` and ``tests`` of some measures, corrected for being so many."""
    architectures = list(dict.fromkeys(labels))
    rows, tests = [], []
    for (prompts, measure), of in measures.items():
        numbers: dict[str, dict[int, float | None]] = {name: {} for name in architectures}
        for label, recorded in zip(labels, runs, strict=True):
            numbers[label][recorded.run.seed] = of(recorded.evaluations)
        what = {"prompts": prompts, "measure": measure}
        for name, by_seed in numbers.items():
            reached = [number for number in by_seed.values() if number is not None]
            rows.append(
                {
                    **what,
                    "architecture": name,
                    "by_seed": {str(seed): number for seed, number in by_seed.items()},
                    "mean": float(np.mean(reached)) if reached else None,
                    "sd": float(np.std(reached)) if reached else None,
                }
            )
        base, *others = ({s: n for s, n in x.items() if n is not None} for x in numbers.values())
        for name, other in zip(architectures[1:], others, strict=True):
            whole = len(base) + len(other) == len(numbers[architectures[0]]) + len(numbers[name])
            found = two_t_tests(*((other, base) if whole else ({}, {})))
            tests.append({**what, "first": name, "second": architectures[0], **found})
    both = zip(tests, holm_of_both(tests), strict=True)
    return {"rows": rows, "tests": [test | corrected for test, corrected in both]}


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


def _emerging_loss(runs: Sequence[RecordedLMRun], sets: Sequence[str]) -> float | None:
    """The mean over runs of the loss at which the last set passes the first threshold."""
    found = [_loss(sets[-1], *THRESHOLDS[0], run.evaluations) for run in runs] if sets else []
    there = [loss for loss in found if loss is not None]
    return float(np.mean(there)) if there and len(there) == len(runs) else None


def _measures(sets: Sequence[str]) -> dict[tuple[str, str], Measure]:
    """(set of prompts, name) to what it is of a run's evaluations."""
    measures: dict[tuple[str, str], Measure] = {
        ("", "validation loss"): lambda lines: lines[-1]["valid_loss"]
    }
    for prompts in sets:
        for score, name in SCORES.items():
            measures[prompts, name] = partial(_last, prompts, score)
        for score, above in THRESHOLDS:
            measures[prompts, f"step: {SCORES[score]} > {above}"] = partial(
                _first, prompts, score, above
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
    found = (line for line in lines if _score(prompts, score, line) > above)
    return next((float(line["valid_loss"]) for line in found), None)


def _last(prompts: str, score: str, lines: Sequence[Line]) -> float:
    return _score(prompts, score, lines[-1])


def _first(prompts: str, score: str, above: float, lines: Sequence[Line]) -> float | None:
    return first_step(lines, partial(_score, prompts, score), above)


def _check_alike(runs: Sequence[RecordedLMRun]) -> None:
    first = runs[0]
    seen: dict[tuple[Any, int], RecordedLMRun] = {}
    for recorded in runs:
        streams, settings = _settings(recorded)
        for name, other in _settings(first)[1].items():
            if settings[name] != other:
                raise ValueError(
                    f"{recorded.folder} has {name}={settings[name]!r}, {first.folder} {other!r}; "
                    "runs that are compared must agree in it"
                )
        twin = seen.setdefault((streams, recorded.run.seed), recorded)
        if twin is not recorded:
            raise ValueError(
                f"{recorded.folder} and {twin.folder} have the same streams and seed; compare one"
            )
        if not recorded.done:
            raise ValueError(f"{recorded.folder} has not reached step {recorded.run.steps}")
        own, other = (set(each.evaluations[-1].get("ioi", {})) for each in (recorded, first))
        if own != other:
            raise ValueError(f"{recorded.folder} and {first.folder} have different sets of prompts")


def _settings(recorded: RecordedLMRun) -> tuple[Any, dict[str, Any]]:
    """The streams, and everything else but seed, name and what does not change the outcome."""
    settings = recorded.run.to_dict()
    for name in ("name", "seed", "model", "snapshot_every", "log_every", "compile"):
        del settings[name]
    model = json.loads(recorded.run.model)
    model.pop("streams")
    return recorded.run.config.streams, settings | model
