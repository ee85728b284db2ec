"""How this process uses the machine."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread, as many as before afterwards; also a decorator.

    The two-layer models are too small to share: threads that wait for one another cost more than
    they do (ten times more where cores are busy), and how many there are changes the last bit.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def gradients_on() -> Iterator[None]:
    """Gradients on, even where the caller has switched them off globally; also a decorator."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, each module in its own mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def keep_freed_memory() -> None:
    """Lets glibc reuse freed megabytes instead of returning them to the system each step.

    A training step frees and takes the same few megabytes; where page faults are slow (virtual
    machines) giving them back costs a quarter of the step. Does nothing without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 1 << 26)
    mallopt(M_MMAP_THRESHOLD, 2**31 - 1)


def die_with(parent: int) -> None:
    """Ends this process when its parent has died; for a thread."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
