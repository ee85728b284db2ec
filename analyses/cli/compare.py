"""``resval-lens compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from resval_lens.analyses.cli import completion
from resval_lens.analyses.cli.completion import one_of
from resval_lens.analyses.cli.icl import load_recorded, train_icl_runs
from resval_lens.analyses.cli.loading import settings_of
from resval_lens.analyses.cli.options import (
    CorruptedBy,
    Device,
    General,
    Json,
    MaybeSeed,
    MetricName,
    Prepend,
    Prompts,
    Quiet,
    Setting,
    TaskName,
    notes,
    only_for,
    only_with_train,
    tell_left_out,
    writable,
)
from resval_lens.analyses.cli.reporting import report
from resval_lens.analyses.cli.training_options import (
    MaybeSeeds,
    MaybeSteps,
    Runs,
    Train,
)
from resval_lens.analyses.tasks import Asked
from resval_lens.numbers import numbers


def compare_command(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Two models, by name, folder or file, of any known kind.",
            show_default="classic and residual-value runs",
            metavar="[MODEL MODEL]",
            autocompletion=one_of(*completion.MODELS),
        ),
    ] = None,
    task: TaskName = None,
    corruption: CorruptedBy = None,
    metric: MetricName = None,
    general: General = None,
    prepend: Prepend = "auto",
    setting: Setting = None,
    device: Device = "cpu",
    runs: Runs = None,
    lm_runs: Annotated[
        Path | None,
        typer.Option(help="Folder of language-model runs.", show_default="the shipped ones"),
    ] = None,
    train: Train = False,
    seeds: MaybeSeeds = None,
    steps: MaybeSteps = None,
    sequences: Annotated[
        int | None, typer.Option(help="How many test sequences.", show_default="10000")
    ] = None,
    link_sequences: Annotated[
        int | None,
        typer.Option(
            help="Sequences of each test set for every edit of the links.", show_default="2000"
        ),
    ] = None,
    circuit_sequences: Annotated[
        int | None,
        typer.Option(
            help="Sequences for scoring edges; as many others evaluate circuits.",
            show_default="256",
        ),
    ] = None,
    prompts: Prompts = 64,
    seed: MaybeSeed = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Parallel processes, one core each; 0: all cores.", show_default="0"),
    ] = None,
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
    """Compare two models on a task, or classic with residual-value runs: what does the link do?

    With two models, of any size and tokenizer, it compares measures, prompt by prompt where both
    read the same texts. It cuts, resamples and scales links, patches z and the residual stream,
    finds the circuit by eap on as many held-out prompts, and does attribution. An example is
    `resval-lens compare stories-small-classic stories-small-values --task ioi`.

    Without models, it compares all shipped runs, or the runs of folders. For two-layer classifiers:
    accuracies; links cut, scaled and mean-ablated; the classic weights with a link grafted on and
    the values weights without theirs; attention. For language models, on naming the indirect
    object: activations patched, links ablated, the four cells. For every classic and values model:
    circuits, heads by role, what the links carry. Accuracies are on --sequences of each test set.
    Edges of language models are scored on --prompts, and circuits are evaluated on as many others.
    All of it runs on the CPU: 59 s on two quiet cores, 90 s of processor time.

    It writes compare.json and figures, and with --report a page with all results. --seeds chooses
    the classifiers' runs to compare, or to train (0, for 45,000 steps). --seed draws prompts and
    corrupted prompts.

    Example: `resval-lens compare --report out`
    """
    if models:
        only_for(
            "comparing runs, without models by name",
            **{
                "runs": runs, "lm-runs": lm_runs, "train": train, "seeds": seeds, "steps": steps,
                "sequences": sequences, "link-sequences": link_sequences,
                "circuit-sequences": circuit_sequences, "jobs": jobs,
            },
        )  # fmt: skip
        asked = Asked(seed, corruption, general, prepend)
        open_ = settings_of(setting)
        _two_models(models, prompts, asked, task, metric, open_, device, page, to, as_json, quiet)
        return
    only_for(
        "comparing two models by name",
        task=task, corruption=corruption, metric=metric, general=general,
        setting=setting, prepend=prepend if prepend != "auto" else None,
        device=device if device != "cpu" else None,
    )  # fmt: skip
    sequences = 10_000 if sequences is None else sequences
    link_sequences = 2_000 if link_sequences is None else link_sequences
    circuit_sequences = 256 if circuit_sequences is None else circuit_sequences
    jobs, seed = jobs or 0, seed or 0
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
    language_models = compared_models(lm_runs)
    check_models(language_models, prompts, seed)
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
        measured = compare_all(found, language_models, sizes, jobs or cores(), note)
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


def _two_models(
    models: list[str], prompts: int, asked: Asked, task: str | None, metric: str | None,
    settings: dict[str, float], device: str, page: Path | None, to: Path | None, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Two models on one task; only they are loaded."""
    from resval_lens.analyses.comparison.two_models import compare_two, pose_alike
    from resval_lens.runtime import one_thread

    to = to or page or Path("out")
    with notes(quiet) as note, one_thread():
        note("prompts")
        posed = pose_alike(models, prompts, asked, task, device, settings)
        for each in posed.scored:
            tell_left_out(each.left_out, quiet)
        if metric is not None:
            posed = posed.by(metric)
        for folder in (to, *([page] if page else [])):
            writable(folder)
        found = compare_two(posed, note)

    def html(document: Any) -> str:
        from resval_lens.analyses.report.two_models_page import two_models_page

        return two_models_page(found, document, "compare.json")

    pages = {page / "report.html": html} if page else None
    report(found, to, "compare", as_json=as_json, pages=pages)
