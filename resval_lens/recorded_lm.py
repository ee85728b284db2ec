"""Training runs of language models as they were recorded, and those that ship with the package."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from resval_lens.recorded import rounded, write_record
from resval_lens.streams import architecture
from resval_lens.training.lm_run import LMRun
from resval_lens.training.run_folder import (
    read_metrics,
    read_record,
    record_end,
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
        return bool(self.metrics[-1]["step"] == self.run.steps)

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


def export_lm_runs(source: Path, target: Path, with_model: Iterable[str] = ()) -> None:
    """Copies finished runs in the form in which they ship: records, metrics and chosen models.

    Weights are rounded to 16 bits, half the bytes; they load as the 32 bits they were trained in.

    Args:
        with_model: folder names of the runs whose model goes along.

    Raises:
        ValueError: a run in ``source`` has not reached its last step; ``with_model`` names none.
    """
    chosen, runs = set(with_model), load_lm_runs(source)
    for name in chosen - {recorded.run.folder_name for recorded in runs}:
        raise ValueError(f"with_model: {source} holds no run {name!r}")
    for recorded in runs:
        run = recorded.run
        if not recorded.done:
            raise ValueError(f"{recorded.folder} has not reached step {run.steps}")
        folder = target / run.folder_name
        write_record(folder, run.to_dict(), recorded.starts, recorded.metrics)
        if run.folder_name in chosen:
            final = {"run": run.to_dict(), "metrics": rounded(recorded.metrics[-1])}
            recorded.model().save_pretrained(
                folder / "model",
                record=recorded.starts[-1] | final,
                overwrite=True,
                dtype=torch.float16,
            )
            record_end(folder)
