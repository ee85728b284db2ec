"""``resval-lens compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from resval_lens.analyses.cli.icl import load_recorded, train_icl_runs
from resval_lens.analyses.cli.options import (
    Jobs,
    Json,
    MaybeSeeds,
    MaybeSteps,
    Prompts,
    Quiet,
    Runs,
    Seed,
    Sequences,
    Train,
    notes,
    only_with_train,
    writable,
)
from resval_lens.analyses.cli.reporting import report
from resval_lens.numbers import numbers


def compare_command(
    runs: Runs = None,
    lm_runs: Annotated[
        Path | None,
        typer.Option(
            help="Folder of language-model runs on stories.", show_default="the shipped ones"
        ),
    ] = None,
    train: Train = False,
    seeds: MaybeSeeds = None,
    steps: MaybeSteps = None,
    sequences: Sequences = 10_000,
    link_sequences: Annotated[
        int, typer.Option(help="Of each test set, for every edit of the links.")
    ] = 2_000,
    circuit_sequences: Annotated[
        int, typer.Option(help="By which edges are scored; as many others evaluate circuits.")
    ] = 256,
    prompts: Prompts = 64,
    seed: Seed = 0,
    jobs: Jobs = 0,
    page: Annotated[
        Path | None,
        typer.Option(
            "--report",
            help="Folder for report.html, one page that opens offline.",
            show_default="none is written",
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for JSON, CSV and figures.",
            show_default="that of the report, or out",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare classic with residual-stream models: what does the value link do?

    Two-layer classifiers: accuracies; links cut, scaled and mean-ablated; the classic weights with
    a link grafted on and the values weights without theirs; attention. Language models on indirect
    objects: activations patched, links ablated, the four cells. Of every classic and values model
    there is: circuits, heads by role, what the links carry. Accuracies are on --sequences of each
    test set, edges of language models are scored on --prompts and circuits evaluated on as many
    others. All of it runs on the CPU: 59 s on two quiet cores, 90 s of processor time.

    Writes compare.json and figures; with --report also a page that shows it all. --seeds are of
    the classifiers: only their runs are compared, or trained (0, for 45,000 steps); --seed draws
    prompts and corrupted prompts.

    Example: `resval-lens compare --report out`
    """
    from resval_lens.analyses.comparison.circuit_compare import (
        check_counts,
        check_models,
        check_sizes,
        compared_models,
    )
    from resval_lens.analyses.comparison.compare_parts import Comparison, Sizes, compare_all
    from resval_lens.analyses.comparison.icl_curves import icl_curves
    from resval_lens.analyses.comparison.icl_emergence import emergence, paper_runs
    from resval_lens.analyses.comparison.lm_compare import emergence as emergence_of_language_models
    from resval_lens.models.presets import PAPER_VARIANTS
    from resval_lens.runtime import cores
    from resval_lens.training.lm_run import LMRun
    from resval_lens.training.recorded import load_runs

    if jobs < 0:
        raise ValueError(f"jobs must be 0 or more; got {jobs}")
    to = to or page or Path("out")
    check_counts(sequences=sequences, link_sequences=link_sequences, prompts=prompts)
    wanted = None if seeds is None else numbers(seeds)
    models = compared_models(lm_runs)
    check_models(models, prompts, seed)
    curves = load_runs(LMRun) if lm_runs is None else load_runs(LMRun, lm_runs)
    for folder in (to, *([page] if page else [])):
        writable(folder)
    if train:
        runs, wanted = runs or Path("runs/icl"), wanted or [0]
        length = 45_000 if steps is None else steps
        train_icl_runs(list(PAPER_VARIANTS), wanted, length, "reference", jobs, runs, False, quiet)
    else:
        only_with_train(steps=steps)
    found = paper_runs(load_recorded(runs, wanted, length if train else None))
    if not any(each.has_model for each in found):
        which = "" if wanted is None else f" of seeds {wanted}"
        raise ValueError(
            f"{runs or 'what ships'} has no trained model{which} of {', '.join(PAPER_VARIANTS)}"
        )
    check_sizes(found, circuit_sequences, prompts)
    sizes = Sizes(sequences, link_sequences, circuit_sequences, prompts, seed)
    with notes(quiet) as note:
        measured = compare_all(found, models, sizes, jobs or cores(), note)
    study = Comparison(
        measured.classifiers,
        emergence(found, 0.95),
        measured.language_models,
        emergence_of_language_models(curves),
        measured.circuits,
        settings={
            "sequences": sequences,
            "link sequences": link_sequences,
            "circuit sequences": circuit_sequences,
            "prompts": prompts,
            "seed of prompts and corrupted prompts": seed,
            "seeds of classifiers": sorted({each.run.seed for each in found}),
        },
    )
    drawn = {
        **study.classifiers.figures(),
        "emergence.png": icl_curves(found).figure(),
        **study.circuits.figures(),
    }

    def html(document: Any) -> str:
        from resval_lens.analyses.report.compare_page import compare_page

        return compare_page(study, document, found, curves, drawn)

    report(
        study, to, "compare", as_json=as_json, figures=drawn,
        pages={page / "report.html": html} if page else None,
    )  # fmt: skip
