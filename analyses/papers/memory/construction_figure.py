"""Constructed models beside the closed form. Every number is in the JSON beside it."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resval_lens.analyses.drawing.figures import STYLE, plt
from resval_lens.analyses.papers.memory.comparable import COLOURS
from resval_lens.analyses.papers.memory.construction_study import SHORT, Construction


def draw(study: Construction) -> Figure:
    """Attention to the previous token by position; deviations by width; the winner by the gap."""
    with plt.rc_context(STYLE):
        figure, row = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
        _attention(row[0], study)
        _deviations(row[1], study)
        _winner(row[2], study)
    return figure


def _attention(axes: Axes, study: Construction) -> None:
    trained = study.trained_length
    places = np.arange(2, study.length + 1)
    for kind in study.without_streams:
        colour = COLOURS[kind.positions]
        exact, widest = kind.exact.heads, kind.random[-1]
        short = SHORT[kind.positions]
        axes.plot(places, widest.heads.attention, color=colour, lw=0.8, alpha=0.5,
                  label=f"{short}, d = {widest.d_model:,}")  # fmt: skip
        axes.plot(places, exact.attention, color=colour, lw=2.2, label=f"{short}, exact")
    on, off = np.array(study.closed_form.on), np.array(study.closed_form.off)
    axes.plot(places, on, color="black", lw=1, ls=":", label="closed form")
    later = places > trained
    axes.plot(places[later], off[later], color="black", lw=1, ls=":")
    axes.axvline(trained, color="#999999", lw=0.8)
    axes.text(trained, 0.12, " trained to here", fontsize=8, color="#666666")
    axes.set_yscale("log")
    axes.set(xlabel="position t", ylabel="attention at t − 1", title="Previous-token head")
    axes.legend(fontsize=8, loc="center left")


def _deviations(axes: Axes, study: Construction) -> None:
    for kind in study.without_streams:
        widths = [run.d_model for run in kind.random]
        far = [run.deviation for run in kind.random]
        for label, marker, means in (
            ("α", "o", [each.alpha.mean for each in far]),
            ("β", "s", [each.beta.mean for each in far]),
            ("logits (nats)", "^", [each.logits.mean for each in far]),
        ):
            axes.plot(widths, means, color=COLOURS[kind.positions], marker=marker, ms=4, lw=1.2,
                      label=f"{label}, {kind.positions}")  # fmt: skip
    guide = np.array([min(study.widths), max(study.widths)], dtype=float)
    axes.plot(guide, 0.2 * guide**-0.5, color="black", lw=1, ls=":", label="∝ 1/√d")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set(xlabel="d_model", title="Mean deviation from the closed form")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _winner(axes: Axes, study: Construction) -> None:
    flips = study.thresholds
    colours = dict(zip(flips.exact, ("#0072B2", "#D55E00", "#009E73"), strict=False))
    for kind, style, width, rows in (
        ("exact", "-", 1.6, flips.exact),
        ("random", "--", 1, flips.random),
    ):
        for counts, row in rows.items():
            axes.plot(row.gap, [np.nan if w is None else w for w in row.wins], style,
                      color=colours[counts], lw=width, label=f"{counts}, {kind}")  # fmt: skip
    for counts, row in flips.exact.items():
        axes.axvline(row.predicted, color=colours[counts], lw=0.8, ls=":")
    axes.set(
        xlabel="global knowledge for B2 (nats)", ylabel="share of prompts that B1 wins",
        title="n1 : n2 in the context", ylim=(-0.03, 1.03),
    )  # fmt: skip
    axes.legend(fontsize=8)
