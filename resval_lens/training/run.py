"""What every kind of training run has: ICLRun, LMRun, MemoryRun."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from resval_lens.training.loop import Progress
from resval_lens.transformer import ResValTransformer

Model = TypeVar("Model", bound=ResValTransformer, covariant=True)
Line = dict[str, Any]
"""A line of metrics."""


class Run(ABC, Generic[Model]):
    """What one training run is; equal runs give equal weights.

    Attributes:
        kind: for people, as in "no run of a language model".
        shipped: the folder, among the package's data, of the runs that ship.
        beside: names of JSON documents in a run's folder that belong to its record.
        name: of the variant, for people and folders.
        seed: draws all that is random.
        steps: of training.
        streams: of the model, in full.
    """

    kind: ClassVar[str]
    shipped: ClassVar[str]
    beside: ClassVar[tuple[str, ...]] = ()
    name: str
    seed: int
    steps: int
    streams: Any

    @property
    def folder_name(self) -> str:
        return f"{self.name}-seed{self.seed}"

    @property
    def last_step(self) -> int:
        """The step after which training ends."""
        return self.steps

    @property
    @abstractmethod
    def rank(self) -> tuple[Any, ...]:
        """What runs of one kind are ordered by."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""

    @classmethod
    @abstractmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""

    def is_evaluation(self, line: Line) -> bool:
        """Whether the model was measured at this line of metrics."""
        return True

    @abstractmethod
    def check_line(self, line: Line) -> None:
        """Raises ValueError, naming what it lacks, for an evaluation that is not whole."""

    @abstractmethod
    def load_model(self, folder: Path) -> Model:
        """A saved model of this kind."""


class TrainableRun(Run[Model]):
    """A run that needs nothing but a folder to be trained in."""

    @abstractmethod
    def headline(self, metrics: Line) -> str:
        """A snapshot's metrics in a few words."""

    @abstractmethod
    def train(
        self, folder: Path, progress: Progress, should_stop: Callable[[], bool], keep: bool
    ) -> object:
        """Trains in ``folder``; with ``keep`` every snapshot's weights stay."""


def place(name: str, order: list[str]) -> tuple[int, str]:
    """Where a variant stands among those of ``order``; others after them, by name."""
    return order.index(name) if name in order else len(order), name
