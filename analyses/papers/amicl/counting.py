"""How often AMICL recalls the right label: trials are drawn, judged and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import scipy
import torch
from matplotlib.axes import Axes
from rich.table import Table
from torch import Generator, Tensor

from resval_lens.analyses.papers.amicl.model import (
    AMICL,
    READINGS,
    SEPARATIONS,
    SIMILARITIES,
    AMICLConfig,
    PairTask,
    Trials,
    exact,
)
from resval_lens.analyses.papers.amicl.model.memory import Reading
from resval_lens.analyses.results.tables import STYLE

Judge = Literal["exact", "euclidean", "cosine"]
"""What is right: the label to the last bit, or the nearest of the context by distance, by angle."""

SWEEP = PairTask(classes=50)  # what the authors swept over
FLOATS = 4_000_000  # of tokens held at a time
COLOURS = {"paper": "#0072B2", "notebook": "#D55E00"}


@dataclass(frozen=True)
class Share:
    """Right ones of ``trials``, with the Wilson 95% interval of their share (Wilson 1927).

    (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n),  z = 1.96
    """

    right: int
    trials: int
    share: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = map(digits, self.interval)
        return f"{digits(self.share)} [{low}, {high}]"


def share(right: int, trials: int) -> Share:
    """A count as a :class:`Share`."""
    interval = scipy.stats.binomtest(right, trials).proportion_ci(method="wilson")
    return Share(right, trials, right / trials, (float(interval.low), float(interval.high)))


def batches(
    task: PairTask, trials: int, generator: Generator, dtype: torch.dtype = torch.float32
) -> Iterator[Trials]:
    """``trials`` trials in parts that fit in memory.

    Raises:
        ValueError: no trials.
    """
    if trials < 1:
        raise ValueError(f"trials must be 1 or more; got {trials}")
    most = max(1, FLOATS // (task.d * max(task.length, min(task.n_families, task.n_pairs))))
    for start in range(0, trials, most):
        yield task.draw(min(most, trials - start), generator, dtype)


@torch.no_grad()
def count(
    models: Sequence[AMICL],
    task: PairTask,
    trials: int,
    generator: Generator,
    judge: Callable[[Tensor, Trials], Tensor] = exact,
) -> list[int]:
    """How many of ``trials`` each model gets right; all of them see the same trials."""
    right = [0] * len(models)
    for drawn in batches(task, trials, generator):
        for i, model in enumerate(models):
            right[i] += int(judge(model(drawn.inputs, generator=generator), drawn).sum())
    return right


def generators(seed: int, n: int) -> list[Generator]:
    """``n`` independent streams of a seed, one for each point of a curve."""
    states = np.random.SeedSequence(seed).generate_state(n, np.uint64)
    return [torch.Generator().manual_seed(int(state >> np.uint64(1))) for state in states]


def both_readings(task: PairTask) -> dict[Reading, PairTask]:
    """The task in each reading; refused before any work if one of them cannot draw it."""
    return {reading: replace(task, reading=reading) for reading in READINGS}


def every_combination(a: float, reading: Reading, temperature: float = 1.0) -> list[AMICLConfig]:
    """Every similarity with every separation."""
    return [
        AMICLConfig(a, similarity, separation, temperature, reading)
        for similarity in SIMILARITIES
        for separation in SEPARATIONS
    ]


def digits(x: float) -> str:
    """Three decimals, without the zero before the point."""
    return f"{x:.3f}".removeprefix("0")


def table(title: str, columns: Sequence[str], words: int = 1) -> Table:
    """A table whose first ``words`` columns are words and the others numbers."""
    made = Table(title=title, pad_edge=False, collapse_padding=True, **STYLE)
    for i, name in enumerate(columns):
        made.add_column(name, justify="left" if i < words else "right", no_wrap=True)
    return made


def curve(
    axes: Axes, at: Any, points: Sequence[Share], shade: str, label: str, marker: str = ""
) -> None:
    """Shares with their 95% intervals as a band."""
    low, high = np.array([point.interval for point in points]).T
    if len(points) > 1:
        axes.fill_between(at, low, high, color=shade, alpha=0.2, lw=0)
    else:
        axes.vlines(at, low, high, color=shade, alpha=0.4)
    shares = [point.share for point in points]
    axes.plot(at, shares, color=shade, lw=1.6, label=label, marker=marker, ms=4)
