"""What a training run of a two-layer classifier is, and all that is drawn from its seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Generator

from resval_lens.checks import check_above_zero, is_number
from resval_lens.io.files import check_room
from resval_lens.models.classifier import ClassifierConfig, ICLClassifier, Spec, classifier_config
from resval_lens.models.presets import ICL_VARIANTS
from resval_lens.streams import AttentionStream, parse_streams
from resval_lens.tasks.icl import ICLBatch, ICLTask, ICLWorld
from resval_lens.training.loop import Progress
from resval_lens.training.run import Line, TrainableRun, place
from resval_lens.training.run_folder import load_snapshot, snapshot_paths
from resval_lens.training.settings import check_sgd_settings, seeded_generators


@dataclass(frozen=True)
class ICLRun(TrainableRun[ICLClassifier]):
    """What one training run is; equal runs give equal weights.

    Attributes:
        name: of the variant, for people: ``"classic"``, ``"values"``, ...
        streams: as in ResValConfig.
        seed: draws the task's vectors, test sets, initial weights and batches (from generators of
            their own, so that variants of one seed share all of them).
        steps, batch, lr: plain SGD.
        decay: every weight is also multiplied by 1 − decay each step.
        v_size, v_rate: layer 1's W_V starts v_size times as large, and learns v_rate times as fast.
        snapshot_every: steps between snapshots.
        test_size: sequences in each of the four test sets.

    Raises:
        ValueError: a number that cannot be, named with its value.
    """

    kind: ClassVar[str] = "classifier"
    shipped: ClassVar[str] = "icl"

    name: str
    streams: Any = ()  # kept in full, a tuple of AttentionStream
    seed: int = 0
    spec: Spec = "reference"
    task: ICLTask = field(default_factory=ICLTask)
    steps: int = 75_000
    batch: int = 128
    lr: float = 0.01
    decay: float = 1e-6
    v_size: float = 1.0
    v_rate: float = 1.0
    snapshot_every: int = 500
    test_size: int = 10_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "streams", parse_streams(self.streams, 2))
        check_sgd_settings(self)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be a number from 0 to below 1; got {self.decay!r}")
        for name in ("v_size", "v_rate"):
            check_above_zero(name, getattr(self, name))

    @property
    def rank(self) -> tuple[int, str, int]:
        """By variant, as :data:`~resval_lens.models.presets.ICL_VARIANTS` has them, and seed."""
        return *place(self.name, list(ICL_VARIANTS)), self.seed

    def check_line(self, line: Line) -> None:
        """Raises ValueError for a line without accuracy and loss of each test."""
        for task in ("test", "ic", "ic2", "iw"):
            found = line.get(task)
            found = found if isinstance(found, dict) else {}
            if not all(is_number(found.get(name)) for name in ("accuracy", "loss")):
                raise ValueError(f"the accuracy or loss of {task!r}")

    def train(
        self, folder: Path, progress: Progress, should_stop: Callable[[], bool], keep: bool
    ) -> ICLClassifier | None:
        """As :func:`~resval_lens.training.icl.train_icl` does."""
        from resval_lens.training.icl import train_icl

        return train_icl(self, folder, progress, should_stop, keep)

    def load_model(self, folder: Path) -> ICLClassifier:
        """A saved classifier."""
        return ICLClassifier.from_pretrained(folder)

    def headline(self, metrics: dict[str, Any]) -> str:
        """The one number of a snapshot to show beside a progress bar."""
        return f"IC {metrics['ic']['accuracy']:.3f}"

    def to_dict(self) -> dict[str, Any]:
        written = asdict(self) | {"streams": [stream.to_dict() for stream in self.streams]}
        for name in ("v_size", "v_rate"):
            if written[name] == 1:  # as in runs that were recorded before there were such settings
                del written[name]
        return written

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        streams = tuple(AttentionStream.from_dict(stream) for stream in settings["streams"])
        return cls(**settings | {"streams": streams, "task": ICLTask(**settings["task"])})

    def generators(self) -> dict[str, Generator]:
        """Independent generators of world, tests, weights and batches."""
        return seeded_generators(self.seed, ("world", "tests", "weights", "batches"))


def draw_world(run: ICLRun) -> tuple[ICLWorld, dict[str, ICLBatch]]:
    """The vectors and test sets of a run; the same for every variant of one seed."""
    task = run.task
    a_sequence = task.n_tokens * task.d_input + task.n_labels
    vectors = (task.n_classes + task.n_labels + task.n_fresh) * task.content
    check_room(
        4 * (4 * run.test_size * a_sequence + vectors),
        f"what test_size={run.test_size}, n_classes={task.n_classes}, content={task.content} draw",
    )
    generators = run.generators()
    world = ICLWorld(run.task, generators["world"])
    tests = {
        name: world.batch(run.test_size, generators["tests"], task)
        for name, task in run.task.tests().items()
    }
    return world, tests


class Worlds:
    """:func:`draw_world` that draws nothing twice in a row: variants of one seed share a world.

    One world is kept, since 10,000 sequences of each test set are half a gigabyte.
    """

    def __init__(self) -> None:
        self._last: tuple[Any, tuple[ICLWorld, dict[str, ICLBatch]]] | None = None

    def of(self, run: ICLRun) -> tuple[ICLWorld, dict[str, ICLBatch]]:
        """The world and test sets of ``run``."""
        drawn_from = (run.seed, run.task, run.test_size)
        if self._last is None or self._last[0] != drawn_from:
            self._last = None
            self._last = drawn_from, draw_world(run)
        return self._last[1]


def model_config(run: ICLRun) -> ClassifierConfig:
    """The configuration of a run's model."""
    return classifier_config(run.streams, run.spec, run.task)


def initial_model(run: ICLRun) -> ICLClassifier:
    """The model of a run before its first step."""
    config = model_config(run)
    ICLClassifier.check_memory(config)
    model = ICLClassifier(config, generator=run.generators()["weights"])
    with torch.no_grad():
        model.blocks[1].attn.W_V.mul_(run.v_size)
    return model


def kept_models(run: ICLRun, folder: Path) -> Iterator[tuple[int, ICLClassifier]]:
    """Step and model of each snapshot that was kept in the folder of ``run``, oldest first.

    Raises:
        ValueError: a damaged file.
    """
    for path in snapshot_paths(folder):
        ICLClassifier.check_size(model_config(run), path, folder / "run.json", ("generator",))
        model = initial_model(run)
        step, _ = load_snapshot(path, dict(model.named_parameters()))
        yield step, model
