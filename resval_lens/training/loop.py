"""The loop of trainings in one process, in a folder that a killed run goes on from."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor

from resval_lens.runtime import gradients_on
from resval_lens.streams import shorthand
from resval_lens.training.run_folder import (
    append_metrics,
    check_not_done,
    locked,
    read_metrics,
    record_end,
    record_start,
    restore,
    write_snapshot,
)
from resval_lens.transformer import ResValTransformer

Model = TypeVar("Model", bound=ResValTransformer)
Progress = Callable[[int, dict[str, Any] | None], None]
"""Called with the step reached, and at a snapshot its metrics."""


@dataclass(frozen=True)
class Trainee(Generic[Model]):
    """What is trained, and on what.

    Attributes:
        generator: draws the batches; its state is part of every snapshot.
        loss: of the next batch.
        measure: the metrics of the model as it is, at a snapshot.
    """

    model: Model
    generator: Generator
    optimizer: torch.optim.Optimizer
    loss: Callable[[], Tensor]
    measure: Callable[[], dict[str, Any]]

    def state(self) -> dict[str, Tensor]:
        """What a snapshot holds beside the generator's state: parameters, momentum."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        state: dict[str, Tensor] = dict(self.model.named_parameters())
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if group.get("momentum"):
                    kept = self.optimizer.state[parameter]
                    kept.setdefault("momentum_buffer", torch.zeros_like(parameter))
                    state[f"momentum.{names[parameter]}"] = kept["momentum_buffer"]
        return state

    def step(self, number: int = 1) -> Tensor:
        """One step on the next batch, the ``number``-th of the run; the loss before it."""
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def metrics(self, step: int) -> dict[str, Any]:
        """What is measured after ``step``."""
        return self.measure()

    def save(self, folder: Path, record: dict[str, Any]) -> None:
        """Keeps the trained model in ``folder``."""
        self.model.save_pretrained(folder, record=record, overwrite=True)


@gradients_on()
def train_in_folder(
    folder: Path,
    run: Any,
    make: Callable[[], Trainee[Model]],
    progress: Progress,
    should_stop: Callable[[], bool],
    keep_snapshots: bool,
    may_differ: Collection[str] = ("steps",),
) -> Model | None:
    """Trains ``run`` in ``folder``, from its newest snapshot if there is one.

    Args:
        run: has ``steps``, ``snapshot_every``, ``streams`` and ``to_dict()``.
        make: makes what is trained as it is before the first step.
        may_differ: settings that may change between starts.

    Returns:
        The trained model, or None if ``should_stop`` said so before the end.

    Raises:
        ValueError: the folder holds a different run or has done more than ``steps``, or its
            files are damaged.
        RuntimeError: another process is training there, or the loss is NaN.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        check_not_done(folder, run.steps)
        start = record_start(folder, run.to_dict(), may_differ)
        trainee = make()
        state, generator = trainee.state(), trainee.generator
        done = restore(folder, state, generator)
        if done != run.steps:  # the model of a run that is now to go on is not its last
            shutil.rmtree(folder / "model", ignore_errors=True)

        def snapshot(step: int, train_loss: float | None, seconds_per_step: float) -> None:
            metrics = {
                "step": step,
                "train_loss": train_loss,
                **trainee.metrics(step),
                "seconds_per_step": round(seconds_per_step, 6),
            }
            append_metrics(folder, metrics)
            whole = {**state, "generator": generator.get_state()}
            write_snapshot(folder, step, whole, None if keep_snapshots else 1)
            progress(step, metrics)

        if done is None:
            snapshot(0, None, 0.0)
            done = 0
        summed, count, started = torch.zeros(()), 0, time.perf_counter()
        for step in range(done + 1, run.steps + 1):
            if should_stop():
                return None
            summed += trainee.step(step)
            count += 1
            if step % run.snapshot_every == 0 or step == run.steps:
                mean = float(summed) / count
                if not np.isfinite(mean):
                    raise RuntimeError(
                        f"{folder}: the loss is {mean} at step {step}; the snapshot before it is "
                        "intact"
                    )
                if not all(bool(x.isfinite().all()) for x in state.values()):
                    raise RuntimeError(
                        f"{folder}: a weight is not a number after step {step}; the snapshot "
                        "before it is intact"
                    )
                snapshot(step, mean, (time.perf_counter() - started) / count)
                summed, count, started = torch.zeros(()), 0, time.perf_counter()
            elif step % 20 == 0:
                progress(step, None)
        record = model_record(run, start, read_metrics(folder))
        trainee.save(folder / "model", record)
        record_end(folder)
        return trainee.model


def model_record(run: Any, start: dict[str, Any], metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """The provenance of a trained model: its (last) start, what was trained, its last metrics."""
    last = {key: value for key, value in metrics[-1].items() if key != "seconds_per_step"}
    return {**start, "run": run.to_dict(), "streams": shorthand(run.streams), "metrics": last}
