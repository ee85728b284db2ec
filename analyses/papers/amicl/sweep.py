"""Which a is best for which task? The question that arXiv 2412.15113 leaves open.

Each task is measured at every a on the same trials, so that two values of a are compared pair by
pair: the best a, and around it those that are not significantly worse (exact McNemar test).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy
import torch
from jaxtyping import Bool
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from torch import Generator, Tensor

from resval_lens.analyses.drawing.figures import STYLE, plt
from resval_lens.analyses.papers.amicl.counting import (
    Judge,
    Share,
    batches,
    curve,
    generators,
    share,
    table,
)
from resval_lens.analyses.papers.amicl.model import (
    AMICL,
    AMICLConfig,
    PairTask,
    exact,
    fit_value_map,
    nearest,
)
from resval_lens.analyses.papers.amicl.theory import predicted, threshold
from resval_lens.analyses.results.result import FLAT, Result
from resval_lens.notes import Note

VALUES = (0.0, *(round(0.25 * 2 ** (k / 4), 6) for k in range(29)))  # 0, then 0.25 to 32
LEVEL = 0.05
EXAMPLES = 1_000  # by which a value map is learned
JUDGES: dict[Judge, str] = {
    "exact": "the label, to the last bit",
    "euclidean": "the right label of the context is the nearest, by distance",
    "cosine": "the right label of the context is the nearest, by angle",
}


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


@dataclass(frozen=True)
class TaskCurve:
    """A task at every a.

    Attributes:
        judge: what is right: ``exact``, the label to the last bit, with argmax; else the label is
            the nearest in the context, by distance (``euclidean``) or, with identity, whose output
            has any length, by angle (``cosine``). A learned map is never exact: with argmax, by
            distance.
        best: the first a with most right trials.
        as_good: lowest and highest of the run of a around it that is not significantly worse.
        as_good_values: all a that are not.
        predicted, threshold: P(right) and the a at which the label's place matches best, in
            theory; None where it does not cover the task.
    """

    of: SweepTask = field(metadata=FLAT)
    judge: Judge
    curve: list[Share]
    best: float
    as_good: tuple[float, float]
    as_good_values: list[float]
    predicted: list[float] | None = None
    threshold: float | None = None

    def tells(self, values: Sequence[float]) -> bool:
        """Whether it tells a good a from a bad one: some a solves it, and not all do."""
        most = max(point.share for point in self.curve)
        return self.as_good != (values[0], values[-1]) and most > self.random

    @property
    def random(self) -> float:
        """How often a label of the context drawn at random is right, at least: 1/m."""
        return 1 / self.of.task.n_pairs


@dataclass(frozen=True)
class Sweep(Result):
    """Right trials against a for each task; ``memory`` but for its a and reach."""

    seed: int
    memory: AMICLConfig
    a: list[float]
    trials: int
    level: float
    tasks: list[TaskCurve]

    def to_dict(self) -> dict[str, Any]:
        """The fields; of the memory what is the same everywhere."""
        kept = {k: x for k, x in self.memory.to_dict().items() if k not in ("a", "reach")}
        return {**super().to_dict(), "memory": kept}

    @property
    def memory_name(self) -> str:
        """Similarity, separation and reading of the memory; T where it counts."""
        own = self.memory
        hot = f", T = {own.temperature:g}" if own.separation == "softmax" else ""
        return f"{own.similarity}, {own.separation}{hot}, {own.reading}"

    @property
    def judged(self) -> str:
        """What counts as right, task by task where they differ."""
        names: dict[Judge, list[str]] = {}
        for row in self.tasks:
            names.setdefault(row.judge, []).append(row.of.name)
        common = max(names, key=lambda judge: len(names[judge]))
        said = [f"Right: {JUDGES[common]}"]
        said += [f"{', '.join(n)}: {JUDGES[j]}" for j, n in names.items() if j != common]
        return "; ".join(said) + "."

    def tables(self) -> list[Table]:
        """Each task at a few a, its best a and the range of a that is as good."""
        near = (min(self.a, key=lambda x: abs(x - a)) for a in (1, 2, 8))
        some = list(dict.fromkeys(near))
        found = table(
            f"{self.memory_name}\n"
            f"Right of {self.trials:,} trials; the best a, and those not significantly worse",
            ["task", *(f"a = {a:.3g}" for a in some), "best", "best a", "as good"],
        )
        group = None
        for row in self.tasks:
            if group not in (None, row.of.group):
                found.add_section()
            group = row.of.group
            low, high = row.as_good
            end = "" if high == self.a[-1] else f" to {high:.3g}"
            found.add_row(
                row.of.name,
                *(f"{self._share(row, a):.3f}" for a in (*some, row.best)),
                f"{row.best:.3g}",
                f"{low:.3g}" if low == high else f"{'' if end else '≥ '}{low:.3g}{end}",
            )
        found.caption = self.judged
        return [found]

    def _share(self, row: TaskCurve, a: float) -> float:
        return row.curve[self.a.index(a)].share

    def figures(self) -> dict[str, Figure]:
        """Right trials against a, a panel for each kind of task; last, the best a of each."""
        return {"amicl-sweep.png": _draw(self)}

    def sentences(self) -> list[str]:
        """The answer in words, with the numbers that bear it.

        As good as the best is what the run ``as_good`` holds. Tasks that no a solves or on which
        all a are as good say nothing about a: they are named and not counted.
        """
        values, rows = self.a, [row for row in self.tasks if row.tells(self.a)]
        said = self._counted(rows) if rows else ["No task tells one a from another."]
        noisy = [row for row in rows if row.of.group == "noise"]
        if len(noisy) > 1:
            said.append(_of_noise(noisy))
        for row in rows:
            if row.of.group == "shared object" and row.as_good[1] != values[-1]:
                first, best, last = (self._share(row, a) for a in (values[0], row.best, values[-1]))
                low, high = (f"{a:.3g}" for a in row.as_good)
                said.append(
                    f"{row.of.name}, the last label dimly seen: the best a is {row.best:.3g} "
                    f"({f'{low} alone' if row.as_good[0] == row.as_good[1] else f'{low} to {high}'}"
                    f"), {best:.1%} right, against {first:.1%} at a = {values[0]:.3g} "
                    f"and {last:.1%} at a = {values[-1]:.3g}."
                )
        for row in self.tasks:
            if row in rows:
                continue
            shares = [point.share for point in row.curve]
            why = (
                f"at most {max(shares):.1%} right, fewer than a label of the context at random"
                if max(shares) <= row.random
                else f"all a are as good, {min(shares):.1%} to {max(shares):.1%} right"
            )
            said.append(f"Not counted: {row.of.name} ({why}).")
        return said

    def _counted(self, rows: Sequence[TaskCurve]) -> list[str]:
        values, n = self.a, len(rows)
        wins = [sum(row.as_good[0] <= a <= row.as_good[1] for row in rows) for a in values]
        means = [np.mean([row.curve[i].share for row in rows]) for i in range(len(values))]
        top = max(range(len(values)), key=lambda i: (wins[i], means[i]))
        two = min(range(len(values)), key=lambda i: abs(values[i] - 2))
        two_said = "" if top == two else f", a = {values[two]:.3g} on {wins[two]}"
        every = "the one task" if n == 1 else f"all {n} tasks"
        said = [
            f"No a is as good as the best on every task: a = {values[top]:.3g} is on {wins[top]} "
            f"of {n}{two_said}."
            if wins[top] < n
            else f"a = {values[top]:.3g} is as good as the best on {every}{two_said}."
        ]
        if wins[-1]:
            said.append(
                f"On {every if wins[-1] == n else f'{wins[-1]} of {n} tasks'} a = {values[-1]:.3g} "
                "is not significantly worse than the best (exact McNemar test, "
                f"p ≥ {self.level:g}, uncorrected, n = {self.trials:,})."
            )
        return said


def _of_noise(rows: Sequence[TaskCurve]) -> str:
    """The smallest a as good as the best, by the noise of objects."""
    rows = sorted(rows, key=lambda row: row.of.task.noise)
    least = [row.as_good[0] for row in rows]
    grows = least == sorted(least) and least[0] < least[-1]
    listed = ", ".join(
        f"{a:.3g} at ε = {row.of.task.noise:g}" for a, row in zip(least, rows, strict=True)
    )
    said = (
        f"{'Noisier objects need a larger a' if grows else 'As good as the best'}: from {listed}."
    )
    if any(row.threshold is None for row in rows):
        return said
    low, high = (f"{row.threshold:.3g}" for row in (rows[0], rows[-1]))
    return (
        f"{said} In theory the label's place matches best above a = {low} at the least noise and "
        f"{high} at the most, the object itself below."
    )


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
) -> Sweep:
    """Share of right trials against a, for each task; the best a and those as good.

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
        best, as_good, alike = _best(right, values)
        covered = _covered(each, own)
        rows.append(
            TaskCurve(
                each,
                _judge(each, cfg),
                [share(int(hits.sum()), trials) for hits in right],
                best,
                as_good,
                alike,
                [predicted(a, each.task) if a else 0.0 for a in values] if covered else None,
                threshold(each.task) if covered else None,
            )
        )
    return Sweep(seed, cfg, list(values), trials, LEVEL, rows)


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


def _best(
    right: Bool[Tensor, "a trial"], values: Sequence[float]
) -> tuple[float, tuple[float, float], list[float]]:
    """``best``, ``as_good`` and ``as_good_values`` of a :class:`TaskCurve`."""
    best = int(right.sum(1).argmax())
    alike = [p >= LEVEL for p in (_mcnemar(right[best], other) for other in right)]
    low = high = best
    while low > 0 and alike[low - 1]:
        low -= 1
    while high + 1 < len(values) and alike[high + 1]:
        high += 1
    as_good_values = [a for a, same in zip(values, alike, strict=True) if same]
    return values[best], (values[low], values[high]), as_good_values


def _mcnemar(first: Tensor, second: Tensor) -> float:
    """p of an exact McNemar test: of the trials that only one gets right, half by chance."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = only_first + only_second
    return float(scipy.stats.binomtest(only_first, n).pvalue) if n else 1.0


def _covered(each: SweepTask, cfg: AMICLConfig) -> bool:
    """Whether theory covers the task as this memory meets it."""
    task = each.task
    simple = (cfg.similarity, cfg.separation) == ("dot", "argmax") and not each.learned
    return simple and not task.distractors and not task.cue and each.reach == task.gap + 1


SHADES = ("#56B4E9", "#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7")
GROUPS = {
    "noise": "Objects differ from instance to instance",
    "gap": "Four tokens between object and label",
    "distractors": "Look-alikes with labels of their own",
    "shared object": "One object, three labels; the last dimly seen",
    "hetero": "Values through a map learned from examples",
}


def _draw(found: Sweep) -> Figure:
    rows, axis = found.tasks, _LogAxis(found.a)
    groups = list(dict.fromkeys(row.of.group for row in rows))
    with plt.rc_context(STYLE):
        height = -(-(len(groups) + 1) // 3)
        figure, grid = plt.subplots(
            height, 3, figsize=(13, 3.9 * height), layout="constrained", squeeze=False
        )
        figure.suptitle(f"{found.memory_name}. {found.judged}", fontsize=10)
        for axes, group in zip(grid.flat, groups, strict=False):
            own = [row for row in rows if row.of.group == group]
            for row, shade in zip(own, _shades(len(own)), strict=True):
                for part in axis.parts:
                    at, points = axis.places[part], row.curve[part]
                    label = row.of.name if part is axis.parts[-1] else ""
                    curve(axes, at, points, shade, label, "" if len(at) > 1 else "o")
                    if row.predicted:
                        theory = row.predicted[part]
                        axes.plot(at, theory, color="#333333", lw=0.9, ls="--")
            axis.label(axes)
            axes.set(ylim=(-0.02, 1.04), ylabel=f"right of {found.trials:,} trials")
            axes.set_title(GROUPS.get(group, group), fontsize=10)
            axes.legend(fontsize=8, title="dashed: theory" if group == "noise" else None)
        _best_panel(grid.flat[len(groups)], rows, axis)
        for axes in grid.flat[len(groups) + 1 :]:
            axes.set_visible(False)
    return figure


class _LogAxis:
    """Values of a on a logarithmic axis, with a place for 0 left of them."""

    def __init__(self, values: list[float]) -> None:
        above = [a for a in values if a > 0] or [1.0]
        self.zero, self.last = min(above) / 2, max(above)
        self.has_zero = 0 in values
        self.places = np.array([a or self.zero for a in values])
        cut = values.index(0) + 1 if self.has_zero else 0
        self.parts = [part for part in (slice(0, cut), slice(cut, None)) if len(values[part])]

    def label(self, axes: Axes) -> None:
        """Powers of two, and 0."""
        powers = 2.0 ** np.arange(np.ceil(np.log2(self.zero * 2)), np.log2(self.last) + 0.01)
        ticks = [*([self.zero] if self.has_zero else []), *powers]
        names = [*(["0"] if self.has_zero else []), *(f"{x:g}" for x in powers)]
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, names)
        axes.set_xlim(self.zero / 1.2, self.last * 1.15)
        axes.set_xlabel("a")
        axes.axvline(2, color="#999999", lw=0.8, ls=":")


def _best_panel(axes: Axes, rows: Sequence[TaskCurve], axis: _LogAxis) -> None:
    """The best a of each task (dot) and the a that are not significantly worse (line)."""
    for place, row in enumerate(rows):
        low, high, best = (a or axis.zero for a in (*row.as_good, row.best))
        axes.plot([low, high], [place, place], color="#0072B2", lw=5, alpha=0.35)
        axes.plot(best, place, "o", color="#0072B2", ms=5)
    axes.set_yticks(range(len(rows)), [row.of.name for row in rows], fontsize=8)
    axes.invert_yaxis()
    axis.label(axes)
    axes.set_title("Best a (dot) and as good (line); dotted: a = 2", fontsize=10)


def _shades(n: int) -> list[str]:
    return [SHADES[i % len(SHADES)] for i in range(n)] if n > 2 else ["#0072B2", "#D55E00"][:n]
