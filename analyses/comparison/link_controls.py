"""What the link does in a two-layer classifier, beside what as large an edit does without it.

A cut takes two things away: what came from the layer below, and that much of the layer's gain. So
beside the cut there are edits that take only one of them, or the other path:

    links cut             the link carries nothing (zero)
    links cut, norm kept  own · ‖own + link‖ / ‖own‖: the norm of each token and head stays
    link at its mean      over the task's sequences, per position
    link resampled        what it carries on another sequence of the same task
    own cut               layer 1's own queries, keys or values carry nothing; the link stays
    own cut, norm kept    link · ‖own + link‖ / ‖link‖
    own × √2, links cut   the own part as large as two independent parts of its size together
    own × 2, links cut    as two equal ones

A model without links has the own part alone, which is cut, smaller and larger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resval_lens.analyses.comparison.layer_one import Edit, LayerOne, layer_one
from resval_lens.config import ResValConfig
from resval_lens.models.classifier import ICLClassifier
from resval_lens.tasks.icl import ICLBatch

TRAINED, CUT, CUT_KEPT = "as trained", "links cut", "links cut, norm kept"
RESAMPLED, OWN_CUT, DOUBLED = "link resampled", "own cut", "own × 2, links cut"
CONTROLS = (
    TRAINED, CUT, CUT_KEPT, "link at its mean", RESAMPLED, OWN_CUT, "own cut, norm kept",
    "own × √2, links cut", DOUBLED,
)  # fmt: skip
OWN_FACTORS = {
    TRAINED: 1.0, OWN_CUT: 0.0, "own × ½": 0.5, "own × √½": math.sqrt(0.5),
    "own × √2": math.sqrt(2), "own × 2": 2.0,
}  # fmt: skip
"""The edits of a model without links, and what its own part is multiplied with."""


def first_of(tests: Mapping[str, ICLBatch], sequences: int) -> dict[str, ICLBatch]:
    """The first sequences of each test."""
    return {name: ICLBatch(*(x[:sequences] for x in batch)) for name, batch in tests.items()}


def has_links(cfg: ResValConfig) -> bool:
    """Whether anything flows along the streams: not where all that arrives is multiplied with 0."""
    return any(stream.carried != 0 or stream.is_learned for stream in cfg.streams)


def norm_kept(left: Float[Tensor, "*at d"], whole: Float[Tensor, "*at d"]) -> Tensor:
    """left · ‖whole‖ / ‖left‖ along the last dimension; 0 stays 0."""
    size = left.norm(dim=-1, keepdim=True)
    return left * torch.where(size > 0, whole.norm(dim=-1, keepdim=True) / size, 0.0)


def others_of(count: int, generator: torch.Generator) -> Int[Tensor, " row"]:
    """For each of ``count`` rows another one, along a cycle of all: none takes from itself."""
    order = torch.randperm(count, generator=generator)
    rows = torch.empty_like(order)
    rows[order] = order.roll(1)
    return rows


def control_edits(links: bool, rows: Int[Tensor, " row"]) -> dict[str, Edit]:
    """The edits by name.

    Args:
        links: whether there are any (:func:`has_links`).
        rows: that a resampled link is taken from.
    """
    if not links:
        return {
            name: lambda own, link, c=factor: c * own  # type: ignore[misc]
            for name, factor in OWN_FACTORS.items()
        }
    edits: tuple[Edit, ...] = (
        lambda own, link: own + link,
        lambda own, link: own,
        lambda own, link: norm_kept(own, own + link),
        lambda own, link: own + link.mean(0, keepdim=True),
        lambda own, link: own + link[rows],
        lambda own, link: link,
        lambda own, link: norm_kept(link, own + link),
        lambda own, link: math.sqrt(2) * own,
        lambda own, link: 2 * own,
    )
    return dict(zip(CONTROLS, edits, strict=True))


def accuracy(layer: LayerOne, edit: Edit, targets: Int[Tensor, " batch"]) -> float:
    """The share of right answers under an edit."""
    return float((layer.logits(edit).argmax(-1) == targets).double().mean())


def link_controls(
    model: ICLClassifier,
    tests: Mapping[str, ICLBatch],
    seed: int = 0,
    layers: Mapping[str, LayerOne] | None = None,
) -> dict[str, dict[str, float]]:
    """Accuracy on each task under each of ``CONTROLS``, or of ``OWN_FACTORS``, by its name.

    Args:
        tests: by task; a sequence takes its resampled link from another of its task's.
        seed: draws which.
        layers: :func:`~resval_lens.analyses.comparison.layer_one.layer_one` of each test, where it
            is there already.

    Raises:
        ValueError: a test of fewer than two sequences.
    """
    for name, batch in tests.items():
        if len(batch.targets) < 2:
            raise ValueError(f"{name} has {len(batch.targets)} sequences; expected 2 or more")
    generator, links = torch.Generator().manual_seed(seed), has_links(model.cfg)
    found: dict[str, dict[str, float]] = {}
    for task, batch in tests.items():
        layer = layers[task] if layers else layer_one(model, batch.inputs)
        edits = control_edits(links, others_of(len(batch.targets), generator))
        for name, edit in edits.items():
            found.setdefault(name, {})[task] = accuracy(layer, edit, batch.targets)
    return found
