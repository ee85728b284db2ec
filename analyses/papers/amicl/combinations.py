"""Every similarity with every separation: what AMICL attends to, how often it is right.

Figure 6 of arXiv 2412.15113, and its question asked of all twelve memories in both readings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Generator, Tensor

from resval_lens.analyses.drawing.figures import STYLE, plt
from resval_lens.analyses.papers.amicl.counting import (
    Judge,
    Share,
    batches,
    both_readings,
    every_combination,
    generators,
    share,
    table,
)
from resval_lens.analyses.papers.amicl.model import (
    AMICL,
    READINGS,
    AMICLConfig,
    PairTask,
    Trials,
    exact,
    nearest,
)
from resval_lens.analyses.papers.amicl.model.memory import Reading
from resval_lens.analyses.results.result import FLAT, Result
from resval_lens.notes import Note


@dataclass(frozen=True)
class Combination:
    """One memory's right trials, by what is right: argmax's must be ``exact``.

    Of the others the output must be nearest, by distance (``euclidean``) and by angle
    (``cosine``), to the right one of the labels in the context.
    """

    reading: str
    similarity: str
    separation: str
    right: Mapping[Judge, Share] = field(metadata=FLAT)


@dataclass(frozen=True)
class Combinations(Result):
    """Every similarity with every separation, in both readings."""

    seed: int
    a: float
    temperature: float
    task: PairTask
    trials: int
    rows: list[Combination]

    def tables(self) -> list[Table]:
        """Shares of right trials."""
        found = table(
            f"AMICL, a = {self.a:g}, T = {self.temperature:g}: right of "
            f"{self.trials:,} trials (95% interval)",
            ["reading", "similarity", "separation", "by distance", "by angle"],
            words=3,
        )
        for row in self.rows:
            by = row.right
            cells = (by["exact"], "(exactly)") if "exact" in by else (by["euclidean"], by["cosine"])
            found.add_row(
                row.reading,
                row.similarity,
                row.separation,
                *map(str, cells),
                end_section=row.separation == "argmax",
            )
        return [found]


def combinations(
    a: float = 2.0,
    seed: int = 0,
    trials: int = 1_000,
    task: PairTask | None = None,
    note: Note = lambda text: None,
    temperature: float = 1.0,
) -> Combinations:
    """Every similarity with every separation, for both readings, on the same trials.

    Args:
        task: the pairs; the paper's by default. Each reading draws its own.
        temperature: T of ``softmax``.

    Raises:
        ValueError: no trials; a task that one of the readings cannot draw; an impossible a or
            temperature.
    """
    task = task or PairTask()
    both = both_readings(task)
    rows = []
    streams = generators(seed, len(READINGS))
    for (reading, own), generator in zip(both.items(), streams, strict=True):
        right: dict[AMICLConfig, dict[Judge, int]] = {}
        for done in batches(own, trials, generator):
            for cfg in every_combination(a, reading, temperature):
                note(f"{reading}: {cfg.similarity}, {cfg.separation}")
                counted = right.setdefault(cfg, {})
                for name, n in _judged(AMICL(cfg), done, generator).items():
                    counted[name] = counted.get(name, 0) + n
        for cfg, counted in right.items():
            shares = {name: share(n, trials) for name, n in counted.items()}
            rows.append(Combination(reading, cfg.similarity, cfg.separation, shares))
    return Combinations(seed, a, temperature, task, trials, rows)


@torch.no_grad()
def _judged(model: AMICL, trials: Trials, generator: Generator) -> dict[Judge, int]:
    output = model(trials.inputs, generator=generator)
    if model.cfg.separation == "argmax":
        return {"exact": int(exact(output, trials).sum())}
    return {
        "euclidean": int(nearest(output, trials).sum()),
        "cosine": int(nearest(output, trials, "cosine").sum()),
    }


SIMILARITY = {
    "dot": "dot product",
    "pearson": "Pearson",
    "manhattan": "Manhattan",
    "euclidean": "Euclidean",
}


@dataclass(frozen=True)
class Attention:
    """What one memory attends to.

    Attributes:
        pattern: of one sequence, [query, key].
        weight: mean over trials of Σ_right |p_j| / Σ_j |p_j|: how much of the last query's
            attention is on the right label.
    """

    similarity: str
    separation: str
    pattern: list[list[float]]
    weight: float


@dataclass(frozen=True)
class Shown:
    """The sequence that is shown, by its classes, the last of them asked for; every memory."""

    classes: list[int]
    combinations: list[Attention]


@dataclass(frozen=True)
class Figure6(Result):
    """Attention of every combination; published are pictures only."""

    seed: int
    a: float
    temperature: float
    task: PairTask
    trials: int
    readings: Mapping[Reading, Shown]

    def tables(self) -> list[Table]:
        """How much of the last query's attention is on the right label."""
        found = table(
            f"Figure 6, a = {self.a:g}, T = {self.temperature:g}: attention on the right label "
            f"(share, {self.trials:,} trials)",
            ["similarity", "separation", *self.readings, "published"],
            words=2,
        )
        for each in zip(*(shown.combinations for shown in self.readings.values()), strict=True):
            own = each[0]
            clean = own.similarity in ("dot", "pearson") and own.separation == "argmax"
            found.add_row(
                own.similarity,
                own.separation,
                *(f"{one.weight:.3f}" for one in each),
                "among the cleanest" if clean else "",
                end_section=own.separation == "argmax",
            )
        return [found]

    def figures(self) -> dict[str, Figure]:
        """Attention of one sequence: similarity down, separation across, both readings."""
        with plt.rc_context(STYLE):
            figure = plt.figure(figsize=(12.4, 8.2), layout="constrained")
            every = [
                each.pattern for shown in self.readings.values() for each in shown.combinations
            ]
            low = min(0.0, *(float(np.min(pattern)) for pattern in every))  # one scale for all
            high = max(float(np.max(pattern)) for pattern in every)
            halves = figure.subfigures(1, len(self.readings), wspace=0.04, squeeze=False)
            for half, (reading, shown) in zip(halves[0], self.readings.items(), strict=True):
                half.suptitle(f"{reading}, a = {self.a:g}", fontsize=12)
                grid = half.subplots(4, 3)
                for axes, each in zip(grid.flat, shown.combinations, strict=True):
                    axes.imshow(np.array(each.pattern), cmap="viridis", vmin=low, vmax=high,
                                interpolation="nearest")  # fmt: skip
                    axes.set_xticks([])
                    axes.set_yticks([])
                    axes.set_xlabel(f"on the label: {each.weight:.2f}", fontsize=8)
                for axes, each in zip(grid[0], shown.combinations, strict=False):
                    hot = f", T = {self.temperature:g}" if each.separation == "softmax" else ""
                    axes.set_title(f"{each.separation}{hot}", loc="center")
                for axes, each in zip(grid[:, 0], shown.combinations[::3], strict=True):
                    axes.set_ylabel(SIMILARITY[each.similarity])
        return {"figure-6.png": figure}


def figure_6(
    seed: int = 0, trials: int = 1_000, task: PairTask | None = None, note: Note = lambda text: None
) -> Figure6:
    """Attention of all combinations at a = 2, T = 1: of one sequence; where it points."""
    task = task or PairTask()
    readings = {}
    for reading, own in both_readings(task).items():
        note(f"figure 6: {reading}")
        one = torch.Generator().manual_seed(seed)
        shown = own.draw(1, one)
        last_key = torch.randn(own.d, generator=one) * own.d**-0.5
        key = last_key if reading == "notebook" else None
        models = [AMICL(cfg) for cfg in every_combination(2.0, reading)]
        weights = [0.0] * len(models)
        for drawn in batches(own, trials, one):
            weights = [
                so_far + _weight(model, drawn, one)
                for so_far, model in zip(weights, models, strict=True)
            ]
        patterns = (
            model.run_with_cache(shown.inputs, queries="all", last_key=key)[1]["hook_pattern"][0]
            for model in models
        )
        readings[reading] = Shown(
            [*shown.classes[0].tolist(), int(shown.classes[0, shown.query[0]])],
            [
                Attention(
                    model.cfg.similarity, model.cfg.separation, _rounded(pattern), weight / trials
                )
                for model, pattern, weight in zip(models, patterns, weights, strict=True)
            ],
        )
    return Figure6(seed, 2.0, 1.0, task, trials, readings)


@torch.no_grad()
def _weight(model: AMICL, trials: Trials, generator: Generator) -> float:
    """Σ over trials of the share of the last query's attention that is on the right label."""
    _, cache = model.run_with_cache(trials.inputs, generator=generator)
    pattern = cache["hook_pattern"][:, 0].abs()
    labels = pattern[:, 1:-1:2]  # of the pairs of the context
    return float(((labels * trials.right).sum(-1) / pattern.sum(-1)).sum())


def _rounded(matrix: Tensor) -> list[list[float]]:
    return [[round(float(x), 5) for x in row] for row in matrix]
