"""Language models in training: how well they predict, and when indirect objects emerge."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from resval_lens.analyses.emergence import two_t_tests
from resval_lens.recorded_lm import RecordedLMRun
from resval_lens.streams import architectures_of

Line = dict[str, Any]

Measure = Callable[[Sequence[Line]], float | None]

SCORES = {"accuracy": "accuracy", "p_io": "P(IO)", "p_subject": "P(S)"}
"""Scores of :func:`~resval_lens.analyses.ioi.means`, and what they are called."""
THRESHOLDS = (("accuracy", 0.95), ("p_io", 0.5), ("p_io", 0.9))
"""Scores and what they must exceed to count as emerged."""


def first_step(line_of: Sequence[Line], score: Callable[[Line], float], above: float) -> int | None:
    """The step of the first evaluation whose score exceeds ``above``; None if none does."""
    return next((int(line["step"]) for line in line_of if score(line) > above), None)


def lm_study(runs: Sequence[RecordedLMRun]) -> dict[str, Any]:
    """Final losses and IOI scores, and the steps at which they emerge, of several runs, as JSON.

    ``rows`` hold, for each set of prompts, measure and architecture, the numbers ``by_seed``,
    their ``mean`` and ``sd`` (the population's) over the seeds that have one; ``tests`` compare
    every architecture with the first by t-tests, independent and paired by seed
    (:func:`~resval_lens.analyses.emergence.two_t_tests`; all None where a seed has no number).

    A step is that of the first evaluation above the threshold: it is known no better than the
    steps between evaluations.

    Raises:
        ValueError: runs that differ in more than seed and streams, two of one seed and
            architecture, or which were evaluated on different sets.
    """
    _check_alike(runs)
    labels = architectures_of([recorded.run.config.streams for recorded in runs])
    architectures = list(dict.fromkeys(labels))
    rows, tests = [], []
    for (prompts, measure), of in _measures(list(runs[0].evaluations[-1].get("ioi", {}))).items():
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
    return {
        "architectures": architectures,
        "seeds": {name: labels.count(name) for name in architectures},
        "steps": runs[0].run.steps,
        "evaluate_every": runs[0].run.evaluate_every,
        "rows": rows,
        "tests": tests,
    }


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


def _last(prompts: str, score: str, lines: Sequence[Line]) -> float:
    return float(lines[-1]["ioi"][prompts][score])


def _first(prompts: str, score: str, above: float, lines: Sequence[Line]) -> float | None:
    return first_step(lines, lambda line: line["ioi"][prompts][score], above)


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
