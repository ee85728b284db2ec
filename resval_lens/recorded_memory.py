"""Training runs of simplified transformers as they were recorded, and those that ship along."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from resval_lens.memory.model import MemoryTransformer
from resval_lens.presets import MEMORY_VARIANTS
from resval_lens.training.memory_run import MemoryRun
from resval_lens.training.run_folder import (
    has_metrics,
    read_metrics,
    read_record,
    trained_model,
)

SHIPPED_MEMORY = Path(__file__).parent / "data" / "memory"


@dataclass(frozen=True)
class RecordedMemoryRun:
    """A training run of a simplified transformer.

    Attributes:
        run: what was trained.
        starts: the provenance of each start (more than one if it was interrupted).
        metrics: one dict a snapshot, oldest first (:func:`resval_lens.training.memory.measure`).
        folder: where it lies; ``folder/model`` holds the trained model, if it was kept.
    """

    run: MemoryRun
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
            run = MemoryRun.from_dict(record["run"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder / 'run.json'}: no run of a simplified transformer ({error})"
            ) from None
        metrics = read_metrics(folder)
        if not metrics:
            raise ValueError(f"{folder / 'metrics.jsonl'} holds no metrics; train the run first")
        for line in metrics:
            for name in ("trained", "longer", "recall", "attention"):
                if not isinstance(line.get(name), dict):
                    raise ValueError(
                        f"{folder / 'metrics.jsonl'}: step {line['step']} lacks {name!r}"
                    )
        return cls(run, record["starts"], metrics, folder)

    @property
    def done(self) -> bool:
        """Whether it has reached its last step."""
        return bool(self.metrics[-1]["step"] == self.run.last_step)

    @property
    def has_model(self) -> bool:
        """Whether the trained model was kept."""
        return (self.folder / "model").is_dir()

    def model(self) -> MemoryTransformer:
        """The trained model.

        Raises:
            ValueError: it was not kept, or the run has not ended.
        """
        return MemoryTransformer.from_pretrained(trained_model(self.folder))


def load_memory_runs(folder: Path = SHIPPED_MEMORY) -> list[RecordedMemoryRun]:
    """Every run under ``folder`` (the shipped ones by default), by variant and seed.

    Runs that have only begun, without a snapshot, are left out.

    Raises:
        ValueError: there are none.
    """
    begun = sorted(path.parent for path in folder.glob("*/run.json"))
    runs = [RecordedMemoryRun.load(path) for path in begun if has_metrics(path)]
    if not runs:
        raise ValueError(
            f"{folder} holds no training runs; expected folders with run.json and metrics.jsonl, "
            "as `resval-lens train memory` writes them"
        )
    order = list(MEMORY_VARIANTS)

    def rank(recorded: RecordedMemoryRun) -> tuple[int, str, int]:
        name = recorded.run.name
        return (order.index(name) if name in order else len(order), name, recorded.run.seed)

    return sorted(runs, key=rank)
