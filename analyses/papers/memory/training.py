"""Training simplified transformers: what a run is, on bigrams with triggers; killed runs go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from resval_lens.analyses.papers.memory.model.config import memory_config
from resval_lens.analyses.papers.memory.model.fast import can_run_fast, fast_logits
from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.model.probes import attention_recall, mean, memory_recall
from resval_lens.analyses.papers.memory.tasks.bigrams import tiny_shakespeare
from resval_lens.analyses.papers.memory.tasks.triggers import (
    TriggerBatch,
    TriggerTask,
    optimal_loss,
)
from resval_lens.io.files import check_room
from resval_lens.models.presets import MEMORY_VARIANTS, Positions
from resval_lens.runtime import one_thread
from resval_lens.streams import AttentionStream, parse_streams
from resval_lens.training.loop import Progress, Trainee, train_in_folder
from resval_lens.training.recorded import RecordedRun, load_run
from resval_lens.training.run import Line, TrainableRun, place
from resval_lens.training.run_folder import read_metrics
from resval_lens.training.settings import check_sgd_settings, seeded_generators


def default_task() -> TriggerTask:
    """Tiny Shakespeare's bigrams with five triggers, 128 tokens."""
    return TriggerTask(tiny_shakespeare())


@dataclass(frozen=True)
class MemoryRun(TrainableRun[MemoryTransformer]):
    """What one training run is; equal runs give equal weights.

    Attributes:
        name: of the variant, for people: ``"relative"``, ``"absolute-values"``, ...
        positions: as in :class:`~resval_lens.analyses.papers.memory.model.config.MemoryConfig`.
        streams: as in ResValConfig.
        seed: draws test sets, initial weights and batches (from generators of their own, so that
            variants of one seed share test sets and batches).
        task: the sequences that are trained on; those of the tests, at its length and at twice
            that, are drawn from it, too.
        d_model, n_ctx, n_layers: as in ``memory_config``. Absolute positions beyond the trained
            length are there from the start, drawn like the others, and never trained on.
        steps, batch, lr, momentum: plain SGD. The papers' batch is 512; 64 takes an eighth of the
            time.
        snapshot_every: steps between snapshots.
        test_size: sequences in each test set.

    Raises:
        ValueError: a number that cannot be, named with its value.
    """

    kind: ClassVar[str] = "simplified transformer"
    shipped: ClassVar[str] = "memory"

    name: str
    positions: Positions = "relative"
    streams: Any = ()  # kept in full, a tuple of AttentionStream
    seed: int = 0
    task: TriggerTask = field(default_factory=default_task)
    d_model: int = 128
    n_ctx: int = 2048
    n_layers: int = 2
    steps: int = 1_000
    batch: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    snapshot_every: int = 20
    test_size: int = 128

    def __post_init__(self) -> None:
        if self.n_layers not in (1, 2):
            raise ValueError(f"n_layers must be 1 or 2; got {self.n_layers!r}")
        object.__setattr__(self, "streams", parse_streams(self.streams, self.n_layers))
        check_sgd_settings(self)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be a number from 0 to below 1; got {self.momentum!r}")
        if 2 * self.task.length > self.n_ctx:
            raise ValueError(
                f"n_ctx={self.n_ctx} must hold twice the trained length, {self.task.length}"
            )
        memory_config(
            self.task.bigrams.d_vocab, self.positions, self.streams,
            d_model=self.d_model, n_ctx=self.n_ctx, n_layers=self.n_layers,
        )  # fmt: skip

    @property
    def rank(self) -> tuple[int, str, int]:
        """By variant, as :data:`~resval_lens.models.presets.MEMORY_VARIANTS` has them, and seed."""
        return *place(self.name, list(MEMORY_VARIANTS)), self.seed

    def check_line(self, line: Line) -> None:
        """Raises ValueError for a line without one of its parts."""
        for name in ("trained", "longer", "recall", "attention"):
            if not isinstance(line.get(name), dict):
                raise ValueError(repr(name))

    def train(
        self, folder: Path, progress: Progress, should_stop: Callable[[], bool], keep: bool
    ) -> MemoryTransformer | None:
        """As :func:`train_memory` does."""
        return train_memory(self, folder, progress, should_stop, keep)

    def load_model(self, folder: Path) -> MemoryTransformer:
        """A saved simplified transformer."""
        return MemoryTransformer.from_pretrained(folder)

    def headline(self, metrics: dict[str, Any]) -> str:
        """The one number of a snapshot to show beside a progress bar."""
        trained = metrics["trained"]
        if trained["accuracy"] is None:  # no triggers
            return f"loss {trained['loss']:.3f}"
        return f"in context {trained['accuracy']:.3f}"

    def to_dict(self) -> dict[str, Any]:
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        return settings | {
            "streams": [stream.to_dict() for stream in self.streams],
            "task": self.task.to_dict(),
        }

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        streams = tuple(AttentionStream.from_dict(stream) for stream in settings["streams"])
        task = TriggerTask.from_dict(settings["task"])
        return cls(**settings | {"streams": streams, "task": task})

    def generators(self) -> dict[str, Generator]:
        """Independent generators of tests, weights and batches."""
        return seeded_generators(self.seed, ("tests", "weights", "batches"))


def draw_tests(run: MemoryRun) -> dict[str, TriggerBatch]:
    """The test sets of a run: sequences of the trained length and twice as long."""
    generator, length = run.generators()["tests"], run.task.length
    # Tokens of 8 bytes, drawn from as many numbers, and what is known of each.
    check_room(
        8 * run.test_size * (5 * 3 * length + run.task.bigrams.d_vocab),
        f"what test_size={run.test_size}, length={length} draw",
    )
    return {
        name: run.task.batch(run.test_size, generator, times * length)
        for name, times in (("trained", 1), ("longer", 2))
    }


def initial_memory(run: MemoryRun) -> MemoryTransformer:
    """The model of a run before its first step."""
    config = memory_config(
        run.task.bigrams.d_vocab, run.positions, run.streams,
        d_model=run.d_model, n_ctx=run.n_ctx, n_layers=run.n_layers,
    )  # fmt: skip
    MemoryTransformer.check_memory(config)
    return MemoryTransformer(config, generator=run.generators()["weights"])


def finished_run(folder: Path, planned: MemoryRun) -> RecordedRun[MemoryRun] | None:
    """The run under ``folder`` that is just what is planned, if it is done and has its model.

    Raises:
        ValueError: its place holds a run on another task, or its files are damaged.
    """
    path = folder / planned.folder_name
    if not (path / "run.json").exists() or not read_metrics(path):
        return None
    recorded = load_run(path, MemoryRun)
    task = recorded.run.task
    other = [f.name for f in fields(task) if getattr(task, f.name) != getattr(planned.task, f.name)]
    if other:
        raise ValueError(
            f"{path} holds a run on another task (other {', '.join(other)}); choose another folder "
            "of runs"
        )
    same = recorded.run == planned and recorded.done and recorded.has_model
    return recorded if same else None


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
    hits, losses, excess = scores(model, task, batch)
    known = batch.in_context
    return {
        "loss": mean(losses),
        "excess": mean(excess),
        "accuracy": mean(hits[known]),
        "in_context": mean(losses[known]),
    }


def scores(
    model: MemoryTransformer, task: TriggerTask, batch: TriggerBatch
) -> tuple[Bool[Tensor, "batch pos"], Float[Tensor, "batch pos"], Float[Tensor, "batch pos"]]:
    """Of each position whether the true next token has the largest logit, the loss, the excess."""
    logits = batch_logits(model, batch.inputs)
    losses = F.cross_entropy(logits.mT.double(), batch.targets, reduction="none")
    return logits.argmax(-1) == batch.targets, losses, losses - optimal_loss(task, batch)


@torch.no_grad()
def batch_logits(
    model: MemoryTransformer, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos d_vocab"]:
    """``model(tokens)``, a few thousand tokens at a time and as fast as the model allows."""
    logits_of = partial(fast_logits, model) if can_run_fast(model) else model
    chunk = max(1, CHUNK_TOKENS // tokens.shape[1])
    return torch.cat([logits_of(part) for part in tokens.split(chunk)])
