"""Training runs of language models as they were recorded, and those that ship with the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from resval_lens.streams import architecture
from resval_lens.training.lm_run import LMRun
from resval_lens.training.run_folder import (
    read_metrics,
    read_record,
    trained_model,
)
from resval_lens.transformer import ResValTransformer

SHIPPED_RUNS = Path(__file__).parent / "data" / "lm"


@dataclass(frozen=True)
class RecordedLMRun:
    """A training run of a language model.

    Attributes:
        run: what was trained.
        starts: the provenance of each start (more than one if it was interrupted).
        metrics: one dict for each line of metrics, oldest first.
        folder: where it lies; ``folder/model`` holds the trained model, if it was kept.
    """

    run: LMRun
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
            run = LMRun.from_dict(record["run"])
            run.config  # noqa: B018  # readable, too
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder / 'run.json'}: no run of a language model ({error})"
            ) from None
        metrics = read_metrics(folder)
        if not any("valid_loss" in line for line in metrics):
            raise ValueError(
                f"{folder / 'metrics.jsonl'} holds no evaluations; train the run first"
            )
        return cls(run, record["starts"], metrics, folder)

    @property
    def architecture(self) -> str:
        """``classic``, ``values``, ...: see :func:`~resval_lens.streams.architecture`."""
        return architecture(self.run.config.streams)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines at which the model was evaluated: every so many steps, and at the end."""
        return [line for line in self.metrics if "valid_loss" in line]

    @property
    def done(self) -> bool:
        """Whether it has reached its last step."""
        return bool(self.metrics[-1]["step"] == self.run.last_step)

    def model(self) -> ResValTransformer:
        """The trained model.

        Raises:
            ValueError: it was not kept, or the run has not ended.
        """
        return ResValTransformer.from_pretrained(trained_model(self.folder))


def load_lm_runs(folder: Path = SHIPPED_RUNS) -> list[RecordedLMRun]:
    """Every run under ``folder`` (the shipped ones by default): classic first, then by seed.

    Raises:
        ValueError: there are none.
    """
    runs = [RecordedLMRun.load(path.parent) for path in sorted(folder.glob("*/run.json"))]
    if not runs:
        raise ValueError(f"{folder} holds no training runs; expected folders with a run.json")

    def rank(recorded: RecordedLMRun) -> tuple[bool, str, int]:
        return (recorded.architecture != "classic", recorded.run.name, recorded.run.seed)

    return sorted(runs, key=rank)
