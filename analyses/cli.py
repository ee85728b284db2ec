"""The command line: ``resval-lens --help``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from resval_lens.analyses.console import TrainingBars, err, progress_bars

from resval_lens.presets import ICL_VARIANTS, PAPER_VARIANTS, icl_variant
from resval_lens.training.icl import ICLRun
from resval_lens.training.many import train_many

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Transformers with a residual value stream: train them, cut their links, compare them.",
)
train_app = typer.Typer(
    no_args_is_help=True, help="Train models; killed runs go on where they were."
)
app.add_typer(train_app, name="train")


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(help="Show the whole traceback of an error.")] = False,
) -> None:
    pass


def numbers(text: str) -> list[int]:
    """Whole numbers from ``"0,1,2"`` or ``"0-3"``."""
    try:
        first, dash, last = text.partition("-")
        if dash:
            found = list(range(int(first), int(last) + 1))
        else:
            found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"seeds must be numbers like 0,1,2 or 0-3; got {text!r}") from None
    if not found:
        raise ValueError(f"seeds must name at least one number; got {text!r}")
    return found


@train_app.command("icl")
def train_icl_command(
    variants: Annotated[
        str, typer.Option(help=f"Comma-separated: {', '.join(ICL_VARIANTS)}.")
    ] = ",".join(PAPER_VARIANTS),
    seeds: Annotated[str, typer.Option(help="Like 0,1,2 or 0-3.")] = "0-3",
    steps: Annotated[int, typer.Option(help="Steps of 128 sequences.")] = 75_000,
    spec: Annotated[str, typer.Option(help="reference (authors' code) or paper (its text).")] = (
        "reference"
    ),
    jobs: Annotated[int, typer.Option(help="Runs at a time; one core each.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/icl"),
    keep_snapshots: Annotated[
        bool, typer.Option(help="Keep every snapshot's weights (0.8 MB each).")
    ] = False,
    quiet: Annotated[bool, typer.Option(help="No progress bars.")] = False,
) -> None:
    """Train two-layer in-context classifiers (arXiv 2412.15113, section 3).

    Every variant is trained with every seed; variants of one seed share vectors, batches and
    initial weights. Killed or stopped, the same command goes on.

    Example: resval-lens train icl --variants classic,values --seeds 0,1 --steps 45000
    """
    runs = [
        ICLRun(name, icl_variant(name), seed, spec, steps=steps)  # type: ignore[arg-type]
        for seed in numbers(seeds)
        for name in variants.split(",")
    ]
    with progress_bars(quiet) as bars:
        shown = TrainingBars(bars, runs)
        train_many(runs, out, jobs or os.cpu_count() or 1, shown.report, keep_snapshots)
    err.print(f"{len(runs)} runs in {out}")


def main() -> None:
    """Entry point: an expected error is one line on stderr, its traceback with ``--debug``."""
    try:
        app()
    except KeyboardInterrupt:
        err.print("stopped; the same command goes on from here", style="yellow")
        sys.exit(130)
    except (ValueError, RuntimeError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        err.print(f"resval-lens: {error}", style="red", highlight=False, markup=False)
        sys.exit(1)
