"""When in training each memory of an induction head is there (arXiv 2412.11459, 2306.00802)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from resval_lens.recorded_memory import RecordedMemoryRun
from resval_lens.tasks.triggers import TriggerTask

MEASURES: dict[str, tuple[str, str]] = {
    "W_O2": ("recall", "W_O2_read"),
    "W_O2_alone": ("recall", "W_O2"),
    "W_K2": ("recall", "W_K2"),
    "W_K1": ("recall", "W_K1"),
    "W_K1_near": ("recall", "W_K1_near"),
    "W_K1_far": ("recall", "W_K1_far"),
    "W_F": ("recall", "global_kl"),
    "W_F_alone": ("recall", "W_F_kl"),
    "previous": ("attention", "previous"),
    "target": ("attention", "target"),
    "accuracy": ("trained", "accuracy"),
}
"""What is followed, and where it lies in a snapshot's metrics; W_F becomes a share.

The readout hears W_O² through W_F, and W_F beside the token itself; "alone" are the matrices
without, as the papers probe them.
"""

LABELS = {
    "W_O2": "W_O²",
    "W_O2_alone": "W_O² alone",
    "W_K2": "W_K²",
    "W_K1": "W_K¹",
    "W_K1_near": "W_K¹ (t < 64)",
    "W_K1_far": "W_K¹ (t ≥ 64)",
    "W_F": "W_F",
    "W_F_alone": "W_F alone",
    "previous": "layer 0 looks at t − 1",
    "target": "layer 1 looks at the target",
    "accuracy": "in-context accuracy",
}
ORDERED = ("W_O2", "W_K2", "W_K1", "W_F", "previous", "target", "accuracy")
ONE_LAYER, TWO_LAYERS = 0.55, 0.99
"""In-context accuracies that arXiv 2306.00802 reports, about."""

_SHARES = ("W_F", "W_F_alone")
_VARIED = ("name", "seed", "positions", "streams", "n_layers")


def curve_study(
    runs: Sequence[RecordedMemoryRun], threshold: float = 0.9, known: float = 0.5
) -> dict[str, Any]:
    """Curves of every measure, the first step at which each passes, and the order, as JSON.

    A measure passes at the first snapshot where it exceeds ``threshold`` (recall and attention:
    shares; see :mod:`resval_lens.memory.probes`). W_F is the share of the bigrams that W_F tells,

        1 − KL / (log V − H),    H: mean entropy of π_b(·|u) over the tokens that KL is taken over

    0 where it answers uniformly, 1 where it knows them all; it passes above ``known``.

    Args:
        runs: that differ in variant and seed only; of one that has not ended what there is.

    Returns:
        ``variants`` by name: ``steps``, ``curves``, ``first`` (step or None) by seed with mean and
        sd over the seeds that passed, ``final`` values, and ``order``, measures by their mean step;
        ``found``, in words.

    Raises:
        ValueError: a threshold that is not between 0 and 1, or runs that cannot be compared.
    """
    for name, value in {"threshold": threshold, "known": known}.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1; got {value!r}")
    grouped = by_variant(runs)
    variants = {}
    for name, own in grouped.items():
        curves = {
            measure: {recorded.run.seed: _curve(recorded, measure) for recorded in own}
            for measure in MEASURES
        }
        steps = {recorded.run.seed: [line["step"] for line in recorded.metrics] for recorded in own}
        first = {
            measure: {
                seed: first_step(steps[seed], curve, known if measure in _SHARES else threshold)
                for seed, curve in by_seed.items()
            }
            for measure, by_seed in curves.items()
            if any(x is not None for curve in by_seed.values() for x in curve)
        }
        variants[name] = {
            "positions": own[0].run.positions,
            "n_layers": own[0].run.n_layers,
            "ended": all(recorded.done for recorded in own),
            "steps": _texts(steps),
            "curves": {measure: _texts(curves[measure]) for measure in first},
            "first": {measure: over_seeds(numbers) for measure, numbers in first.items()},
            "final": {
                measure: over_seeds({seed: curve[-1] for seed, curve in curves[measure].items()})
                for measure in first
            },
            "order": order({measure: first[measure] for measure in ORDERED if measure in first}),
        }
    data: dict[str, Any] = {
        "threshold": threshold,
        "known": known,
        "run": settings_of(runs),
        "variants": variants,
    }
    return {**data, "found": curve_sentences(data)}


def first_step(
    steps: Sequence[int], values: Sequence[float | None], threshold: float
) -> int | None:
    """The first of ``steps`` whose value exceeds ``threshold``; None if none does."""
    pairs = zip(steps, values, strict=True)
    return next((step for step, value in pairs if value is not None and value > threshold), None)


def order(first: Mapping[str, Mapping[int, int | None]]) -> list[list[str]]:
    """Names by their mean step over seeds, equal ones together; without those a seed never saw."""
    means = {
        name: float(np.mean([step for step in by_seed.values() if step is not None]))
        for name, by_seed in first.items()
        if None not in by_seed.values()
    }
    return [[n for n in means if means[n] == mean] for mean in sorted(set(means.values()))]


def bigram_information(task: TriggerTask) -> float:
    """log V − mean H(π_b(·|u)) over tokens u that occur and are no fixed triggers, in nats."""
    bigrams = task.bigrams
    counted = bigrams.unigram_counts > 0
    counted[list(task.trigger_tokens if task.triggers == "fixed" else ())] = False
    pi = bigrams.conditional[counted]
    entropy = -torch.special.xlogy(pi, pi).sum(1)
    return float(np.log(bigrams.d_vocab) - entropy.mean())


def over_seeds(numbers: Mapping[int, float | None]) -> dict[str, Any]:
    """``by_seed``, and ``mean`` and population ``sd`` over the seeds that have a number."""
    there = [number for number in numbers.values() if number is not None]
    return {
        "by_seed": _texts(numbers),
        "mean": float(np.mean(there)) if there else None,
        "sd": float(np.std(there)) if there else None,
    }


def by_variant(runs: Iterable[RecordedMemoryRun]) -> dict[str, list[RecordedMemoryRun]]:
    """Runs by variant.

    Raises:
        ValueError: two of the same variant and seed; runs that differ in more than what makes a
            variant, named with the setting.
    """
    grouped: dict[str, list[RecordedMemoryRun]] = {}
    first: RecordedMemoryRun | None = None
    for recorded in runs:
        first = first or recorded
        own = grouped.setdefault(recorded.run.name, [])
        for twin in own:
            if twin.run.seed == recorded.run.seed:
                raise ValueError(
                    f"{twin.folder} and {recorded.folder} are the same variant and seed; keep one"
                )
        ours, theirs = _settings(recorded), _settings(first)
        for setting, value in ours.items():
            if value != theirs[setting]:
                raise ValueError(
                    f"{recorded.folder} has {setting}={value!r}, {first.folder} "
                    f"{theirs[setting]!r}; runs that are compared must agree in it"
                )
        own.append(recorded)
    return grouped


def settings_of(runs: Sequence[RecordedMemoryRun]) -> dict[str, Any]:
    """What the runs have in common: the settings of a run that make no variant."""
    return _settings(runs[0])


def _settings(recorded: RecordedMemoryRun) -> dict[str, Any]:
    settings = recorded.run.to_dict()
    task = settings.pop("task")
    kept = {name: value for name, value in settings.items() if name not in _VARIED}
    return kept | {f"task.{k}": value for k, value in task.items() if k != "output_range"}


def _curve(recorded: RecordedMemoryRun, measure: str) -> list[float | None]:
    group, name = MEASURES[measure]
    values = [line[group].get(name) for line in recorded.metrics]
    if measure in _SHARES:
        whole = bigram_information(recorded.run.task)
        return [None if kl is None else 1 - kl / whole for kl in values]
    return values


def _texts(by_seed: Mapping[int, Any]) -> dict[str, Any]:
    return {str(seed): value for seed, value in by_seed.items()}  # what JSON makes of keys


def shown(spread: Mapping[str, Any], form: str = ".3f", tight: bool = False) -> str:
    """Mean ± sd of :func:`over_seeds`, of one seed the number alone; "none" of none.

    Where some seeds have no number it says how many have. ``tight`` is for tables.
    """
    if spread["mean"] is None:
        return "none"
    there = sum(number is not None for number in spread["by_seed"].values())
    parts = [format(spread[key], form) for key in ("mean", "sd")[: min(there, 2)]]
    every = len(spread["by_seed"])
    if tight:  # a table has no room for zeros
        text = "±".join(part.removeprefix("0") if "." in part else part for part in parts)
        return text if there == every else f"{text} ({there}/{every})"
    text = " ± ".join(parts)
    return text if there == every else f"{text} ({there} of {every} seeds)"


def curve_sentences(data: Mapping[str, Any]) -> list[str]:
    """The order of learning of each variant, and what is known about it beside what was found."""
    variants, every = data["variants"], data["run"]["snapshot_every"]
    said = [
        f"Steps are of snapshots, one in {every}. A memory is there above {data['threshold']:g} "
        f"recall, W_F above {data['known']:.0%} of what the bigrams tell."
    ]
    for name, study in variants.items():
        said.append(f"{name}{'' if study['ended'] else ' (still in training)'}: {_order(study)}.")
    told = told_order(data)
    if told:
        said.append(f"Known is that W_O² comes first and W_K² is easier than W_K¹. Here {told}.")
    for name, study in variants.items():
        if "W_K1_far" in study["first"]:
            near, far = (_passed(study, f"W_K1_{end}") for end in ("near", "far"))
            ends = [study["final"][f"W_K1_{end}"] for end in ("near", "far")]
            said.append(
                f"{name}: at the end W_K¹ recalls {shown(ends[0])} of the positions below 64 and "
                f"{shown(ends[1])} of the later ones (above {data['threshold']:g}: {near}, {far})."
            )
    said += [
        f"{name}, a single layer, ends at {shown(study['final']['accuracy'])} in-context accuracy "
        f"(published: about {ONE_LAYER:.2f}; two layers about {TWO_LAYERS:.2f})."
        for name, study in variants.items()
        if study["n_layers"] == 1 and "accuracy" in study["final"]
    ]
    ends_of_two = {
        name: study["final"]["accuracy"]
        for name, study in variants.items()
        if study["n_layers"] == 2 and "accuracy" in study["final"]
    }
    if ends_of_two:
        each = ", ".join(f"{name} {shown(end)}" for name, end in ends_of_two.items())
        said.append(f"In-context accuracy of two layers at the last step: {each}.")
    return said


def told_order(data: Mapping[str, Any]) -> str:
    """In how many of the two-layer runs one memory passes before another; "" if none passes."""
    two = [study for study in data["variants"].values() if study["n_layers"] == 2]
    counts = [
        (f"{LABELS[a]} before {LABELS[b]}", *_before(two, a, b))
        for a, b in (("W_O2", "W_K2"), ("W_O2", "W_K1"), ("W_K2", "W_K1"))
    ]
    return ", ".join(
        f"{what} in {k} of {n} runs" + (f" ({same} at the same snapshot)" if same else "")
        for what, k, same, n in counts
        if n
    )


def _order(study: Mapping[str, Any]) -> str:
    ranked = [
        " and ".join(LABELS[name] for name in group)
        + f" (step {shown(study['first'][group[0]], '.0f')})"
        for group in study["order"]
    ]
    late = [
        f"{LABELS[name]} ({shown(study['final'][name])} at the end)"
        for name in ORDERED
        if name in study["first"] and not any(name in group for group in study["order"])
    ]
    never = "not in every seed: " if len(study["steps"]) > 1 else "not yet: "
    parts = [", then ".join(ranked)] if ranked else []
    return "; ".join(parts + ([never + ", ".join(late)] if late else []))


def _passed(study: Mapping[str, Any], name: str) -> str:
    first = study["first"][name]
    return "never" if first["mean"] is None else f"from step {shown(first, '.0f')} on"


def _before(studies: Sequence[Mapping[str, Any]], a: str, b: str) -> tuple[int, int, int]:
    """Runs in which ``a`` passes first, in which both at one snapshot, and that follow both.

    One that never passes is late; runs in which neither passes are not counted.
    """
    earlier = together = count = 0
    for study in studies:
        if a in study["first"] and b in study["first"]:
            others = study["first"][b]["by_seed"]
            for seed, one in study["first"][a]["by_seed"].items():
                other = others[seed]
                count += one is not None or other is not None
                earlier += one is not None and (other is None or one < other)
                together += one is not None and one == other
    return earlier, together, count
