"""Pictures of AMICL. Every number in them is in the JSON beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resval_lens.analyses.amicl.tables import judged, memory_name
from resval_lens.analyses.figures import STYLE, plt

READING = {"paper": "#0072B2", "notebook": "#D55E00"}
SHADES = ("#56B4E9", "#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7")
SIMILARITY = {
    "dot": "dot product",
    "pearson": "Pearson",
    "manhattan": "Manhattan",
    "euclidean": "Euclidean",
}
GROUPS = {
    "noise": "Objects differ from instance to instance",
    "gap": "Four tokens between object and label",
    "distractors": "Look-alikes with labels of their own",
    "shared object": "One object, three labels; the last dimly seen",
    "hetero": "Values through a map learned from examples",
}


def figure_6(result: dict[str, Any]) -> Figure:
    """Attention matrices of one sequence: similarity down, separation across, both readings."""
    readings = result["readings"]
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12.4, 8.2), layout="constrained")
        every = [each["pattern"] for entry in readings.values() for each in entry["combinations"]]
        low = min(0.0, *(float(np.min(pattern)) for pattern in every))  # one scale for all
        high = max(float(np.max(pattern)) for pattern in every)
        halves = figure.subfigures(1, len(readings), wspace=0.04, squeeze=False)
        for half, (reading, entry) in zip(halves[0], readings.items(), strict=True):
            half.suptitle(f"{reading}, a = {result['a']:g}", fontsize=12)
            grid = half.subplots(4, 3)
            for axes, each in zip(grid.flat, entry["combinations"], strict=True):
                axes.imshow(np.array(each["pattern"]), cmap="viridis", vmin=low, vmax=high,
                            interpolation="nearest")  # fmt: skip
                axes.set_xticks([])
                axes.set_yticks([])
                axes.set_xlabel(f"on the label: {each['weight']:.2f}", fontsize=8)
            for axes, each in zip(grid[0], entry["combinations"], strict=False):
                hot = f", T = {result['temperature']:g}" if each["separation"] == "softmax" else ""
                axes.set_title(f"{each['separation']}{hot}", loc="center")
            for axes, each in zip(grid[:, 0], entry["combinations"][::3], strict=True):
                axes.set_ylabel(SIMILARITY[each["similarity"]])
    return figure


def figure_7(result: dict[str, Any]) -> Figure:
    """Right trials against a: dot product left, Pearson's correlation right, argmax both."""
    with plt.rc_context(STYLE):
        figure, row = plt.subplots(1, 2, figsize=(10, 3.9), sharey=True, layout="constrained")
        for axes, similarity in zip(row, ("dot", "pearson"), strict=True):
            for reading, entry in result["readings"].items():
                _curve(axes, result["a"], entry[similarity], READING[reading], reading)
            axes.set(xlabel="a", ylim=(-0.02, 1.04), xlim=(0, 2.02))
        paper = result["readings"]["paper"]
        row[0].plot(result["a"], paper["predicted"], color="#333333", lw=1, ls="--",
                    label="theory (paper)")  # fmt: skip
        published = result["published"]["dot"]
        middle = [sum(p["right"]) / 2 / p["trials"] for p in published]
        row[0].plot([p["a"] for p in published], middle, "o", color="black", mfc="white",
                    ms=6, label="published", zorder=5, clip_on=False)  # fmt: skip
        row[1].plot([1.5, 2], [result["published"]["pearson_saturates_at"]] * 2, color="black",
                    lw=1.5, ls=":", label="published, ~85%")  # fmt: skip
        row[1].axhline(paper["pearson_limit"], color="#333333", lw=1, ls="--",
                       label="1 − P(first pair is right)")  # fmt: skip
        row[0].set(title="Dot product, argmax", ylabel=f"right of {result['trials']:,} trials")
        row[1].set_title("Pearson's correlation, argmax")
        row[0].legend(loc="upper left")
        row[1].legend(loc="lower right")
    return figure


def figure_8(result: dict[str, Any]) -> Figure:
    """Right trials against the length of a sequence and against the dimensions of a token."""
    with plt.rc_context(STYLE):
        figure, row = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
        names = {
            "length": "s, tokens of a sequence",
            "d": "d, dimensions of a token (e in the paper)",
        }
        for axes, (field, name) in zip(row, names.items(), strict=True):
            for reading, entry in result["readings"].items():
                points = entry[field]
                at = [p["value"] for p in points]
                _curve(axes, at, points, READING[reading], reading, marker="o")
            theory = [p["predicted"] for p in result["readings"]["paper"][field]]
            axes.plot(at, theory, color="#333333", lw=1, ls="--", label="theory (paper)")
            axes.set_xscale("log")
            axes.set(xlabel=name, ylim=(0, 1.04))
            axes.set_title(f"published: {result['published'][field]}", fontsize=9)
        row[0].set_ylabel(f"right of {result['trials']:,} trials")
        row[1].legend(loc="lower right")
    return figure


def sweep(result: dict[str, Any]) -> Figure:
    """Right trials against a, a panel for each kind of task; last, the best a of each."""
    rows, axis = result["tasks"], _LogAxis(result["a"])
    groups = list(dict.fromkeys(row["group"] for row in rows))
    with plt.rc_context(STYLE):
        height = -(-(len(groups) + 1) // 3)
        figure, grid = plt.subplots(
            height, 3, figsize=(13, 3.9 * height), layout="constrained", squeeze=False
        )
        figure.suptitle(f"{memory_name(result['memory'])}. {judged(result)}", fontsize=10)
        for axes, group in zip(grid.flat, groups, strict=False):
            own = [row for row in rows if row["group"] == group]
            for row, shade in zip(own, _shades(len(own)), strict=True):
                for part in axis.parts:
                    at, points = axis.places[part], row["curve"][part]
                    label = row["name"] if part is axis.parts[-1] else ""
                    _curve(axes, at, points, shade, label, "" if len(at) > 1 else "o")
                    if row["predicted"]:
                        theory = row["predicted"][part]
                        axes.plot(at, theory, color="#333333", lw=0.9, ls="--")
            axis.label(axes)
            axes.set(ylim=(-0.02, 1.04), ylabel=f"right of {result['trials']:,} trials")
            axes.set_title(GROUPS.get(group, group), fontsize=10)
            axes.legend(fontsize=8, title="dashed: theory" if group == "noise" else None)
        _best(grid.flat[len(groups)], rows, axis)
        for axes in grid.flat[len(groups) + 1 :]:
            axes.set_visible(False)
    return figure


class _LogAxis:
    """Values of a on a logarithmic axis, with a place for 0 left of them."""

    def __init__(self, values: list[float]) -> None:
        above = [a for a in values if a > 0] or [1.0]
        self.zero, self.last = min(above) / 2, max(above)
        self.has_zero = 0 in values
        self.places = np.array([a or self.zero for a in values])
        cut = values.index(0) + 1 if self.has_zero else 0
        self.parts = [part for part in (slice(0, cut), slice(cut, None)) if len(values[part])]

    def label(self, axes: Axes) -> None:
        """Powers of two, and 0."""
        powers = 2.0 ** np.arange(np.ceil(np.log2(self.zero * 2)), np.log2(self.last) + 0.01)
        ticks = [*([self.zero] if self.has_zero else []), *powers]
        names = [*(["0"] if self.has_zero else []), *(f"{x:g}" for x in powers)]
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, names)
        axes.set_xlim(self.zero / 1.2, self.last * 1.15)
        axes.set_xlabel("a")
        axes.axvline(2, color="#999999", lw=0.8, ls=":")


def _best(axes: Axes, rows: list[dict[str, Any]], axis: _LogAxis) -> None:
    """The best a of each task (dot) and the a that are not significantly worse (line)."""
    for place, row in enumerate(rows):
        low, high, best = (a or axis.zero for a in (*row["as_good"], row["best"]))
        axes.plot([low, high], [place, place], color="#0072B2", lw=5, alpha=0.35)
        axes.plot(best, place, "o", color="#0072B2", ms=5)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axis.label(axes)
    axes.set_title("Best a (dot) and as good (line); dotted: a = 2", fontsize=10)


def _curve(
    axes: Axes,
    at: Any,
    points: list[dict[str, Any]],
    shade: str,
    label: str,
    marker: str = "",
) -> None:
    """Shares with their 95% intervals as a band."""
    low, high = np.array([point["interval"] for point in points]).T
    if len(points) > 1:
        axes.fill_between(at, low, high, color=shade, alpha=0.2, lw=0)
    else:
        axes.vlines(at, low, high, color=shade, alpha=0.4)
    shares = [point["share"] for point in points]
    axes.plot(at, shares, color=shade, lw=1.6, label=label, marker=marker, ms=4)


def _shades(n: int) -> list[str]:
    return [SHADES[i % len(SHADES)] for i in range(n)] if n > 2 else ["#0072B2", "#D55E00"][:n]
