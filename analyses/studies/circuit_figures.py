"""Pictures of circuits. Every number in them is in the JSON beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path

from resval_lens.analyses.circuits.evaluation import EvaluatedCircuit
from resval_lens.analyses.drawing.circuit_layout import FONT, HEIGHT, Layout, curve, layout
from resval_lens.analyses.drawing.figures import STYLE, plain
from resval_lens.analyses.drawing.marks import tip
from resval_lens.analyses.studies.circuit_drawing import (
    INTO,
    PORTS,
    Drawing,
    Line,
    evaluated_drawings,
    lines,
    role_colours,
)
from resval_lens.numbers import number

LINK, LINK_AGAINST = "#D55E00", "#D0569B"
RESIDUAL, AGAINST = "#555555", "#8A63D2"
ENDS = {"q": "#0072B2", "k": "#1B9E77", "v": "#D55E00", "": RESIDUAL}
DASHED = (0, (5, 1.2))
"""Links are told apart without colour, too."""
MOST_DRAWN = 120
WIDEST, TITLE, LEGEND, GAP, INCH = 940.0, 44.0, 62.0, 26.0, 72.0
"""In CSS pixels: of pictures side by side, above and below them, between them; of an inch."""


@dataclass(frozen=True)
class Panel:
    """A circuit that is drawn: those lines of it, and where its boxes stand."""

    drawing: Drawing
    lines: Sequence[Line]
    few: bool
    layout: Layout


def circuits(named: Mapping[str, EvaluatedCircuit]) -> Figure:
    """:func:`side_by_side` of evaluated circuits by title."""
    return side_by_side(evaluated_drawings(named))


def side_by_side(drawings: Sequence[Drawing]) -> Figure:
    """Circuits, the input below and the logits above; links dashed and in their colour.

    The canvas grows with them. Of more than ``MOST_DRAWN`` edges the strongest are drawn, with
    their nodes, and the title says so.
    """
    panels = [_panel(each) for each in drawings]
    rows, colours = _wrapped(panels), role_colours(drawings)
    width = max(_width(row) for row in rows)
    heights = [max(each.layout.height for each in row) + TITLE for row in rows]
    height = sum(heights) + LEGEND
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(width / INCH, height / INCH))
        top = height
        for row, tall in zip(rows, heights, strict=True):
            left, top = 0.0, top - tall
            for each in row:
                own = each.layout
                bottom = top + tall - TITLE - own.height
                share = own.width / width, own.height / height
                axes = figure.add_axes((left / width, bottom / height, *share))
                _draw(axes, each, colours)
                left += own.width + GAP
        figure.legend(handles=_legend(panels, colours), loc="lower left", ncols=3, fontsize=10,
                      handlelength=2.6, columnspacing=1.4)  # fmt: skip
    return figure


def _panel(each: Drawing) -> Panel:
    weights = each.weights
    drawn = set(sorted(weights, key=lambda edge: -abs(weights[edge]))[:MOST_DRAWN])
    shown = [line for line in lines(each) if line.edge in drawn]
    few = len(drawn) < len(each.circuit.edges)
    touched = {node for line in shown for node in (line.source, line.target)}
    nodes = [node for node in each.circuit.nodes if not few or node in touched]
    return Panel(each, shown, few, layout(nodes))


def _width(row: Sequence[Panel]) -> float:
    return sum(each.layout.width for each in row) + GAP * (len(row) - 1)


def _wrapped(panels: Sequence[Panel]) -> list[list[Panel]]:
    """As many side by side as are no wider than a page."""
    rows: list[list[Panel]] = [[]]
    for each in panels:
        if rows[-1] and _width([*rows[-1], each]) > WIDEST:
            rows.append([])
        rows[-1].append(each)
    return rows


def _draw(axes: Axes, panel: Panel, colours: Mapping[str, str]) -> None:
    own, drawing = panel.layout, panel.drawing
    axes.set(xlim=(0, own.width), ylim=(own.height, 0))
    axes.axis("off")
    edges = len(drawing.circuit.edges)
    few = f"\nthe strongest {len({line.edge for line in panel.lines})} of {edges:,} edges"
    axes.set_title(drawing.title + few * panel.few, fontsize=12, parse_math=False)
    # The strongest on top.
    for line in sorted(panel.lines, key=lambda line: line.strength):
        _draw_line(axes, own, line)
    for row in own.rows:
        if row.isdecimal():
            axes.text(4, own.y(row), f"layer {row}", fontsize=11, va="center", color=RESIDUAL)
    for name, box in own.boxes.items():
        y, roles = own.y(box.row, box.raised), drawing.roles.get(name, ())
        face, edge = "#E8F1F8" if name[0] in "at" else "#F4F0E6", "#888888"
        if roles:
            edge = colours[roles[0]]
            red, green, blue = (0.28 * part + 0.72 for part in to_rgb(edge))
            face = to_hex((red, green, blue))
        axes.add_patch(
            FancyBboxPatch(
                (box.x - box.width / 2 + 3, y - HEIGHT / 2 + 3), box.width - 6, HEIGHT - 6,
                boxstyle="round,pad=3", fc=face, ec=edge, lw=2 if roles else 1, zorder=3,
            )
        )  # fmt: skip
        axes.text(box.x, y, name, ha="center", va="center_baseline", fontsize=FONT, zorder=4)


def _draw_line(axes: Axes, own: Layout, line: Line) -> None:
    """A curve, and at its end an arrow, or a bar where it works against the metric."""
    points = np.array(curve(own, line.source, line.target, line.port))
    along = points[3] - points[2]
    along /= np.linalg.norm(along)
    across = np.array([-along[1], along[0]])
    tip_, size = points[3].copy(), 7.0
    points[3] = tip_ - along * (2 if line.hurts else size)
    shade, dashes = _shade(line.link, line.hurts), DASHED if line.link else "-"
    arrow = PathPatch(
        Path(points, [Path.MOVETO, *[Path.CURVE4] * 3]), fill=False, ec=shade, ls=dashes,
        lw=0.9 + 3.1 * line.strength, alpha=0.4 + 0.6 * line.strength,
        zorder=2 if line.link else 1, capstyle="butt",
    )  # fmt: skip
    axes.add_patch(arrow)
    tip(arrow, line.text)
    wide = across * size * (0.75 if line.hurts else 0.6)
    back = along * (2.5 if line.hurts else size)
    corners = [tip_ - back + wide, tip_ - back - wide]
    corners += [tip_ - wide, tip_ + wide] if line.hurts else [tip_]
    axes.add_patch(Polygon(corners, fc=ENDS[line.port], ec="none", zorder=2.5))


def _shade(link: bool, hurts: bool) -> str:
    if link:
        return LINK_AGAINST if hurts else LINK
    return AGAINST if hurts else RESIDUAL


def _legend(panels: Sequence[Panel], colours: Mapping[str, str]) -> list[Line2D]:
    """What is there of kinds of lines, of ends, and of roles."""
    drawn = [line for each in panels for line in each.lines]
    found = []
    for link, name in ((False, "residual stream"), (True, "link")):
        for hurts in sorted({line.hurts for line in drawn if line.link == link}):
            label = f"{name}, against the metric (ends in a bar)" if hurts else name
            found.append(_sample(label, _shade(link, hurts), "_" * hurts, DASHED if link else "-"))
    found += [
        _sample(INTO[port], ENDS[port], "^", "none")
        for port in PORTS
        if any(line.port == port for line in drawn)
    ]
    return found + [_sample(role, colour, "s", "none") for role, colour in colours.items()]


def _sample(label: str, colour: str, marker: str, dashes: Iterable[object] | str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker or "none", ls=dashes, lw=2, label=label)


def attribution(title: str, components: Mapping[str, float]) -> Figure:
    """Direct logit attribution: the largest components, heads' values along links in colour.

    Args:
        components: mean shares in logits, by name.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.6, 5.2), layout="constrained")
        largest = sorted(components.items(), key=lambda item: -abs(item[1]))[:16]
        names, shares = zip(*reversed(largest), strict=True)
        shades = [LINK if " from " in name else RESIDUAL for name in names]
        bars = axes.barh(range(len(names)), shares, color=shades)
        for bar, name, share in zip(bars, names, shares, strict=True):
            tip(bar, f"{name}: {number(share)}")
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.axvline(0, color="#999999", lw=0.8)
        axes.set(title=plain(title), xlabel="share of the logit difference (logits)")
        if LINK in shades:
            axes.plot([], [], color=LINK, lw=5, label="along links")
            axes.plot([], [], color=RESIDUAL, lw=5, label="all else")
            axes.legend(loc="lower right")
    return figure
