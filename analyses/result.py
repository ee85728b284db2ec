"""What every study returns: a frozen dataclass that is written as JSON and shown to people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


FLAT = {"flat": True}
"""Metadata of a field whose own members stand in its place: ``field(metadata=FLAT)``."""
OPTIONAL = {"optional": True}
"""Metadata of a field that is left out where it is None."""


@dataclass(frozen=True)
class Result:
    """Base of what studies return: its fields are what was found, in the order of the document.

    A study overrides what it has: ``tables`` for a terminal, ``sentences`` that say what was found,
    ``figures`` by file name.
    """

    def to_dict(self) -> dict[str, Any]:
        """The JSON document: :func:`plain` of every field."""
        return dict(_members(self))

    def tables(self) -> Sequence[Table | str]:
        """Tables, or lines of text between them."""
        return ()

    def sentences(self) -> Sequence[str]:
        """What was found, a sentence each."""
        return ()

    def figures(self) -> Mapping[str, Figure]:
        """Pictures by file name."""
        return {}


def plain(value: Any) -> Any:
    """``value`` in JSON's types: dataclasses and named tuples are dicts, keys are text."""
    if isinstance(value, Result):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return dict(_members(value))
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    for field in fields(value):
        own = plain(getattr(value, field.name))
        if field.metadata.get("flat"):
            yield from own.items()
        elif own is not None or not field.metadata.get("optional"):
            yield field.name, own
