"""Pictures of circuits. Every number in them is in the JSON beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from resval_lens.analyses.figures import STYLE, colour, per_row, plain
from resval_lens.analyses.marks import points, tip
from resval_lens.numbers import number

LINK = "#D55E00"
RESIDUAL = "#555555"
DASHED = (0, (5, 1.2))
"""Links are told apart without colour, too."""
MOST_DRAWN = 120
LINKS = {"q": "query link", "k": "key link", "v": "value link"}


def circuits(entries: Sequence[Mapping[str, Any]]) -> Figure:
    """Circuits side by side, the input below and the logits above; links in colour.

    Args:
        entries: with ``title`` and ``circuit`` (of ``circuits.evaluation.evaluate``), whose edges
            are as strong as what the metric loses without them; or as ``weights``, {edge: weight},
            and ``weight``, what that is. Of more than ``MOST_DRAWN`` the strongest are drawn, and
            the title says so.
    """
    with plt.rc_context(STYLE):
        figure, row = plt.subplots(
            1, len(entries), figsize=(4.4 * len(entries), 5.6), squeeze=False, layout="constrained"
        )
        for axes, entry in zip(row[0], entries, strict=True):
            circuit = entry["circuit"]
            weights = entry.get("weights", circuit.get("minimality"))
            drawn = sorted(weights, key=lambda edge: -abs(weights[edge]))[:MOST_DRAWN]
            shown = {edge: weights[edge] for edge in circuit["edges"] if edge in set(drawn)}
            _draw(axes, circuit, shown, entry.get("weight", "the metric's loss without it"))
            fewer = len(shown) < len(circuit["edges"])
            few = f"\n{len(shown)} of {len(circuit['edges']):,} edges" if fewer else ""
            axes.set_title(entry["title"] + few, fontsize=9, parse_math=False)
        row[0, 0].plot([], [], color=LINK, lw=2, ls=DASHED, label="link")
        row[0, 0].plot([], [], color=RESIDUAL, lw=2, label="residual stream")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _draw(
    axes: Axes, circuit: Mapping[str, Any], weights: Mapping[str, float], weight: str
) -> None:
    nodes: list[str] = circuit["nodes"]
    places = _places(nodes)
    largest = max((abs(value) for value in weights.values()), default=1.0) or 1.0
    groups = circuit["groups"]
    for edge in weights:
        source, target = edge.split("->")
        worth = abs(weights[edge]) / largest
        shade = LINK if edge in circuit["links"] else RESIDUAL
        # A key-value head is drawn as the heads that share it.
        readers = groups.get(target, [target.split("<")[0]])
        writers = groups.get(source, [source.split("<")[0]])
        writers = writers if len(writers) == len(readers) else writers * len(readers)
        for writer, reader in zip(writers, readers, strict=True):
            end, gap = places[reader], 13
            if target.endswith(">"):  # q, k and v side by side under the head that reads them
                end = end[0] + {"q": -0.13, "k": 0.0, "v": 0.13}[target[-2]], end[1] - 0.24
                gap = 5
                axes.text(*end, target[-2], fontsize=7, ha="center", va="center", zorder=3)
            arrow = _arrow(axes, places[writer], end, gap, shade, worth)
            kind = LINKS[source[-2]] if edge in circuit["links"] else "residual stream"
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
    rows: dict[str, list[str]] = {}
    for name in nodes:
        rows.setdefault(name.split(".")[0], []).append(name)
    places = {}
    for y, names in enumerate(rows.values()):
        width = min(1.0, 0.45 * (len(names) - 1))
        for x, name in zip(np.linspace(-width, width, len(names)), names, strict=True):
            shift = 0.0 if len(names) > 1 or name in ("input", "logits") else (-1) ** y * 0.35
            places[name] = (float(x) + shift, float(y))
    return places


def _bend(start: tuple[float, float], end: tuple[float, float]) -> float:
    """Arrows over several rows swing around what lies between."""
    rows = round(end[1] - start[1])
    return 0.0 if rows <= 1 else 0.12 * min(rows, 4) * (1 if end[0] + start[0] >= 0 else -1)


def faithfulness(entries: Sequence[Mapping[str, Any]]) -> Figure:
    """Faithfulness against circuit size: a panel for each task, a line for each model.

    Args:
        entries: of ``circuit_compare``.
    """
    tasks = list(dict.fromkeys(entry["task"] for entry in entries))
    with plt.rc_context(STYLE):
        columns = per_row(len(tasks))
        lines = -(-len(tasks) // columns)
        figure, grid = plt.subplots(
            lines, columns, figsize=(4 * columns, 3.2 * lines), squeeze=False, sharey=True,
            layout="constrained",
        )  # fmt: skip
        for axes in grid.flat[len(tasks) :]:
            axes.axis("off")
        seen: set[str] = set()
        for axes, task in zip(grid.flat, tasks, strict=False):
            own = [entry for entry in entries if entry["task"] == task]
            for entry in own:
                curve, name = entry["study"]["curve"], entry["architecture"]
                axes.plot(
                    curve["sizes"], curve["faithfulness"], "o-", color=colour(name), ms=3,
                    label=None if name in seen else plain(name),
                )  # fmt: skip
                pairs = list(zip(curve["sizes"], curve["faithfulness"], strict=True))
                texts = [
                    f"{entry['name']}: edges {size:,}, faithfulness {number(f)}"
                    for size, f in pairs
                ]
                points(axes, curve["sizes"], curve["faithfulness"], texts, colour(name))
                seen.add(name)
            axes.axhline(1, color="#999999", lw=0.8, ls=":")
            axes.axhline(own[0]["study"]["least"], color="#999999", lw=0.8, ls="--")
            axes.set(title=task, xlabel="edges kept", xscale="log", ylim=(-0.1, 1.4))
        for axes in grid[:, 0]:
            axes.set_ylabel("faithfulness")
        figure.legend(loc="outside lower center", ncols=4)
    return figure


def attribution(entries: Sequence[Mapping[str, Any]]) -> Figure:
    """Direct logit attribution: the largest components, heads' values along links in colour.

    Args:
        entries: with ``title`` and ``components``, {name: mean share in logits}.
    """
    with plt.rc_context(STYLE):
        figure, row = plt.subplots(
            1, len(entries), figsize=(4.6 * len(entries), 5.2), squeeze=False, sharex=True,
            layout="constrained",
        )  # fmt: skip
        for axes, entry in zip(row[0], entries, strict=True):
            largest = sorted(entry["components"].items(), key=lambda item: -abs(item[1]))[:16]
            names, shares = zip(*reversed(largest), strict=True)
            shades = [LINK if " from " in name else RESIDUAL for name in names]
            for bar, name, share in zip(
                axes.barh(range(len(names)), shares, color=shades), names, shares, strict=True
            ):
                tip(bar, f"{name}: {number(share)}")
            axes.set_yticks(range(len(names)), names, fontsize=8)
            axes.axvline(0, color="#999999", lw=0.8)
            axes.set(title=plain(entry["title"]), xlabel="share of the logit difference (logits)")
        row[0, 0].plot([], [], color=LINK, lw=5, label="along links")
        row[0, 0].plot([], [], color=RESIDUAL, lw=5, label="all else")
        row[0, 0].legend(loc="lower right")
    return figure
