"""Every similarity with every separation: how often does AMICL recall the label?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from rich.table import Table
from torch import Generator

from resval_lens.analyses.papers.amicl.counting import (
    Judge,
    Note,
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
from resval_lens.analyses.results.result import FLAT, Result


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
