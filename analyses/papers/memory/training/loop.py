"""Training the simplified transformers on bigrams with triggers; killed runs go on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from resval_lens.analyses.papers.memory.model.fast import can_run_fast, fast_logits
from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.model.probes import attention_recall, memory_recall
from resval_lens.analyses.papers.memory.tasks.triggers import (
    TriggerBatch,
    TriggerTask,
    optimal_loss,
)
from resval_lens.analyses.papers.memory.training.run import MemoryRun, draw_tests, initial_memory
from resval_lens.runtime import one_thread
from resval_lens.training.loop import Progress, Trainee, train_in_folder
from resval_lens.training.run import Line

CHUNK_TOKENS = 2**13
"""Tokens that are evaluated at once."""


@one_thread()
def train_memory(
    run: MemoryRun,
    folder: Path,
    progress: Progress = lambda step, metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
    keep_snapshots: bool = False,
) -> MemoryTransformer | None:
    """Trains ``run`` in ``folder``, from its newest snapshot if there is one; on one thread.

    The loss is the mean cross-entropy of every next token. Returns and raises as
    :func:`~resval_lens.training.loop.train_in_folder`.
    """

    def make() -> Trainee[MemoryTransformer]:
        tests, generator = draw_tests(run), run.generators()["batches"]
        model = initial_memory(run)
        parameters = [p for p in model.parameters() if p.requires_grad]
        sgd = torch.optim.SGD(parameters, lr=run.lr, momentum=run.momentum, foreach=True)
        logits_of = partial(fast_logits, model) if can_run_fast(model) else model

        def loss() -> Tensor:
            batch = run.task.batch(run.batch, generator)
            logits = logits_of(batch.inputs)
            return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())

        return Trainee(model, generator, sgd, loss, lambda: measure(model, run.task, tests))

    return train_in_folder(folder, run, make, progress, should_stop, keep_snapshots)


def measure(model: MemoryTransformer, task: TriggerTask, tests: dict[str, TriggerBatch]) -> Line:
    """The metrics of a snapshot: each test set, what the memories recall, where heads look."""
    results: Line = {name: evaluate(model, task, batch) for name, batch in tests.items()}
    triggers = task.trigger_tokens if task.triggers == "fixed" else ()
    results["recall"] = memory_recall(model, task.bigrams, task.length, triggers)
    few = TriggerBatch(*(x[:32] for x in tests["trained"]))
    results["attention"] = attention_recall(model, few)
    return results


def evaluate(
    model: MemoryTransformer, task: TriggerTask, batch: TriggerBatch
) -> dict[str, float | None]:
    """How well ``model`` predicts; losses in nats, means.

        loss        over all positions
        excess      loss above that of the best predictor (:func:`optimal_loss`)
        accuracy    share of in-context positions where the true next token has the largest logit
        in_context  loss over in-context positions

    (In-context positions: a trigger from its second occurrence on.)
    """
    logits = batch_logits(model, batch.inputs)
    losses = F.cross_entropy(logits.mT.double(), batch.targets, reduction="none")
    hits, known = logits.argmax(-1) == batch.targets, batch.in_context
    found = bool(known.any())
    return {
        "loss": float(losses.mean()),
        "excess": float((losses - optimal_loss(task, batch)).mean()),
        "accuracy": float(hits[known].double().mean()) if found else None,
        "in_context": float(losses[known].mean()) if found else None,
    }


@torch.no_grad()
def batch_logits(
    model: MemoryTransformer, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos d_vocab"]:
    """``model(tokens)``, a few thousand tokens at a time and as fast as the model allows."""
    logits_of = partial(fast_logits, model) if can_run_fast(model) else model
    chunk = max(1, CHUNK_TOKENS // tokens.shape[1])
    return torch.cat([logits_of(part) for part in tokens.split(chunk)])
