"""Typed results: their document, and what a command does with one."""

import io
import json
import math
from collections.abc import Mapping
from csv import reader
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import pytest
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from resval_lens.analyses.cli.reporting import as_text, report
from resval_lens.analyses.results.result import FLAT, OPTIONAL, Result, plain
from resval_lens.analyses.results.tables import p_cell, p_told, table

T = TypeVar("T")


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


@dataclass(frozen=True)
class Two(Generic[T]):
    first: T
    second: T


@dataclass(frozen=True)
class Twos(Result):
    numbers: Two[float]
    rows: Two[list[Inner]]
    listed: list[Inner]


def test_lists_and_generic_members_are_read_back() -> None:
    found = Twos(Two(0.5, 1.0), Two([Inner((1, 2))], []), [Inner((3, 4))])
    assert Twos.from_dict(json.loads(as_text(found.to_dict()))) == found
    unknown = {**found.to_dict(), "numbers": {"first": None, "second": 1}}
    assert math.isnan(Twos.from_dict(unknown).numbers.first)


class Tabled(Study):
    def tables(self) -> list[Table | str]:
        shown = table("Heads\nof layer 1", ["head", "kind"], ["score", "more, or\nless"], [
            ("[bold]one[/bold]",),
            ("a0.h1", "x", "0.25", "1,234"),
            ("", "y, z", "-1", ""),
            ("[bold]other[/bold]",),
            ("[bold]a0.h1[/bold] (link)", "\\[q]", "1e-3", "0.5 ± 0.1"),
        ])  # fmt: skip
        plain_one = table("", ["name"], ["n"], [("a", "1"), ("b", "")])
        return [shown, "a line", plain_one]


TABLED = Tabled(0.5, {})


def test_tables_are_csv() -> None:
    first, second = TABLED.csv()
    assert list(reader(first.splitlines())) == [
        ["group", "head", "kind", "score", "more, or less"],
        ["one", "a0.h1", "x", "0.25", "1,234"],
        ["one", "a0.h1", "y, z", "-1", ""],
        ["other", "a0.h1 (link)", "[q]", "1e-3", "0.5 ± 0.1"],
    ]
    assert second == "name,n\na,1\nb,\n"
    assert STUDY.csv() == []


def test_tables_are_data_frames() -> None:
    first, second = TABLED.frames()
    assert first.attrs["title"] == "Heads of layer 1"
    assert list(first.columns) == ["group", "head", "kind", "score", "more, or less"]
    assert first["score"].tolist() == [0.25, -1.0, 0.001]
    assert first["more, or less"].tolist() == ["1,234", "", "0.5 ± 0.1"]  # not all are numbers
    assert first["head"].tolist() == ["a0.h1", "a0.h1", "a0.h1 (link)"]
    assert second["n"].iloc[0] == 1
    assert math.isnan(second["n"].iloc[1])


@pytest.mark.parametrize(
    "name", ["own-2", "v(mix=pair, own=0.7071067811865476, carried=0.7071067)"]
)
def test_names_of_any_length_leave_a_terminal_room_for_numbers(name: str) -> None:
    words, numbers = ("prompts", "", "model"), ("steps", "p")
    shown = table(
        "", words, numbers, [("unseen", "step: accuracy > 0.95", name, "1,365 ± 57", ".02")]
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(shown)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("1,365 ± 57" in line and ".02" in line for line in lines)


def test_a_command_writes_its_tables_as_csv(tmp_path: Path) -> None:
    report(TABLED, tmp_path, "study", as_json=True)
    first, second = TABLED.csv()
    assert (tmp_path / "study-1.csv").read_text() == first
    assert (tmp_path / "study-2.csv").read_text() == second
    report({}, tmp_path, "alone", as_json=True, tables=["a line", TABLED.tables()[2]])
    assert (tmp_path / "alone.csv").read_text() == second
    assert {path.name for path in tmp_path.glob("*.csv")} == {
        "study-1.csv", "study-2.csv", "alone.csv",
    }  # fmt: skip


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


@pytest.mark.parametrize(
    ("p", "cell", "told"),
    [
        (1.0, "1", "p = 1"), (0.99951, "1", "p = 1"), (0.9994, ".999", "p = .999"),
        (0.05, ".050", "p = .050"), (0.0125, ".013", "p = .013"), (0.00099, ".0010", "p = .0010"),
        (0.00082, ".0008", "p = .0008"), (1e-4, ".0001", "p = .0001"),
        (9e-5, "<.0001", "p < .0001"), (0.0, "<.0001", "p < .0001"), (None, "", "no test"),
    ],
)  # fmt: skip
def test_p_values_are_told_in_one_way(p: float | None, cell: str, told: str) -> None:
    assert (p_cell(p), p_told(p)) == (cell, told)
