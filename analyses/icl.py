"""What the V₁→V₂ link does in the two-layer classifiers: the study behind ``resval-lens compare``.

Everything here is measured live on the models given: accuracies, causal edits of the links,
attention. Emergence curves come from the recorded runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.analyses.link_controls import first_of, link_controls
from resval_lens.answer import can_answer_fast, edited_answers
from resval_lens.classifier import ICLClassifier
from resval_lens.hooks import edit_links, link_activations, links
from resval_lens.recorded import RecordedRun
from resval_lens.streams import COMPLEMENTARY
from resval_lens.tasks.icl import ICLBatch, ICLWorld
from resval_lens.tasks.icl_measures import measures_from
from resval_lens.training.icl import evaluate, score
from resval_lens.training.icl_run import Worlds

GRAFTED = "classic + link"
CONTROL_SEQUENCES = 500
SCALES = tuple(round(c, 2) for c in np.arange(-1, 2.01, 0.25))
Note = Callable[[str], None]
Results = dict[str, dict[str, float]]
"""By task, ``accuracy`` and ``loss``."""


@dataclass
class Subject:
    """A trained model with the world it was trained in."""

    name: str
    seed: int
    model: ICLClassifier
    world: ICLWorld
    tests: dict[str, ICLBatch]


def subjects(
    runs: Sequence[RecordedRun], sequences: int, worlds: Worlds | None = None
) -> list[Subject]:
    """The first run of each variant that has a model, with ``sequences`` of its own test sets.

    Args:
        worlds: where worlds are drawn.

    Raises:
        ValueError: no run has a model, or a number below 1.
    """
    if sequences < 1:
        raise ValueError(f"sequences must be 1 or more; got {sequences}")
    worlds = worlds or Worlds()
    found: dict[str, Subject] = {}
    for recorded in runs:
        run = recorded.run
        if run.name in found or not recorded.has_model:
            continue
        world, tests = worlds.of(run)
        first = {k: ICLBatch(*(x[:sequences] for x in batch)) for k, batch in tests.items()}
        found[run.name] = Subject(run.name, run.seed, recorded.model(), world, first)
    if not found:
        raise ValueError("none of these runs has a trained model; train to the end first")
    return list(found.values())


def accuracies(model: ICLClassifier, tests: dict[str, ICLBatch]) -> dict[str, float]:
    """Share of right answers on each test set; hooks on the model count."""
    return _accuracies(evaluate(model, tests))


@dataclass(frozen=True)
class LinkStudy:
    """What editing every link of a model does to each task.

    Attributes:
        links: their names.
        sequences: of each task, on which links are scaled and mean-ablated.
        scale: accuracies by factor c from −1 to 2 (c = 0 cuts, c = 1 changes nothing).
        mean: accuracies where the link carries its mean over 1000 other sequences of the same
            task, per position.
        whole, cut: accuracy and loss of c = 1 and c = 0 on all sequences.
        without: the same of the model without its streams: where own weights are 1, ``cut``.
    """

    links: list[str]
    sequences: int
    scale: dict[str, dict[str, float]]
    mean: dict[str, float]
    whole: Results
    cut: Results
    without: Results

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; of ``whole`` and ``without`` nothing, of ``cut`` accuracies."""
        return {
            "links": self.links,
            "sequences": self.sequences,
            "scale": self.scale,
            "mean": self.mean,
            "cut": _accuracies(self.cut),
        }


@torch.no_grad()
def link_study(subject: Subject, sequences: int, model: ICLClassifier | None = None) -> LinkStudy:
    """Every edit of every link at once, so that layer 1 is run once for all of them.

    Args:
        sequences: the first of each task, for other edits than the cut.
        model: the weights to be run instead, such as the subject's with a link grafted on.
    """
    model = model or subject.model
    factors = torch.tensor([*SCALES, 0.0])
    at = [SCALES.index(1), SCALES.index(0)]
    generator = torch.Generator().manual_seed(subject.seed)
    edits: dict[str, list[float]] = {}
    ends: dict[str, Results] = {"whole": {}, "cut": {}}
    for name, task in subject.world.task.tests().items():
        inputs, targets = subject.tests[name].inputs, subject.tests[name].targets
        means = _means(model, subject.world.batch(1000, generator, task).inputs, len(factors))
        logits = edited_logits(model, inputs[:sequences], factors, means)
        edits[name] = [score(each, targets[:sequences])["accuracy"] for each in logits]
        both = logits[at]
        if len(inputs) > sequences:
            rest = edited_logits(model, inputs[sequences:], factors[at])
            both = torch.cat([both, rest], 1)
        for end, each in zip(ends.values(), both, strict=True):
            end[name] = score(each, targets)
    streams = model.cfg.streams
    kept = all(s.own == 1 and s.mix not in {*COMPLEMENTARY, "learned_pair"} for s in streams)
    return LinkStudy(
        links=[str(link) for link in links(model)],
        sequences=min(sequences, len(subject.tests["test"].targets)),
        scale={str(c): {name: row[i] for name, row in edits.items()} for i, c in enumerate(SCALES)},
        mean={name: row[-1] for name, row in edits.items()},
        **ends,
        without=ends["cut"] if kept else evaluate(model.with_streams(""), subject.tests),
    )


def _means(
    model: ICLClassifier, others: Tensor, edits: int
) -> dict[str, Float[Tensor, "edit pos d_head"]]:
    """By stream, nothing for all edits but the last, which carries the mean link over others."""
    # What a link carries is linear in what layer 1 reads, so the mean is of the mean; a gate's not.
    linear = can_answer_fast(model)
    carried = link_activations(model, others.mean(0, keepdim=True) if linear else others)
    found = {}
    for stream in model.cfg.streams:
        mean = carried[f"blocks.1.attn.hook_{stream.of}_link"].mean(0)[:, 0]  # [pos, d_head]
        found[stream.of] = torch.stack([*[torch.zeros_like(mean)] * (edits - 1), mean])
    return found


@torch.no_grad()
def edited_logits(
    model: ICLClassifier,
    inputs: Float[Tensor, "batch pos d_model"],
    factors: Float[Tensor, " edit"],
    constants: Mapping[str, Float[Tensor, "edit pos d_head"]] | None = None,
    chunk: int = 128,
) -> Float[Tensor, "edit batch label"]:
    """:func:`~resval_lens.answer.edited_answers` of any one-head model, some sequences at a time.

    Models that it does not know are run with hooks, once for each edit.
    """
    parts = inputs.split(chunk)
    if can_answer_fast(model):
        found = [edited_answers(model, part, factors, constants) for part in parts]
        return torch.cat(found, 1)
    rows = []
    for number, factor in enumerate(factors.tolist()):

        def edit(link: Tensor, name: str, factor: float = factor, number: int = number) -> Tensor:
            added = (constants or {}).get(name.split("_")[1])
            return factor * link + (0 if added is None else added[number][:, None])

        with edit_links(model, edit):
            rows.append(torch.cat([model(part) for part in parts]))
    return torch.stack(rows)


def four_cells(classic: LinkStudy, stream: LinkStudy, name: str = "values") -> dict[str, Any]:
    """{trained classic, trained with stream} × {run without, run with}: accuracies on each task.

    The same weights, run as the other architecture: a link grafted on, or removed.

    Args:
        classic: of the classic model with the other's streams grafted on.
        stream: of the model that was trained with them.
        name: of that model.
    """
    cells = {
        f"trained {trained}, run {run}": _accuracies(results)
        for trained, study in (("classic", classic), (name, stream))
        for run, results in (("without", study.without), ("with", study.whole))
    }
    return {"stream": name, "cells": cells}


def _accuracies(results: Results) -> dict[str, float]:
    return {name: result["accuracy"] for name, result in results.items()}


@torch.no_grad()
def attention_study(subject: Subject, task: str = "ic", chunk: int = 128) -> dict[str, Any]:
    """Reddy's attention measures, and the mean pattern of each layer, on one task."""
    batch = subject.tests[task]
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in (0, 1)]
    found = []
    for part in batch.inputs.split(chunk):
        logits, cache = subject.model.run_with_cache(part, names_filter=names)
        found.append((*(cache[name][:, 0] for name in names), logits))
    first, second, logits = (torch.cat(each) for each in zip(*found, strict=True))
    return {
        "task": task,
        "measures": measures_from(first, second, logits, batch),
        "mean_pattern": [_rows(first), _rows(second)],
    }


def _rows(pattern: Tensor) -> list[list[float]]:
    return [[round(float(x), 5) for x in row] for row in pattern.mean(0)]


def compare(
    runs: Sequence[RecordedRun],
    sequences: int = 10_000,
    link_sequences: int = 2_000,
    note: Note = lambda text: None,
    worlds: Worlds | None = None,
) -> dict[str, Any]:
    """The whole study, as JSON-able data.

    Args:
        sequences: of each test set, for accuracies and cells.
        link_sequences: of each test set, for each edit of the links.
        note: called with what is being done.
        worlds: where worlds are drawn.
    """
    if link_sequences < 1:
        raise ValueError(f"link_sequences must be 1 or more; got {link_sequences}")
    note("loading models and drawing test sets")
    chosen = subjects(runs, sequences, worlds)
    by_name = {subject.name: subject for subject in chosen}
    studies: dict[str, LinkStudy] = {}
    attention = {}
    for subject in chosen:
        note(f"{subject.name}: attention")
        attention[subject.name] = attention_study(subject)
        if subject.model.cfg.streams:
            note(f"{subject.name}: accuracies, links edited")
            studies[subject.name] = link_study(subject, link_sequences)
    results = {name: study.whole for name, study in studies.items()}
    cells = {}
    if {"classic", "values"} <= set(by_name):
        note("classic with a link grafted on: accuracies, links edited")
        classic, streams = by_name["classic"], by_name["values"].model.cfg.streams
        grafted = classic.model.with_streams(streams)
        studies[GRAFTED] = link_study(classic, link_sequences, grafted)
        results["classic"] = studies[GRAFTED].without
        cells = {"four_cells": four_cells(studies[GRAFTED], studies["values"])}
    controls = {}
    if "values" in studies:
        note("values: the cut beside changes of gain")
        values = by_name["values"]
        some = first_of(values.tests, min(link_sequences, CONTROL_SEQUENCES))
        controls = {
            "controls": {
                "model": "values",
                "sequences": len(some["test"].targets),
                "accuracy": link_controls(values.model, some, values.seed),
            }
        }
    return {
        "models": {
            subject.name: {
                "seed": subject.seed,
                "sequences": len(subject.tests["test"].targets),
                "tasks": results.get(subject.name) or evaluate(subject.model, subject.tests),
            }
            for subject in chosen
        },
        "links": {name: study.to_dict() for name, study in studies.items()},
        "attention": attention,
        **cells,
        **controls,
    }
