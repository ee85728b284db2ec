"""Typed results: their document, and what a command does with one."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
from matplotlib.figure import Figure
from rich.table import Table

from resval_lens.analyses.cli.reporting import as_text, report
from resval_lens.analyses.results.result import FLAT, OPTIONAL, Result, plain


class Pair(NamedTuple):
    first: int
    second: dict[int, int]


@dataclass(frozen=True)
class Inner:
    head: tuple[int, int]


@dataclass(frozen=True)
class Study(Result):
    zebra: float
    apple: dict[int, Inner]

    def tables(self) -> list[Table | str]:
        return [f"zebra is {self.zebra}"]

    def sentences(self) -> list[str]:
        return ["it was found"]

    def figures(self) -> dict[str, Figure]:
        return {"study.svg": Figure()}


STUDY = Study(0.5, {3: Inner((1, 2))})


def test_the_document_has_the_fields_in_order_and_only_json_types() -> None:
    document = STUDY.to_dict()
    assert document == {"zebra": 0.5, "apple": {"3": {"head": [1, 2]}}}
    assert list(document) == ["zebra", "apple"]
    assert plain([STUDY, (None, "x", True), Pair(1, {2: 3})]) == [
        document,
        [None, "x", True],
        {"first": 1, "second": {"2": 3}},
    ]


def test_members_of_a_flat_field_stand_in_its_place_and_none_may_be_left_out() -> None:
    @dataclass(frozen=True)
    class Row:
        first: int
        inner: Inner = field(metadata=FLAT)
        named: dict[int, float] = field(metadata=FLAT)
        absent: int | None = field(default=None, metadata=OPTIONAL)
        last: int | None = None

    row = Row(1, Inner((2, 3)), {7: 0.5})
    document = {"first": 1, "head": [2, 3], "7": 0.5, "last": None}
    assert plain(row) == document
    assert list(plain(row)) == list(document)
    assert plain(Row(1, Inner((2, 3)), {}, absent=0))["absent"] == 0


@dataclass(frozen=True)
class Recorded(Result):
    rows: tuple[Inner, ...]
    pair: tuple[str, float]
    by_size: Mapping[int, float | None]
    number: float
    inner: Inner = field(metadata=FLAT)
    absent: int | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Named(Result):
    name: str
    numbers: Mapping[str, float] = field(metadata=FLAT)


def test_a_result_is_read_back_from_its_document() -> None:
    rows = Inner((1, 2)), Inner((3, 4))
    found = Recorded(rows, ("x", 0.5), {8: None, 9: 0.25}, 2.0, Inner((5, 6)))
    written = json.loads(as_text(found.to_dict()))
    assert Recorded.from_dict(written | {"unknown": 1}) == found
    assert Recorded.from_dict(written | {"absent": 3}).absent == 3
    assert math.isnan(Recorded.from_dict(written | {"number": None}).number)
    named = Named("a", {"b": 0.5, "c": 1.0})
    assert Named.from_dict(named.to_dict()) == named
    with pytest.raises(ValueError, match="Recorded: the document has no 'rows'"):
        Recorded.from_dict({})


def test_a_command_prints_and_writes_a_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(STUDY, tmp_path, "study", as_json=False)
    shown = capsys.readouterr().out
    assert "zebra is 0.5" in shown
    assert "• it was found" in shown
    assert (tmp_path / "study.svg").is_file()
    written = json.loads((tmp_path / "study.json").read_text())
    assert written.pop("provenance")
    assert written == {"found": ["it was found"], **STUDY.to_dict()}


def test_no_figure_is_drawn_where_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    class Undrawable(Study):
        def figures(self) -> dict[str, Figure]:
            raise AssertionError

    report(Undrawable(0.5, {}), None, "study", as_json=True)
    assert json.loads(capsys.readouterr().out)["zebra"] == 0.5
