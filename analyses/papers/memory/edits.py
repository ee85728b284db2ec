"""Edits of simplified transformers: links cut, layer 0 silenced, the other architecture."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerBatch, TriggerTask
from resval_lens.analyses.papers.memory.training import evaluate
from resval_lens.hooks import cut_links
from resval_lens.hooks.ablate import held_hooks

Edit = Literal["as trained", "link cut", "layer 0 silenced", "both", "layer 0 uniform"]
EDITS: tuple[Edit, ...] = (
    "as trained", "link cut", "layer 0 silenced", "both", "layer 0 uniform",
)  # fmt: skip
Cell = Literal[
    "trained without, run without",
    "trained without, run with",
    "trained with, run without",
    "trained with, run with",
]


@dataclass(frozen=True)
class Edited:
    """In-context accuracy of a trained model under each edit; see :func:`ablated`."""

    variant: str
    seed: int
    sequences: int
    accuracy: Mapping[Edit, float | None]


@dataclass(frozen=True)
class FourCells:
    """In-context accuracy of models trained and run with and without the value stream."""

    variant: str
    seed: int
    sequences: int
    cells: Mapping[Cell, float | None]


def ablated(
    model: MemoryTransformer, task: TriggerTask, batch: TriggerBatch
) -> dict[Edit, float | None]:
    """In-context accuracy of ``model`` as trained and under each edit.

        link cut           every link carries nothing; only where there is one
        layer 0 silenced   what layer 0's head adds to the residual stream is 0, so that of what it
                           reads only the link, if any, carries anything on
        both               both of them; only where there is a link
        layer 0 uniform    layer 0 attends to all positions alike

    Raises:
        ValueError: ``batch`` holds no position whose next token the context tells.
    """
    if not batch.in_context.any():
        raise ValueError("batch: no trigger occurs twice in any of its sequences")
    found: dict[Edit, float | None] = {}
    for edit in EDITS:
        if edit in ("link cut", "both") and not model.cfg.streams:
            continue
        with edited(model, edit):
            found[edit] = evaluate(model, task, batch)["accuracy"]
    return found


def edited(model: MemoryTransformer, edit: str) -> AbstractContextManager[Any]:
    """The model under one of ``EDITS``; as it was afterwards.

    Raises:
        ValueError: no such edit; a link to be cut in a model that has none.
    """
    if edit not in EDITS:
        raise ValueError(f"edit must be one of {', '.join(EDITS)}; got {edit!r}")
    stack = ExitStack()
    hooks: list[Any] = []
    if edit in ("link cut", "both"):
        stack.enter_context(cut_links(model))
    if edit in ("layer 0 silenced", "both"):
        hooks = [("blocks.0.hook_attn_out", _zero)]
    elif edit == "layer 0 uniform":
        hooks = [("blocks.0.attn.hook_pattern", uniform_attention)]
    stack.enter_context(held_hooks(model, hooks))
    return stack


def _zero(x: Tensor, hook: Any) -> Tensor:
    return torch.zeros_like(x)


def uniform_attention(
    pattern: Float[Tensor, "batch head pos pos"], hook: Any = None
) -> Float[Tensor, "batch head pos pos"]:
    """1/t from position t (counted from 1) to each of the positions up to it; a hook function."""
    ones = torch.ones_like(pattern[0, 0]).tril()
    return (ones / ones.sum(1, keepdim=True)).expand_as(pattern)


def four_cells(
    without: MemoryTransformer,
    with_values: MemoryTransformer,
    task: TriggerTask,
    batch: TriggerBatch,
) -> dict[Cell, float | None]:
    """In-context accuracy of {trained without, with} × {run without, with} the value stream.

    The same weights, run as the other architecture: a link grafted on, or removed.
    """

    def accuracy(model: MemoryTransformer, streams: Any) -> float | None:
        other = model.with_streams(streams, share_weights=True)
        return evaluate(other, task, batch)["accuracy"]

    streams = with_values.cfg.streams
    return {
        "trained without, run without": accuracy(without, ()),
        "trained without, run with": accuracy(without, streams),
        "trained with, run without": accuracy(with_values, ()),
        "trained with, run with": accuracy(with_values, streams),
    }
