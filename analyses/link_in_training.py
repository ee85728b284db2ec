"""When in training a model depends on its links: each snapshot, with them, without, and controlled.

Where a cut costs accuracy, so may any edit as large; the controls of
:mod:`~resval_lens.analyses.link_controls` stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from resval_lens.analyses.icl import edited_logits
from resval_lens.analyses.link_controls import first_of, link_controls
from resval_lens.recorded import RecordedRun
from resval_lens.training.icl import score
from resval_lens.training.icl_run import draw_world


def link_in_training(
    recorded: RecordedRun,
    sequences: int = 2_000,
    control_sequences: int = 500,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Accuracy on each task at each kept snapshot, as trained, with every link cut, controlled.

    Args:
        recorded: a run with streams whose snapshots were kept (``--keep-snapshots``).
        sequences: of each test set.
        control_sequences: of these, for ``controls``.
        note: called with what is being done.

    Returns:
        JSON-able; ``snapshots`` hold accuracies ``trained``, ``cut`` and under each of the
        ``controls`` (:func:`~resval_lens.analyses.link_controls.link_controls`).

    Raises:
        ValueError: fewer than two snapshots, a run without streams, ``sequences`` below 1,
            ``control_sequences`` below 2.
    """
    if sequences < 1:
        raise ValueError(f"sequences must be 1 or more; got {sequences}")
    if not recorded.run.streams:
        raise ValueError(f"{recorded.folder} is a run without streams: it has no links to cut")
    _, tests = draw_world(recorded.run)
    tests = first_of(tests, sequences)
    some = first_of(tests, control_sequences)
    rows = []
    for step, model in recorded.snapshots():
        note(f"{recorded.run.folder_name}: step {step}")
        cells: dict[str, dict[str, float]] = {"trained": {}, "cut": {}}
        for task, batch in tests.items():
            both = edited_logits(model, batch.inputs, torch.tensor([1.0, 0.0]))
            for cell, logits in zip(cells.values(), both, strict=True):
                cell[task] = score(logits, batch.targets)["accuracy"]
        controls = link_controls(model, some, recorded.run.seed)
        rows.append({"step": step, **cells, "controls": controls})
    if len(rows) < 2:
        raise ValueError(
            f"{recorded.folder} holds {len(rows)} snapshots; train it with --keep-snapshots"
        )
    return {
        "run": recorded.run.to_dict(),
        "starts": recorded.starts,
        "sequences": len(tests["test"].targets),
        "control_sequences": len(some["test"].targets),
        "snapshots": rows,
    }
