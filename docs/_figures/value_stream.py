"""Draws value-stream.svg: layers, heads and links; and one head's values, hook point by hook point.

    python docs/_figures/value_stream.py

Lines and letters are in the page's own colour (currentColor), links in one that is seen on light
and on dark.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK = "#010203"  # becomes currentColor
LINK = "#d9730d"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "value-stream",
    "font.family": "sans-serif",
    "font.size": 11,
    "mathtext.fontset": "dejavusans",
}
HEADS = 4
LAYERS = 3


def arrow(ax: Any, start: tuple[float, float], end: tuple[float, float], **style: Any) -> None:
    """A line with a head."""
    settings = {"arrowstyle": "-|>", "mutation_scale": 9, "lw": 1, "color": INK, "shrinkA": 0,
                "shrinkB": 0} | style  # fmt: skip
    ax.add_patch(FancyArrowPatch(start, end, **settings))


def box(ax: Any, x: float, y: float, w: float, h: float, **style: Any) -> None:
    """A box around (x, y), filled with nothing."""
    settings = {"boxstyle": "round,pad=0,rounding_size=.08", "fill": False, "ec": INK, "lw": 1}
    ax.add_patch(FancyBboxPatch((x - w / 2, y - h / 2), w, h, **(settings | style)))


def layers(ax: Any) -> None:
    """Layers with their heads and MLP at the residual stream, and the links between heads."""
    gap, left = 1.7, 1.0
    faint: dict[str, Any] = {"lw": 0.8, "alpha": 0.6}
    right = left + 0.85 * (HEADS - 1)
    ax.text(0, -0.75, "residual\nstream", ha="center", va="top", color=INK)
    arrow(ax, (0, -0.65), (0, LAYERS * gap - 0.2), lw=2.5, mutation_scale=14)
    for layer in range(LAYERS):
        y = layer * gap
        for h in range(HEADS):
            x = left + 0.85 * h
            box(ax, x, y, 0.68, 0.5)
            ax.text(x - 0.13, y, f"h{h}", ha="center", va="center", color=INK, size=10)
            ax.plot(x + 0.18, y, "o", color=LINK, ms=6)
            if layer:
                arrow(ax, (x + 0.18, y - gap + 0.1), (x + 0.18, y - 0.1), color=LINK, lw=1.8)
            arrow(ax, (x - 0.13, y - 0.42), (x - 0.13, y - 0.25), mutation_scale=6, **faint)
            ax.plot([x - 0.13] * 2, [y + 0.25, y + 0.42], color=INK, **faint)
        # What heads read from the residual stream and add to it; then the MLP, on the other side.
        ax.plot([0, right - 0.13], [y - 0.42] * 2, color=INK, **faint)
        ax.plot([0, right - 0.13], [y + 0.42] * 2, color=INK, **faint)
        arrow(ax, (0.35, y + 0.42), (0.03, y + 0.42), mutation_scale=6, **faint)
        box(ax, -0.9, y + 0.85, 0.8, 0.34)
        ax.text(-0.9, y + 0.84, "MLP", ha="center", va="center", color=INK, size=10)
        ax.plot([0, -0.9], [y + 0.55] * 2, color=INK, **faint)
        ax.plot([0, -0.9], [y + 1.15] * 2, color=INK, **faint)
        arrow(ax, (-0.9, y + 0.55), (-0.9, y + 0.68), mutation_scale=6, **faint)
        ax.plot([-0.9] * 2, [y + 1.02, y + 1.15], color=INK, **faint)
        arrow(ax, (-0.3, y + 1.15), (-0.03, y + 1.15), mutation_scale=6, **faint)
        ax.text(right + 0.6, y, f"layer {layer}", ha="left", va="center", color=INK)
    ax.text(right + 0.35, gap / 2, "links: values to\nthe same head", ha="left",
            va="center", color=LINK, size=10)  # fmt: skip
    ax.set_xlim(-1.5, 5.4)
    ax.set_ylim(-1.4, LAYERS * gap)


def head(ax: Any) -> None:
    """One receiving head: local and link meet in the total, which attention uses and passes on."""
    ax.text(0, -0.55, "$x_l$", ha="center", va="center", color=INK, size=13)
    arrow(ax, (0, -0.35), (0, 0.1))
    box(ax, 0, 0.35, 0.7, 0.5)
    ax.text(0, 0.35, "$W_V$", ha="center", va="center", color=INK)
    arrow(ax, (0, 0.6), (0, 1.32))
    ax.text(
        -0.12, 0.92, "hook_v_local", ha="right", va="center", color=INK, size=10, family="monospace"
    )
    ax.plot(0, 1.5, "o", ms=19, mfc="none", mec=INK)
    ax.text(0, 1.49, "+", ha="center", va="center", color=INK, size=14)
    ax.text(-2.3, -0.55, "layer $l-1$, same head", ha="center", va="center", color=LINK, size=10)
    ax.plot([-2.3, -2.3], [-0.35, 1.5], color=LINK, lw=1.8)
    arrow(ax, (-2.3, 1.5), (-0.2, 1.5), color=LINK, lw=1.8)
    ax.text(-1.25, 1.65, "hook_v_link", ha="center", va="bottom", color=LINK, size=10,
            family="monospace")  # fmt: skip
    arrow(ax, (0, 1.68), (0, 2.6))
    ax.text(0.12, 2.05, "hook_v", ha="left", va="center", color=INK, size=10, family="monospace")
    box(ax, 0, 2.85, 1.7, 0.5)
    ax.text(0, 2.85, "attention, $W_O$", ha="center", va="center", color=INK)
    arrow(ax, (0, 3.1), (0, 3.7))
    ax.text(0, 3.85, "to the residual stream", ha="center", va="bottom", color=INK, size=10)
    # What layer l passes on: its total (sum) or its own (raw).
    arrow(ax, (0, 2.3), (2.0, 3.3), color=LINK, lw=1.4, connectionstyle="arc3,rad=.25")
    ax.text(
        2.05, 3.35, 'carry="sum"', ha="center", va="bottom", color=LINK, size=10, family="monospace"
    )
    arrow(ax, (0, 0.9), (2.5, 1.7), color=LINK, lw=1.4, ls="--", connectionstyle="arc3,rad=.3")
    ax.text(
        2.5, 1.78, 'carry="raw"', ha="center", va="bottom", color=LINK, size=10, family="monospace"
    )
    ax.set_xlim(-3.5, 3.5)
    ax.set_ylim(-0.9, 4.3)


def draw() -> str:
    """The figure as SVG that a page can hold."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), width_ratios=[1.15, 1])
        layers(left)
        head(right)
        for ax in (left, right):
            ax.set_axis_off()
            ax.set_aspect("equal")
        figure.subplots_adjust(0, 0, 1, 1, 0.02)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    svg = text.getvalue().replace(INK, "currentColor")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    # Blank lines would end a block of HTML in Markdown.
    return re.sub(r"\n\s*\n", "\n", svg)


if __name__ == "__main__":
    (Path(__file__).parent / "value-stream.svg").write_text(draw())
