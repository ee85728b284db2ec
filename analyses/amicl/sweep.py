"""Which a is best for which task? The question that arXiv 2412.15113 leaves open.

Each task is measured at every a on the same trials, so that two values of a are compared pair by
pair: the best a, and around it those that are not significantly worse (exact McNemar test).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from scipy import stats
from torch import Generator, Tensor

from resval_lens.amicl import AMICL, AMICLConfig, PairTask, exact, fit_value_map, nearest
from resval_lens.analyses.amicl.recall import Note, batches, generators, share
from resval_lens.analyses.amicl.theory import predicted, threshold

VALUES = (0.0, *(round(0.25 * 2 ** (k / 4), 6) for k in range(29)))  # 0, then 0.25 to 32
LEVEL = 0.05
Judge = Literal["exact", "euclidean", "cosine"]
EXAMPLES = 1_000  # by which a value map is learned


@dataclass(frozen=True)
class SweepTask:
    """A task by name, and how the memory meets it.

    Attributes:
        group: tasks that are drawn together.
        reach: of the memory.
        learned: answers are M l instead of l, M [d, d] ~ N(0, 1/d) unknown to the memory, which
            learns its value map by ridge regression from what it recalled on other trials.
    """

    name: str
    group: str
    task: PairTask
    reach: int = 1
    learned: bool = False


def tasks(noises: Sequence[float] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)) -> list[SweepTask]:
    """The tasks of the sweep: object noise, gaps, distractors, shared objects, a learned map."""
    gap, alike = PairTask(gap=4, length=60), PairTask(classes=450, distractors=2, likeness=0.9)
    same = replace(alike, likeness=1.0, cue=0.2)
    return [
        *(SweepTask(f"pairs, ε = {e:g}", "noise", PairTask(noise=e)) for e in noises),
        SweepTask("gap of 4, reach 5", "gap", gap, reach=5),
        SweepTask("gap of 4, reach 1", "gap", gap),
        SweepTask("2 look-alikes (ρ = .9)", "distractors", alike),
        SweepTask("8 look-alikes (ρ = .9)", "distractors", replace(alike, distractors=8)),
        SweepTask("3 labels, of 9 pairs", "shared object", same),
        SweepTask("3 labels, of 39 pairs", "shared object", replace(same, length=80)),
        SweepTask("learned value map", "hetero", PairTask(), learned=True),
    ]


def sweep(
    chosen: Sequence[SweepTask] | None = None,
    values: Sequence[float] = VALUES,
    seed: int = 0,
    trials: int = 2_000,
    cfg: AMICLConfig | None = None,
    note: Note = lambda text: None,
) -> dict[str, Any]:
    """Share of right trials against a, for each task; the best a and those as good.

    ``judge`` says what is right: ``exact``, the label to the last bit, with argmax; else the label
    is the nearest in the context, by distance (``euclidean``) or, with identity, whose output has
    any length, by angle (``cosine``). A learned map is never exact: with argmax, by distance.

    Args:
        cfg: the memory, but for its a and reach; its reading is also that of the tasks.

    Raises:
        ValueError: no trials or no values.
    """
    cfg, chosen = cfg or AMICLConfig(), tasks() if chosen is None else chosen
    if not values:
        raise ValueError("values must hold at least one a; got none")
    chosen = [replace(each, task=replace(each.task, reading=cfg.reading)) for each in chosen]
    rows = []
    for each, generator in zip(chosen, generators(seed, len(chosen)), strict=True):
        note(each.name)
        own = replace(cfg, reach=each.reach)
        right = _right(each, own, values, trials, generator)
        rows.append(
            {
                "name": each.name,
                "group": each.group,
                "task": each.task.to_dict(),
                "reach": each.reach,
                "learned": each.learned,
                "judge": _judge(each, cfg),
                "curve": [share(int(hits.sum()), trials) for hits in right],
                **_best(right, values),
                **_theory(each, own, values),
            }
        )
    return {
        "memory": {key: x for key, x in cfg.to_dict().items() if key not in ("a", "reach")},
        "a": list(values),
        "trials": trials,
        "level": LEVEL,
        "tasks": rows,
    }


@torch.no_grad()
def _right(
    each: SweepTask, cfg: AMICLConfig, values: Sequence[float], trials: int, generator: Generator
) -> Bool[Tensor, "a trial"]:
    d = each.task.d
    target = lessons = None
    if each.learned:
        target = torch.randn(d, d, generator=generator) * d**-0.5
        lessons = list(batches(each.task, EXAMPLES, generator))
    models = []
    for a in values:
        own = replace(cfg, a=a)
        if target is None or lessons is None:
            models.append(AMICL(own))
            continue
        recalled = torch.cat([AMICL(own)(x.inputs, generator=generator) for x in lessons])
        wanted = torch.cat([x.targets for x in lessons]) @ target
        models.append(AMICL(own, value_map=fit_value_map(recalled, wanted)))
    parts = []
    for drawn in batches(each.task, trials, generator):
        outputs = (model(drawn.inputs, generator=generator) for model in models)
        wanted = None if target is None else drawn.labels @ target
        judge = _judge(each, cfg)
        parts.append(
            torch.stack(
                [
                    exact(x, drawn) if judge == "exact" else nearest(x, drawn, judge, wanted)
                    for x in outputs
                ]
            )
        )
    return torch.cat(parts, dim=1)


def _judge(each: SweepTask, cfg: AMICLConfig) -> Judge:
    if cfg.separation == "identity":
        return "cosine"
    return "euclidean" if each.learned or cfg.separation == "softmax" else "exact"


def _best(right: Bool[Tensor, "a trial"], values: Sequence[float]) -> dict[str, Any]:
    """The first a with most right trials, and the run of a around it that is not worse."""
    best = int(right.sum(1).argmax())
    alike = [p >= LEVEL for p in (_mcnemar(right[best], other) for other in right)]
    low = high = best
    while low > 0 and alike[low - 1]:
        low -= 1
    while high + 1 < len(values) and alike[high + 1]:
        high += 1
    return {
        "best": values[best],
        "as_good": [values[low], values[high]],
        "as_good_values": [a for a, same in zip(values, alike, strict=True) if same],
    }


def _mcnemar(first: Tensor, second: Tensor) -> float:
    """p of an exact McNemar test: of the trials that only one gets right, half by chance."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = only_first + only_second
    return float(stats.binomtest(only_first, n).pvalue) if n else 1.0


def _theory(each: SweepTask, cfg: AMICLConfig, values: Sequence[float]) -> dict[str, Any]:
    task = each.task
    simple = (cfg.similarity, cfg.separation) == ("dot", "argmax") and not each.learned
    if not simple or task.distractors or task.cue or each.reach != task.gap + 1:
        return {"predicted": None, "threshold": None}
    return {
        "predicted": [predicted(a, task) if a else 0.0 for a in values],
        "threshold": threshold(task),
    }


def sentences(result: dict[str, Any]) -> list[str]:
    """The answer in words, with the numbers that bear it.

    As good as the best is what the run ``as_good`` holds. Tasks that no a solves or on which all a
    are as good say nothing about a: they are named and not counted.
    """
    values, rows = result["a"], [row for row in result["tasks"] if _tells(row, result["a"])]
    left_out = [row for row in result["tasks"] if row not in rows]
    said = _counted(result, rows) if rows else ["No task tells one a from another."]
    noisy = [row for row in rows if row["group"] == "noise"]
    if len(noisy) > 1:
        said.append(_of_noise(noisy))
    for row in rows:
        if row["group"] == "shared object" and row["as_good"][1] != values[-1]:
            first, best, last = (
                row["curve"][values.index(a)]["share"] for a in (values[0], row["best"], values[-1])
            )
            said.append(
                f"{row['name']}, the last label dimly seen: the best a is {row['best']:.3g} "
                f"({_range(row)}), {best:.1%} right, against {first:.1%} at a = {values[0]:.3g} "
                f"and {last:.1%} at a = {values[-1]:.3g}."
            )
    for row in left_out:
        shares = [point["share"] for point in row["curve"]]
        why = (
            f"at most {max(shares):.1%} right, fewer than a label of the context at random"
            if max(shares) <= _random(row)
            else f"all a are as good, {min(shares):.1%} to {max(shares):.1%} right"
        )
        said.append(f"Not counted: {row['name']} ({why}).")
    return said


def _tells(row: dict[str, Any], values: Sequence[float]) -> bool:
    """Whether the task tells a good a from a bad one: some a solves it, and not all do."""
    most = max(point["share"] for point in row["curve"])
    return row["as_good"] != [values[0], values[-1]] and most > _random(row)


def _random(row: dict[str, Any]) -> float:
    """How often a label of the context drawn at random is right, at least: 1/m."""
    return 1 / PairTask(**row["task"]).n_pairs


def _counted(result: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    values, n = result["a"], len(rows)
    wins = [sum(row["as_good"][0] <= a <= row["as_good"][1] for row in rows) for a in values]
    means = [np.mean([row["curve"][i]["share"] for row in rows]) for i in range(len(values))]
    top = max(range(len(values)), key=lambda i: (wins[i], means[i]))
    two = min(range(len(values)), key=lambda i: abs(values[i] - 2))
    two_said = "" if top == two else f", a = {values[two]:.3g} on {wins[two]}"
    said = [
        f"No a is as good as the best on every task: a = {values[top]:.3g} is on {wins[top]} of "
        f"{n}{two_said}."
        if wins[top] < n
        else f"a = {values[top]:.3g} is as good as the best on {_all(n)}{two_said}."
    ]
    if wins[-1]:
        said.append(
            f"On {_all(n) if wins[-1] == n else f'{wins[-1]} of {n} tasks'} a = {values[-1]:.3g} "
            "is not significantly worse than the best (exact McNemar test, "
            f"p ≥ {result['level']:g}, uncorrected, n = {result['trials']:,})."
        )
    return said


def _of_noise(rows: Sequence[dict[str, Any]]) -> str:
    """The smallest a as good as the best, by the noise of objects."""
    rows = sorted(rows, key=lambda row: row["task"]["noise"])
    least = [row["as_good"][0] for row in rows]
    grows = least == sorted(least) and least[0] < least[-1]
    listed = ", ".join(
        f"{a:.3g} at ε = {row['task']['noise']:g}" for a, row in zip(least, rows, strict=True)
    )
    said = (
        f"{'Noisier objects need a larger a' if grows else 'As good as the best'}: from {listed}."
    )
    if any(row["threshold"] is None for row in rows):
        return said
    low, high = (f"{row['threshold']:.3g}" for row in (rows[0], rows[-1]))
    return (
        f"{said} In theory the label's place matches best above a = {low} at the least noise and "
        f"{high} at the most, the object itself below."
    )


def _all(n: int) -> str:
    return "the one task" if n == 1 else f"all {n} tasks"


def _range(row: dict[str, Any]) -> str:
    low, high = row["as_good"]
    return f"{low:.3g} alone" if low == high else f"{low:.3g} to {high:.3g}"
