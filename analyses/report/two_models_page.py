"""``resval-lens compare MODEL MODEL --report``: two models on one task, on one page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from resval_lens.analyses.comparison.two_models_report import ComparedModels
from resval_lens.analyses.display.page import words
from resval_lens.analyses.display.tables import html_table
from resval_lens.analyses.report.result_page import (
    HOW,
    IOI,
    PATCHED,
    Drawn,
    drawn_figure,
    findings,
    folded,
    patched_figures,
    provenance,
    sections_page,
)
from resval_lens.analyses.tasks import TASKS

EDITED = (
    "All links, and each layer's, edited: cut (zero), taken from the corrupted prompt (resample), "
    "or scaled. v1 are the value links into layer 1; layers count from 0."
)
WRITTEN = (
    "What single heads write of logit(answer) − logit(strongest wrong answer), by direct logit "
    "attribution. Below 0 a head writes against the answer. Own values and values from earlier "
    "layers, which links bring, stand apart."
)


def two_models_page(found: ComparedModels, document: Mapping[str, Any], name: str) -> str:
    """The page: the findings with their figures, then every study, figures before tables.

    Args:
        document: the result as JSON, with its provenance.
        name: of the JSON file that holds it all.
    """
    figures = {file.removesuffix(".png"): figure for file, figure in found.figures().items()}
    drawn = _findings(found, figures)
    tables = {
        study: "".join(map(html_table, own)) for study, own in found.tables_by_study().items()
    }
    links, attribution = (_each(found, figures, study) for study in ("ablate", "attribute"))
    patched = _patched(found, figures)
    sections = {
        "What was compared": _compared(found) + tables["measures"],
        "Links ablated": links and f"<p>{EDITED}</p>{links}{tables['links']}",
        "Activations patched": patched and f"<p>{PATCHED}</p>{patched}{tables['patched']}",
        "Heads that write the answer": attribution
        and f"<p>{WRITTEN}</p>{attribution}{tables['attribution']}",
        "The circuit": tables["circuit"],
        "What else was found": folded(
            [each for each in found.sentences() if not any(each in told for told in drawn)]
        ),
        "Provenance": provenance(document["provenance"], {}, name),
    }
    title = f"{' and '.join(found.names)}: {found.models[0].facts.task_and_corruption}"
    return sections_page(title, findings(list(drawn), drawn) + HOW, sections)


def _findings(found: ComparedModels, figures: Mapping[str, Figure]) -> dict[str, Drawn]:
    """The sentences that open the page, with their figures."""
    facts = found.models[0].facts
    parts: dict[str, tuple[list[str], str, str]] = {
        "measures": (
            found.differ()[:1], "Measures of both models",
            f"Means over {facts.prompts} prompts: clean ones, and corrupted ones with another "
            "answer.",
        ),
        "links-cut": (
            found.cut(), "All links cut, and resampled",
            "zero: every link carries nothing; resample: what it carries on the corrupted prompt; "
            "everything else is the clean prompt's.",
        ),
        "faithfulness": (
            found.sized(), "Faithfulness by size",
            "Faithfulness, the share of the clean − corrupted gap that the highest-scored edges "
            "keep, before any is pruned that leads nowhere. 1: as the whole model; above it edges "
            "that work against the answer are left out.",
        ),
    }  # fmt: skip
    made: dict[str, Drawn] = {}
    for file, (said, name, caption) in parts.items():
        if said and file in figures:
            made[" ".join(said)] = partial(_drawn, figures[file], name, caption)
    return made


def _drawn(figure: Figure, name: str, caption: str) -> tuple[Figure, str, str]:
    return figure, name, caption


def _patched(found: ComparedModels, figures: Mapping[str, Figure]) -> str:
    """Heat maps of both models, by site."""
    maps = {
        f"patch-{each.site}-{number}": (name, each)
        for number, (name, model) in enumerate(zip(found.names, found.models, strict=True), 1)
        for each in model.patched
    }
    if not maps:
        return ""
    return patched_figures([(*each, figures[file]) for file, each in maps.items()])


def _compared(found: ComparedModels) -> str:
    """The task and what each model lacks, in words; the table says the rest."""
    facts = found.models[0].facts
    example = next((each.example for model in found.models for each in model.patched), None)
    said = [f"Task: {words(facts.task_and_corruption)}, {facts.prompts} prompts."]
    if facts.task == TASKS["ioi"].title:
        said.append(IOI)
    if example is not None:
        said.append(f"A clean prompt: <q>{words(example.clean)}</q>, corrupted: "
                    f"<q>{words(example.corrupted)}</q>.")  # fmt: skip
    if found.unlike:
        said.append(f"The two models read different prompts: {words(found.unlike)}.")
    for name, model in zip(found.names, found.models, strict=True):
        said += [
            f"{words(name)} has no links." if part == "links"
            else f"{words(name)}: {words(part)} left out: {words(why)}."
            for part, why in model.left_out.items()
        ]  # fmt: skip
    return f"<p>{' '.join(said)}</p>"


def _each(found: ComparedModels, figures: Mapping[str, Figure], study: str) -> str:
    """A study's figures of the models that have one."""
    what = {"ablate": "links edited", "attribute": "heads that write the answer"}[study]
    return "".join(
        drawn_figure(figures[f"{study}-{number}"], f"{name}: {what}", "")
        for number, name in enumerate(found.names, 1)
        if f"{study}-{number}" in figures
    )
