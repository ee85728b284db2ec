"""What the link does in a two-layer classifier, beside what as large an edit does without it.

A cut takes two things away: what came from the layer below, and that much of the layer's gain. So
beside the cut there are edits that take only one of them, or the other path:

    links cut             the link carries nothing (zero)
    link at its mean      over the task's sequences, per position
    link resampled        what it carries on another sequence of the same task
    own cut               layer 1's own queries, keys or values carry nothing; the link stays
    own × √2, links cut   the own part as large as two independent parts of its size together
    own × 2, links cut    as two equal ones
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from resval_lens.hooks import edit_links, link_activations, mean, resample, scale, zero
from resval_lens.hooks.ablate import Edit
from resval_lens.models.classifier import ICLClassifier
from resval_lens.tasks.icl import ICLBatch

CUT, OWN_CUT, DOUBLED = "links cut", "own cut", "own × 2, links cut"
CONTROLS = (
    "as trained", CUT, "link at its mean", "link resampled", OWN_CUT, "own × √2, links cut", DOUBLED
)  # fmt: skip


def first_of(tests: Mapping[str, ICLBatch], sequences: int) -> dict[str, ICLBatch]:
    """The first sequences of each test."""
    return {name: ICLBatch(*(x[:sequences] for x in batch)) for name, batch in tests.items()}


@torch.no_grad()
def link_controls(
    model: ICLClassifier, tests: Mapping[str, ICLBatch], seed: int = 0
) -> dict[str, dict[str, float]]:
    """Accuracy on each task under each of ``CONTROLS``, by its name.

    Args:
        tests: by task; a sequence takes its resampled link from another of its task's.
        seed: draws which.

    Raises:
        ValueError: a model without streams, or a test of fewer than two sequences.
    """
    if not model.cfg.streams:
        raise ValueError("this model has no links: it has nothing to be controlled for")
    for name, batch in tests.items():
        if len(batch.targets) < 2:
            raise ValueError(f"{name} has {len(batch.targets)} sequences; expected 2 or more")
    streams = [stream.of for stream in model.cfg.streams]
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, dict[str, float]] = {name: {} for name in CONTROLS}
    for task, batch in tests.items():
        arriving = link_activations(model, batch.inputs)
        order = torch.randperm(len(batch.targets), generator=generator)
        rows = torch.empty_like(order)
        rows[order] = order.roll(1)  # along a cycle of all sequences: none takes from itself
        cells: dict[str, tuple[Edit, float]] = {
            "as trained": (scale(1), 1),
            CUT: (zero(), 1),
            "link at its mean": (mean(arriving), 1),
            "link resampled": (resample(arriving, rows), 1),
            OWN_CUT: (scale(1), 0),
            "own × √2, links cut": (zero(), math.sqrt(2)),
            DOUBLED: (zero(), 2),
        }
        for name, (edit, factor) in cells.items():
            hooks: list[Any] = [
                (f"blocks.1.attn.hook_{of}_local", lambda x, hook, c=factor: c * x)
                for of in streams
            ]
            with edit_links(model, edit), model.hooks(fwd_hooks=hooks):
                answers = model(batch.inputs).argmax(-1)
            found[name][task] = float((answers == batch.targets).double().mean())
    return found
