"""Pictures of models side by side. Every number in them is in the JSON or the runs beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from resval_lens.analyses.comparison.circuit_findings import TaskCircuit
from resval_lens.analyses.comparison.icl import AttentionStudy, LinkStudy
from resval_lens.analyses.comparison.lm_emergence import model_names
from resval_lens.analyses.drawing.figures import (
    COLOURS,
    STYLE,
    colour,
    logarithmic,
    per_row,
    plain,
    seed_curves,
)
from resval_lens.analyses.drawing.marks import cells, points, tip
from resval_lens.numbers import number
from resval_lens.tasks.icl import MEANING, TASKS
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import RecordedRun

Line = dict[str, Any]

HIGHEST = 1.4
"""Losses that are shown, over the lowest: early all fall alike, and what differs is small."""


def link_edits(links: Mapping[str, LinkStudy]) -> Figure:
    """Accuracy against the factor c by which a model's links are scaled; dots: mean-ablation."""
    with plt.rc_context(STYLE):
        columns = per_row(len(links))
        lines = -(-len(links) // columns)
        figure, grid = plt.subplots(
            lines, columns, figsize=(4.2 * columns, 3.4 * lines), sharey=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for axes in grid.flat[len(links) :]:
            axes.axis("off")
        shades = dict(zip(TASKS, ("#555555", "#0072B2", "#56B4E9", "#D55E00"), strict=True))
        for axes, (variant, study) in zip(grid.flat, links.items(), strict=False):
            factors = list(study.scale)
            for task, label in TASKS.items():
                accuracies = [row[task] for row in study.scale.values()]
                axes.plot(factors, accuracies, color=shades[task], label=label, lw=2)
                texts = [
                    f"{variant}, links scaled by {number(c, 'g')}: {label} {number(y)}"
                    for c, y in zip(factors, accuracies, strict=True)
                ]
                points(axes, factors, accuracies, texts, shades[task])
                ablated = study.mean[task]
                (dot,) = axes.plot(0, ablated, "o", color=shades[task], mfc="none", ms=6)
                tip(dot, f"{variant}, links mean-ablated: {label} {number(ablated)}")
            axes.axvline(0, color="#999999", lw=0.8, ls=":")
            axes.axvline(1, color="#999999", lw=0.8, ls=":")
            axes.set(
                title=plain(variant), xlabel="link scaled by c (0: cut, 1: whole)", ylim=(0, 1.02)
            )
        for axes in grid[:, 0]:
            axes.set_ylabel("accuracy")
        grid[0, -1].legend(title="○ mean-ablated", loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def attention(attention: Mapping[str, AttentionStudy]) -> Figure:
    """Mean attention of both layers on fresh classes, one column a model."""
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            2, len(attention), figsize=(3.1 * len(attention), 6.4), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for column, (variant, study) in zip(grid.T, attention.items(), strict=True):
            measures = study.measures
            notes = (
                f"label to its object: {measures['ila1_labels']:.2f}",
                f"query to right labels: {measures['tila2']:.2f}",
            )
            for layer, axes in enumerate(column):
                pattern = np.array(study.mean_pattern[layer])
                tokens = ["o" if i % 2 == 0 else "l" for i in range(len(pattern) - 1)] + ["q"]
                texts = [
                    [
                        f"{tokens[i]} {i} to {tokens[j]} {j}: {number(weight)}"
                        for j, weight in enumerate(row)
                    ]
                    for i, row in enumerate(pattern)
                ]
                image = cells(axes, pattern, texts, plt.get_cmap("viridis"), PowerNorm(0.5, 0, 1))
                axes.set_aspect("equal")
                axes.set_xticks(range(len(tokens)), tokens, fontsize=7)
                axes.set_yticks(range(len(tokens)), tokens, fontsize=7)
                axes.tick_params(length=0)
                axes.set_title(f"{plain(variant)}, layer {layer}\n{notes[layer]}", fontsize=9)
        grid[0, 0].set_ylabel("from")
        grid[1, 0].set_ylabel("from")
        for axes in grid[1]:
            axes.set_xlabel("to")
        figure.colorbar(
            image, ax=grid, shrink=0.6, label="mean attention (o object, l label, q query)"
        )
    return figure


def bars(models: Mapping[str, Mapping[str, float]]) -> Figure:
    """Accuracy of each model on each task."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
        width = 0.8 / len(models)
        for i, (variant, accuracies) in enumerate(models.items()):
            places = np.arange(len(TASKS)) + (i - (len(models) - 1) / 2) * width
            heights = [accuracies[task] for task in TASKS]
            drawn = axes.bar(
                places, heights, width * 0.92, color=colour(variant), label=plain(variant)
            )
            for bar, task, height in zip(drawn, TASKS, heights, strict=True):
                tip(bar, f"{variant}, {TASKS[task]} ({MEANING[task]}): {number(height, 'z.4f')}")
            axes.bar_label(drawn, [f"{h:.2f}" for h in heights], fontsize=7, padding=1)
        labels = [f"{label}\n{MEANING[task]}" for task, label in TASKS.items()]
        axes.set_xticks(range(len(TASKS)), labels)
        axes.set(ylabel="accuracy", ylim=(0, 1.08))
        axes.legend(ncols=len(models), loc="upper center", bbox_to_anchor=(0.5, 1.16))
    return figure


def faithfulness(entries: Sequence[TaskCircuit]) -> Figure:
    """Faithfulness against circuit size: a panel for each task, a line for each model."""
    tasks = list(dict.fromkeys(entry.task for entry in entries))
    names = dict.fromkeys(entry.architecture for entry in entries)
    others = [name for name in names if name not in COLOURS]
    shades = COLOURS | dict(zip(others, [*COLOURS.values()] * len(others), strict=False))
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
            own = [entry for entry in entries if entry.task == task]
            for entry in own:
                curve, name = entry.study.curve, entry.architecture
                drawn = curve.sizes, [math.nan if f is None else f for f in curve.faithfulness]
                axes.plot(
                    *drawn, "o-", color=shades[name], ms=3,
                    label=None if name in seen else plain(name),
                )  # fmt: skip
                texts = [
                    f"{entry.name}: edges {size:,}, faithfulness {number(f)}"
                    for size, f in zip(*drawn, strict=True)
                ]
                points(axes, *drawn, texts, shades[name])
                seen.add(name)
            axes.axhline(1, color="#999999", lw=0.8, ls=":")
            if own[0].study.min_faithfulness is not None:
                axes.axhline(own[0].study.min_faithfulness, color="#999999", lw=0.8, ls="--")
            axes.set(title=task, xlabel="edges kept", ylim=(-0.1, 1.4))
            logarithmic(axes, "x")
        for axes in grid[:, 0]:
            axes.set_ylabel("faithfulness")
        figure.legend(loc="outside lower center", ncols=4)
    return figure


def training(runs: Sequence[RecordedRun[LMRun]]) -> Figure:
    """Validation loss against steps (logarithmic); IOI accuracy and P(IO), if there are prompts.

    Of several sets of prompts, the last: for generated stories, the unseen.
    """
    panels: dict[str, Callable[[Line], float]] = {
        "validation loss (nats)": lambda line: line["valid_loss"]
    }
    sets = list(runs[0].evaluations[-1].get("ioi", {}))
    if sets:
        panels |= {
            f"IOI accuracy, {sets[-1]} prompts": lambda line: line["ioi"][sets[-1]]["accuracy"],
            f"P(IO), {sets[-1]} prompts": lambda line: line["ioi"][sets[-1]]["p_io"],
        }
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            1, len(panels), figsize=(4 * len(panels), 3.8), layout="constrained", squeeze=False
        )
        row = grid[0]
        for axes, (title, score) in zip(row, panels.items(), strict=True):
            _curves(axes, runs, score)
            axes.set(title=title, xlabel="step")
            logarithmic(axes, "x")
        lowest = min(line["valid_loss"] for each in runs for line in each.evaluations)
        row[0].set_ylim(0.98 * lowest, HIGHEST * lowest)
        for axes in row[1:]:
            axes.set_ylim(0, 1.02)
        for axes, threshold in zip(row[1:], (0.95, 0.5), strict=False):
            axes.axhline(threshold, color="#999999", lw=0.8, ls=":")
        handles, labels = row[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _curves(axes: Axes, runs: Sequence[RecordedRun[LMRun]], score: Callable[[Line], float]) -> None:
    """One line a run (light) and one an architecture (dark: mean over seeds)."""
    labels = model_names(runs)
    for name in dict.fromkeys(labels):
        own = [
            {line["step"]: score(line) for line in recorded.evaluations[1:]}
            for label, recorded in zip(labels, runs, strict=True)
            if label == name
        ]
        seed_curves(axes, own, name, 0.3)
