"""The training runs that ship with the package: their metrics, and one model of each variant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch

from resval_lens.checks import is_number
from resval_lens.classifier import ICLClassifier
from resval_lens.files import write_bytes, write_sealed
from resval_lens.presets import ICL_VARIANTS
from resval_lens.training.icl_run import ICLRun, initial_model, model_config
from resval_lens.training.loop import model_record
from resval_lens.training.run_folder import (
    CHECK,
    chained,
    load_snapshot,
    read_metrics,
    read_record,
    record_end,
    snapshot_paths,
    trained_model,
)
from resval_lens.transformer import ResValTransformer

SHIPPED = Path(__file__).parent / "data" / "icl"


@dataclass(frozen=True)
class RecordedRun:
    """A training run as it was recorded.

    Attributes:
        run: what was trained.
        starts: the provenance of each start (more than one if it was interrupted).
        metrics: one dict a snapshot, oldest first.
        folder: where it lies; ``folder/model`` holds the trained model, if it was kept.
    """

    run: ICLRun
    starts: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    folder: Path

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads a run's folder.

        Raises:
            ValueError: the folder holds no readable run.
        """
        record = read_record(folder)
        try:
            run = ICLRun.from_dict(record["run"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / 'run.json'}: no training run ({error})") from None
        metrics = read_metrics(folder)
        if not metrics:
            raise ValueError(f"{folder / 'metrics.jsonl'} holds no metrics; train the run first")
        for line in metrics:
            for task in ("test", "ic", "ic2", "iw"):
                found = line.get(task)
                found = found if isinstance(found, dict) else {}
                if not all(is_number(found.get(name)) for name in ("accuracy", "loss")):
                    raise ValueError(
                        f"{folder / 'metrics.jsonl'}: step {line['step']} lacks the accuracy or "
                        f"loss of {task!r}"
                    )
        return cls(run, record["starts"], metrics, folder)

    def model(self) -> ICLClassifier:
        """The trained model.

        Raises:
            ValueError: it was not kept, or the run has not ended.
        """
        return ICLClassifier.from_pretrained(trained_model(self.folder))

    def snapshots(self) -> Iterator[tuple[int, ICLClassifier]]:
        """Step and model of each snapshot that was kept, oldest first.

        Raises:
            ValueError: a damaged file.
        """
        for path in snapshot_paths(self.folder):
            ICLClassifier.check_size(
                model_config(self.run), path, self.folder / "run.json", ("generator",)
            )
            model = initial_model(self.run)
            step, _ = load_snapshot(path, dict(model.named_parameters()))
            yield step, model

    @property
    def done(self) -> bool:
        """Whether it has reached its last step."""
        return bool(self.metrics and self.metrics[-1]["step"] == self.run.last_step)

    @property
    def has_model(self) -> bool:
        return (self.folder / "model").is_dir()


def load_runs(folder: Path = SHIPPED) -> list[RecordedRun]:
    """Every run under ``folder`` (the shipped ones by default), by variant and seed.

    Raises:
        ValueError: there are none.
    """
    runs = [RecordedRun.load(path.parent) for path in sorted(folder.glob("*/run.json"))]
    if not runs:
        raise ValueError(f"{folder} holds no training runs; expected folders with a run.json")
    order = list(ICL_VARIANTS)

    def rank(recorded: RecordedRun) -> tuple[int, str, int]:
        name = recorded.run.name
        return (order.index(name) if name in order else len(order), name, recorded.run.seed)

    return sorted(runs, key=rank)


@runtime_checkable
class Recorded(Protocol):
    """What recorded runs of every kind have."""

    @property
    def run(self) -> Any: ...
    @property
    def starts(self) -> list[dict[str, Any]]: ...
    @property
    def metrics(self) -> list[dict[str, Any]]: ...
    @property
    def folder(self) -> Path: ...
    @property
    def done(self) -> bool: ...
    def model(self) -> ResValTransformer: ...


def export_run(recorded: Recorded, target: Path, with_model: bool = False) -> Path:
    """Copies a finished run in the form in which it ships: record, metrics and, if asked, model.

    Weights are rounded to 16 bits, half the bytes; they load as the 32 bits they were trained in.

    Returns:
        Its folder, in ``target``.

    Raises:
        ValueError: it has not reached its last step; it has no model.
    """
    run = recorded.run
    if not recorded.done:
        raise ValueError(f"{recorded.folder} has not reached step {run.last_step}")
    model = recorded.model() if with_model else None
    folder = target / run.folder_name
    write_record(folder, run.to_dict(), recorded.starts, recorded.metrics)
    if model is not None:
        record = rounded(model_record(run, recorded.starts[-1], recorded.metrics))
        model.save_pretrained(folder / "model", record=record, overwrite=True, dtype=torch.float16)
        record_end(folder)
    return folder


def write_record(
    folder: Path, run: dict[str, Any], starts: list[Any], metrics: list[dict[str, Any]]
) -> None:
    """run.json and metrics.jsonl (six digits after the point) of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, check = [], ""
    for line in rounded(metrics):
        check = chained(check, line)
        lines.append(json.dumps({**line, CHECK: check}, ensure_ascii=False) + "\n")
    write_bytes(folder / "metrics.jsonl", "".join(lines).encode())
    write_sealed(folder / "run.json", {"run": run, "starts": starts, "metrics": check})


def rounded(value: Any) -> Any:
    """Every float in dicts and lists with six digits after the point."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value
