"""``resval-lens compare --report``: what was compared and found, on one page that opens offline."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.markup import escape as markup
from rich.table import Table

from resval_lens.analyses.circuits.metrics import FAITHFUL
from resval_lens.analyses.comparison import figures, headline_figures
from resval_lens.analyses.comparison.circuit_compare import ComparedCircuits
from resval_lens.analyses.comparison.compare_parts import Comparison
from resval_lens.analyses.comparison.icl_compare import ComparedClassifiers
from resval_lens.analyses.comparison.icl_curves import icl_curves
from resval_lens.analyses.comparison.icl_emergence import NO_GAIN_CONTROL
from resval_lens.analyses.comparison.ioi_cells import cells_sentences
from resval_lens.analyses.comparison.lm_compare import ComparedLanguageModels, NotCompared
from resval_lens.analyses.comparison.lm_emergence import LMEmergence
from resval_lens.analyses.display.attention import attention_body
from resval_lens.analyses.display.circuit import circuits_body
from resval_lens.analyses.display.heads import named_heads
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
    sentences,
)
from resval_lens.analyses.studies import intervention_figures
from resval_lens.analyses.studies.circuit_drawing import evaluated_drawings
from resval_lens.analyses.studies.patching import Patching
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import RecordedRun

Data = Mapping[str, Any]
Ready = Mapping[str, Figure | None]
TITLE = "Classic and residual-value transformers, compared"
CLASSIFIERS = "two-layer classifiers"
LANGUAGE_MODELS = "language models"
IC = (
    "IC is accuracy on sequences whose classes were never seen in training: only the context tells "
    "their labels."
)
CORRUPTED = (
    "Corrupted prompts of IOI have another name as subject (random-S2) or three other names (ABC)."
)
MAIN = 3
"""So many findings open the page; the others stand below the figures."""


def compare_page(
    study: Comparison,
    data: Data,
    runs: Sequence[RecordedRun[ICLRun]],
    lm_runs: Sequence[RecordedRun[LMRun]],
    ready: Ready | None = None,
) -> str:
    """The page, of what was compared and the runs whose curves are drawn.

    Everything is inside: style, script, data. A policy in the page forbids it to fetch anything.

    Args:
        data: what ``compare.json`` holds: its ``found`` and ``provenance`` are shown.
        lm_runs: of language models; empty if there are none to draw.
        ready: figures that are images beside the page, too, by file name; they are laid out once.
    """
    ready = ready or {}
    said = data.get("found", [])
    classifiers, language, circuits = study.classifiers, study.language_models, study.circuits
    sections = {
        "What was compared": _compared(study),
        "Accuracy and emergence": _emergence(study, runs, lm_runs, ready),
        "Attention": _attention(classifiers, language),
        "Links ablated": _links(classifiers, language, ready),
        "Activations patched": _patched(language.patched),
        "Circuits": _circuits(circuits, ready),
        "What links carry": _signals(circuits),
        "The four cells": _cells(classifiers, language),
        "What else was found": folded(said[MAIN:]),
        "Provenance": provenance(
            data["provenance"],
            study.settings,
            "compare.json",
            "; the curves of training are in the runs' metrics",
        ),
    }
    lead = _lead(said[:MAIN], study, runs) + HOW
    return sections_page(TITLE, lead, sections)


def _compared(study: Comparison) -> str:
    names = {"classic": "no stream", "queries": "queries flow", "keys": "keys flow",
             "values": "values flow"}  # fmt: skip
    table = Table(title="Models")
    for heading in ("model", "task", "stream"):
        table.add_column(heading)
    for heading in ("seed", "seeds of its curves", "evaluated on"):
        table.add_column(heading, justify="right")
    seeds = {row.variant: row.snapshots for row in study.emergence.rows}
    for name, model in study.classifiers.models.items():
        table.add_row(
            name, CLASSIFIERS, names.get(name, name),
            str(model.seed), ", ".join(map(str, seeds.get(name, []))),
            f"{model.sequences:,} sequences",
        )  # fmt: skip
    table.add_section()
    language, of_models = study.language_models, study.lm_emergence
    curves = of_models.seeds if isinstance(of_models, LMEmergence) else {}
    for name, scores in language.scores.items():
        kind = scores.architecture
        seed = "" if scores.seed is None else str(scores.seed)
        table.add_row(
            markup(name), LANGUAGE_MODELS, names.get(kind, kind), seed,
            f"{curves[kind]} seeds" if kind in curves else "", f"{language.prompts:,} prompts",
        )  # fmt: skip
    return (
        "<p>Transformers in which each attention layer's values (queries, keys) also receive the "
        "previous layer's of the same head (arXiv 2412.15113), beside classic ones: "
        f"{CLASSIFIERS} that learn to classify in context, and "
        f"{LANGUAGE_MODELS} that name the indirect object of a sentence. Everything below "
        "was measured now, on these models, but training curves and the tables under them, which "
        "are of recorded runs.</p><p>Layers count from 0: the links v1 (in a classifier the "
        "paper's V₁→V₂) arrive in layer 1, v1.h2 is the one into its head 2; a1.h2 is that head "
        "and m1 the layer's MLP.</p>" + html_table(table)
    )


def _lead(said: Sequence[str], study: Comparison, runs: Sequence[RecordedRun[ICLRun]]) -> str:
    """The findings that matter most, each with its figure, and what none of them says."""
    if not said:
        return '<p class="rv-lead">The numbers bear no sentence; they are below.</p>'
    told = re.sub("`([^`]+)`", r"<code>\1</code>", NO_GAIN_CONTROL)
    return (
        f"{findings(said, _headline_figures(study, runs))}"
        '<p class="rv-quiet">A link\'s weight, norm or attention is not its importance; where '
        "these sentences say what a link does, it was cut or "
        f"corrupted. {told}</p>"
    )


def _headline_figures(study: Comparison, runs: Sequence[RecordedRun[ICLRun]]) -> dict[str, Drawn]:
    """By sentence its figure, the figure's name and caption."""
    made: dict[str, Drawn] = {}
    found, circuits = study.emergence, study.circuits
    for sentence in found.sooner()[:1]:
        made[sentence] = lambda: (
            headline_figures.sooner(icl_curves(runs), found), "Accuracy on IC in training",
            f"{IC} Thin: single seeds; thick: their mean; dots: where each seed first passes "
            f"{found.threshold:g}; dashed: the mean of these steps.",
        )  # fmt: skip
    for sentence in circuits.kept():
        made[sentence] = lambda: (
            headline_figures.links_corrupted(circuits.linked), "Gap kept without what links carry",
            f"{IOI} Every link carries what it carries on the corrupted prompt; everything else is "
            "the clean prompt's. 100%: as on the clean prompt; 0%: as on the corrupted one. "
            f"{CORRUPTED}",
        )  # fmt: skip
    for sentence in circuits.carried():
        made[sentence] = lambda: (
            headline_figures.links_carry(circuits.with_links), "What links carry of the subject",
            "Links frozen to prompts that change what tells the subject: its token (which name "
            "comes twice) or its position (the first or the second). −100%: no preference is left; "
            "−200%: the other name is preferred as much.",
        )  # fmt: skip
    return made


def _emergence(
    study: Comparison,
    runs: Sequence[RecordedRun[ICLRun]],
    lm_runs: Sequence[RecordedRun[LMRun]],
    ready: Ready,
) -> str:
    parts = [
        f"<h3>{CLASSIFIERS.capitalize()}</h3>",
        drawn_figure(ready.get("accuracy.png") or study.classifiers.accuracy_figure(),
                 "Accuracy of each model on each task",
                "Accuracy at the end of training, of one seed. Test: as in training; IC: classes "
                "never seen; IC2: known classes, their labels exchanged; IW: the class of the "
                "query is not in the context, so that only memory (in weights) helps."),
        drawn_figure(ready.get("emergence.png") or icl_curves(runs).figure(),
                 "Accuracy and loss of classifiers in training",
                "Thin: single seeds; thick: their mean."),
        html_table(study.classifiers.accuracy_table()),
        html_table(study.emergence.table()),
    ]  # fmt: skip
    of_models = study.lm_emergence
    if isinstance(of_models, NotCompared):
        parts.append(f"<p>Curves of language models are not drawn: {words(of_models.reason)}.</p>")
    elif lm_runs:
        parts += [
            f"<h3>{LANGUAGE_MODELS.capitalize()}</h3>",
            drawn_figure(figures.training(lm_runs), "Language models in training",
                    "Thin: single seeds; thick: their mean. Unseen: pairs of names that never "
                    "meet in training text, frames and objects that never occur in it."),
            *(html_table(table) for table in of_models.tables()),
        ]  # fmt: skip
    return "".join(parts)


def _attention(classifiers: ComparedClassifiers, language: ComparedLanguageModels) -> str:
    shown = {name: classifiers.attention[name] for name in _pair(classifiers.attention)}
    length = len(next(iter(shown.values())).mean_pattern[0])
    tokens = [f"{'label' if i % 2 else 'object'} {i // 2 + 1} " for i in range(length - 1)]
    means = {
        name: named_heads(torch.tensor(study.mean_pattern).clamp(0, 1), ["layer 0", "layer 1"])
        for name, study in shown.items()
    }
    parts = [
        f"<h3>{CLASSIFIERS.capitalize()}</h3><p>Mean weights over sequences of fresh classes. "
        "Layer 0 writes each object next to its label; layer 1 lets the query find the label. "
        "Choose a layer on the left; point at a token, or Tab to it, to see what it attends to and "
        "what attends to it; click or Enter keeps it.</p>",
        attention_body(means, [*tokens, "query"]),
        html_table(classifiers.attention_table()),
    ]
    attention = language.attention
    if attention.tokens:
        heads = {
            name: named_heads(torch.tensor(of.patterns), of.heads)
            for name, of in attention.models.items()
        }
        parts += [
            f"<h3>{LANGUAGE_MODELS.capitalize()}</h3><p>All heads (layer.head) on one prompt. The "
            "answer is said at the last token.</p>",
            attention_body(heads, attention.tokens),
        ]
    return "".join(parts)


def _links(classifiers: ComparedClassifiers, language: ComparedLanguageModels, ready: Ready) -> str:
    parts = []
    if classifiers.links:
        parts += [
            f"<h3>{CLASSIFIERS.capitalize()}</h3>",
            drawn_figure(ready.get("link_edits.png") or figures.link_edits(classifiers.links),
                     "Accuracy against the scale of the links",
                    "Every link of a model scaled by c; ○: replaced by its mean over other "
                    "sequences."),
        ]  # fmt: skip
        if classifiers.controls:
            parts.append(html_table(classifiers.controls.table()))
    if language.links:
        parts.append(f"<h3>{LANGUAGE_MODELS.capitalize()}</h3>")
    for name, ablation in language.links.items():
        study = ablation.study
        of = ablation.facts.model, ablation.facts.task_and_corruption
        parts += [
            drawn_figure(intervention_figures.ablation_curves(study, *of), f"{name}: links scaled",
                    "v1 are the links that arrive in layer 1, all heads. At c = 0 also "
                    "mean-ablated (○) and resampled from the corrupted prompts (×)."),
        ]  # fmt: skip
        if name in language.scores:  # its own links, not grafted ones
            alone = intervention_figures.ablated(study, *of, scales=False)
            said = "Each layer's links and each head's alone (v1.h2: into head 2 of layer 1)."
            parts.append(drawn_figure(alone, f"{name}: each link edited", said))
        if study.story_loss:
            parts += map(html_table, study.story_loss.tables())
    return "".join(parts) or "<p>None of these models has links.</p>"


def _patched(patched: Sequence[Patching]) -> str:
    if not patched:
        return "<p>No language model was compared.</p>"
    example = patched[0].example
    assert example is not None
    most = max(1.0, *(found.largest for found in patched))  # side by side: one scale
    maps = [(found.facts.model, found, found.figure(most)) for found in patched]
    return (
        f"<p>{PATCHED} {IOI} S1 and S2 are the subject's first and second mention, S1+1 the token "
        "after the first, end the last. The corrupted prompts have another subject: "
        f"<q>{words(example.clean)}</q>, <q>{words(example.corrupted)}</q>.</p>"
        f"{patched_figures(maps)}"
    )


def _circuits(circuits: ComparedCircuits, ready: Ready) -> str:
    parts = [
        "<p>Tasks, and how prompts are corrupted: IC, classifying in context, by other labels or "
        "other objects; IOI, naming the indirect object, by someone else who gives (random-S2) or "
        "three other names (ABC). Metrics: the logit difference (IO − S) is the same whether the "
        "model would name the two or anything else; log P(IO), P(IO) and IO less the mean of all "
        "other names ask for the name itself. f is faithfulness, the share of the clean − "
        "corrupted gap that a circuit keeps.</p>"
    ]
    said = (
        f"The fewest highest-scored edges with a faithfulness of {FAITHFUL:g} by log P(IO). Every "
        "other edge carries what it carries on the corrupted prompt. The stronger an edge is "
        "drawn, the more the metric loses without it. Of several seeds, the first is drawn."
    )
    if circuits.drawn:
        drawn = circuits_body(evaluated_drawings(circuits.drawn), "Circuits")
        parts.append(f"<figure>{drawn}<figcaption>{said}</figcaption></figure>")
    parts += map(html_table, circuits.circuit_tables())
    parts.append(
        drawn_figure(ready.get("faithfulness.png") or figures.faithfulness(circuits.circuits),
                "Faithfulness by size",
                "Faithfulness of the highest-scored edges, before any is pruned that leads nowhere "
                "(the table's are pruned); 1: as the whole model. It may pass 1: edges that work "
                "against the answer are left out. CPR is the area under such a curve over the "
                "share of edges, CMD that between it and 1.")
    )  # fmt: skip
    return "".join(parts)


def _signals(circuits: ComparedCircuits) -> str:
    if not circuits.heads:
        return "<p>No language model was compared.</p>"
    said = (
        "<p>Roles after Wang et al. (arXiv 2211.00593), measured on ABC prompts: movers attend "
        "from the end to a name and write it, negative ones against it (movers of both names write "
        "the subject, too); suppressors write it off; inhibiting heads tell movers which name to "
        "leave out. “noise” is what the head's corrupted output does to the logit difference, "
        "in parts of the gap: below 0 the head helps the answer, above 0 it works against it."
        "</p><p>Then links are frozen to corrupted prompts that change the subject as a token, or "
        "as a position.</p>"
    )
    return said + "".join(map(html_table, circuits.head_tables()))


def _cells(classifiers: ComparedClassifiers, language: ComparedLanguageModels) -> str:
    parts = [
        "<p>The same weights, run as the other architecture: a link grafted on, or removed. Each "
        "as it was trained is the comparison; the other two say how far weights and link have "
        "grown together.</p>"
    ]
    if cells := classifiers.cells_table():
        parts.append(html_table(cells))
    for kind, pairs in language.cells().items():
        parts.append(html_table(language.cells_table(kind)))
        parts.append(sentences(cells_sentences(pairs)))
    if len(parts) == 1:
        return "<p>None of these models has a pair: classic and with a stream, of one seed.</p>"
    return "".join(parts)


def _pair(names: Mapping[str, Any]) -> list[str]:
    """Classic and values, where there are both; else all."""
    both = [name for name in ("classic", "values") if name in names]
    return both if len(both) == 2 else list(names)
