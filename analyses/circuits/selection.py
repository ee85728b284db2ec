"""Every rule by which edges' scores become a circuit of a given size.

A selection is a class and one entry in ``SELECTIONS``; ``curve``, ``smallest``, ``circuit_study``,
the command line, its help and completion and the documentation's table take it from there. Nothing
here needs torch before edges are chosen.

A score below zero says that the edge helps the metric. Edges rank by |score| (``absolute``), so
that those that harm are kept, too, as faithfulness asks; or by −score (``helpful``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from resval_lens.analyses.circuits.circuit import Circuit
    from resval_lens.analyses.circuits.graph import Graph

Rank = Literal["absolute", "helpful"]


class Choice(NamedTuple):
    """A circuit that was chosen by scores.

    Attributes:
        gap: of one that is meant to be the best: by what share of it the best one's sum may be
            larger; 0: proved. None of other rules.
    """

    circuit: Circuit
    gap: float | None = None


class Selection(ABC):
    """How a circuit of at most so many edges is chosen by scores."""

    @property
    @abstractmethod
    def what(self) -> str:
        """Which edges it takes, in a line."""

    @abstractmethod
    def choose(self, graph: Graph, values: Float[Tensor, " edge"], n: int) -> Choice:
        """A circuit of ``n`` edges, or of fewer where the rule finds no more.

        Raises:
            ValueError: ``n`` below 1 or above the number of edges, other scores than the graph's.
        """


def _by(rank: Rank) -> str:
    return "|score|" if rank == "absolute" else "−score"


@dataclass(frozen=True)
class Top(Selection):
    """The edges that rank highest, on a way from the input to the logits or not."""

    rank: Rank = "absolute"

    @property
    def what(self) -> str:
        """The rank that is highest."""
        return f"the highest {_by(self.rank)}"

    def choose(self, graph: Graph, values: Float[Tensor, " edge"], n: int) -> Choice:
        """See :func:`~resval_lens.analyses.circuits.circuit.top_n`."""
        from resval_lens.analyses.circuits.circuit import top_n

        return Choice(top_n(graph, values, n, self.rank))


@dataclass(frozen=True)
class Greedy(Selection):
    """From the logits backwards: each time the edge of the highest rank that leads to them."""

    rank: Rank = "absolute"

    @property
    def what(self) -> str:
        """The rank that is highest, and where."""
        return f"from the logits back, the highest {_by(self.rank)} that leads into the circuit"

    def choose(self, graph: Graph, values: Float[Tensor, " edge"], n: int) -> Choice:
        """See :func:`~resval_lens.analyses.circuits.circuit.greedy`."""
        from resval_lens.analyses.circuits.circuit import greedy

        return Choice(greedy(graph, values, n, self.rank))


@dataclass(frozen=True)
class Ratio(Selection):
    """So large a share of edges that help the metric most; the others are those that harm it most.

    The positive/negative ratio of Nikankin et al. (2025), in our sign.
    """

    share: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie between 0 and 1; got {self.share}")

    @property
    def what(self) -> str:
        """The share."""
        return f"{self.share:.0%} that help most, {1 - self.share:.0%} that harm most"

    def choose(self, graph: Graph, values: Float[Tensor, " edge"], n: int) -> Choice:
        """See :func:`~resval_lens.analyses.circuits.circuit.by_ratio`."""
        from resval_lens.analyses.circuits.circuit import by_ratio

        return Choice(by_ratio(graph, values, n, self.share))


@dataclass(frozen=True)
class Optimum(Selection):
    """The largest sum of ranks that edges on ways from the input to the logits can have.

    Attributes:
        seconds: that the solver may take for a circuit.
    """

    rank: Rank = "absolute"
    seconds: float = 60.0

    @property
    def what(self) -> str:
        """The rank whose sum is largest."""
        return f"the largest sum of {_by(self.rank)} over paths from the input to the logits"

    def choose(self, graph: Graph, values: Float[Tensor, " edge"], n: int) -> Choice:
        """See :func:`~resval_lens.analyses.circuits.optimum.optimum`."""
        from resval_lens.analyses.circuits.optimum import optimum

        found = optimum(graph, values, n, self.rank, self.seconds)
        return Choice(found.circuit, found.gap)


SELECTIONS: dict[str, Selection] = {
    "top": Top(),
    "top-helpful": Top("helpful"),
    "greedy": Greedy(),
    "greedy-helpful": Greedy("helpful"),
    "ratio": Ratio(),
    "optimum": Optimum(),
    "optimum-helpful": Optimum("helpful"),
}
"""Every selection by its name, those of your own, too: ``SELECTIONS["half"] = Ratio(.5)``."""

COMPARED: dict[str, Selection] = {**SELECTIONS, "ratio-50": Ratio(0.5), "ratio-90": Ratio(0.9)}
"""Those that ``resval-lens selections`` compares: more ratios, too."""


def compared(seconds: float) -> dict[str, Selection]:
    """``COMPARED``, with so many seconds for an optimum."""
    return {
        name: replace(each, seconds=seconds) if isinstance(each, Optimum) else each
        for name, each in COMPARED.items()
    }


def selection_of(select: str | Selection) -> Selection:
    """The selection of that name; one that is given is itself.

    Raises:
        ValueError: there is none.
    """
    if isinstance(select, Selection):
        return select
    if select not in SELECTIONS:
        raise ValueError(f"select must be one of {', '.join(SELECTIONS)}; got {select!r}")
    return SELECTIONS[select]


def name_of(selection: Selection) -> str:
    """Its name in ``SELECTIONS``; of one that is not there, what its ``repr`` says."""
    return next((name for name, each in SELECTIONS.items() if each == selection), repr(selection))
