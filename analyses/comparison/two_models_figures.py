"""Pictures of two models: their measures, and what is left of the metric without links."""

from __future__ import annotations

from matplotlib.figure import Figure

from resval_lens.analyses.comparison.two_models_report import ComparedModels
from resval_lens.analyses.drawing.figures import COLOURS, STYLE, plain, plt
from resval_lens.analyses.drawing.marks import tip
from resval_lens.numbers import number

SHADES = (COLOURS["classic"], COLOURS["values"])


def measures(found: ComparedModels) -> Figure:
    """Each measure of both models, on clean and on corrupted prompts: a panel for each measure."""
    names = list(found.models[0].clean)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            1, len(names), figsize=(1.0 + 1.75 * len(names), 2.7), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for axes, measure in zip(grid[0], names, strict=True):
            for number_of, (name, model) in enumerate(zip(found.names, found.models, strict=True)):
                for place, (which, values) in enumerate(
                    {"clean": model.clean, "corrupted": model.corrupted}.items()
                ):
                    drawn = axes.bar(
                        place + 0.4 * (number_of - 0.5), values[measure], 0.37,
                        color=SHADES[number_of], label="" if place else plain(name),
                    )  # fmt: skip
                    tip(drawn[0], f"{name}, {which}: {measure} {number(values[measure])}")
                    axes.bar_label(drawn, [number(values[measure], "z.2f")], fontsize=7, padding=1)
            axes.axhline(0, color="#999999", lw=0.8)
            axes.set_xticks((0, 1), ("clean", "corrupted"))
            axes.set_title(plain(measure), fontsize=9)
            axes.margins(y=0.12)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=1)
    return figure


def links_cut(found: ComparedModels) -> Figure:
    """The metric of each model that has links: whole, and with all of them edited."""
    metric = found.models[0].facts.metric
    rows: list[tuple[str, float, str]] = []
    for name, model, shade in zip(found.names, found.models, SHADES, strict=True):
        if model.links is not None:
            cells, every = model.links.cells(metric), model.links.names[0]
            rows.append((f"{name}, as it is", model.links.clean[metric], shade))
            rows += [(f"{name}, {edit}", cells[every, edit], shade) for edit in model.links.edits]
            rows.append((f"{name}, corrupted", model.links.corrupted[metric], shade))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.8, 0.3 * len(rows) + 0.8), layout="constrained")
        for place, (label, value, shade) in enumerate(rows):
            drawn = axes.barh(place, value, 0.65, color=shade)
            tip(drawn[0], f"{label}: {metric} {number(value)}")
            axes.bar_label(drawn, [number(value, "z.2f")], fontsize=7, padding=2)
        axes.axvline(0, color="#999999", lw=0.8)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=8,
                        parse_math=False)  # fmt: skip
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(metric)
        axes.margins(x=0.18)
    return figure
