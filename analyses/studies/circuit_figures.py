"""Pictures of circuits. Every number in them is in the JSON beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from resval_lens.analyses.circuits.circuit import NamedCircuit
from resval_lens.analyses.circuits.evaluation import EvaluatedCircuit
from resval_lens.analyses.drawing.figures import STYLE, plain
from resval_lens.analyses.drawing.marks import tip
from resval_lens.hooks.links import Link
from resval_lens.numbers import number

LINK = "#D55E00"
RESIDUAL = "#555555"
DASHED = (0, (5, 1.2))
"""Links are told apart without colour, too."""
MOST_DRAWN = 120
LINKS = {"q": "query link", "k": "key link", "v": "value link"}


@dataclass(frozen=True)
class Drawing:
    """A circuit, how strong its edges are drawn, and what these numbers are called."""

    title: str
    circuit: NamedCircuit
    weights: Mapping[str, float]
    weight: str


def evaluated_drawings(named: Mapping[str, EvaluatedCircuit]) -> list[Drawing]:
    """Circuits by title, each edge as strong as what the metric loses without it."""
    loss = "the metric's loss without it"
    return [Drawing(name, each, each.minimality, loss) for name, each in named.items()]


def circuits(named: Mapping[str, EvaluatedCircuit]) -> Figure:
    """:func:`side_by_side` of evaluated circuits by title."""
    return side_by_side(evaluated_drawings(named))


def side_by_side(drawings: Sequence[Drawing]) -> Figure:
    """Circuits, the input below and the logits above; links in colour.

    Of more than ``MOST_DRAWN`` edges the strongest are drawn, with their nodes, and the title says
    so.
    """
    with plt.rc_context(STYLE):
        drawn = [_strongest(each) for each in drawings]
        rows = [
            _rows(_nodes(each.circuit, shown)) for each, shown in zip(drawings, drawn, strict=True)
        ]
        # Room for deep and for wide models: a name is about 0.3 inches high and 0.6 wide.
        height = max(5.6, *(0.33 * len(own) for own in rows))
        width = max(4.4, *(0.72 * len(names) for own in rows for names in own))
        figure, row = plt.subplots(
            1, len(drawings), figsize=(width * len(drawings), height), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for axes, each, shown in zip(row[0], drawings, drawn, strict=True):
            edges = each.circuit.edges
            _draw(axes, each.circuit, shown, each.weight)
            few = f"\n{len(shown)} of {len(edges):,} edges" if len(shown) < len(edges) else ""
            axes.set_title(each.title + few, fontsize=9, parse_math=False)
        if any(each.circuit.links for each in drawings):
            row[0, 0].plot([], [], color=LINK, lw=2, ls=DASHED, label="link")
        row[0, 0].plot([], [], color=RESIDUAL, lw=2, label="residual stream")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _strongest(each: Drawing) -> dict[str, float]:
    """The edges that are drawn, with their weights."""
    weights = each.weights
    drawn = set(sorted(weights, key=lambda edge: -abs(weights[edge]))[:MOST_DRAWN])
    return {edge: weights[edge] for edge in each.circuit.edges if edge in drawn}


def _nodes(circuit: NamedCircuit, drawn: Mapping[str, float]) -> list[str]:
    """Every node; where not every edge is drawn those of the edges that are."""
    if len(drawn) == len(circuit.edges):
        return list(circuit.nodes)
    ends = {end for edge in drawn for end in edge.split("->")}
    own = {name for end in ends for name in circuit.groups.get(end, (end.split("<")[0],))}
    return [name for name in circuit.nodes if name in own | {"input", "logits"}]


def _draw(axes: Axes, circuit: NamedCircuit, weights: Mapping[str, float], weight: str) -> None:
    places = _places(_nodes(circuit, weights))
    largest = max((abs(value) for value in weights.values()), default=1.0) or 1.0
    for edge in weights:
        source, target = edge.split("->")
        worth = abs(weights[edge]) / largest
        shade = LINK if edge in circuit.links else RESIDUAL
        # A key-value head is drawn as the heads that share it.
        readers = circuit.groups.get(target, (target.split("<")[0],))
        writers = circuit.groups.get(source, (source.split("<")[0],))
        writers = writers if len(writers) == len(readers) else writers * len(readers)
        for writer, reader in zip(writers, readers, strict=True):
            end, gap = places[reader], 13
            if target.endswith(">"):  # q, k and v side by side under the head that reads them
                end = end[0] + {"q": -0.13, "k": 0.0, "v": 0.13}[target[-2]], end[1] - 0.24
                gap = 5
                axes.text(*end, target[-2], fontsize=7, ha="center", va="center", zorder=3)
            arrow = _arrow(axes, places[writer], end, gap, shade, worth)
            kind = LINKS[Link.parse(edge).stream] if edge in circuit.links else "residual stream"
            tip(arrow, f"{edge} ({kind}): {weight} {number(weights[edge])}")
    for name, (x, y) in places.items():
        face = "#E8F1F8" if name.startswith("a") else "#F4F0E6"
        axes.text(x, y, name, ha="center", va="center", fontsize=9, zorder=3,
                  bbox={"boxstyle": "round,pad=0.35", "fc": face, "ec": "#888888"})  # fmt: skip
    ys = [y for _, y in places.values()]
    axes.set(xlim=(-1.25, 1.25), ylim=(min(ys) - 0.5, max(ys) + 0.5))
    axes.axis("off")


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    gap: float,
    shade: str,
    worth: float,
) -> FancyArrowPatch:
    """An arrow that ends ``gap`` points before ``end``."""
    arrow = FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=9, shrinkA=13, shrinkB=gap,
        connectionstyle=f"arc3,rad={_bend(start, end)}", color=shade,
        alpha=0.35 + 0.65 * worth, lw=0.8 + 2.4 * worth, zorder=2 if shade == LINK else 1,
        ls=DASHED if shade == LINK else "-",
    )  # fmt: skip
    axes.add_patch(arrow)
    return arrow


def _places(nodes: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Heads of a layer side by side, its MLP above them."""
    places = {}
    for y, names in enumerate(_rows(nodes)):
        width = min(1.0, 0.45 * (len(names) - 1))
        for x, name in zip(np.linspace(-width, width, len(names)), names, strict=True):
            shift = 0.0 if len(names) > 1 or name in ("input", "logits") else (-1) ** y * 0.35
            places[name] = (float(x) + shift, float(y))
    return places


def _rows(nodes: Sequence[str]) -> list[list[str]]:
    """Nodes from below: those of a layer's attention, its MLP, ..."""
    rows: dict[str, list[str]] = {}
    for name in nodes:
        rows.setdefault(name.split(".")[0], []).append(name)
    return list(rows.values())


def _bend(start: tuple[float, float], end: tuple[float, float]) -> float:
    """Arrows over several rows swing around what lies between, no wider over many."""
    rows = round(end[1] - start[1])
    return (
        0.0 if rows <= 1 else 0.12 * min(rows, 4, 48 / rows) * (1 if end[0] + start[0] >= 0 else -1)
    )


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
