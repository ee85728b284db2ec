"""Circuits that are searched for by running them: the fewest edges that are faithful enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.evaluation import check_gap, faithfulness
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.selection import Choice, Selection, selection_of
from resval_lens.analyses.results.result import OPTIONAL

EVERY = 512
"""In a graph of at most so many edges :func:`smallest` tries every size, from 1 up."""
GROWTH = math.sqrt(2)
"""In larger ones it tries sizes that grow by this factor."""
PARTS = 4
"""Between two of them it tries sizes that split the gap into so many parts, again and again."""
AT_ONCE = 16

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Tried:
    """How a circuit's size was found.

    Attributes:
        size: its edges before pruning.
        every_smaller_size_tried: whether every size from 1 up was tried; None of a size that was
            asked for, as all that follows.
        sizes: those tried, rising.
        faithfulness: f of each.
        gap: how far the circuit may be from the best of its size (:class:`.Choice`).
    """

    size: int
    every_smaller_size_tried: bool | None = field(default=None, metadata=OPTIONAL)
    sizes: tuple[int, ...] | None = field(default=None, metadata=OPTIONAL)
    faithfulness: tuple[float, ...] | None = field(default=None, metadata=OPTIONAL)
    gap: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Smallest:
    """What :func:`smallest` found, and what it tried.

    Attributes:
        circuit: the edges, pruned.
        size: how many there were before pruning.
        tried: faithfulness by size before pruning, of every size that was run; sizes rise.
        every: every size from 1 to ``size`` was tried, so none below is faithful enough. Else only
            those in ``tried`` were, ``size - 1`` among them.
        gap: how far the circuit may be from the best of its size (:class:`.Choice`).
    """

    circuit: Circuit
    size: int
    tried: dict[int, float]
    every: bool
    gap: float | None = None

    @property
    def search(self) -> Tried:
        """The search without its circuit."""
        sizes, found = tuple(self.tried), tuple(self.tried.values())
        return Tried(self.size, self.every, sizes, found, self.gap)


def smallest(
    runs: EdgeRuns,
    values: Float[Tensor, " edge"],
    min_faithfulness: float = 0.85,
    select: str | Selection = "top",
    progress: Progress = lambda done, most: None,
) -> Smallest:
    """The fewest edges that scores choose, pruned, at which f first reaches ``min_faithfulness``.

    f need not rise with size. In a graph of at most ``EVERY`` edges every size is tried, from 1 up,
    so that no circuit is missed. In a larger one sizes are tried coarse to fine: 1, 2, 3, 4, 6, 8,
    12, ... (``GROWTH``) up to the first that is faithful enough, then sizes between it and the one
    before, ever closer (``PARTS``), down to neighbours. The result is the smallest *of the sizes
    tried*, and with one edge less f is below ``min_faithfulness``; a smaller circuit in between can
    be missed where f rises and falls. It takes at most 3.5 log₂(edges) + 4 runs.

    Args:
        select: how they choose: a name of :data:`~.SELECTIONS`, or a selection itself.
        progress: called with how many sizes were tried, and how many may be at most.

    Raises:
        ValueError: an unknown selection, the gap between clean and corrupted vanishes, or no size
            that is tried reaches ``min_faithfulness``.
    """
    check_gap(runs)
    how, n_edges = selection_of(select), len(runs.graph)
    every = n_edges <= EVERY
    tried: dict[int, float] = {}
    chosen: dict[int, Choice] = {}

    def first(sizes: Sequence[int], most: int) -> int | None:
        """The first of rising sizes that is faithful enough."""
        at_once = AT_ONCE if every else 1
        for start in range(0, len(sizes), at_once):
            some = sizes[start : start + at_once]
            chosen.update({size: how.choose(runs.graph, values, size) for size in some})
            circuits = [chosen[size].circuit for size in some]
            for size, each in zip(some, faithfulness(runs, circuits), strict=True):
                assert each.value is not None
                tried[size] = each.value
                if each.value >= min_faithfulness:
                    return size
            progress(len(tried), most)
        return None

    grid = range(1, n_edges + 1) if every else _grid(n_edges)
    most = len(grid) if every else most_runs(n_edges)
    size = first(grid, most)
    if size is None:
        which = "" if every else f" of the {len(tried)} sizes tried"
        best = max(tried, key=lambda n: tried[n])
        raise ValueError(
            f"no circuit{which} has a faithfulness of {min_faithfulness}; "
            f"the most faithful, of {best:,} edges, has {tried[best]:.3f}"
        )
    below = max((n for n in tried if n < size), default=0)
    while size - below > 1:
        step = (size - below) / PARTS
        between = sorted({below + round(step * part) for part in range(1, PARTS)} - {below, size})
        found = first(between, most)
        size = size if found is None else found
        below = max(n for n in (*tried, below) if n < size)
    circuit, gap = chosen[size]
    return Smallest(circuit.pruned(), size, dict(sorted(tried.items())), every, gap)


def _grid(n_edges: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ..., up to every edge."""
    powers = range(math.ceil(math.log(n_edges, GROWTH)) + 1)
    return sorted({min(n_edges, math.ceil(GROWTH**power - 1e-9)) for power in powers} | {n_edges})


def most_runs(n_edges: int) -> int:
    """How many sizes :func:`smallest` tries at most in a graph of more than ``EVERY`` edges."""
    grid = _grid(n_edges)
    widest = max(after - before for before, after in pairwise(grid))
    return len(grid) + (PARTS - 1) * (1 + math.ceil(math.log(widest, PARTS)))
