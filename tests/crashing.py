"""Training in processes that start quickly and die at a chosen moment."""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import torch

from resval_lens.training.icl import train_icl
from resval_lens.training.icl_run import ICLRun

# Forks a process that has imported everything: torch and TransformerLens take seconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
DIED = 9


def train(run: ICLRun, folder: Path, dies_at: int | None = None) -> None:
    """``train_icl``; the process dies just before its ``dies_at``-th change of a file."""
    torch.set_num_threads(1)
    if dies_at is not None:
        die_before_change(dies_at, folder)
    train_icl(run, folder)


def die_before_change(number: int, folder: Path) -> None:
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wa")
        if (writes or event in CHANGES) and str(folder) in str(arguments[0]):
            seen += 1
            if seen == number:
                os._exit(DIED)

    sys.addaudithook(watch)
