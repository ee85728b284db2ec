"""``resval-lens runs``: the queue of training runs that findings need."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from resval_lens.analyses.cli.console import err
from resval_lens.analyses.cli.options import (
    Json,
    Quiet,
    writable,
)
from resval_lens.analyses.cli.reporting import report
from resval_lens.analyses.cli.training_options import (
    RunsFolder,
)

runs_app = typer.Typer(
    no_args_is_help=True,
    help="Train the runs that the findings need, one by one, at the lowest priority.",
)

Queue = Annotated[
    Path | None,
    typer.Option(help="List of experiments (TOML).", show_default="the package's own"),
]
Corpus = Annotated[
    Path | None,
    typer.Option(
        help="Folder with train.txt and valid.txt, for experiments on real text.",
        show_default="these are skipped",
    ),
]
QueueModel = Annotated[
    Path | None,
    typer.Option(
        "--model",
        help="Language model, for experiments that graft links.",
        show_default="these are skipped",
    ),
]
Records = Annotated[Path, typer.Option(help="Folder that finished runs are copied to.")]


@runs_app.command("status")
def status_command(
    queue: Queue = None,
    runs: RunsFolder = Path("runs/queue"),
    records: Records = Path("runs/records"),
    corpus: Corpus = None,
    model: QueueModel = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the progress of each experiment, and the next run.

    A run is done when it has a record, in --records or among the shipped ones. Records are read on
    the CPU; nothing is run.

    Example: `resval-lens runs status`
    """
    from resval_lens.analyses.experiments.experiment import QUEUE, read_experiments
    from resval_lens.analyses.experiments.queue import Folders, status

    given = {"corpus": corpus, "model": model}
    found = status(read_experiments(queue or QUEUE, given), Folders(runs, records))
    report(found, None, "runs", as_json=as_json)


@runs_app.command("next")
def next_command(
    queue: Queue = None,
    runs: RunsFolder = Path("runs/queue"),
    records: Records = Path("runs/records"),
    corpus: Corpus = None,
    model: QueueModel = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the next run of the queue to its end, and record it.

    It uses one core, at the lowest priority. Classifiers and simplified transformers train on the
    CPU; for language models accelerate chooses the device.

    Example: `resval-lens runs next`
    """
    _work(queue, runs, records, {"corpus": corpus, "model": model}, 1, as_json, quiet)


@runs_app.command("all")
def all_command(
    queue: Queue = None,
    runs: RunsFolder = Path("runs/queue"),
    records: Records = Path("runs/records"),
    corpus: Corpus = None,
    model: QueueModel = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train every run of the queue that has no record yet, most important first.

    It trains one run at a time on one core, at the lowest priority. Classifiers and simplified
    transformers train on the CPU; for language models accelerate chooses the device. After a kill,
    the same command resumes: finished runs have records, the interrupted one its snapshot. The
    package's own list, analyses/experiments/experiments.toml, takes about 55 hours of a core.

    Example: `resval-lens runs all --quiet`
    """
    _work(queue, runs, records, {"corpus": corpus, "model": model}, None, as_json, quiet)


def _work(
    queue: Path | None,
    runs: Path,
    records: Path,
    given: Mapping[str, Path | None],
    most: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    from resval_lens.analyses.experiments.experiment import QUEUE, read_experiments
    from resval_lens.analyses.experiments.queue import Folders, status, work

    experiments, folders = read_experiments(queue or QUEUE, given), Folders(runs, records)
    writable(runs)
    writable(records)

    def note(what: str) -> None:
        if not quiet:
            err.print(what, highlight=False, markup=False)

    try:
        failed = work(experiments, folders, most, quiet, note)
    except KeyboardInterrupt:
        err.print("stopped; the same command resumes from here", style="yellow")
        raise typer.Exit(130) from None
    report(status(experiments, folders), None, "runs", as_json=as_json)
    if failed:
        raise RuntimeError(f"{len(failed)} runs failed: {', '.join(failed)}")
