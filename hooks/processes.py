"""Several processes, each with a device and the whole model, that divide prompts among them.

    torchrun --nproc-per-node 2 -m resval_lens.analyses circuit MODEL --device cuda

    with several_processes("cuda") as own:
        scores = score_edges(load_model(name, device=own.device).model, pairs)

Within it edges are scored, and circuits run, each process its own prompts; what they found is
summed, and every process goes on with all of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from accelerate import PartialState
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Process:
    """One of several.

    Attributes:
        device: where its model should be.
    """

    number: int
    of: int
    device: str

    @property
    def is_first(self) -> bool:
        """Whether it is the one that prints and writes."""
        return self.number == 0

    def rows(self, count: int) -> Int[Tensor, " some"]:
        """Which of so many prompts are its own."""
        return torch.arange(count)[self.number :: self.of]


ALONE = Process(0, 1, "cpu")
_DIVIDING: ContextVar[Process] = ContextVar("_DIVIDING", default=ALONE)


@contextmanager
def several_processes(device: str) -> Iterator[Process]:
    """Divides prompts among the processes that torchrun, or accelerate, has started; if any.

    Args:
        device: "cpu", or a kind of which each process takes one, like "cuda".

    Raises:
        ValueError: a device that says which, or that several processes cannot have.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Process(0, 1, device)
        return
    if ":" in device or device == "auto":
        raise ValueError(f"each of several processes takes a device of its own; got {device!r}")
    state = PartialState(cpu=device == "cpu")
    own = device if device == "cpu" else str(state.device)
    process = Process(state.process_index, state.num_processes, own)
    token = _DIVIDING.set(process)
    try:
        yield process
    finally:
        _DIVIDING.reset(token)
        state.destroy_process_group()
        PartialState._reset_state()


def dividing() -> Process:
    """This process among those that prompts are being divided by: one of one, if they are not."""
    return _DIVIDING.get()


def summed(x: Float[Tensor, "*any"], process: Process) -> Float[Tensor, "*any"]:
    """Σ over ``process`` and the others of what each has of ``x``, in place."""
    if process.of > 1:
        torch.distributed.all_reduce(x)
    return x
