"""Pictures of interventions: heat maps, bars. Every number in them is in the JSON beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from resval_lens.analyses.attribution.heads import HeadScores
from resval_lens.analyses.drawing.figures import INK, STYLE, legible
from resval_lens.analyses.drawing.marks import cells, points, tip
from resval_lens.analyses.studies.ablation import AblationStudy
from resval_lens.analyses.studies.patching import RUNS
from resval_lens.numbers import number

SHADES = {"zero": "#555555", "mean": "#0072B2", "resample": "#D55E00"}
SCALED = ("#009E73", "#56B4E9", "#CC79A7", "#E69F00")
LARGE = 20
"""Rows or columns of a heat map beyond which its cells are drawn smaller."""
BARS = 24
"""Up to so many groups of links are drawn as bars; more as heat maps."""
GROUP = re.compile(r"(\w+?)(\d+)(?:\.h(\d+))?")
"""A layer's links or one head's: v1, v1.h2."""
WRITTEN = 96
"""Up to so many cells of a heat map have their numbers written in them."""


def patched(
    recovered: Float[np.ndarray, "*axis"],
    axes: Mapping[str, Sequence[int | str]],
    site: str,
    direction: str,
    *,
    tokens: Sequence[str] | None = None,
    model: str = "",
    task: str = "",
    most: float = 1.0,
) -> Figure:
    """Heat maps of the share of the gap that each cell of a patching recovers.

    One axis is a row, two are rows and columns; of three, each head has a map of its own.

    Args:
        axes, site, direction: of :class:`~resval_lens.hooks.patching.PatchResult`.
        tokens: of a prompt, where positions are numbers.
        model: its name.
        task: the prompts' task, and how they are corrupted.
        most: the scale goes to ± this, or to the largest share if that is larger: for several
            figures side by side, the largest of them all.
    """
    axes_of, labels = list(axes), [list(map(str, each)) for each in axes.values()]
    if tokens is not None and "position" in axes:
        labels[axes_of.index("position")] = [
            f"{i} {legible(tokens[i]).strip()}" for i in axes["position"] if isinstance(i, int)
        ]
    values, titles = recovered, [""]
    if values.ndim == 3:
        apart = axes_of.index("head") if "head" in axes_of else 0
        panel = axes_of.pop(apart)
        titles = [f"{panel} {label}" for label in labels.pop(apart)]
        values = np.moveaxis(values, apart, 0)
    else:
        if values.ndim == 1:
            values = values[None]
            axes_of, labels = ["", *axes_of], [[""], *labels]
        values = values[None]
    if len(labels[0]) > len(labels[1]):  # the longer axis lies
        values, axes_of, labels = values.swapaxes(1, 2), axes_of[::-1], labels[::-1]
    one, other = RUNS[direction]
    title = _titled(f"{site} of the {one} run taken from the {other} run", model, task)
    with plt.rc_context(STYLE):
        figure, image = _panels(values, titles, axes_of, labels, floor=most)
        figure.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)
        figure.colorbar(image, ax=figure.axes, shrink=0.9, label=f"0 {one}, 1 {other}", pad=0.02)
    return figure


def head_scores(scores: HeadScores[list[list[float]]], titles: HeadScores[str]) -> Figure:
    """Each head score, layers × heads."""
    values = np.array(list(scores))
    labels = [list(map(str, range(n))) for n in values.shape[1:]]
    with plt.rc_context(STYLE):
        most = max(0.1, float(np.ceil(values.max() * 10)) / 10)
        figure, image = _panels(values, list(titles), ["layer", "head"], labels, most)
        figure.colorbar(image, ax=figure.axes, shrink=0.9, label="mean attention weight", pad=0.02)
    return figure


def _panels(
    values: np.ndarray,
    titles: Sequence[str],
    axes_of: Sequence[str],
    labels: Sequence[Sequence[str]],
    limit: float | None = None,
    floor: float = 1e-9,
) -> tuple[Figure, ScalarMappable]:
    """Heat maps [panel, row, column] on one scale; without a ``limit``, a diverging one.

    A diverging scale ends at the largest absolute value, or at ``floor`` if that is larger.
    """
    count, rows, columns = values.shape
    is_large = max(rows, columns) > LARGE  # smaller cells, so that a map fits on a page
    wide, high = (0.34, 0.26) if is_large else (0.55, 0.4)
    most_per_line = 4 if columns <= (12 if is_large else 8) else 2 if columns <= LARGE else 1
    per_line = max(1, min(count, most_per_line))
    lines = -(-count // per_line)
    width = max(2.4, wide * columns + 0.6) * per_line + 1.4
    height = max(1.5, high * rows + 1.0 + 0.03 * max(map(len, labels[1])) * 2) * lines + 0.5
    figure, grid = plt.subplots(
        lines, per_line, figsize=(width, height), squeeze=False, layout="constrained"
    )
    most = max(float(np.nanmax(np.abs(values))), floor) if limit is None else limit
    for axes, panel, title in zip(grid.flat, values, titles, strict=False):
        texts = [
            [
                _said(title, axes_of, (row, column), value)
                for column, value in zip(labels[1], line, strict=True)
            ]
            for row, line in zip(labels[0], panel, strict=True)
        ]
        scale = Normalize(-most if limit is None else 0, most)
        shades = plt.get_cmap("RdBu" if limit is None else "viridis")
        image = cells(axes, panel, texts, shades, scale)
        long = max(map(len, labels[1])) > 3
        turned = 90 * (long and columns > 6)
        axes.set_xticks(range(columns), labels[1], fontsize=8, rotation=turned, parse_math=False)
        axes.set_yticks(range(rows), labels[0], fontsize=8, parse_math=False)
        axes.set(title=title, xlabel=axes_of[1], ylabel=axes_of[0])
        axes.tick_params(length=0)
        if rows * columns <= WRITTEN:
            _write(axes, panel, image)
    for axes in list(grid.flat)[count:]:
        axes.axis("off")
    return figure, image


def _said(title: str, axes_of: Sequence[str], labels: Sequence[str], value: float) -> str:
    where = [
        f"{axis} {label}".strip() for axis, label in zip(axes_of, labels, strict=True) if label
    ]
    return f"{', '.join(filter(None, [title, *where]))}: {number(value)}"


def _write(axes: Axes, panel: np.ndarray, shades: ScalarMappable) -> None:
    for (i, j), value in np.ndenumerate(panel):
        rgb = np.array(shades.to_rgba(value)[:3])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        # Where white and black stand out alike, at 4.6 : 1 (WCAG's relative luminance).
        dark = linear @ [0.2126, 0.7152, 0.0722] < 0.179
        text = number(value, "z.2f")
        axes.text(j, i, text, ha="center", va="center", fontsize=7,
                  color="white" if dark else "black")  # fmt: skip


def ablation_curves(study: AblationStudy, model: str = "", task: str = "") -> Figure:
    """The metric against the factor c by which links are scaled: all of them, and each layer's.

    Marks at c = 0: the same links mean-ablated (○) and resampled from the corrupted prompts (×).
    """
    measure, values = study.metric, study.cells(study.metric)
    names = [name for name in study.names if "." not in name] or study.names
    factors = sorted(study.scales)
    shades = dict(zip(names, [INK, *SCALED, *SHADES.values()] * len(names), strict=False))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
        for name in names:
            y = [values[name, f"scale {c:g}"] for c in factors]
            axes.plot(factors, y, color=shades[name], lw=2, label=f"links {name}")
            texts = [f"links {name} scaled by {number(c, 'g')}: {measure} {number(at)}"
                     for c, at in zip(factors, y, strict=True)]  # fmt: skip
            points(axes, factors, y, texts, shades[name])
            for edit, marker in (("mean", "o"), ("resample", "x")):
                if (name, edit) in values:
                    (dot,) = axes.plot(
                        0, values[name, edit], marker, color=shades[name], mfc="none"
                    )
                    tip(dot, f"links {name}, {edit}: {measure} {number(values[name, edit])}")
        axes.axhline(study.clean[measure], color=INK, lw=1, ls="--")
        axes.axhline(study.corrupted[measure], color="#999999", lw=1, ls=":")
        axes.axvline(1, color="#999999", lw=0.8, ls=":")
        axes.set_title(_titled("links scaled", model, task), parse_math=False)
        axes.set(xlabel="c (0: cut, 1: whole)", ylabel=measure)
        axes.plot([], [], color=INK, lw=1, ls="--", label="no edit")
        axes.plot([], [], color="#999999", lw=1, ls=":", label="corrupted")
        figure.legend(loc="outside right upper")
    return figure


def ablated(study: AblationStudy, model: str = "", task: str = "", scales: bool = True) -> Figure:
    """The metric with each group of links edited, as bars; many groups as heat maps.

    Args:
        model, task: as in :func:`patched`.
        scales: scalings, too.
    """
    measure, values = study.metric, study.cells(study.metric)
    names = study.names
    edits = [edit for edit in study.edited if scales or edit in study.edits]
    if len(names) > BARS and all(GROUP.fullmatch(name) for name in names if name != "all"):
        return _ablated_maps(study, edits, model, task)
    shades = dict(zip([e for e in edits if e not in SHADES], SCALED * len(edits), strict=False))
    height = 0.8 / len(edits)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            figsize=(7, max(2.4, 0.11 * len(names) * (len(edits) + 1) + 1.4)), layout="constrained"
        )
        for i, edit in enumerate(edits):
            places = np.arange(len(names)) + (i - (len(edits) - 1) / 2) * height
            lengths = [values[name, edit] for name in names]
            drawn = axes.barh(places, lengths, height * 0.92, label=edit,
                              color={**SHADES, **shades}[edit])  # fmt: skip
            for bar, name, length in zip(drawn, names, lengths, strict=True):
                tip(bar, f"links {name}, {edit}: {measure} {number(length)}")
        axes.axvline(study.clean[measure], color=INK, lw=1, ls="--", label="no edit")
        axes.axvline(study.corrupted[measure], color="#999999", lw=1, ls=":", label="corrupted")
        axes.axvline(0, color="#999999", lw=0.8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_title(_titled("what links carry, edited", model, task), parse_math=False)
        axes.set_xlabel(measure)
        figure.legend(loc="outside upper center", ncols=5)
    return figure


def _ablated_maps(study: AblationStudy, edits: Sequence[str], model: str, task: str) -> Figure:
    """How each edit changes the metric, by layer: all heads' links at once, and each head's.

    Without single heads, a row is an edit.
    """
    found: dict[str, dict[tuple[str, str], float]] = {}
    clean, at_once = study.clean[study.metric], []
    with_heads = any(".h" in name for name in study.names)
    kinds = {name.rstrip("0123456789") for name in study.names if ".h" not in name} - {"all"}
    for (name, edit), value in study.cells(study.metric).items():
        if edit not in edits:
            continue
        group = GROUP.fullmatch(name)
        if group is None:
            at_once.append(f"{edit} {number(value - clean)}")
            continue
        kind, layer, head = group.groups()
        of_heads = "all heads" if head is None else f"head {head}"
        panel = [f"links {kind}" if len(kinds) > 1 else "", edit if with_heads else ""]
        own = found.setdefault(", ".join(filter(None, panel)), {})
        own[of_heads if with_heads else edit, layer] = value - clean
    rows, layers = (
        list(dict.fromkeys(place[axis] for own in found.values() for place in own))
        for axis in (0, 1)
    )
    values = np.array(
        [[[own.get((row, at), np.nan) for at in layers] for row in rows] for own in found.values()]
    )
    titles = list(found)
    title = f"{study.metric}, links edited: change from {number(clean)}"
    with plt.rc_context(STYLE):
        figure, image = _panels(values, titles, ["", "layer"], [rows, layers])
        beside = f"all links at once: {', '.join(at_once)}" if at_once else ""
        words = "\n".join(filter(None, [_titled(title, model, task), beside]))
        figure.suptitle(words, fontsize=11, x=0.01, ha="left", parse_math=False)
        figure.colorbar(
            image, ax=figure.axes, shrink=0.9, label=f"change of the {study.metric}", pad=0.02
        )
    return figure


def _titled(title: str, model: str, task: str) -> str:
    return "\n".join(filter(None, [f"{model}: {title}" if model else title, task]))
