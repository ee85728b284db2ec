"""Pictures of training runs of simplified transformers. Every number in them is in the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from resval_lens.analyses.figures import STYLE, plt
from resval_lens.analyses.memory.curves import LABELS
from resval_lens.analyses.memory.encodings import EDITS, VALUES, step_of

# Okabe and Ito's colours; an encoding, or a memory, has one in every figure.
POSITIONS = {
    "absolute": "#D55E00",
    "relative": "#0072B2",
    "sinusoidal": "#E69F00",
    "rotary": "#009E73",
    "alibi": "#CC79A7",
}
DRAWN = {
    "W_O2": ("#D55E00", "-"),
    "W_K2": ("#0072B2", "-"),
    "W_K1": ("#009E73", "-"),
    "W_K1_near": ("#009E73", "--"),
    "W_K1_far": ("#009E73", ":"),
    "W_F": ("#E69F00", "-"),
    "accuracy": ("#222222", "-"),
}
WITHOUT, WITH = "#555555", "#0072B2"
SHADES = ("#555555", "#56B4E9", "#D55E00", "#E69F00", "#009E73")
COLUMNS = 5
FEWEST = 10
"""Positions of which a mean is drawn."""
CELLS = 64
"""Rows and columns of an attention map, of which each shows the largest weight that it stands for:
a diagonal one position wide would not be seen."""


def curves(data: Mapping[str, Any]) -> Figure:
    """Recall of each memory and in-context accuracy against the step, a panel a variant."""
    variants = data["variants"]
    rows = -(-len(variants) // COLUMNS)
    columns = -(-len(variants) // rows)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows, columns, figsize=(2.6 * columns + 0.4, 2.5 * rows + 0.7), sharex=True,
            sharey=True, squeeze=False, layout="constrained",
        )  # fmt: skip
        for axes in grid.flat[len(variants) :]:
            axes.axis("off")
        for axes, (name, study) in zip(grid.flat, variants.items(), strict=False):
            _curve_panel(axes, study)
            axes.axhline(data["threshold"], color="#999999", lw=0.8, ls=":")
            axes.set(title=name, ylim=(-0.03, 1.05))
            axes.tick_params(labelbottom=True)
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.margins(x=0)
        for axes in grid[:, 0]:
            axes.set_ylabel("recall, accuracy")
        for i in range(max(0, len(variants) - columns), len(variants)):
            grid.flat[i].set_xlabel("step")
        there = {measure for study in variants.values() for measure in study["curves"]}
        there -= set() if "W_K1_far" in there else {"W_K1_near"}
        handles = [
            plt.Line2D([], [], color=shade, ls=style, lw=2, label=_label(measure))
            for measure, (shade, style) in DRAWN.items()
            if measure in there
        ]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(len(handles), 4 if columns < 4 else 7),
        )
    return figure


def _label(measure: str) -> str:
    return "W_F (share of the bigrams)" if measure == "W_F" else LABELS[measure]


def _curve_panel(axes: Axes, study: Mapping[str, Any]) -> None:
    for measure, (shade, style) in DRAWN.items():
        if measure not in study["curves"] or (
            measure == "W_K1_near" and "W_K1_far" not in study["curves"]  # all are near
        ):
            continue
        by_seed = study["curves"][measure]
        shortest = min(map(len, by_seed.values()))
        lines = np.array([line[:shortest] for line in by_seed.values()], dtype=float)
        steps = next(iter(study["steps"].values()))[:shortest]
        if len(lines) > 1:
            axes.plot(steps, lines.T, color=shade, ls=style, lw=0.7, alpha=0.35)
        axes.plot(steps, lines.mean(0), color=shade, ls=style, lw=1.8)


def lengths(data: Mapping[str, Any]) -> Figure:
    """Accuracy and both heads' attention against the position, means over seeds; trained: left."""
    panels = {
        "accuracy": "In-context accuracy",
        "previous_mass": "Layer 0: attention to t − 1",
        "target_mass": "Layer 1: attention to the target",
    }
    with plt.rc_context(STYLE):
        figure, row = plt.subplots(1, 3, figsize=(12.4, 3.9), layout="constrained")
        for axes, (measure, title) in zip(row, panels.items(), strict=True):
            for name in data["over_seeds"]:
                own = [model for model in data["models"] if model["variant"] == name]
                shade, style = _line(own[0])
                axes.plot(*_by_bin(own, measure), color=shade, ls=style, lw=1.8, label=name)
                if measure == "previous_mass" and own[0]["bins"][-1]["predicted"] is not None:
                    axes.plot(*_by_bin(own, "predicted"), color=shade, ls=style, lw=0.9, alpha=0.6)
            axes.axvline(data["trained_length"], color="#999999", lw=0.8, ls=":")
            axes.set(title=title, xlabel="position t", xscale="log", ylim=(-0.02, 1.04))
            axes.xaxis.set_minor_formatter(NullFormatter())  # less than a decade has labels there
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        row[0].set_ylabel("mean")
        row[1].plot([], [], color="#555555", lw=0.9, label="thin: as constructed")
        handles, labels = row[1].get_legend_handles_labels()
        handles.append(plt.Line2D([], [], color="#999999", lw=0.8, ls=":"))
        labels.append(f"trained to {data['trained_length']}")
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
    return figure


def _line(model: Mapping[str, Any]) -> tuple[str, str]:
    return POSITIONS.get(model["positions"], "#000000"), "--" if model["streams"] else "-"


def _by_bin(models: list[Mapping[str, Any]], measure: str) -> tuple[list[float], list[float]]:
    """The middle of each bin and the mean over models, where there are positions enough."""
    places, means = [], []
    for rows in zip(*(model["bins"] for model in models), strict=True):
        numbers = [
            row[measure]
            for row in rows
            if row[measure] is not None and row.get(f"{measure}_count", FEWEST) >= FEWEST
        ]
        if numbers:
            places.append((rows[0]["first"] * rows[0]["last"]) ** 0.5)
            means.append(float(np.mean(numbers)))
    return places, means


def attention_maps(maps: Mapping[str, Any]) -> Figure:
    """Both layers' attention on one sequence, a column a model; lines mark the trained length."""
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            2, len(maps), figsize=(4.2 * len(maps) + 0.6, 7.8), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for column, (name, entry) in zip(grid.T, maps.items(), strict=True):
            for layer, axes in enumerate(column):
                if layer >= len(entry["layers"]):
                    axes.axis("off")
                    continue
                triangle = entry["layers"][layer]
                pattern = np.full((len(triangle), len(triangle)), np.nan)
                for t, weights in enumerate(triangle):
                    pattern[t, : t + 1] = weights
                pattern = largest(pattern, max(1, len(triangle) // CELLS))
                ends = (0.5, len(triangle) + 0.5)  # positions are counted from 1
                image = axes.imshow(
                    pattern, cmap="viridis", norm=PowerNorm(0.5, 0, 1),
                    extent=(*ends, *ends[::-1]), interpolation="nearest",
                )  # fmt: skip
                for draw in (axes.axvline, axes.axhline):
                    draw(entry["trained_length"] + 0.5, color="#999999", lw=0.8, ls=":")
                axes.set_title(f"{name}, layer {layer}")
        for axes in grid[:, 0]:
            axes.set_ylabel("from position t")
        for axes in grid[1]:
            axes.set_xlabel("to position s")
        side = max(1, len(entry["layers"][0]) // CELLS)
        of = f", the largest of {side} × {side} weights" if side > 1 else ""
        figure.colorbar(image, ax=grid, shrink=0.6, label=f"attention{of} (dotted: trained length)")
    return figure


def largest(
    x: Float[np.ndarray, "rows columns"], side: int
) -> Float[np.ndarray, "fewer_rows fewer_columns"]:
    """The largest number of each ``side`` × ``side`` block, NaN where there is none."""
    rows, columns = (-(-n // side) * side for n in x.shape)
    padded = np.full((rows, columns), -np.inf)
    padded[: x.shape[0], : x.shape[1]] = np.where(np.isnan(x), -np.inf, x)
    found = padded.reshape(rows // side, side, columns // side, side).max((1, 3))
    return np.where(np.isinf(found), np.nan, found)


def encodings(data: Mapping[str, Any]) -> Figure:
    """Steps to .9 and final accuracy with and without values; below, edits of trained models."""
    edited = data["ablations"]
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12.4, 7.4 if edited else 3.8), layout="constrained")
        halves: Any = figure.subfigures(2, 1, hspace=0.05) if edited else [figure]
        steps, accuracy = halves[0].subplots(1, 2)
        _step_bars(steps, data)
        _accuracy_bars(accuracy, data)
        kinds = {label: shade for _, _, shade, label in _bars(data)}
        patches = [plt.Rectangle((0, 0), 1, 1, color=kinds[label], label=label) for label in kinds]
        halves[0].legend(handles=patches, loc="outside lower center", ncols=len(patches))
        if edited:
            _edit_bars(halves[1].subplots(), edited)
            halves[1].legend(loc="outside lower center", ncols=len(EDITS))
    return figure


def _encodings(data: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name.removesuffix(VALUES) for name in data["variants"]))


def _bars(data: Mapping[str, Any]) -> list[tuple[float, str, str, str]]:
    """(place, variant, colour, label) of each bar."""
    bars = []
    for i, name in enumerate(_encodings(data)):
        for shift, variant, shade, label in (
            (-0.2, name, WITHOUT, "without"),
            (0.2, name + VALUES, WITH, "with a value stream"),
        ):
            if variant in data["variants"]:
                bars.append((i + shift, variant, shade, label))
    return bars


def _step_bars(axes: Axes, data: Mapping[str, Any]) -> None:
    for place, variant, shade, _ in _bars(data):
        spread = data["variants"][variant]["measures"][step_of(0.9)]
        reached = [step for step in spread["by_seed"].values() if step is not None]
        if reached:
            axes.bar(place, spread["mean"], 0.36, color=shade, alpha=0.8)
            axes.plot([place] * len(reached), reached, "o", color="black", ms=3, mfc="white")
        else:
            axes.text(place, 0, "never", rotation=90, ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(_encodings(data))), _encodings(data))
    axes.set(title="Steps to an in-context accuracy of .9 (dots: seeds)", ylabel="step")


def _accuracy_bars(axes: Axes, data: Mapping[str, Any]) -> None:
    length = data["run"]["task.length"]
    for place, variant, shade, _ in _bars(data):
        measures = data["variants"][variant]["measures"]
        for shift, name, alpha in (
            (-0.09, "accuracy", 0.9),
            (0.09, "accuracy, twice the length", 0.45),
        ):
            mean = measures[name]["mean"]
            if mean is not None:
                axes.bar(place + shift, mean, 0.17, color=shade, alpha=alpha,
                         yerr=measures[name]["sd"] or None, error_kw={"lw": 0.8})  # fmt: skip
    axes.set_xticks(range(len(_encodings(data))), _encodings(data))
    axes.set(title=f"In-context accuracy at {length} (dark) and {2 * length} tokens (light)",
             ylim=(0, 1.04), ylabel="accuracy")  # fmt: skip


def _edit_bars(axes: Axes, entries: list[Mapping[str, Any]]) -> None:
    variants = list(dict.fromkeys(entry["variant"] for entry in entries))
    width = 0.8 / len(EDITS)
    for i, (edit, shade) in enumerate(zip(EDITS, SHADES, strict=True)):
        places, heights = [], []
        for j, variant in enumerate(variants):
            numbers = [
                entry["accuracy"][edit]
                for entry in entries
                if entry["variant"] == variant and edit in entry["accuracy"]
            ]
            if numbers:
                places.append(j + (i - (len(EDITS) - 1) / 2) * width)
                heights.append(float(np.mean(numbers)))
        axes.bar(places, heights, width * 0.92, color=shade, label=edit)
    names = [variant.replace(VALUES, "\n+ values") for variant in variants]
    axes.set_xticks(range(len(variants)), names)
    axes.set(title="In-context accuracy of the trained models, edited", ylim=(0, 1.04),
             ylabel="accuracy")  # fmt: skip
