"""What the V₁→V₂ link does in the two-layer classifiers: the study behind ``resval-lens compare``.

Everything here is measured live on the models given: accuracies, causal edits of the links,
attention. Emergence curves come from the recorded runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resval_lens.classifier import ICLClassifier
from resval_lens.hooks import edit_links, link_activations, links, mean, scale
from resval_lens.recorded import RecordedRun
from resval_lens.tasks.icl import ICLBatch, ICLWorld
from resval_lens.tasks.icl_measures import measures_from
from resval_lens.training.icl import evaluate
from resval_lens.training.icl_run import draw_world

GRAFTED = "classic + link"
SCALES = tuple(round(c, 2) for c in np.arange(-1, 2.01, 0.25))
Note = Callable[[str], None]


@dataclass
class Subject:
    """A trained model with the world it was trained in."""

    name: str
    seed: int
    model: ICLClassifier
    world: ICLWorld
    tests: dict[str, ICLBatch]


def subjects(runs: Sequence[RecordedRun], sequences: int) -> list[Subject]:
    """The first run of each variant that has a model, with ``sequences`` of its own test sets.

    Raises:
        ValueError: no run has a model, or a number below 1.
    """
    if sequences < 1:
        raise ValueError(f"sequences must be 1 or more; got {sequences}")
    found: dict[str, Subject] = {}
    drawn: dict[Any, tuple[ICLWorld, dict[str, ICLBatch]]] = {}
    for recorded in runs:
        run = recorded.run
        if run.name in found or not recorded.has_model:
            continue
        world_of = (run.seed, run.task, run.test_size)  # variants of one seed share a world
        if world_of not in drawn:
            drawn[world_of] = draw_world(run)
        world, tests = drawn[world_of]
        first = {k: ICLBatch(*(x[:sequences] for x in batch)) for k, batch in tests.items()}
        found[run.name] = Subject(run.name, run.seed, recorded.model(), world, first)
    if not found:
        raise ValueError("none of these runs has a trained model; train to the end first")
    return list(found.values())


@torch.no_grad()
def accuracy(model: ICLClassifier, batch: ICLBatch, chunk: int = 128) -> float:
    """Share of right answers, through the hooked model (so that edits count)."""
    right = 0
    for x, y in zip(batch.inputs.split(chunk), batch.targets.split(chunk), strict=True):
        right += int((model(x).argmax(-1) == y).sum())
    return right / len(batch.targets)


def accuracies(model: ICLClassifier, tests: dict[str, ICLBatch]) -> dict[str, float]:
    """:func:`accuracy` on each test set."""
    return {name: accuracy(model, batch) for name, batch in tests.items()}


class _Resumed:
    """A test set run up to layer 1, so that edits of the link cost one layer instead of two."""

    def __init__(self, model: ICLClassifier, batch: ICLBatch, chunk: int = 128) -> None:
        self.model = model
        self.parts = []
        for x, y in zip(batch.inputs.split(chunk), batch.targets.split(chunk), strict=True):
            _, cache = model.run_with_cache(x, stop_at_layer=1)
            resid = cache["blocks.0.hook_resid_post"]
            self.parts.append((resid, model.carried_before(1, cache), y))

    @torch.no_grad()
    def accuracy(self) -> float:
        right = total = 0
        for resid, carried, y in self.parts:
            logits = self.model(resid, start_at_layer=1, carried=carried)
            right += int((logits.argmax(-1) == y).sum())
            total += len(y)
        return right / total


@torch.no_grad()
def link_study(subject: Subject, sequences: int) -> dict[str, Any]:
    """What editing every link of a model does to each task.

    Edits: scaling by c from −1 to 2 (c = 0 cuts, c = 1 changes nothing) and mean-ablation (the
    link carries its mean over other sequences of the same task, per position), on the first
    ``sequences`` of each task; and the cut once more on all of them.
    """
    model = subject.model
    tests = {
        name: _Resumed(model, ICLBatch(*(x[:sequences] for x in batch)))
        for name, batch in subject.tests.items()
    }
    scaled = {}
    for c in SCALES:
        with edit_links(model, scale(c)):
            scaled[str(c)] = {name: test.accuracy() for name, test in tests.items()}
    generator = torch.Generator().manual_seed(subject.seed)
    ablated = {}
    for name, task in subject.world.task.tests().items():
        others = subject.world.batch(1000, generator, task)
        with edit_links(model, mean(link_activations(model, others.inputs))):
            ablated[name] = tests[name].accuracy()
    return {
        "links": [str(link) for link in links(model)],
        "sequences": min(sequences, len(subject.tests["test"].targets)),
        "scale": scaled,
        "mean": ablated,
        "cut": {
            name: result["accuracy"]
            for name, result in evaluate(model.with_streams(""), subject.tests).items()
        },
    }


def four_cells(classic: Subject, stream: Subject) -> dict[str, Any]:
    """{trained classic, trained with stream} × {run without, run with}: accuracies on each task.

    The same weights, run as the other architecture: a link grafted on, or removed.
    """
    streams = stream.model.cfg.streams
    cells = {}
    for subject in (classic, stream):
        for label, run_with in (("without", ()), ("with", streams)):
            model = subject.model.with_streams(run_with, share_weights=True)
            results = evaluate(model, subject.tests)
            cells[f"trained {subject.name}, run {label}"] = {
                name: result["accuracy"] for name, result in results.items()
            }
    return {"stream": stream.name, "cells": cells}


@torch.no_grad()
def attention_study(subject: Subject, task: str = "ic") -> dict[str, Any]:
    """Reddy's attention measures, and the mean pattern of each layer, on one task."""
    batch = subject.tests[task]
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in (0, 1)]
    logits, cache = subject.model.run_with_cache(batch.inputs, names_filter=names)
    first, second = (cache[name][:, 0] for name in names)
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
) -> dict[str, Any]:
    """The whole study, as JSON-able data.

    Args:
        sequences: of each test set, for accuracies and cells.
        link_sequences: of each test set, for each edit of the links.
        note: called with what is being done.
    """
    if link_sequences < 1:
        raise ValueError(f"link_sequences must be 1 or more; got {link_sequences}")
    note("loading models and drawing test sets")
    chosen = subjects(runs, sequences)
    by_name = {subject.name: subject for subject in chosen}
    result: dict[str, Any] = {"models": {}, "links": {}, "attention": {}}
    for subject in chosen:
        note(f"{subject.name}: accuracies and attention")
        result["models"][subject.name] = {
            "seed": subject.seed,
            "sequences": len(subject.tests["test"].targets),
            "tasks": evaluate(subject.model, subject.tests),
        }
        result["attention"][subject.name] = attention_study(subject)
    for subject in chosen:
        if subject.model.cfg.streams:
            note(f"{subject.name}: editing its links")
            result["links"][subject.name] = link_study(subject, link_sequences)
    if {"classic", "values"} <= set(by_name):
        note("classic with a link grafted on: editing it")
        classic, streams = by_name["classic"], by_name["values"].model.cfg.streams
        grafted = replace(classic, name=GRAFTED, model=classic.model.with_streams(streams))
        result["links"][GRAFTED] = link_study(grafted, link_sequences)
        note("the four cells")
        result["four_cells"] = four_cells(by_name["classic"], by_name["values"])
    return result
