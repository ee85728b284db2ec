"""``resval-lens train icl``, ``reproduce`` and ``link-in-training``: the two-layer classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resval_lens.analyses.amicl.commands import FIGURES, reproduce_figure
from resval_lens.analyses.console import out
from resval_lens.analyses.options import Quiet, notes, numbers, writable

if TYPE_CHECKING:
    from resval_lens.recorded import RecordedRun

Seeds = Annotated[str, typer.Option(help="Like 0,1,2 or 0-3.")]
Steps = Annotated[int, typer.Option(help="Training steps of 128 sequences.")]
Spec = Annotated[str, typer.Option(help="reference (the authors' code) or paper (its text).")]
Jobs = Annotated[int, typer.Option(help="Runs at a time, a core each; 0: as many as cores.")]
Runs = Annotated[
    Path | None, typer.Option(help="Folder of training runs; the shipped ones if not given.")
]
Train = Annotated[bool, typer.Option("--train", help="Train first, into --runs (or runs/icl).")]


def train_icl_command(
    variants: Annotated[
        str,
        typer.Option(
            help="Comma-separated: classic, queries, keys, values, values-detached, "
            "queries-values, queries-keys-values, values-half."
        ),
    ] = "classic,queries,keys,values",
    seeds: Seeds = "0-3",
    steps: Steps = 75_000,
    spec: Spec = "reference",
    jobs: Jobs = 0,
    runs: Annotated[Path, typer.Option(help="Folder of the training runs.")] = Path("runs/icl"),
    keep_snapshots: Annotated[
        bool, typer.Option("--keep-snapshots", help="Keep every snapshot's weights (1 MB each).")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train two-layer in-context classifiers (arXiv 2412.15113, section 3).

    Every variant is trained with every seed; variants of one seed share vectors, batches and
    initial weights. Killed or stopped, the same command goes on from the newest snapshots.

    Example: `resval-lens train icl --variants classic,values --seeds 0,1 --steps 45000`
    """
    train_icl_runs(
        variants.split(","), numbers(seeds), steps, spec, jobs, runs, keep_snapshots, quiet
    )


def reproduce_command(
    what: Annotated[
        str,
        typer.Argument(
            help="table-1, table-5, table-6, figure-3, further-variants; figure-6, figure-7 or "
            "figure-8 (AMICL)."
        ),
    ],
    runs: Runs = None,
    train: Train = False,
    seeds: Annotated[str | None, typer.Option(help="Only these, like 0,1,2 or 0-3.")] = None,
    steps: Annotated[int | None, typer.Option(help="With --train; 45000.")] = None,
    jobs: Annotated[int | None, typer.Option(help="With --train: runs at a time.")] = None,
    trials: Annotated[int | None, typer.Option(help="Of AMICL, at each point; 1000.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draws the trials of AMICL; 0.")] = None,
    to: Annotated[Path, typer.Option("--out", help="Folder for JSON and PNG.")] = Path("out"),
    quiet: Quiet = False,
) -> None:
    """Print a table or draw a figure of the paper, ours beside the published numbers.

    From the recorded runs that ship with the package, from --runs, or trained now (--train; the
    16 runs take about 75 minutes on 2 cores). further-variants: gradient blocked through the
    link, several streams at once, an even mix. Figures 6 to 8 are of AMICL, which is not trained:
    they are measured now, in two readings, the paper's text and the authors' notebook; Figure 7
    at 104 values of a, each with trials of its own.

    Example: `resval-lens reproduce table-1`
    """
    from resval_lens.analyses import figures, tables
    from resval_lens.analyses.emergence import TABLES, paper_runs, table_data
    from resval_lens.files import write_json
    from resval_lens.presets import FURTHER_VARIANTS, PAPER_VARIANTS
    from resval_lens.provenance import provenance

    known = [*TABLES, "figure-3", "further-variants", *FIGURES]
    if what not in known:
        raise ValueError(f"{what!r} is not among {', '.join(known)}")
    if what in FIGURES:
        only_for("what is trained", runs=runs, train=train, seeds=seeds, steps=steps, jobs=jobs)
        reproduce_figure(
            what, 0 if seed is None else seed, 1_000 if trials is None else trials, to, quiet
        )
        return
    only_for(", ".join(FIGURES), trials=trials, seed=seed)
    further = what == "further-variants"
    wanted = None if seeds is None else numbers(seeds)
    if train:
        names = ["classic", "values", *FURTHER_VARIANTS] if further else list(PAPER_VARIANTS)
        runs, wanted = runs or Path("runs/icl"), wanted or [0, 1, 2, 3]
        length = 45_000 if steps is None else steps
        train_icl_runs(names, wanted, length, "reference", jobs or 0, runs, False, quiet)
    else:
        only_with_train(steps=steps, jobs=jobs)
    found = load_recorded(runs, wanted, length if train else None)
    writable(to)
    if what == "figure-3":
        path = figures.save(figures.emergence(paper_runs(found)), to / "figure-3.png")
        out.print(f"{path}", highlight=False)
        return
    data = table_data(found if further else paper_runs(found), TABLES.get(what, 0.95))
    write_json(to / f"{what}.json", {**data, "provenance": provenance()})
    out.print(tables.emergence_table(data))
    out.print(tables.t_test_table(data, ("classic", "values") if further else None))
    out.print(f"{to / what}.json", highlight=False)


def link_in_training_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run trained with --keep-snapshots.")],
    sequences: Annotated[int, typer.Option(help="Of each test set.")] = 2_000,
    to: Annotated[Path, typer.Option("--out", help="Folder for JSON and PNG.")] = Path("out"),
    quiet: Quiet = False,
) -> None:
    """Cut the links at every snapshot of a run: when in training does the model need them?

    Example: `resval-lens train icl --variants values --seeds 0 --steps 45000 --keep-snapshots`,
    then `resval-lens link-in-training runs/icl/values-seed0`
    """
    from resval_lens.analyses import figures, tables
    from resval_lens.analyses.link_in_training import link_in_training
    from resval_lens.files import write_json
    from resval_lens.provenance import provenance
    from resval_lens.recorded import RecordedRun
    from resval_lens.runtime import one_thread

    writable(to)
    with notes(quiet) as note, one_thread():
        study = link_in_training(RecordedRun.load(run), sequences, note)
    write_json(to / "link-in-training.json", {**study, "provenance": provenance()})
    out.print(tables.link_in_training_table(study))
    for path in (
        figures.save(figures.link_in_training(study), to / "link-in-training.png"),
        to / "link-in-training.json",
    ):
        out.print(str(path), highlight=False)


def train_icl_runs(
    names: list[str],
    seeds: list[int],
    steps: int,
    spec: str,
    jobs: int,
    folder: Path,
    keep_snapshots: bool,
    quiet: bool,
) -> None:
    """Trains the variants with every seed, with bars.

    Raises:
        ValueError: an unknown variant or spec, and what training refuses.
    """
    from resval_lens.analyses.training_bars import train_with_bars
    from resval_lens.presets import icl_variant
    from resval_lens.training.icl_run import ICLRun

    if spec not in ("reference", "paper"):
        raise ValueError(f"spec must be 'reference' or 'paper'; got {spec!r}")
    planned = [
        ICLRun(name.strip(), icl_variant(name.strip()), seed, spec, steps=steps)  # type: ignore[arg-type]
        for seed in seeds
        for name in names
    ]
    train_with_bars(planned, folder, jobs, keep_snapshots, quiet)


def load_recorded(
    runs: Path | None, seeds: list[int] | None, steps: int | None
) -> list[RecordedRun]:
    """The runs of a folder, or those that ship; only those of some seeds, or of so many steps.

    Raises:
        ValueError: there is none.
    """
    from resval_lens.recorded import SHIPPED, load_runs

    found = [
        recorded
        for recorded in load_runs(runs or SHIPPED)
        if (seeds is None or recorded.run.seed in seeds)
        and (steps is None or recorded.run.steps == steps)
    ]
    if not found:
        raise ValueError(f"{runs or SHIPPED} holds no run of seeds {seeds}")
    return found


def only_for(what: str, **given: object) -> None:
    """Raises ValueError for an option that was given, though it is for ``what``."""
    for name, value in given.items():
        if value is not None and value is not False:
            shown = f"--{name}" if value is True else f"--{name} {value}"
            raise ValueError(f"{shown} is for {what}")


def only_with_train(**given: int | None) -> None:
    """Raises ValueError for an option that was given without --train."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"--{name} {value} is for training: add --train")
