"""Corrupted in-context sequences, in which the context answers otherwise.

    clean      a₁ X  a₂ X  b₁ Y  b₂ Y  a₃ → X
    labels     a₁ Y  a₂ Y  b₁ X  b₂ X  a₃ → Y     other labels where the query's objects are
    objects    b₁ X  b₂ X  a₁ Y  a₂ Y  a₃ → Y     the query's objects are elsewhere

Both keep positions and how often each object and label occurs. With exchanged labels a model must
read something else where it looks; with exchanged objects it must look elsewhere.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resval_lens.tasks.icl import ICLBatch, ICLWorld

Exchanged = Literal["labels", "objects"]


class CorruptedSequences(NamedTuple):
    """Sequences, their corrupted prompts, and the labels of the context, the right one first."""

    clean: Float[Tensor, "batch pos d_input"]
    corrupted: Float[Tensor, "batch pos d_input"]
    labels: Int[Tensor, "batch label"]


def exchanged(world: ICLWorld, batch: ICLBatch, what: Exchanged = "labels") -> CorruptedSequences:
    """Bursty sequences corrupted: of two classes each takes the other's place, of more the next's.

    Raises:
        ValueError: another word than "labels" or "objects"; a sequence whose context does not hold
            two or more labels, each as often as the others, the query's among them.
    """
    if what not in get_args(Exchanged):
        raise ValueError(f"what must be 'labels' or 'objects'; got {what!r}")
    distinct, places = _classes(batch)
    size = len(distinct)
    content = slice(world.task.n_positions, None)
    corrupted = batch.inputs.clone()
    if what == "labels":
        other = distinct.roll(-1, 1)[..., None].expand_as(places).flatten(1)
        new, first = world.labels[other], 1
    else:
        elsewhere = 2 * places.roll(-1, 1).flatten(1)
        new, first = batch.inputs[torch.arange(size)[:, None], elsewhere][..., content], 0
    rows, here = torch.arange(size)[:, None], 2 * places.flatten(1) + first
    corrupted[rows, here, content] = new
    right_first = (distinct != batch.targets[:, None]).long().argsort(dim=1, stable=True)
    return CorruptedSequences(batch.inputs, corrupted, distinct.gather(1, right_first))


def _classes(
    batch: ICLBatch,
) -> tuple[Int[Tensor, "batch label"], Int[Tensor, "batch label copy"]]:
    """The context's labels, and the pairs of each."""
    context = batch.context_labels
    n_labels = len(context[0].unique())
    copies = context.shape[1] // n_labels
    labels, pairs = context.sort(dim=1, stable=True)
    distinct = labels[:, ::copies][:, :n_labels]
    expected = distinct.repeat_interleave(copies, 1)
    whole = expected.shape == labels.shape
    for row, answer in enumerate(batch.targets.tolist()):
        even = whole and bool((labels[row] == expected[row]).all())
        if n_labels < 2 or not even or answer not in distinct[row]:
            raise ValueError(
                f"sequence {row} must hold two or more labels equally often, its answer {answer} "
                f"among them; got {context[row].tolist()}"
            )
    return distinct, pairs.unflatten(1, (n_labels, copies))
