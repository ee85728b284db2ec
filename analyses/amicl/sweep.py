"""Which a is best for which task? The question that arXiv 2412.15113 leaves open.

Each task is measured at every a on the same trials, so that two values of a are compared pair by
pair: the best a, and around it those that are not significantly worse (exact McNemar test).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from scipy import stats
from torch import Generator, Tensor

from resval_lens.amicl import AMICL, AMICLConfig, PairTask, Trials, exact, fit_value_map, nearest
from resval_lens.analyses.amicl.recall import batches, generators, share
from resval_lens.analyses.amicl.theory import predicted, threshold

Note = Callable[[str], None]

VALUES = (0.0, *(round(0.25 * 2 ** (k / 4), 6) for k in range(29)))  # 0, then 0.25 to 32
LEVEL = 0.05
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

    Args:
        cfg: the memory, but for its a and reach; its reading is also that of the tasks.

    Raises:
        ValueError: no trials or no values.
    """
    cfg, chosen = cfg or AMICLConfig(), tasks() if chosen is None else chosen
    if not values:
        raise ValueError("values must hold at least one a; got none")
    rows = []
    for each, generator in zip(chosen, generators(seed, len(chosen)), strict=True):
        note(each.name)
        task = replace(each.task, reading=cfg.reading)
        own = replace(cfg, reach=each.reach)
        right = _right(replace(each, task=task), own, values, trials, generator)
        rows.append(
            {
                "name": each.name,
                "group": each.group,
                "task": task.to_dict(),
                "reach": each.reach,
                "learned": each.learned,
                "curve": [share(int(hits.sum()), trials) for hits in right],
                **_best(right, values),
                **_theory(replace(each, task=task), own, values),
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
        parts.append(torch.stack([_judge(x, drawn, cfg, target) for x in outputs]))
    return torch.cat(parts, dim=1)


def _judge(output: Tensor, drawn: Trials, cfg: AMICLConfig, target: Tensor | None) -> Tensor:
    if target is not None:
        return nearest(output, drawn, candidates=drawn.labels @ target)
    return exact(output, drawn) if cfg.separation == "argmax" else nearest(output, drawn)


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
    """The answer in words, with the numbers that bear it."""
    rows, values = result["tasks"], np.array(result["a"])
    shares = np.array([[point["share"] for point in row["curve"]] for row in rows])
    good = np.array([[a in row["as_good_values"] for a in result["a"]] for row in rows])
    wins = good.sum(0)
    top = int(max(range(len(values)), key=lambda i: (wins[i], shares[:, i].mean())))
    two = int(np.abs(values - 2).argmin())
    said = [
        f"No a is best for every task. a = {values[top]:.3g} is as good as the best on {wins[top]} "
        f"of {len(rows)} tasks, a = {values[two]:.3g} on {wins[two]}."
        if wins[top] < len(rows)
        else f"a = {values[top]:.3g} is as good as the best on all {len(rows)} tasks, "
        f"a = {values[two]:.3g} on {wins[two]}."
    ]
    upward = [row["name"] for row, own in zip(rows, good, strict=True) if own[-1]]
    if upward:
        said.append(
            f"On {len(upward)} of {len(rows)} more is never worse, up to a = {values[-1]:.3g}: "
            "what the previous token says decides, and the token itself only adds noise."
        )
    noisy = [row for row in rows if row["group"] == "noise" and row["threshold"]]
    if len(noisy) > 1:
        first, last = noisy[0], noisy[-1]
        said.append(
            f"Noisier objects need a larger a: from {first['as_good'][0]:.3g} at "
            f"ε = {first['task']['noise']:g}, from {last['as_good'][0]:.3g} at "
            f"ε = {last['task']['noise']:g}. In theory the label's place is the best match above "
            f"a = {first['threshold']:.3g} and {last['threshold']:.3g}, the object itself below."
        )
    for row, own, point in zip(rows, good, shares, strict=True):
        if row["group"] == "shared object" and not own[-1]:
            why = "the label finds itself" if row["best"] == 0 else "object and label both count"
            said.append(
                f"{row['name']}, the last label dimly seen: the best a is {row['best']:.3g} "
                f"({_range(row)}), {point.max():.1%} right, against {point[0]:.1%} at "
                f"a = {values[0]:.3g} and {point[-1]:.1%} at a = {values[-1]:.3g}: {why}."
            )
        if row["group"] == "gap" and row["reach"] != row["task"]["gap"] + 1:
            said.append(
                f"{row['name']}: at most {point.max():.1%} right; no a makes up for a reach that "
                "ends before the object."
            )
    return said


def _range(row: dict[str, Any]) -> str:
    low, high = row["as_good"]
    return f"{low:.3g} alone" if low == high else f"{low:.3g} to {high:.3g}"
