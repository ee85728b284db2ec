"""The four cells: the same weights, run as either architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from resval_lens.analyses.results.result import Result, plain

T = TypeVar("T")


@dataclass(frozen=True)
class Cells(Result, Generic[T]):
    """{trained classic, trained with a stream} × {run without, run with}: what each does.

    Attributes:
        classic: trained and run without the stream.
        grafted: trained without it, run with it.
        removed: trained with it, run without it.
        stream: trained and run with it.
        trained: what the models with the stream are called.
    """

    classic: T
    grafted: T
    removed: T
    stream: T
    trained: str = field(default="with stream", kw_only=True)

    def by_way(self) -> Mapping[tuple[str, str], T]:
        """The cells by (trained, run)."""
        return {
            ("classic", "without"): self.classic,
            ("classic", "with"): self.grafted,
            (self.trained, "without"): self.removed,
            (self.trained, "with"): self.stream,
        }

    def to_dict(self) -> dict[str, Any]:
        """By name, such as "trained classic, run with"."""
        return {
            f"trained {trained}, run {run}": plain(cell)
            for (trained, run), cell in self.by_way().items()
        }
