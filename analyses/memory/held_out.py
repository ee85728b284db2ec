"""Outputs that were never outputs in training (arXiv 2412.11459, experiments).

Trained with outputs among the first 75% of the tokens, tested with outputs among the rest: the
heads may find the place, but W_O² says v only if Σ_v w_U(v) (v(w_E(v)))ᵀ has a term for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Generator

from resval_lens.analyses.memory.construction import Strengths, constructed_model
from resval_lens.analyses.memory.curves import over_seeds
from resval_lens.analyses.memory.knowledge import check_comparable, check_seed, global_knowledge
from resval_lens.memory.model import MemoryTransformer
from resval_lens.memory.predictions import predict
from resval_lens.memory.probes import attention_recall, own_and_carried_values, recall
from resval_lens.recorded_memory import RecordedMemoryRun
from resval_lens.tasks.triggers import TriggerBatch, TriggerTask
from resval_lens.training.memory import batch_logits, evaluate

SPLIT = 0.75
"""Outputs are among this share of the tokens in training, and among the rest in the test."""

TESTS = {"seen": (0.0, SPLIT), "held_out": (SPLIT, 1.0)}


def held_out_tests(
    task: TriggerTask, sequences: int, generator: Generator
) -> dict[str, tuple[TriggerTask, TriggerBatch]]:
    """Sequences of ``task`` with outputs among the first 75% of the tokens, and among the rest."""
    found = {}
    for name, among in TESTS.items():
        own = replace(task, output_range=among)
        found[name] = (own, own.batch(sequences, generator))
    return found


def measured_on(
    model: MemoryTransformer, task: TriggerTask, batch: TriggerBatch
) -> dict[str, float | None]:
    """In-context accuracy and loss (nats), and what stands behind them.

    accuracy, in_context  as :func:`~resval_lens.training.memory.evaluate`
    says_seen             share of in-context positions where the answer is one of the first 75%
    target                attention of the last head on what followed the trigger before, mean
    """
    scores = evaluate(model, task, batch)
    seen = replace(task, output_range=TESTS["seen"]).output_tokens
    answers = batch_logits(model, batch.inputs).argmax(-1)[batch.in_context]
    says_seen = ((answers >= seen.start) & (answers < seen.stop)).double()
    return {
        "accuracy": scores["accuracy"],
        "in_context": scores["in_context"],
        "says_seen": float(says_seen.mean()) if len(answers) else None,
        "target": attention_recall(model, TriggerBatch(*(x[:32] for x in batch)))["target_mass"],
    }


@torch.no_grad()
def output_recall(model: MemoryTransformer, task: TriggerTask) -> dict[str, float]:
    """Recall of W_O² for tokens that were outputs and for those held out.

    The share of tokens k for which, of all v, w_U(k) is what v(w_E(k)) W_O² is most like.
    """
    hits = recall(own_and_carried_values(model), model.blocks[-1].attn.W_O[0], model.unembed.W_U.T)
    return {
        name: float(hits[list(replace(task, output_range=among).output_tokens)].double().mean())
        for name, among in TESTS.items()
    }


def model_study(
    model: MemoryTransformer, tests: dict[str, tuple[TriggerTask, TriggerBatch]]
) -> dict[str, Any]:
    """:func:`measured_on` both tests, and :func:`output_recall`."""
    return {
        "tests": {name: measured_on(model, *test) for name, test in tests.items()},
        "recall": output_recall(model, tests["seen"][0]),
    }


def constructed_studies(
    task: TriggerTask, sequences: int, generator: Generator, d_model: int | None = None
) -> list[dict[str, Any]]:
    """Constructed relative models that know all tokens, and only the first 75%; with predictions.

    Their triggers are among the tokens that both know. ``predicted`` is the accuracy of
    :func:`~resval_lens.memory.predictions.predict`.
    """
    first = replace(task, output_range=TESTS["seen"]).output_tokens
    own = replace(task, candidates=tuple(first))
    tests = held_out_tests(own, sequences, generator)
    logs, rows = global_knowledge(task.bigrams), []
    for name, known in {
        "constructed": range(task.bigrams.d_vocab), "constructed, 75% known": first
    }.items():  # fmt: skip
        model = constructed_model(logs, generator, n_ctx=task.length, d_model=d_model, known=known)
        predicted = {}
        for test, (_, batch) in tests.items():
            logits = predict(batch.inputs, logs, **asdict(Strengths()), known=known).logits
            hits = (logits.argmax(-1) == batch.targets)[batch.in_context]
            predicted[test] = float(hits.double().mean()) if len(hits) else None
        rows.append(
            {"name": name, "output_range": None, "predicted": predicted} | model_study(model, tests)
        )
    return rows


def held_out_study(
    runs: Sequence[RecordedMemoryRun],
    sequences: int = 128,
    seed: int = 0,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Each run on outputs among the first 75% of the tokens and among the rest.

    Args:
        runs: with their models, of one task but for its outputs: both those that were trained on
            the first outputs only and ordinary ones, the control. All see the same sequences.

    Raises:
        ValueError: no runs, runs that cannot be compared (as ``check_comparable``), no sequences,
            a seed below 0 or too large, or a model that was not kept.
    """
    check_seed(seed)
    if not runs:
        raise ValueError("runs must hold at least one run")
    check_comparable(runs, task_may_differ=("output_range",))
    task = replace(runs[0].run.task, output_range=(0.0, 1.0))
    if sequences < 1:
        raise ValueError(f"sequences must be 1 or more; got {sequences}")
    generator = Generator().manual_seed(seed)
    tests = held_out_tests(task, sequences, generator)
    rows = []
    for recorded in runs:
        note(recorded.run.folder_name)
        rows.append(
            {
                "name": recorded.run.name,
                "seed": recorded.run.seed,
                "output_range": list(recorded.run.task.output_range),
                **model_study(recorded.model(), tests),
            }
        )
    note("constructed models")
    rows += [{**row, "seed": seed} for row in constructed_studies(task, sequences, generator)]
    return {
        "seed": seed,
        "split": SPLIT,
        "sequences": sequences,
        "models": rows,
        "over_seeds": held_out_over_seeds(rows),
    }


def held_out_over_seeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every number over the seeds of a name, as ``over_seeds``."""
    found = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        numbers = {
            test: {
                quantity: over_seeds({row["seed"]: row["tests"][test][quantity] for row in own})
                for quantity in own[0]["tests"][test]
            }
            | {"recall": over_seeds({row["seed"]: row["recall"][test] for row in own})}
            for test in TESTS
        }
        found.append({"name": name, "seeds": [row["seed"] for row in own], **numbers})
    return found
