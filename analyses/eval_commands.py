"""``resval-lens eval``."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from resval_lens.analyses.console import out
from resval_lens.analyses.options import (
    Quiet,
    load_language_model,
    notes,
    numbers,
    pairs_by_seed,
    writable,
)

eval_app = typer.Typer(no_args_is_help=True, help="Evaluate language models.")


@eval_app.command("ioi")
def ioi_command(
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Saved models, classic and with streams, seeds together; or the shipped pair."
        ),
    ] = None,
    prompts: Annotated[
        str, typer.Option(help="stories (seen and unseen names, frames, objects) or general.")
    ] = "stories",
    n: Annotated[int, typer.Option(help="Prompts in each set.")] = 500,
    seed: Annotated[int, typer.Option(help="Draws the prompts.")] = 0,
    bos: Annotated[
        bool, typer.Option(help="Put the end of text before each prompt, as packed rows do.")
    ] = True,
    to: Annotated[Path, typer.Option("--out", help="Folder for ioi.json.")] = Path("out"),
    quiet: Quiet = False,
) -> None:
    """Indirect object identification: the paper's Table 2, generated prompts, the four cells.

    Example: `resval-lens eval ioi runs/lm/*/model`
    """
    from resval_lens.analyses import ioi_tables
    from resval_lens.analyses.ioi import four_cells, ioi_scores, paper_table
    from resval_lens.checkpoint import SHIPPED_MODELS
    from resval_lens.files import write_json
    from resval_lens.provenance import provenance
    from resval_lens.streams import architectures_of
    from resval_lens.tasks.ioi import encode, generate_prompts
    from resval_lens.tasks.stories import ioi_prompts

    if prompts not in ("stories", "general"):
        raise ValueError(f"prompts must be stories or general; got {prompts!r}")
    models = models or [Path(name) for name in SHIPPED_MODELS]
    loaded = {folder: load_language_model(folder) for folder in models}
    tokenizer: Any = next(iter(loaded.values())).tokenizer
    for folder, model in loaded.items():
        own: Any = model.tokenizer
        if own.get_vocab() != tokenizer.get_vocab():
            raise ValueError(f"{folder} has another tokenizer than {models[0]}")
    prepend = tokenizer.eos_token_id if bos else None
    if prompts == "stories":
        kinds: tuple[Any, ...] = ("seen", "unseen")
        sets = {kind: ioi_prompts(n, seed, kind, kind, kind) for kind in kinds}
    else:
        sets = {"general": generate_prompts(n, seed)}
    batches = {name: encode(drawn, tokenizer, prepend) for name, drawn in sets.items()}
    by_kind: dict[str, list[Path]] = {}
    kinds_of = architectures_of([model.cfg.streams for model in loaded.values()])
    for kind, folder in zip(kinds_of, loaded, strict=True):
        by_kind.setdefault(kind, []).append(folder)
    writable(to)
    with notes(quiet) as note:
        note("the paper's sentences")
        table = paper_table(
            {kind: [loaded[f] for f in folders] for kind, folders in by_kind.items()},
            tokenizer, prepend=prepend,
        )  # fmt: skip
        scores: dict[str, dict[str, Any]] = {}
        for name, batch in batches.items():
            for folder, model in loaded.items():
                note(f"{folder}: {name}")
                scores.setdefault(name, {})[str(folder)] = ioi_scores(model, batch)
        cells: dict[str, list[dict[str, Any]]] = {}
        streams = [kind for kind in by_kind if kind != "classic"]
        for kind in streams if "classic" in by_kind else ():
            for one, other in pairs_by_seed(by_kind["classic"], by_kind[kind]):
                note(f"four cells: {one} and {other}")
                found = four_cells(loaded[one], loaded[other], list(batches.values())[-1])
                cells.setdefault(kind, []).append(
                    {"classic": str(one), "stream": str(other), **found}
                )
    report = {"paper": table, "scores": scores, "four_cells": cells, "provenance": provenance()}
    write_json(to / "ioi.json", report)
    out.print(ioi_tables.paper_table_2(table))
    for name, rows in scores.items():
        out.print(ioi_tables.scores_table(rows, f"IOI, {n} {name} prompts"))
    for kind, pairs in cells.items():
        out.print(ioi_tables.cells_table(pairs, f"Classic and {kind}, {list(batches)[-1]} prompts"))
        for sentence in ioi_tables.cells_sentences(pairs):
            out.print(f"• {sentence}", highlight=False)
    out.print(str(to / "ioi.json"), highlight=False)


@eval_app.command("harness")
def harness_command(
    models: Annotated[list[Path], typer.Argument(help="Saved language models.")],
    tasks: Annotated[
        str, typer.Option(help="Comma-separated names of the harness, or YAML files of your own.")
    ] = "arc_easy,arc_challenge,piqa,openbookqa,hellaswag",
    shots: Annotated[str, typer.Option(help="Examples before each question, like 0,1,5.")] = "1,5",
    limit: Annotated[int | None, typer.Option(help="Only the first so many questions.")] = None,
    batch: Annotated[int, typer.Option(help="Rows run at once.")] = 16,
    bos: Annotated[
        bool, typer.Option("--bos", help="Put the end of text before every context.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Draws the examples.")] = 0,
    to: Annotated[Path, typer.Option("--out", help="Folder for harness.json.")] = Path("out"),
    quiet: Quiet = False,
) -> None:
    """lm-evaluation-harness: the paper's benchmarks by default, any other of its tasks by name.

    Example: `resval-lens eval harness runs/lm/*/model --tasks piqa,hellaswag --shots 0,5`
    """
    from resval_lens.analyses.lm_tables import harness_table
    from resval_lens.files import write_json
    from resval_lens.provenance import provenance

    if quiet:
        os.environ["TQDM_DISABLE"] = "1"  # the harness's own bars
    try:
        from resval_lens.analyses.harness import HarnessLM, evaluate
    except ImportError as error:
        raise ValueError(f"{error}; pip install 'resval-lens[harness]'") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    wanted = [name.strip() for name in tasks.split(",") if name.strip()]
    examples = numbers(shots, "shots")
    loaded = {folder: load_language_model(folder) for folder in models}
    writable(to)
    found = {}
    for folder, model in loaded.items():
        lm = HarnessLM(model, batch, bos=bos, quiet=quiet)
        found[str(folder)] = evaluate(lm, wanted, examples, limit, seed)
        write_json(to / "harness.json", {"models": found, "provenance": provenance()})
        out.print(str(folder), highlight=False)
        out.print(harness_table(found[str(folder)]))
    out.print(str(to / "harness.json"), highlight=False)


@eval_app.command("emergence")
def emergence_command(
    runs: Annotated[
        Path | None, typer.Option(help="Folder of training runs; the shipped ones if not given.")
    ] = None,
    to: Annotated[Path, typer.Option("--out", help="Folder for JSON and PNG.")] = Path("out"),
) -> None:
    """Language models in training: losses, and the step at which indirect objects emerge.

    Compares architectures over seeds, classic first, with t-tests (also paired by seed).

    Example: `resval-lens eval emergence --runs runs/lm`
    """
    from resval_lens.analyses import figures, lm_figures, lm_tables
    from resval_lens.analyses.lm_emergence import lm_study
    from resval_lens.files import write_json
    from resval_lens.provenance import provenance
    from resval_lens.recorded_lm import SHIPPED_RUNS, load_lm_runs

    writable(to)
    found = load_lm_runs(runs or SHIPPED_RUNS)
    study = lm_study(found)
    write_json(to / "lm-emergence.json", {**study, "provenance": provenance()})
    out.print(lm_tables.study_table(study))
    path = figures.save(lm_figures.training(found), to / "lm-emergence.png")
    out.print(f"{path}\n{to / 'lm-emergence.json'}", highlight=False)
