"""What the link does at chosen snapshots: edits, the link by degrees, training on without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from resval_lens.analyses.comparison.icl import Accuracies
from resval_lens.analyses.comparison.layer_one import LayerOne, layer_one
from resval_lens.analyses.comparison.link_controls import TRAINED, link_controls
from resval_lens.analyses.comparison.link_grading import GRADES, Curves, grading
from resval_lens.analyses.comparison.link_recovery import KEPT, Recovery
from resval_lens.analyses.results.emergence import first_above
from resval_lens.analyses.results.tables import table
from resval_lens.models.classifier import ICLClassifier
from resval_lens.tasks.icl import TASKS, ICLBatch
from resval_lens.training.recorded import RecordedRun

if TYPE_CHECKING:
    from rich.table import Table

    from resval_lens.training.icl_run import ICLRun

LAST = "last"
LEVELS = {"IC > .5": 0.5, "IC > .95": 0.95}
MOMENTS = (*LEVELS, LAST)
"""The first snapshot whose recorded accuracy on IC is above a level, and the last one."""


@dataclass(frozen=True)
class Moment:
    """One of ``MOMENTS`` of a run.

    Attributes:
        sequences: of each test.
        norms: mean over the tokens of IC of ‖own‖, ‖link‖ and ‖own + link‖, by these names.
        edits: accuracies by edit and task.
        grading: accuracies by what is scaled and task, from as trained to none.
        recovery: None where it was left out.
    """

    name: str
    step: int
    sequences: int
    norms: Mapping[str, float]
    edits: Mapping[str, Accuracies]
    grading: Curves
    recovery: Recovery | None = None

    def before(self, removed: str) -> Accuracies:
        """Accuracies of what ``recovery`` begins with: the same as under that edit."""
        return self.edits[TRAINED if removed == KEPT else removed]

    def tables(self) -> list[Table]:
        """Edits; the grading; what more steps without the link give."""
        tasks = tuple(TASKS.values())
        at = f"{self.name}, step {self.step:,}"
        edits = table(
            f"{at} ({self.sequences:,} sequences)",
            ("edit",),
            tasks,
            ([name, *(f"{own[task]:.3f}" for task in TASKS)] for name, own in self.edits.items()),
        )
        degrees = table(
            f"{at}: scaled by c",
            ("", "c"),
            tasks,
            (
                [what, f"{c:g}", *(f"{own[task][i]:.3f}" for task in TASKS)]
                for what, own in self.grading.items()
                for i, c in enumerate(GRADES)
            ),
        )
        found = [edits, degrees]
        if self.recovery is not None:
            after = self.recovery.after
            found.append(
                table(
                    f"{at}: before → after {self.recovery.steps:,} more steps",
                    ("removed",),
                    tasks,
                    (
                        [name, *(f"{self.before(name)[t]:.3f} → {own[t]:.3f}" for t in TASKS)]
                        for name, own in after.items()
                    ),
                )
            )
        return found


def moments_of(recorded: RecordedRun[ICLRun], steps: Sequence[int]) -> dict[str, int]:
    """The step of each of ``MOMENTS`` that the run has, among kept ``steps`` (oldest first)."""
    kept = set(steps)
    curve = [
        (line["step"], line["ic"]["accuracy"]) for line in recorded.metrics if line["step"] in kept
    ]
    found = {name: first_above(curve, level) for name, level in LEVELS.items()}
    there = {name: step for name, step in found.items() if step is not None}
    return there | {LAST: steps[-1]}


@torch.no_grad()
def moment(
    name: str, step: int, model: ICLClassifier, tests: Mapping[str, ICLBatch], seed: int
) -> Moment:
    """A :class:`Moment` without its recovery.

    Args:
        seed: draws which sequence a resampled link is taken from, and the order in which
            dimensions of the link go.
    """
    layers = {task: layer_one(model, batch.inputs) for task, batch in tests.items()}
    return Moment(
        name,
        step,
        len(tests["ic"].targets),
        norms(layers["ic"]),
        link_controls(model, tests, seed, layers),
        grading(layers, tests, seed),
    )


def norms(layer: LayerOne) -> dict[str, float]:
    """Mean ‖own‖, ‖link‖ and ‖own + link‖ over tokens, heads and what is edited."""
    found: dict[str, list[float]] = {"own": [], "link": [], "total": []}
    for own, link in layer.parts.values():
        for kept, x in zip(found.values(), (own, link, own + link), strict=True):
            kept.append(float(x.norm(dim=-1).mean()))
    return {name: sum(each) / len(each) for name, each in found.items()}
