"""Faithfulness over circuit size, and areas that need no threshold (MIB, arXiv 2504.13151).

CPR           ∫ f(C_x) dx, C_x the highest-ranking share x of edges
CMD           ∫ |1 − f(C_x)| dx
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from torch import Tensor

from resval_lens.analyses.circuits.evaluation import Progress, faithfulness, vanishing_gap
from resval_lens.analyses.circuits.running import EdgeRuns, MeasuredBy
from resval_lens.analyses.circuits.selection import Selection, selection_of
from resval_lens.analyses.results.result import FLAT, OPTIONAL, Result

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of edges at which circuits are compared (MIB)."""


@dataclass(frozen=True)
class Curve(Result):
    """Faithfulness over circuit size.

    Attributes:
        fractions: shares of the model's edges.
        sizes: edges before pruning.
        faithfulness: f at each; None where invalid.
        cpr, cmd: areas by the trapezoid rule from the first share to the last; None where invalid.
        gaps: :attr:`~.Choice.gap` at each, of a selection that has one.
    """

    fractions: tuple[float, ...]
    sizes: tuple[int, ...]
    faithfulness: tuple[float | None, ...]
    cpr: float | None
    cmd: float | None
    reason: str | None
    measured_by: MeasuredBy = field(metadata=FLAT)
    gaps: tuple[float | None, ...] | None = field(default=None, metadata=OPTIONAL)


def curve(
    runs: EdgeRuns,
    values: Float[Tensor, " edge"],
    select: str | Selection = "top",
    fractions: Sequence[float] = FRACTIONS,
    sizes: Sequence[int] | None = None,
    progress: Progress = lambda done, total: None,
) -> Curve:
    """f of the circuit that scores choose at each share of all edges, or at each of ``sizes``
    instead.

    Args:
        select: how they choose: a name of :data:`~.SELECTIONS`, or a selection itself.

    Raises:
        ValueError: an unknown selection; shares that do not rise from above 0 to at most 1; sizes
            that do not rise from 1 or more to at most all edges.
    """
    shares, counts = shares_and_sizes(len(runs.graph), fractions, sizes)
    how = selection_of(select)
    chosen = [how.choose(runs.graph, values, size) for size in counts]
    gaps = tuple(each.gap for each in chosen)
    circuits = [each.circuit for each in chosen]
    found = [each.value for each in faithfulness(runs, circuits, progress)]
    reason = vanishing_gap(runs)
    cpr = cmd = None
    if reason is None:
        f = np.array(found, dtype=float)
        cpr, cmd = (float(np.trapezoid(y, shares)) for y in (f, np.abs(1 - f)))
    return Curve(
        tuple(shares),
        tuple(counts),
        tuple(found),
        cpr,
        cmd,
        reason,
        runs.measured_by,
        None if all(gap is None for gap in gaps) else gaps,
    )


def shares_and_sizes(
    n_edges: int, fractions: Sequence[float] = FRACTIONS, sizes: Sequence[int] | None = None
) -> tuple[list[float], list[int]]:
    """Shares of all edges and how many edges they are, 1 at least; of ``sizes``, where given.

    Raises:
        ValueError: as of :func:`curve`.
    """
    if sizes is not None:
        check_sizes(sizes, n_edges)
        return [size / n_edges for size in sizes], list(sizes)
    shares = list(fractions)
    if not shares or shares != sorted(set(shares)) or shares[0] <= 0 or shares[-1] > 1:
        raise ValueError(f"fractions must rise from above 0 to at most 1; got {fractions}")
    return shares, [max(1, round(share * n_edges)) for share in shares]


def check_sizes(sizes: Sequence[int], n_edges: int) -> None:
    """Raises ValueError for sizes that do not rise from 1 or more to at most ``n_edges``."""
    wanted = list(sizes)
    if not wanted or wanted != sorted(set(wanted)) or wanted[0] < 1 or wanted[-1] > n_edges:
        raise ValueError(
            f"sizes must rise from 1 or more to at most {n_edges}, all edges; got {wanted}"
        )
