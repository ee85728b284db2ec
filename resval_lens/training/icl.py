"""Training the two-layer classifiers; a run that was interrupted goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor

from resval_lens.models.answer import answer, can_answer_fast
from resval_lens.models.classifier import ICLClassifier
from resval_lens.runtime import one_thread
from resval_lens.tasks.icl import ICLBatch, ICLWorld
from resval_lens.training.icl_measures import attention_measures
from resval_lens.training.icl_run import ICLRun, draw_world, initial_model
from resval_lens.training.loop import Progress, Trainee, train_in_folder


@one_thread()
def train_icl(
    run: ICLRun,
    folder: Path,
    progress: Progress = lambda step, metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
    keep_snapshots: bool = False,
) -> ICLClassifier | None:
    """Trains ``run`` in ``folder``, from its newest snapshot if there is one; on one thread.

    Returns and raises as :func:`~resval_lens.training.loop.train_in_folder`.
    """

    def make() -> Trainee[ICLClassifier]:
        world, tests = draw_world(run)
        return trainee(run, initial_model(run), run.generators()["batches"], world, tests)

    return train_in_folder(folder, run, make, progress, should_stop, keep_snapshots)


def trainee(
    run: ICLRun,
    model: ICLClassifier,
    generator: Generator,
    world: ICLWorld,
    tests: dict[str, ICLBatch],
) -> Trainee[ICLClassifier]:
    """``model`` as ``run`` trains it: SGD on batches of ``world`` that ``generator`` draws."""
    values = model.blocks[1].attn.W_V
    rates = {True: run.lr * run.v_rate, False: run.lr}
    # p ← p − lr·(g + decay/lr·p) = (1 − decay)·p − lr·g
    groups = [
        {
            "params": [p for p in model.parameters() if p.requires_grad and (p is values) == own],
            "lr": lr,
            "weight_decay": run.decay / lr,
        }
        for own, lr in rates.items()
    ]
    sgd = torch.optim.SGD(groups, foreach=True)
    logits = answer if can_answer_fast(model) else ICLClassifier.__call__

    def loss() -> Tensor:
        batch = world.batch(run.batch, generator)
        return F.cross_entropy(logits(model, batch.inputs), batch.targets)

    return Trainee(model, generator, sgd, loss, lambda: measure(model, tests))


def measure(model: ICLClassifier, tests: dict[str, ICLBatch]) -> dict[str, Any]:
    """The metrics of a snapshot: the four tests, and where 1000 IC sequences attend."""
    return {
        **evaluate(model, tests),
        "attention": attention_measures(model, ICLBatch(*(x[:1000] for x in tests["ic"]))),
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
        results[name] = score(logits, batch.targets)
    return results


def score(logits: Float[Tensor, "batch label"], targets: Int[Tensor, " batch"]) -> dict[str, float]:
    """Accuracy and mean cross-entropy (nats)."""
    return {
        "accuracy": float((logits.argmax(-1) == targets).double().mean()),
        "loss": float(F.cross_entropy(logits, targets)),
    }
