"""``resval-lens eval``."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resval_lens.analyses.cli import completion
from resval_lens.analyses.cli.loading import load_language_model, load_options
from resval_lens.analyses.cli.options import (
    Device,
    DType,
    Fold,
    General,
    Json,
    MaybeStreams,
    Out,
    Prepend,
    Prompts,
    Quiet,
    Seed,
    Setting,
    notes,
    pairs_by_seed,
    tell_left_out,
    words,
    writable,
)
from resval_lens.analyses.cli.reporting import report
from resval_lens.analyses.cli.training_options import (
    Runs,
)
from resval_lens.numbers import numbers

if TYPE_CHECKING:
    from resval_lens.transformer import ResValTransformer

eval_app = typer.Typer(no_args_is_help=True, help="Evaluate language models.")


@eval_app.command("ioi")
def ioi_command(
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Language models by name or folder, classic and with streams, seeds together.",
            show_default="the shipped pair",
            autocompletion=completion.one_or_file(
                *completion.LANGUAGE_MODELS, endings=completion.MODEL_FILES
            ),
        ),
    ] = None,
    prompts: Prompts = 500,
    general: General = None,
    seed: Seed = 0,
    prepend: Prepend = "auto",
    streams: MaybeStreams = None,
    dtype: DType = None,
    fold: Fold = False,
    setting: Setting = None,
    device: Device = "cpu",
    to: Out = Path("out"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score indirect object identification: the paper's Table 2, generated prompts, four cells.

    There are --prompts in each of two sets of the stories: with names, frames and objects that
    training text may hold (seen) or never holds (unseen). Or there is one set of general prompts.

    Example: `resval-lens eval ioi stories-small-classic stories-small-values`
    """
    from resval_lens.analyses.comparison.ioi_study import ioi_study
    from resval_lens.analyses.studies.ioi import check_one_tokenizer
    from resval_lens.analyses.tasks.pairs import draw_ioi
    from resval_lens.io.checkpoint import SHIPPED_MODELS
    from resval_lens.streams import architectures_of
    from resval_lens.tasks.ioi import encode
    from resval_lens.tasks.leading import leading_token

    if prompts < 1:
        raise ValueError(f"prompts must be 1 or more; got {prompts}")
    models = models or [Path(name) for name in SHIPPED_MODELS]
    how = load_options(streams, device, dtype, fold, setting)
    loaded = {folder: load_language_model(folder, how) for folder in models}
    tokenizer: Any = next(iter(loaded.values())).tokenizer
    check_one_tokenizer(loaded)
    leads = {folder: leading_token(model, prepend) for folder, model in loaded.items()}
    if general is None:
        general = any(model.cfg.original_architecture is not None for model in loaded.values())
    kinds: tuple[Any, ...] = ("general",) if general else ("seen", "unseen")
    sets = {kind: draw_ioi(tokenizer, prompts, seed, kind) for kind in kinds}
    left_out = sets[kinds[0]].left_out
    tell_left_out(left_out, quiet)
    lead = next(iter(leads.values()))
    if len(set(leads.values())) > 1:
        raise ValueError("these models start prompts with different tokens; choose by --prepend")
    batches = {name: encode(drawn.prompts, tokenizer, lead) for name, drawn in sets.items()}
    by_kind: dict[str, dict[str, ResValTransformer]] = {}
    kinds_of = architectures_of([model.cfg.streams for model in loaded.values()])
    for kind, (folder, model) in zip(kinds_of, loaded.items(), strict=True):
        by_kind.setdefault(kind, {})[str(folder)] = model
    folders = {kind: list(map(Path, own)) for kind, own in by_kind.items()}
    pairs = {
        kind: [(str(one), str(other)) for one, other in pairs_by_seed(folders["classic"], own)]
        for kind, own in folders.items()
        if kind != "classic" and "classic" in folders
    }
    writable(to)
    with notes(quiet) as note:
        study = ioi_study(by_kind, batches, pairs, lead, left_out, note)
    report(study, to, "ioi", as_json=as_json)


@eval_app.command("harness")
def harness_command(
    models: Annotated[
        list[Path],
        typer.Argument(
            help="Language models by name or folder.",
            autocompletion=completion.one_or_file(
                *completion.LANGUAGE_MODELS, endings=completion.MODEL_FILES
            ),
        ),
    ],
    tasks: Annotated[
        str,
        typer.Option(
            help="Comma-separated names of the harness, or YAML files of your own.",
            autocompletion=completion.some_of(*completion.HARNESS_TASKS),
        ),
    ] = "arc_easy,arc_challenge,piqa,openbookqa,hellaswag",
    shots: Annotated[str, typer.Option(help="Examples before each question, like 0,1,5.")] = "1,5",
    limit: Annotated[
        int | None,
        typer.Option(help="Only the first so many questions.", show_default="all"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows run at once.")] = 16,
    prepend: Prepend = "none",
    seed: Seed = 0,
    streams: MaybeStreams = None,
    dtype: DType = None,
    fold: Fold = False,
    setting: Setting = None,
    device: Device = "cpu",
    to: Out = Path("out"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run lm-evaluation-harness: the paper's benchmarks by default, any of its tasks by name.

    Results are written after each model.

    Example: `resval-lens eval harness stories-small-values --tasks piqa,hellaswag --shots 0,5`
    """
    from resval_lens.analyses.studies.harness_scores import HarnessScore, HarnessScores
    from resval_lens.io.extras import needed
    from resval_lens.io.files import write_json
    from resval_lens.io.provenance import provenance
    from resval_lens.tasks.leading import NamedToken, named_token

    if quiet:
        os.environ["TQDM_DISABLE"] = "1"  # the harness's own bars
    needed("lm_eval", "harness", "eval harness")
    from resval_lens.analyses.studies.harness import HarnessLM, evaluate

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    wanted, examples = words(tasks), numbers(shots, "shots")
    how = load_options(streams, device, dtype, fold, setting)
    loaded = {folder: load_language_model(folder, how) for folder in models}
    writable(to)
    scores: dict[str, list[HarnessScore]] = {}
    leads: dict[str, NamedToken | None] = {}
    found = HarnessScores(scores, leads)
    with redirect_stdout(sys.stderr):  # the harness prints notes of its own
        for folder, model in loaded.items():
            lm = HarnessLM(model, batch_size, prepend=prepend, quiet=quiet)
            scores[str(folder)] = evaluate(lm, wanted, examples, limit, seed)
            leads[str(folder)] = named_token(model, lm.lead)
            document = {**found.to_dict(), "provenance": provenance()}
            write_json(to / "harness.json", document)
    report(found, to, "harness", as_json=as_json)


@eval_app.command("emergence")
def emergence_command(
    runs: Runs = None,
    to: Out = Path("out"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare language models in training: losses, and when naming indirect objects emerges.

    This compares architectures over seeds, classic first, by step and at equal validation loss,
    with t-tests (also paired by seed, and corrected for their number). It reads the records of
    training; no model is run on any device.

    Example: `resval-lens eval emergence --runs runs/lm`
    """
    from resval_lens.analyses.comparison.figures import training
    from resval_lens.analyses.comparison.lm_emergence import lm_emergence
    from resval_lens.training.lm_run import LMRun
    from resval_lens.training.recorded import SHIPPED, load_runs

    writable(to)
    with notes(quiet) as note:
        note("training runs")
        found = load_runs(LMRun, runs or SHIPPED / "lm")
        study = lm_emergence(found)
    figures = {"lm-emergence.png": training(found)}
    report(study, to, "lm-emergence", as_json=as_json, figures=figures)
