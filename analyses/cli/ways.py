"""``resval-lens ways``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resval_lens.analyses.cli.options import (
    Against,
    Json,
    MaybeSeed,
    Out,
    Prompts,
    Quiet,
    notes,
    writable,
)
from resval_lens.analyses.cli.reporting import report


def ways_command(
    runs: Annotated[
        Path, typer.Argument(help="Folder of runs that differ only in seed, name and streams.")
    ],
    against: Against = None,
    prompts: Prompts = 64,
    seed: MaybeSeed = None,
    to: Out = Path("out"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare ways for values to skip layers: when does the task emerge, and what do links do?

    For every run it shows the steps at which the model names indirect objects, naming and the loss
    on stories with links at zero, and the smallest circuit with a faithfulness of .85 and the share
    of its effect that runs over links. Results are over seeds, with tests against one of the ways.
    It runs on the CPU.

    Example: `resval-lens ways runs/nanochat --against nanochat-classic`
    """
    from resval_lens.analyses.comparison.ways import ways
    from resval_lens.runtime import one_thread
    from resval_lens.training.lm_run import LMRun
    from resval_lens.training.recorded import load_runs

    found = load_runs(LMRun, runs)
    names = list(dict.fromkeys(each.run.name for each in found))
    if against is not None:
        if against not in names:
            raise ValueError(f"against must be one of {', '.join(names)}; got {against!r}")
        found.sort(key=lambda each: each.run.name != against)
    writable(to)
    with notes(quiet) as note, one_thread():
        study = ways(found, prompts, seed or 0, note)
    report(study, to, "ways", as_json=as_json)
