"""Encodings with and without a value stream. Every number in the picture is in the JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resval_lens.analyses.drawing.figures import STYLE, plt
from resval_lens.analyses.papers.memory.edits import EDITS
from resval_lens.analyses.papers.memory.encodings import VALUES, Edited, EncodingStudy
from resval_lens.analyses.results.seeds import present

WITHOUT, WITH = "#555555", "#0072B2"
SHADES = ("#555555", "#56B4E9", "#D55E00", "#E69F00", "#009E73")


def draw(study: EncodingStudy) -> Figure:
    """Steps to .9 and final accuracy with and without values; below, edits of trained models."""
    edited = study.ablations
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12.4, 7.4 if edited else 3.8), layout="constrained")
        halves: Any = figure.subfigures(2, 1, hspace=0.05) if edited else [figure]
        steps, accuracy = halves[0].subplots(1, 2)
        _step_bars(steps, study)
        _accuracy_bars(accuracy, study)
        kinds = {label: shade for _, _, shade, label in _bars(study)}
        patches = [plt.Rectangle((0, 0), 1, 1, color=kinds[label], label=label) for label in kinds]
        halves[0].legend(handles=patches, loc="outside lower center", ncols=len(patches))
        if edited:
            _edit_bars(halves[1].subplots(), edited)
            halves[1].legend(loc="outside lower center", ncols=len(EDITS))
    return figure


def _encodings(study: EncodingStudy) -> list[str]:
    return list(dict.fromkeys(name.removesuffix(VALUES) for name in study.variants))


def _bars(study: EncodingStudy) -> list[tuple[float, str, str, str]]:
    """(place, variant, colour, label) of each bar."""
    bars = []
    for i, name in enumerate(_encodings(study)):
        for shift, variant, shade, label in (
            (-0.2, name, WITHOUT, "without"),
            (0.2, name + VALUES, WITH, "with a value stream"),
        ):
            if variant in study.variants:
                bars.append((i + shift, variant, shade, label))
    return bars


def _step_bars(axes: Axes, study: EncodingStudy) -> None:
    for place, variant, shade, _ in _bars(study):
        steps = study.variants[variant].measures.steps[0.9]
        if steps.mean is not None:
            axes.bar(place, steps.mean, 0.36, color=shade, alpha=0.8)
            axes.plot(
                [place] * len(steps.there), steps.there, "o", color="black", ms=3, mfc="white"
            )
        else:
            axes.text(place, 0, "never", rotation=90, ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(_encodings(study))), _encodings(study))
    axes.set(title="Steps to an in-context accuracy of .9 (dots: seeds)", ylabel="step")


def _accuracy_bars(axes: Axes, study: EncodingStudy) -> None:
    length = study.run.task.length
    for place, variant, shade, _ in _bars(study):
        measures = study.variants[variant].measures
        for shift, found, alpha in (
            (-0.09, measures.accuracy, 0.9),
            (0.09, measures.accuracy_longer, 0.45),
        ):
            if found.mean is not None:
                axes.bar(place + shift, found.mean, 0.17, color=shade, alpha=alpha,
                         yerr=found.sd or None, error_kw={"lw": 0.8})  # fmt: skip
    axes.set_xticks(range(len(_encodings(study))), _encodings(study))
    axes.set(title=f"In-context accuracy at {length} (dark) and {2 * length} tokens (light)",
             ylim=(0, 1.04), ylabel="accuracy")  # fmt: skip


def _edit_bars(axes: Axes, entries: Sequence[Edited]) -> None:
    variants = list(dict.fromkeys(entry.variant for entry in entries))
    width = 0.8 / len(EDITS)
    for i, (edit, shade) in enumerate(zip(EDITS, SHADES, strict=True)):
        places, heights = [], []
        for j, variant in enumerate(variants):
            own = (entry.accuracy.get(edit) for entry in entries if entry.variant == variant)
            numbers = present(own)
            if numbers:
                places.append(j + (i - (len(EDITS) - 1) / 2) * width)
                heights.append(float(np.mean(numbers)))
        axes.bar(places, heights, width * 0.92, color=shade, label=edit)
    names = [variant.replace(VALUES, "\n+ values") for variant in variants]
    axes.set_xticks(range(len(variants)), names)
    axes.set(title="In-context accuracy of the trained models, edited", ylim=(0, 1.04),
             ylabel="accuracy")  # fmt: skip
