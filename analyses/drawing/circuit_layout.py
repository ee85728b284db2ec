"""Where a circuit's boxes stand, in pictures and on pages: the input below, the logits above.

A layer is a row, its heads in columns by their number, its MLP half a row higher in a column of its
own at the right; a value link is then a straight line. The canvas grows with the content. Lengths
are CSS pixels, y grows downwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

ROW, HEIGHT, LETTER, FONT = 78.0, 26.0, 7.4, 12.5
LABELS, ARCS, MARGIN = 66.0, 74.0, 14.0
"""Room at the left for the layers' names, and at the right for what arcs around the MLPs."""
MOST_COLUMNS = 16
"""Where heads of more numbers than these are drawn, those of a layer stand together."""
NAME = re.compile(r"(?P<kind>[am])(?P<layer>\d+)(?:\.h(?P<head>\d+))?|t\.h(?P<table>\d+)")


@dataclass(frozen=True)
class Box:
    """A node: the middle of its box, and how wide that is.

    Attributes:
        row: ``"input"``, ``"t"`` (tables), a layer's number, or ``"logits"``.
        raised: whether it stands half a row above it, as MLPs do.
    """

    x: float
    width: float
    row: str
    raised: bool = False


@dataclass(frozen=True)
class Layout:
    """Boxes by name, from the input to the logits.

    Attributes:
        rows: those that have a box, from below.
        gutter: the room from the middle of a column to beside it.
        heads: where the columns of heads begin and end.
    """

    boxes: Mapping[str, Box]
    rows: tuple[str, ...]
    gutter: float
    heads: tuple[float, float]
    width: float

    @property
    def height(self) -> float:
        """Of the whole picture."""
        return (len(self.rows) - 1) * ROW + HEIGHT + 2 * MARGIN

    def y(self, row: str, raised: bool = False) -> float:
        """The middle of a box in this row."""
        above = len(self.rows) - 1 - self.rows.index(row) - raised / 2
        return MARGIN + HEIGHT / 2 + above * ROW


def layout(nodes: Sequence[str]) -> Layout:
    """A place for each of a circuit's nodes, for the input and for the logits.

    Raises:
        ValueError: a name that no node of a circuit has.
    """
    rows: dict[str, list[tuple[int, str]]] = {}
    mlps: list[str] = []
    for name in nodes:
        if name in ("input", "logits"):
            continue
        row, head = _place(name)
        rows.setdefault(row, [])
        if head is None:
            mlps.append(name)
        else:
            rows[row].append((head, name))
    names = [name for row in rows.values() for _, name in row]
    width = max((_width(name) for name in (*names, *mlps)), default=60.0)
    columns = _columns(rows.values())
    left, pitch = LABELS, width + 14
    right = left + pitch * (1 + max(columns.values(), default=-1))
    boxes = {
        name: Box(left + (columns[name] + 0.5) * pitch, width, row)
        for row, heads in rows.items()
        for _, name in heads
    }
    end = right
    if mlps:
        boxes |= {name: Box(right + pitch / 2, width, name[1:], True) for name in mlps}
        end = right + pitch
    end = max(end, left + pitch)
    middle, span = (left + end) / 2, end - left - 8
    order = sorted(rows, key=lambda row: -1 if row == "t" else int(row))
    return Layout(
        {"input": Box(middle, span, "input"), **boxes, "logits": Box(middle, span, "logits")},
        ("input", *order, "logits"),
        pitch / 2,
        (left, max(right, left + pitch)),
        end + (ARCS if mlps else MARGIN),
    )


def _place(name: str) -> tuple[str, int | None]:
    """The row and the head's number, None of an MLP."""
    found = NAME.fullmatch(name)
    if found is None or (found["kind"] == "a") != (found["head"] is not None):
        raise ValueError(f"a circuit has no node {name!r}; expected one like a1.h2, m1 or t.h2")
    if found["table"] is not None:
        return "t", int(found["table"])
    return found["layer"], None if found["head"] is None else int(found["head"])


def _columns(rows: Iterable[Sequence[tuple[int, str]]]) -> dict[str, float]:
    """The column of each head: its number among those that there are; of many, side by side."""
    rows = [sorted(row) for row in rows]
    numbers = sorted({head for row in rows for head, _ in row})
    if len(numbers) <= MOST_COLUMNS:
        return {name: float(numbers.index(head)) for row in rows for head, name in row}
    most = max(map(len, rows))
    return {
        name: place + (most - len(row)) / 2
        for row in rows
        for place, (_, name) in enumerate(row)
    }  # fmt: skip


def _width(name: str) -> float:
    return LETTER * len(name) + 16


SIDES = {"q": -0.3, "k": 0.0, "v": 0.3}
"""Where queries, keys and values enter a box, as a share of its width."""
Point = tuple[float, float]


def curve(of: Layout, source: str, target: str, port: str) -> tuple[Point, Point, Point, Point]:
    """An edge as a cubic Bézier curve, from above a box to below another.

    One that would run through boxes of its own column runs beside them.
    """
    start, end = of.boxes[source], of.boxes[target]
    x, to = _towards(start, end.x), _towards(end, start.x) + SIDES.get(port, 0.0) * end.width
    y, bottom = (of.y(box.row, box.raised) for box in (start, end))
    y, bottom = y - HEIGHT / 2, bottom + HEIGHT / 2
    rise, aside = y - bottom, 0.0
    steep = max(12.0, min(rise * 0.4, 70.0))
    if abs(to - x) < of.gutter and rise > 0.75 * ROW:
        steep = rise / 4
        if start.raised and end.raised:
            aside = end.width / 2 + 6 + min(rise * 0.03, ARCS - 20)
        else:  # lines of different lengths do not cover each other
            aside = of.gutter + 2 * (rise / ROW % 4 - 1.5)
            aside *= 1 if port in ("k", "v") else -1
        aside /= 0.75  # a curve goes three quarters of the way to its control points
    return (x, y), (x + aside, y - steep), (to + aside, bottom + steep), (to, bottom)


def _towards(box: Box, x: float) -> float:
    """Where a line leaves or enters: of the wide boxes of input and logits as near as it can."""
    if box.row not in ("input", "logits"):
        return box.x
    room = max(box.width / 2 - 12, 0.0)
    return min(max(x, box.x - room), box.x + room)
