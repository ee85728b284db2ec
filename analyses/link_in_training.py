"""When in training a model depends on its links: each snapshot, run with and without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from resval_lens.recorded import RecordedRun
from resval_lens.tasks.icl import ICLBatch
from resval_lens.training.icl import evaluate
from resval_lens.training.icl_run import draw_world


def link_in_training(
    recorded: RecordedRun,
    sequences: int = 2_000,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Accuracy on each task at each kept snapshot, as trained and with every link cut.

    Args:
        recorded: a run with streams whose snapshots were kept (``--keep-snapshots``).
        sequences: of each test set.
        note: called with what is being done.

    Raises:
        ValueError: fewer than two snapshots, a run without streams, ``sequences`` below 1.
    """
    if sequences < 1:
        raise ValueError(f"sequences must be 1 or more; got {sequences}")
    if not recorded.run.streams:
        raise ValueError(f"{recorded.folder} is a run without streams: it has no links to cut")
    _, tests = draw_world(recorded.run)
    tests = {name: ICLBatch(*(x[:sequences] for x in batch)) for name, batch in tests.items()}
    rows = []
    for step, model in recorded.snapshots():
        note(f"{recorded.run.folder_name}: step {step}")
        cells = {"trained": model, "cut": model.with_streams("", share_weights=True)}
        measured = {name: evaluate(cell, tests) for name, cell in cells.items()}
        rows.append(
            {
                "step": step,
                **{
                    name: {task: result["accuracy"] for task, result in results.items()}
                    for name, results in measured.items()
                },
            }
        )
    if len(rows) < 2:
        raise ValueError(
            f"{recorded.folder} holds {len(rows)} snapshots; train it with --keep-snapshots"
        )
    return {
        "run": recorded.run.to_dict(),
        "starts": recorded.starts,
        "sequences": len(tests["test"].targets),
        "snapshots": rows,
    }
