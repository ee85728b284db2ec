"""Figure 8 of arXiv 2412.15113: right trials against the length of a sequence and dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table
from torch import Generator

from resval_lens.analyses.drawing.figures import STYLE, plt
from resval_lens.analyses.papers.amicl.counting import (
    COLOURS,
    SWEEP,
    Note,
    Share,
    both_readings,
    count,
    curve,
    digits,
    generators,
    share,
    table,
)
from resval_lens.analyses.papers.amicl.model import AMICL, AMICLConfig, PairTask
from resval_lens.analyses.papers.amicl.model.memory import Reading
from resval_lens.analyses.papers.amicl.theory import predicted
from resval_lens.analyses.results.result import FLAT, Result

LENGTHS = (10, 20, 40, 100, 200, 500, 1000)
DIMENSIONS = (10, 20, 30, 50, 70, 100, 200, 500, 1000)
PUBLISHED = {
    "length": "no variation in performance between 10 and 1,000",
    "d": "practically perfect from 50",
}


@dataclass(frozen=True)
class Point:
    """Right trials at one length, or number of dimensions, and P(right) in theory."""

    value: int
    found: Share = field(metadata=FLAT)
    predicted: float


@dataclass(frozen=True)
class Sizes:
    """Right trials against the length, and against the dimensions of a token."""

    length: list[Point]
    d: list[Point]


@dataclass(frozen=True)
class Figure8(Result):
    """Right trials against length s and dimensions d, dot product with argmax."""

    seed: int
    a: float
    task: PairTask
    trials: int
    readings: Mapping[Reading, Sizes]

    def to_dict(self) -> dict[str, Any]:
        """The fields, and what is published."""
        return {**super().to_dict(), "published": PUBLISHED}

    def tables(self) -> list[Table]:
        """One table a size, beside what is published."""
        tables = []
        for name, published, readings in self._panels("s, tokens", "d, dimensions"):
            made = table(
                f"Figure 8: a = {self.a:g}, dot product, argmax (95% interval)\n"
                f"published: {published}",
                [name, "theory\n(paper)", *readings],
                words=0,
            )
            for points in zip(*readings.values(), strict=True):
                cells = [str(point.found) for point in points]
                made.add_row(str(points[0].value), digits(points[0].predicted), *cells)
            tables.append(made)
        return tables

    def figures(self) -> dict[str, Figure]:
        """The length left, dimensions right."""
        with plt.rc_context(STYLE):
            figure, row = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
            panels = self._panels(
                "s, tokens of a sequence", "d, dimensions of a token (e in the paper)"
            )
            for axes, (name, published, readings) in zip(row, panels, strict=True):
                for reading, points in readings.items():
                    at, found = [p.value for p in points], [p.found for p in points]
                    curve(axes, at, found, COLOURS[reading], reading, marker="o")
                theory = [p.predicted for p in readings["paper"]]
                axes.plot(at, theory, color="#333333", lw=1, ls="--", label="theory (paper)")
                axes.set_xscale("log")
                axes.set(xlabel=name, ylim=(0, 1.04))
                axes.set_title(f"published: {published}", fontsize=9)
            row[0].set_ylabel(f"right of {self.trials:,} trials")
            row[1].legend(loc="lower right")
        return {"figure-8.png": figure}

    def _panels(self, length: str, d: str) -> list[tuple[str, str, Mapping[Reading, list[Point]]]]:
        return [
            (length, PUBLISHED["length"], {r: own.length for r, own in self.readings.items()}),
            (d, PUBLISHED["d"], {r: own.d for r, own in self.readings.items()}),
        ]


def figure_8(
    seed: int = 0,
    trials: int = 1_000,
    lengths: Sequence[int] = LENGTHS,
    dimensions: Sequence[int] = DIMENSIONS,
    task: PairTask = SWEEP,
    note: Note = lambda text: None,
) -> Figure8:
    """Share of right trials against length s and dimensions d, dot product with argmax, a = 2."""
    readings = {}
    for i, (reading, base) in enumerate(both_readings(task).items()):
        streams = iter(generators(seed * 2 + i, len(lengths) + len(dimensions)))
        by_length, by_d = [], []
        for n in lengths:
            note(f"figure 8: {reading}, length = {n}")
            by_length.append(_point(n, replace(base, length=n), trials, next(streams)))
        for n in dimensions:
            note(f"figure 8: {reading}, d = {n}")
            by_d.append(_point(n, replace(base, d=n), trials, next(streams)))
        readings[reading] = Sizes(by_length, by_d)
    return Figure8(seed, 2.0, task, trials, readings)


def _point(value: int, task: PairTask, trials: int, generator: Generator) -> Point:
    model = AMICL(AMICLConfig(reading=task.reading))
    (right,) = count([model], task, trials, generator)
    return Point(value, share(right, trials), predicted(2.0, task))
