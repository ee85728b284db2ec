"""Figures of grafts: what streams learned by layer, what cutting a layer costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from resval_lens.analyses.drawing.figures import COLOURS, STYLE, per_row, plain, plt
from resval_lens.analyses.drawing.marks import points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from resval_lens.analyses.comparison.grafts import Grafts

KINDS = {"carried": ("links", "-"), "own": ("gains", "--")}
"""What streams learn, by the end of its parameter's name: in words, and how it is drawn."""


def learned_figure(study: Grafts) -> Figure:
    """A panel a variant: every number by layer, a line a seed and head, their mean thick.

    Links are drawn solid, gains dashed.
    """
    from resval_lens.analyses.comparison.grafts import by_layer

    shown = [each for each in study.variants if any(g.learned for g in study.of(each.name))]
    columns, colours = per_row(len(shown)), _colours(study)
    rows = -(-len(shown) // columns)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows, columns, figsize=(3.6 * columns, 2.6 * rows), squeeze=False, sharex=True
        )
        for axes in grid.flat[len(shown) :]:
            axes.set_visible(False)
        for axes, variant in zip(grid.flat, shown, strict=False):
            shade = colours[variant.name]
            for kind, (called, dashes) in KINDS.items():
                runs = [by_layer([graft], kind) for graft in study.of(variant.name)]
                layers = sorted(runs[0])
                if not layers:
                    continue
                for found in runs:
                    for head in range(len(found[layers[0]])):
                        axes.plot(layers, [found[n][head] for n in layers], dashes, color=shade,
                                  alpha=0.3, lw=0.8)  # fmt: skip
                mean = [float(np.mean([found[n].mean() for found in runs])) for n in layers]
                axes.plot(layers, mean, dashes, color=shade, lw=2)
                texts = [
                    f"{variant.name}, {called}, layer {n}: {y:.3f}"
                    for n, y in zip(layers, mean, strict=True)
                ]
                points(axes, layers, mean, texts, shade)
            axes.axhline(0, color="#999999", lw=0.6)
            axes.set_title(plain(variant.name))
            axes.set_xlabel("layer")
        grid[0, 0].set_ylabel("learned weight")
        figure.tight_layout()
    return figure


def cut_figure(study: Grafts) -> Figure:
    """Two panels: what cutting a layer costs, by the size of its numbers and what they bring."""
    colours = _colours(study)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(1, 2, figsize=(7.6, 3.2), sharey=True)
        for name in dict.fromkeys(graft.name for graft in study.grafts):
            cuts = [cut for g in study.of(name) if g.links for cut in g.links.cuts]
            if not cuts:
                continue
            costs = [cut.cost for cut in cuts]
            for axes, at in zip(
                grid, ([cut.size for cut in cuts], [cut.brought for cut in cuts]), strict=True
            ):
                shade = colours[name]
                axes.plot(at, costs, "o", ms=3.5, alpha=0.6, color=shade, label=plain(name))
                texts = [f"{name}, layer {cut.layer}: {cut.cost:.4f}" for cut in cuts]
                points(axes, at, costs, texts, shade)
        for axes, words in zip(grid, ("mean |w|", "‖change of v‖ / ‖v‖"), strict=True):
            axes.axhline(0, color="#999999", lw=0.6)
            axes.set_xlabel(words)
        grid[0].set_ylabel("cost of cutting (nats a token)")
        grid[0].legend()
        figure.tight_layout()
    return figure


def _colours(study: Grafts) -> dict[str, str]:
    """A colour of its own for each variant, as long as there are any."""
    known = [shade for name, shade in COLOURS.items() if name != "classic"]
    names = dict.fromkeys(graft.name for graft in study.grafts)
    return {name: known[i % len(known)] for i, name in enumerate(names)}
