"""Tiny runs of simplified transformers: trained for a moment, constructed, or made up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from resval_lens.analyses.papers.memory.model.construct import construct
from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.tasks.bigrams import Bigrams
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask
from resval_lens.analyses.papers.memory.training import MemoryRun, initial_memory, train_memory
from resval_lens.models.presets import memory_variant
from resval_lens.training.recorded import RecordedRun, load_run, write_record

BIGRAMS = Bigrams.count("abcadbeacfbdaecbfaedcabfdecafbdceafbcad")
TASK = TriggerTask(BIGRAMS, length=12, n_triggers=2, never_output="likeliest")
STEPS = (0, 10, 20, 30, 40)
FLOOR = 1e-3


def tiny_run(name: str = "relative", seed: int = 0, **changes: Any) -> MemoryRun:
    """A run of one of the presets on ``TASK``."""
    own = memory_variant(name)
    task = replace(TASK, **own.pop("task", {}))
    settings = {"task": task, "d_model": 32, "n_ctx": 32, "steps": 4, "batch": 8,
                "snapshot_every": 2, "test_size": 16}  # fmt: skip
    return MemoryRun(name, seed=seed, **{**settings, **own, **changes})


def trained(folder: Path, *runs: MemoryRun) -> Path:
    """The folder of ``runs``, trained."""
    for run in runs:
        train_memory(run, folder / run.folder_name)
    return folder


def metrics_line(step: int, **values: float | None) -> dict[str, Any]:
    """A snapshot's metrics, of measures by their names in analyses.memory.curves."""
    memories = ("W_K1", "W_K1_near", "W_K1_far", "W_K2", "W_O2", "W_O2_read", "W_F_kl", "global_kl")
    recall = dict.fromkeys(memories)
    looks = dict.fromkeys(("previous", "previous_mass", "target", "target_mass"))
    read = {"W_O2": "W_O2_read", "W_F_kl": "global_kl"}
    line: dict[str, Any] = {"step": step, "recall": recall, "attention": looks}
    for name in ("trained", "longer"):
        line[name] = {"loss": 2.0, "excess": 0.5, "accuracy": 0.0, "in_context": 1.0}
    for name, value in values.items():
        group = next((g for g in ("recall", "attention") if name in line[g]), "trained")
        line[group][name] = value
        if name in read:  # as the readout hears them
            line[group][read[name]] = value
    return line


def made_up(
    name: str, seed: int, folder: Path = Path("nowhere"), **curves: list[float | None]
) -> RecordedRun[MemoryRun]:
    """A run of ``STEPS`` with the given curves, and no model."""
    run = tiny_run(name, seed, steps=STEPS[-1], snapshot_every=10)
    metrics = [
        metrics_line(step, **{measure: curve[i] for measure, curve in curves.items()})
        for i, step in enumerate(STEPS)
    ]
    return RecordedRun(run, [], metrics, folder / run.folder_name)


def exact_model(run: MemoryRun, tau1: float = 6.0) -> MemoryTransformer:
    """An induction head that knows the trained positions, exact to rounding."""
    log_bigrams = run.task.bigrams.log_conditional(FLOOR)
    return construct(
        initial_memory(run), log_bigrams, tau1, 30.0, 30.0,
        trained_length=run.task.length, exact=True,
    )  # fmt: skip


def constructed(
    folder: Path, name: str, seed: int = 0, tau1: float = 6.0
) -> RecordedRun[MemoryRun]:
    """A recorded run whose trained model is :func:`exact_model`."""
    run = tiny_run(name, seed, d_model=96, n_ctx=30)
    metrics = [metrics_line(step, accuracy=step / 4) for step in (0, 2, 4)]
    write_record(folder / run.folder_name, run.to_dict(), [{}], metrics)
    with torch.no_grad():
        exact_model(run, tau1).save_pretrained(folder / run.folder_name / "model")
    return load_run(folder / run.folder_name, MemoryRun)
