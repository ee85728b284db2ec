"""Training the two-layer classifiers; a run that was interrupted goes on where it was."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from resval_lens.answer import answer, can_answer_fast
from resval_lens.classifier import ICLClassifier
from resval_lens.runtime import one_thread
from resval_lens.streams import shorthand
from resval_lens.tasks.icl import ICLBatch
from resval_lens.tasks.icl_measures import attention_measures
from resval_lens.training.icl_run import ICLRun, draw_world, initial_model
from resval_lens.training.run_folder import (
    append_metrics,
    check_not_done,
    locked,
    read_metrics,
    record_start,
    restore,
    write_snapshot,
)

Progress = Callable[[int, dict[str, Any] | None], None]
"""Called with the step reached, and at a snapshot its metrics."""


@one_thread()
def train_icl(
    run: ICLRun,
    folder: Path,
    progress: Progress = lambda step, metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
    keep_snapshots: bool = False,
) -> ICLClassifier | None:
    """Trains ``run`` in ``folder``, from its newest snapshot if there is one; on one thread.

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
        start = record_start(folder, run.to_dict())
        world, tests = draw_world(run)
        model, generator = initial_model(run), run.generators()["batches"]
        done = restore(folder, dict(model.named_parameters()), generator)
        if done != run.steps:  # the model of a run that is now to go on is not its last
            shutil.rmtree(folder / "model", ignore_errors=True)
        parameters = [p for p in model.parameters() if p.requires_grad]
        # p ← p − lr·(g + decay/lr·p) = (1 − decay)·p − lr·g
        sgd = torch.optim.SGD(parameters, lr=run.lr, weight_decay=run.decay / run.lr, foreach=True)
        logits = answer if can_answer_fast(model) else ICLClassifier.__call__

        def snapshot(step: int, train_loss: float | None, seconds_per_step: float) -> None:
            metrics = measure(model, tests, step, train_loss, seconds_per_step)
            append_metrics(folder, metrics)
            state = {**dict(model.named_parameters()), "generator": generator.get_state()}
            write_snapshot(folder, step, state, None if keep_snapshots else 1)
            progress(step, metrics)

        if done is None:
            snapshot(0, None, 0.0)
            done = 0
        summed, count, started = torch.zeros(()), 0, time.perf_counter()
        for step in range(done + 1, run.steps + 1):
            if should_stop():
                return None
            batch = world.batch(run.batch, generator)
            loss = F.cross_entropy(logits(model, batch.inputs), batch.targets)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            summed += loss.detach()
            count += 1
            if step % run.snapshot_every == 0 or step == run.steps:
                mean = float(summed) / count
                if not np.isfinite(mean):
                    raise RuntimeError(
                        f"{folder}: the loss is {mean} at step {step}; the snapshot before it is "
                        "intact"
                    )
                snapshot(step, mean, (time.perf_counter() - started) / count)
                summed, count, started = torch.zeros(()), 0, time.perf_counter()
            elif step % 20 == 0:
                progress(step, None)
        record = model_record(run, start, read_metrics(folder))
        model.save_pretrained(folder / "model", record=record, overwrite=True)
        return model


def measure(
    model: ICLClassifier,
    tests: dict[str, ICLBatch],
    step: int,
    train_loss: float | None,
    seconds_per_step: float,
) -> dict[str, Any]:
    """The metrics of a snapshot: the four tests, and where 1000 IC sequences attend."""
    return {
        "step": step,
        "train_loss": train_loss,
        **evaluate(model, tests),
        "attention": attention_measures(model, ICLBatch(*(x[:1000] for x in tests["ic"]))),
        "seconds_per_step": round(seconds_per_step, 6),
    }


@torch.no_grad()
def evaluate(
    model: ICLClassifier, tests: dict[str, ICLBatch], chunk: int = 128
) -> dict[str, dict[str, float]]:
    """Accuracy and mean cross-entropy (nats) on each test set."""
    logits_of = answer if can_answer_fast(model) else ICLClassifier.__call__
    results = {}
    for name, batch in tests.items():
        logits = torch.cat([logits_of(model, x) for x in batch.inputs.split(chunk)])
        results[name] = {
            "accuracy": float((logits.argmax(-1) == batch.targets).double().mean()),
            "loss": float(F.cross_entropy(logits, batch.targets)),
        }
    return results


def model_record(
    run: ICLRun, start: dict[str, Any], metrics: list[dict[str, Any]]
) -> dict[str, Any]:
    """The provenance of a trained model: its (last) start, what was trained, its last metrics."""
    last = {key: value for key, value in metrics[-1].items() if key != "seconds_per_step"}
    return {**start, "run": run.to_dict(), "streams": shorthand(run.streams), "metrics": last}
