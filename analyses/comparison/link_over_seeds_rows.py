"""Rows of the study of the link over seeds: what was measured, and what was tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from resval_lens.analyses.results.result import FLAT
from resval_lens.analyses.results.seeds import Effect, Spread, TTests

LINKED = "values"
"""The kind of run whose links are edited; others stand beside it."""
GRADED_TASKS = ("ic", "ic2", "iw")
ByTask = Mapping[str, Spread]


@dataclass(frozen=True)
class Edited:
    """Accuracies of one kind of run under an edit at a moment, by task."""

    moment: str
    kind: str
    edit: str
    accuracy: ByTask


@dataclass(frozen=True)
class Degrees:
    """Accuracies on a task with something scaled from 1 to 0, as in ``GRADES``.

    Attributes:
        slope: of the least-squares line of accuracy on c, by seed.
        correlation: Pearson's r of accuracy and c, by seed; None where accuracy never changes.
    """

    moment: str
    kind: str
    scaled: str
    task: str
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    slope: Spread
    correlation: Spread


@dataclass(frozen=True)
class Recovered:
    """Accuracies before and after more steps with something removed, by task."""

    moment: str
    kind: str
    removed: str
    steps: int
    before: ByTask
    after: ByTask


@dataclass(frozen=True)
class Difference:
    """A difference paired by seed, and its tests within its table.

    Attributes:
        first, second: what is compared: the difference is first − second.
    """

    moment: str
    kind: str
    task: str
    first: str
    second: str
    difference: Spread
    effect: Effect
    tests: TTests = field(metadata=FLAT)


@dataclass(frozen=True)
class Course:
    """Mean and sd over seeds of accuracy in training, under one edit."""

    edit: str
    task: str
    step: tuple[int, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]
