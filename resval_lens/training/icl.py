"""Training the two-layer classifiers: one run, resumable to the bit.

A run's folder holds

    run.json                 what is trained, and the provenance of each start
    metrics.jsonl            one line a snapshot
    snapshots/STEP.safetensors   weights and the generator's state: the point to go on from
    model/                   the trained model, when the run has ended

A run that was killed goes on from its newest snapshot and ends with the same weights, to the bit,
as one that was not. Metrics lines after that snapshot are made again.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from resval_lens.answer import answer, can_answer_fast
from resval_lens.checkpoint import check_parameters, save_model
from resval_lens.classifier import ICLClassifier, Spec, classifier_config
from resval_lens.files import read_json, read_tensors, write_json, write_tensors
from resval_lens.provenance import provenance
from resval_lens.streams import AttentionStream, parse_streams, shorthand
from resval_lens.tasks.icl import ICLBatch, ICLTask, ICLWorld
from resval_lens.tasks.icl_measures import attention_measures

Progress = Callable[[int, dict[str, Any] | None], None]
"""Called with the step reached, and at a snapshot its metrics."""


@dataclass(frozen=True)
class ICLRun:
    """What one training run is; equal runs give equal weights.

    Attributes:
        name: of the variant, for people: ``"classic"``, ``"values"``, ...
        streams: as in ResValConfig.
        seed: draws the task's vectors, test sets, initial weights and batches (from generators of
            their own, so that variants of one seed share all of them).
        steps, batch, lr: plain SGD.
        decay: every weight is also multiplied by 1 − decay each step.
        snapshot_every: steps between snapshots.
        test_size: sequences in each of the four test sets.

    Raises:
        ValueError: a number that cannot be, named with its value.
    """

    name: str
    streams: Any = ()  # kept in full, a tuple of AttentionStream
    seed: int = 0
    spec: Spec = "reference"
    task: ICLTask = field(default_factory=ICLTask)
    steps: int = 75_000
    batch: int = 128
    lr: float = 0.01
    decay: float = 1e-6
    snapshot_every: int = 500
    test_size: int = 10_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "streams", parse_streams(self.streams, 2))
        for name in ("steps", "batch", "snapshot_every", "test_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number above 0; got {value!r}")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed must be a whole number from 0 up; got {self.seed!r}")
        for name in ("lr", "decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a finite number; got {getattr(self, name)!r}")

    @property
    def folder_name(self) -> str:
        return f"{self.name}-seed{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"streams": [stream.to_dict() for stream in self.streams]}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        streams = tuple(AttentionStream.from_dict(stream) for stream in settings["streams"])
        return cls(**settings | {"streams": streams, "task": ICLTask(**settings["task"])})

    def generators(self) -> dict[str, Generator]:
        """Independent generators of world, tests, weights and batches."""
        names = ("world", "tests", "weights", "batches")
        seeds = np.random.SeedSequence(self.seed).generate_state(len(names), dtype=np.uint64)
        return {
            name: Generator().manual_seed(int(seed % 2**63))
            for name, seed in zip(names, seeds, strict=True)
        }


def draw_world(run: ICLRun) -> tuple[ICLWorld, dict[str, ICLBatch]]:
    """The vectors and test sets of a run; the same for every variant of one seed."""
    generators = run.generators()
    world = ICLWorld(run.task, generators["world"])
    tests = {
        name: world.batch(run.test_size, generators["tests"], task)
        for name, task in run.task.tests().items()
    }
    return world, tests


def initial_model(run: ICLRun) -> ICLClassifier:
    """The model of a run before its first step."""
    config = classifier_config(run.streams, run.spec, run.task)
    return ICLClassifier(config, generator=run.generators()["weights"])


def train_icl(
    run: ICLRun,
    folder: Path,
    progress: Progress = lambda step, metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
    keep_snapshots: bool = False,
) -> ICLClassifier | None:
    """Trains ``run`` in ``folder``, from its newest snapshot if there is one.

    Returns:
        The trained model, or None if ``should_stop`` said so before the end.

    Raises:
        ValueError: the folder holds a different run, or its files are damaged.
        RuntimeError: another process is training there, or the loss is NaN.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        start = _record_start(run, folder)
        world, tests = draw_world(run)
        model, generator = initial_model(run), run.generators()["batches"]
        done = _restore(folder, model, generator)
        parameters = [p for p in model.parameters() if p.requires_grad]
        # p ← p − lr·(g + decay/lr·p) = (1 − decay)·p − lr·g
        sgd = torch.optim.SGD(
            parameters, lr=run.lr, weight_decay=run.decay / run.lr if run.lr else 0.0, foreach=True
        )
        logits = answer if can_answer_fast(model) else ICLClassifier.__call__
        if done == 0:
            _snapshot(run, folder, model, generator, 0, tests, None, 0.0, progress, keep_snapshots)
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
                seconds = time.perf_counter() - started
                _snapshot(run, folder, model, generator, step, tests, mean, seconds / count,
                          progress, keep_snapshots)  # fmt: skip
                summed, count, started = torch.zeros(()), 0, time.perf_counter()
            elif step % 20 == 0:
                progress(step, None)
        save_model(model, folder / "model", model_record(run, start, read_metrics(folder)), True)
        return model


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


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, a dict a snapshot, oldest first; empty before the first."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    lines = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            raise ValueError(f"{path}: line {number} is no JSON; expected metrics") from None
    return lines


def model_record(
    run: ICLRun, start: dict[str, Any], metrics: list[dict[str, Any]]
) -> dict[str, Any]:
    """The provenance of a trained model: its (last) start, what was trained, its last metrics."""
    last = {key: value for key, value in metrics[-1].items() if key != "seconds_per_step"}
    return {**start, "run": run.to_dict(), "streams": shorthand(run.streams), "metrics": last}


def _snapshot(
    run: ICLRun,
    folder: Path,
    model: ICLClassifier,
    generator: Generator,
    step: int,
    tests: dict[str, ICLBatch],
    train_loss: float | None,
    seconds_per_step: float,
    progress: Progress,
    keep: bool,
) -> None:
    probe = ICLBatch(*(x[:1000] for x in tests["ic"]))
    metrics = {
        "step": step,
        "train_loss": train_loss,
        **evaluate(model, tests),
        "attention": attention_measures(model, probe),
        "seconds_per_step": round(seconds_per_step, 6),
    }
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics) + "\n")
        file.flush()
        os.fsync(file.fileno())
    snapshots = folder / "snapshots"
    snapshots.mkdir(exist_ok=True)
    earlier = sorted(snapshots.glob("*.safetensors"))
    state: dict[str, Tensor] = dict(model.named_parameters())
    write_tensors(
        snapshots / f"{step:08d}.safetensors",
        {**state, "generator": generator.get_state()},
        {"step": str(step)},
    )
    if not keep:
        for path in earlier:
            path.unlink()
    progress(step, metrics)


def _restore(folder: Path, model: ICLClassifier, generator: Generator) -> int:
    """Puts model and generator where the newest snapshot left them; the steps it had done."""
    snapshots = sorted((folder / "snapshots").glob("*.safetensors"))
    done = 0
    if snapshots:
        tensors, metadata = read_tensors(snapshots[-1], "a training snapshot")
        state = tensors.pop("generator", None)
        parameters = dict(model.named_parameters())
        check_parameters(parameters, tensors, snapshots[-1])
        if state is None or "step" not in metadata:
            raise ValueError(f"{snapshots[-1]} is no training snapshot: no generator state or step")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[name])
        generator.set_state(state)
        done = int(metadata["step"])
    path = folder / "metrics.jsonl"
    if path.exists():  # drop what was measured after that snapshot, a torn last line included
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if snapshots and line.endswith(b"\n")
                and json.loads(line)["step"] <= done]  # fmt: skip
        path.write_bytes(b"".join(kept))
    return done


def _record_start(run: ICLRun, folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    record: dict[str, Any] = {"run": run.to_dict(), "starts": []}
    if path.exists():
        record = read_json(path, "record of a training run")
        if record["run"] | {"steps": 0} != run.to_dict() | {"steps": 0}:
            changed = [key for key, value in run.to_dict().items() if record["run"][key] != value]
            raise ValueError(
                f"{folder} holds a run with {changed[0]}={record['run'][changed[0]]!r}, not "
                f"{run.to_dict()[changed[0]]!r}; choose another folder"
            )
        record["run"] = run.to_dict()
    record["starts"].append(provenance())
    write_json(path, record)
    return dict(record["starts"][-1])


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RuntimeError(f"{folder} is being trained by another process") from None
        yield
