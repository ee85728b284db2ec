"""Training runs as they were recorded, of every kind; those that ship with the package among them.

runs = load_runs(ICLRun)                     # the classifiers that ship
run = load_run(Path("runs/lm/mine-seed0"), LMRun)
run.metrics, run.model()
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from resval_lens.io.files import DATA, read_json, write_bytes, write_json, write_sealed
from resval_lens.streams import architecture
from resval_lens.training.loop import model_record
from resval_lens.training.run import Line, Model, Run
from resval_lens.training.run_folder import (
    CHECK,
    chained,
    has_metrics,
    read_metrics,
    read_record,
    record_end,
    trained_model,
)
from resval_lens.transformer import ResValTransformer

SHIPPED = DATA
"""Where the runs that ship lie, a folder for each kind."""

R = TypeVar("R", bound=Run[ResValTransformer], covariant=True)


@dataclass(frozen=True)
class RecordedRun(Generic[R]):
    """A training run as it was recorded.

    Attributes:
        run: what was trained.
        starts: the provenance of each start (more than one if it was interrupted).
        metrics: one dict for each line of metrics, oldest first.
        folder: where it lies; ``folder/model`` holds the trained model, if it was kept.
    """

    run: R
    starts: list[dict[str, Any]]
    metrics: list[Line]
    folder: Path

    @property
    def evaluations(self) -> list[Line]:
        """The lines at which the model was measured."""
        return [line for line in self.metrics if self.run.is_evaluation(line)]

    @property
    def done(self) -> bool:
        """Whether it has reached its last step."""
        return bool(self.metrics and self.metrics[-1]["step"] == self.run.last_step)

    @property
    def has_model(self) -> bool:
        """Whether the trained model was kept."""
        return (self.folder / "model").is_dir()

    @property
    def architecture(self) -> str:
        """``classic``, ``values``, ...: see :func:`~resval_lens.streams.architecture`."""
        return architecture(self.run.streams)

    def model(self: RecordedRun[Run[Model]]) -> Model:
        """The trained model.

        Raises:
            ValueError: it was not kept, or the run has not ended.
        """
        return self.run.load_model(trained_model(self.folder))


def load_run(folder: Path, kind: type[R]) -> RecordedRun[R]:
    """The run in ``folder``.

    Raises:
        ValueError: the folder holds no readable run of that kind, or one without an evaluation.
    """
    record = read_record(folder)
    try:
        run = kind.from_dict(record["run"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'run.json'}: no run of a {kind.kind} ({error})") from None
    recorded = RecordedRun(run, record["starts"], read_metrics(folder), folder)
    if not recorded.evaluations:
        raise ValueError(f"{folder / 'metrics.jsonl'} holds no evaluations; train the run first")
    for line in recorded.evaluations:
        try:
            run.check_line(line)
        except ValueError as error:
            raise ValueError(
                f"{folder / 'metrics.jsonl'}: step {line['step']} lacks {error}"
            ) from None
    return recorded


def load_runs(kind: type[R], folder: Path | None = None) -> list[RecordedRun[R]]:
    """Every run of a kind in ``folder``, by default those that ship, by variant and seed.

    Runs that have only begun, without a snapshot, are left out.

    Raises:
        ValueError: there are none.
    """
    folder = SHIPPED / kind.shipped if folder is None else folder
    begun = sorted(path.parent for path in folder.glob("*/run.json"))
    runs = [load_run(path, kind) for path in begun if has_metrics(path)]
    if not runs:
        raise ValueError(
            f"{folder} holds no training runs; expected folders with run.json and metrics.jsonl"
        )
    return sorted(runs, key=lambda recorded: recorded.run.rank)


def export_run(
    recorded: RecordedRun[Run[ResValTransformer]], target: Path, with_model: bool = False
) -> Path:
    """Copies a finished run in the form in which it ships: record, metrics and, if asked, model.

    Documents that belong to it (:attr:`Run.beside`) come along, where there are any.

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
    for path in (recorded.folder / name for name in run.beside):
        if path.is_file():
            write_json(folder / path.name, rounded(read_json(path, "what belongs to a run")))
    if model is not None:
        record = rounded(model_record(run, recorded.starts[-1], recorded.metrics))
        model.save_pretrained(folder / "model", record=record, overwrite=True, dtype=torch.float16)
        record_end(folder)
    return folder


def write_record(folder: Path, run: dict[str, Any], starts: list[Any], metrics: list[Line]) -> None:
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
