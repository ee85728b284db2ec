"""What every study returns: a frozen dataclass that is written as JSON and shown to people."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import MappingProxyType, NoneType
from typing import TYPE_CHECKING, Any, Self, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
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

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """The result whose document it is; entries that no field has are passed over.

        Raises:
            ValueError: the document lacks a field.
        """
        found: Self = restored(cls, document)
        return found

    def tables(self) -> Sequence[Table | str]:
        """Tables, or lines of text between them."""
        return ()

    def frames(self) -> list[DataFrame]:
        """The tables as pandas data frames, as shown: rounded; :meth:`to_dict` has full numbers."""
        from resval_lens.analyses.results.tables import as_frame

        return [as_frame(table) for table in self.tables() if not isinstance(table, str)]

    def csv(self) -> list[str]:
        """The tables as CSV, as shown: rounded; :meth:`to_dict` has full numbers."""
        from resval_lens.analyses.results.tables import as_csv

        return [as_csv(table) for table in self.tables() if not isinstance(table, str)]

    def sentences(self) -> Sequence[str]:
        """What was found, a sentence each."""
        return ()

    def figures(self) -> Mapping[str, Figure]:
        """Pictures by file name."""
        return {}


def plain(value: Any) -> Any:
    """``value`` in JSON's types: dataclasses and named tuples are dicts, tensors are lists."""
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
    return value.tolist() if hasattr(value, "tolist") else value


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    for field in fields(value):
        own = plain(getattr(value, field.name))
        if field.metadata.get("flat"):
            yield from own.items()
        elif own is not None or not field.metadata.get("optional"):
            yield field.name, own


def restored(kind: Any, value: Any) -> Any:
    """What :func:`plain` made ``value`` of, ``kind`` being its type; null is NaN for a number."""
    inner, origin = get_args(kind), get_origin(kind)
    if is_dataclass(kind):
        return _restored(kind, value)
    if isinstance(origin, type) and is_dataclass(origin):  # HeadScores[float]
        return _restored(
            origin, value, dict(zip(kind.__origin__.__parameters__, inner, strict=True))
        )
    if NoneType in inner:
        return None if value is None else restored(inner[0], value)
    if origin is list:
        return [restored(inner[0], item) for item in value]
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        return tuple(restored(each, item) for each, item in zip(kinds, value, strict=True))
    if origin is Mapping:
        return {restored(inner[0], key): restored(inner[1], item) for key, item in value.items()}
    if kind is float and value is None:
        return math.nan
    return int(value) if kind is int else value


def _restored(
    kind: Any, document: Mapping[str, Any], parameters: Mapping[Any, Any] = MappingProxyType({})
) -> Any:
    """``parameters``: what the type variables of its fields stand for."""
    hints = {name: parameters.get(hint, hint) for name, hint in get_type_hints(kind).items()}
    found = {}
    for field in fields(kind):
        if field.metadata.get("flat"):
            known = {each.name for each in fields(kind)}
            rest = {name: value for name, value in document.items() if name not in known}
            found[field.name] = restored(hints[field.name], rest)
        elif field.name in document:
            found[field.name] = restored(hints[field.name], document[field.name])
        elif field.default is MISSING:
            raise ValueError(f"{kind.__name__}: the document has no {field.name!r}")
    return kind(**found)
