"""The link v1 (the paper's V₁→V₂) of a two-layer classifier: accuracies, edits, attention.

Everything here is measured live on the models given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.analyses.comparison.cells import Cells
from resval_lens.analyses.comparison.link_controls import first_of
from resval_lens.analyses.results.result import Result
from resval_lens.hooks import edit_links, link_activations, links
from resval_lens.models.answer import can_answer_fast, edited_answers
from resval_lens.models.classifier import ICLClassifier
from resval_lens.tasks.icl import ICLBatch, ICLWorld
from resval_lens.training.icl import evaluate, score
from resval_lens.training.icl_measures import measures_from
from resval_lens.training.icl_run import ICLRun, Worlds
from resval_lens.training.recorded import RecordedRun

SCALES = tuple(round(c, 2) for c in np.arange(-1, 2.01, 0.25))
Accuracies = Mapping[str, float]
"""By task."""
Results = Mapping[str, Mapping[str, float]]
"""By task, ``accuracy`` and ``loss``."""


@dataclass
class TrainedClassifier:
    """A classifier, the world that it was trained in, and its test sets."""

    name: str
    seed: int
    model: ICLClassifier
    world: ICLWorld
    tests: dict[str, ICLBatch]


def trained_classifiers(
    runs: Sequence[RecordedRun[ICLRun]], sequences: int, worlds: Worlds | None = None
) -> list[TrainedClassifier]:
    """The first run of each variant that has a model, with ``sequences`` of its own test sets.

    Args:
        worlds: where worlds are drawn.

    Raises:
        ValueError: no run has a model, or a number below 1.
    """
    if sequences < 1:
        raise ValueError(f"sequences must be 1 or more; got {sequences}")
    worlds = worlds or Worlds()
    by_name: dict[str, TrainedClassifier] = {}
    for recorded in runs:
        run = recorded.run
        if run.name in by_name or not recorded.has_model:
            continue
        world, tests = worlds.of(run)
        first = first_of(tests, sequences)
        by_name[run.name] = TrainedClassifier(run.name, run.seed, recorded.model(), world, first)
    if not by_name:
        raise ValueError("none of these runs has a trained model; train to the end first")
    return list(by_name.values())


def accuracies(model: ICLClassifier, tests: dict[str, ICLBatch]) -> Accuracies:
    """Share of right answers on each test set; hooks on the model count."""
    return accuracies_of(evaluate(model, tests))


@dataclass(frozen=True)
class LinkStudy(Result):
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
    scale: Mapping[float, Accuracies]
    mean: Accuracies
    whole: Results
    cut: Results
    without: Results

    @property
    def accuracies_cut(self) -> Accuracies:
        """Accuracies with the links cut, on all sequences."""
        return accuracies_of(self.cut)

    def to_dict(self) -> dict[str, Any]:
        """Of ``whole`` and ``without`` nothing, of ``cut`` accuracies."""
        document = super().to_dict()
        kept = {name: document[name] for name in ("links", "sequences", "scale", "mean")}
        return {**kept, "cut": self.accuracies_cut}


@torch.no_grad()
def link_study(
    trained: TrainedClassifier, sequences: int, model: ICLClassifier | None = None
) -> LinkStudy:
    """Every edit of every link at once, so that layer 1 is run once for all of them.

    Args:
        sequences: the first of each task, for other edits than the cut.
        model: the weights to be run instead, such as its own with a link grafted on.
    """
    model = model or trained.model
    factors = torch.tensor([*SCALES, 0.0])
    at = [SCALES.index(1), SCALES.index(0)]
    generator = torch.Generator().manual_seed(trained.seed)
    edits: dict[str, list[float]] = {}
    whole: dict[str, dict[str, float]] = {}
    cut: dict[str, dict[str, float]] = {}
    for name, task in trained.world.task.tests().items():
        inputs, targets = trained.tests[name].inputs, trained.tests[name].targets
        means = _means(model, trained.world.batch(1000, generator, task).inputs, len(factors))
        logits = edited_logits(model, inputs[:sequences], factors, means)
        edits[name] = [score(each, targets[:sequences])["accuracy"] for each in logits]
        both = logits[at]
        if len(inputs) > sequences:
            rest = edited_logits(model, inputs[sequences:], factors[at])
            both = torch.cat([both, rest], 1)
        for end, each in zip((whole, cut), both, strict=True):
            end[name] = score(each, targets)
    streams = model.cfg.streams
    kept = all(s.own == 1 and not s.how.own_is_learned for s in streams)
    return LinkStudy(
        links=[str(link) for link in links(model)],
        sequences=min(sequences, len(trained.tests["test"].targets)),
        scale={c: {name: row[i] for name, row in edits.items()} for i, c in enumerate(SCALES)},
        mean={name: row[-1] for name, row in edits.items()},
        whole=whole,
        cut=cut,
        without=cut if kept else evaluate(model.with_streams(""), trained.tests),
    )


def _means(
    model: ICLClassifier, others: Tensor, edits: int
) -> dict[str, Float[Tensor, "edit pos d_head"]]:
    """By stream, nothing for all edits but the last, which carries the mean link over others."""
    # What a link carries is linear in what layer 1 reads, so the mean is of the mean; a gate's not.
    linear = can_answer_fast(model)
    arriving = link_activations(model, others.mean(0, keepdim=True) if linear else others)
    found = {}
    for stream in model.cfg.streams:
        mean = arriving[f"blocks.1.attn.hook_{stream.of}_link"].mean(0)[:, 0]  # [pos, d_head]
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
    """:func:`~resval_lens.models.answer.edited_answers` of any one-head model, in chunks.

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


@dataclass(frozen=True)
class FourCells(Result):
    """Accuracies on each task of the four cells; ``stream`` names the model with streams."""

    stream: str
    cells: Cells[Accuracies]


def four_cells(classic: LinkStudy, stream: LinkStudy, name: str = "values") -> FourCells:
    """{trained classic, trained with stream} × {run without, run with}: accuracies on each task.

    The same weights, run as the other architecture: a link grafted on, or removed.

    Args:
        classic: of the classic model with the other's streams grafted on.
        stream: of the model that was trained with them.
        name: of that model.
    """
    results = classic.without, classic.whole, stream.without, stream.whole
    without, grafted, removed, whole = map(accuracies_of, results)
    return FourCells(name, Cells(without, grafted, removed, whole, trained=name))


def accuracies_of(results: Results) -> Accuracies:
    """Accuracy by task."""
    return {name: result["accuracy"] for name, result in results.items()}


@dataclass(frozen=True)
class AttentionStudy(Result):
    """Reddy's attention measures (:mod:`resval_lens.training.icl_measures`) on one task.

    Attributes:
        measures: by name.
        mean_pattern: of each layer, [query][key].
    """

    task: str
    measures: Mapping[str, float]
    mean_pattern: list[list[list[float]]]


@torch.no_grad()
def attention_study(
    trained: TrainedClassifier, task: str = "ic", chunk: int = 128
) -> AttentionStudy:
    """Reddy's attention measures, and the mean pattern of each layer, on one task."""
    batch = trained.tests[task]
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in (0, 1)]
    found = []
    for part in batch.inputs.split(chunk):
        logits, cache = trained.model.run_with_cache(part, names_filter=names)
        found.append((*(cache[name][:, 0] for name in names), logits))
    first, second, logits = (torch.cat(each) for each in zip(*found, strict=True))
    measures = measures_from(first, second, logits, batch)
    return AttentionStudy(task, measures, [_rows(first), _rows(second)])


def _rows(pattern: Tensor) -> list[list[float]]:
    return [[round(float(x), 5) for x in row] for row in pattern.mean(0)]
