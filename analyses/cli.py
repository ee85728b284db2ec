"""The command line: ``resval-lens --help``.

Heavy imports stand inside the commands, so that help and errors come at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resval_lens.analyses.amicl.commands import FIGURES, amicl_app, reproduce_figure
from resval_lens.analyses.circuit_commands import (
    attribute_command,
    circuit_command,
    induction_command,
)
from resval_lens.analyses.console import err, out
from resval_lens.analyses.eval_commands import eval_app
from resval_lens.analyses.generate_command import generate_command
from resval_lens.analyses.intervention_commands import ablate_command, patch_command
from resval_lens.analyses.lm_commands import plan_command, train_lm_command
from resval_lens.analyses.memory.commands import memory_app
from resval_lens.analyses.memory.training import train_memory_command
from resval_lens.analyses.options import Quiet, notes, numbers, writable

if TYPE_CHECKING:
    from resval_lens.recorded import RecordedRun

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Transformers with a residual value stream: train them, cut their links, compare them.",
)
train_app = typer.Typer(
    no_args_is_help=True, help="Train models. A killed run goes on where it was."
)
app.add_typer(train_app, name="train")
train_app.command("lm")(train_lm_command)
train_app.command("memory")(train_memory_command)
app.command("plan")(plan_command)
app.command("generate")(generate_command)
app.add_typer(eval_app, name="eval")
app.add_typer(amicl_app, name="amicl")
app.add_typer(memory_app, name="memory")
app.command("patch")(patch_command)
app.command("ablate")(ablate_command)
app.command("circuit")(circuit_command)
app.command("attribute")(attribute_command)
app.command("induction")(induction_command)

Seeds = Annotated[str, typer.Option(help="Like 0,1,2 or 0-3.")]
Steps = Annotated[int, typer.Option(help="Training steps of 128 sequences.")]
Spec = Annotated[str, typer.Option(help="reference (the authors' code) or paper (its text).")]
Jobs = Annotated[int, typer.Option(help="Runs at a time, a core each; 0: as many as cores.")]
Runs = Annotated[
    Path | None, typer.Option(help="Folder of training runs; the shipped ones if not given.")
]
Train = Annotated[bool, typer.Option("--train", help="Train first, into --runs (or runs/icl).")]


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the whole traceback of an error.")
    ] = False,
) -> None:
    """Read before any command; main() looks at --debug itself."""


@train_app.command("icl")
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
    _train_icl(variants.split(","), numbers(seeds), steps, spec, jobs, runs, keep_snapshots, quiet)


@app.command()
def reproduce(
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
        _only_for("what is trained", runs=runs, train=train, seeds=seeds, steps=steps, jobs=jobs)
        reproduce_figure(
            what, 0 if seed is None else seed, 1_000 if trials is None else trials, to, quiet
        )
        return
    _only_for(", ".join(FIGURES), trials=trials, seed=seed)
    further = what == "further-variants"
    wanted = None if seeds is None else numbers(seeds)
    if train:
        names = ["classic", "values", *FURTHER_VARIANTS] if further else list(PAPER_VARIANTS)
        runs, wanted = runs or Path("runs/icl"), wanted or [0, 1, 2, 3]
        length = 45_000 if steps is None else steps
        _train_icl(names, wanted, length, "reference", jobs or 0, runs, False, quiet)
    else:
        _only_with_train(steps=steps, jobs=jobs)
    found = _load(runs, wanted, length if train else None)
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


@app.command()
def compare(
    runs: Runs = None,
    lm_runs: Annotated[
        Path | None,
        typer.Option(help="Folder of language-model runs on stories; the shipped pair if not."),
    ] = None,
    train: Train = False,
    seed: Annotated[int | None, typer.Option(help="Of the models; with --train 0.")] = None,
    steps: Annotated[int | None, typer.Option(help="With --train; 45000.")] = None,
    sequences: Annotated[int, typer.Option(help="Of each test set, for accuracies.")] = 10_000,
    link_sequences: Annotated[
        int, typer.Option(help="Of each test set, for every edit of the links.")
    ] = 2_000,
    circuit_sequences: Annotated[
        int, typer.Option(help="IC sequences by which edges are scored, and as many to evaluate.")
    ] = 256,
    prompts: Annotated[
        int, typer.Option(help="IOI prompts by which edges are scored, and as many to evaluate.")
    ] = 64,
    to: Annotated[Path, typer.Option("--out", help="Folder for compare.json and figures.")] = Path(
        "out"
    ),
    quiet: Quiet = False,
) -> None:
    """Compare classic with residual-stream models: what does the value link do?

    Two-layer classifiers: accuracies; links cut, scaled and mean-ablated; the classic weights with
    a link grafted on and the values weights without theirs; attention. Then, of every classic and
    values model there is, classifiers and language models on indirect objects: circuits, heads by
    role, what the links carry. Under two minutes on 2 cores. Writes compare.json and figures.

    Example: `resval-lens compare --out out`
    """
    from resval_lens.analyses import circuit_figures, circuit_tables, figures, tables
    from resval_lens.analyses.circuit_compare import check_sizes, compare_circuits, studied_models
    from resval_lens.analyses.emergence import paper_runs, table_data
    from resval_lens.analyses.icl import compare as run_comparison
    from resval_lens.files import write_json
    from resval_lens.provenance import provenance
    from resval_lens.runtime import one_thread

    if train:
        runs, seed = runs or Path("runs/icl"), seed or 0
        names = ["classic", "queries", "keys", "values"]
        length = 45_000 if steps is None else steps
        _train_icl(names, [seed], length, "reference", 0, runs, False, quiet)
    else:
        _only_with_train(steps=steps)
    wanted = None if seed is None else [seed]
    found = paper_runs(_load(runs, wanted, length if train else None))
    check_sizes(found, circuit_sequences, prompts)
    models = studied_models(lm_runs)
    writable(to)
    with notes(quiet) as note, one_thread():
        result = run_comparison(found, sequences, link_sequences, note)
        circuits = compare_circuits(found, models, circuit_sequences, prompts, note=note)
    emergence = table_data(found, 0.95)
    said = [*tables.sentences(result, emergence), *circuits["found"]]
    entries = circuits["circuits"]
    drawn = {
        "accuracy.png": figures.bars(result["models"]),
        "link_edits.png": figures.link_edits(result["links"]) if result["links"] else None,
        "attention.png": figures.attention(result["attention"]),
        "emergence.png": figures.emergence(found),
        "circuits.png": circuit_figures.circuits(circuits["drawn"]),
        "faithfulness.png": circuit_figures.faithfulness(entries),
    }
    paths = [figures.save(figure, to / name) for name, figure in drawn.items() if figure]
    paths.append(to / "compare.json")
    report = {"found": said, **result, "emergence": emergence, "circuits": circuits}
    write_json(paths[-1], report | {"provenance": provenance()})
    shown = [
        tables.compare_table(result),
        tables.attention_table(result),
        tables.emergence_table(emergence),
        circuit_tables.compared_table(circuits["over_seeds"], circuits["least"]),
        circuit_tables.roles_table(circuits["heads"]),
        circuit_tables.signals_table(circuits["heads"]),
    ]
    for table in shown:
        out.print(table)
    for sentence in said:
        out.print(f"• {sentence}", highlight=False)
    out.print("\n" + "\n".join(str(path) for path in paths), highlight=False)


@app.command("link-in-training")
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


def _train_icl(
    names: list[str],
    seeds: list[int],
    steps: int,
    spec: str,
    jobs: int,
    folder: Path,
    keep_snapshots: bool,
    quiet: bool,
) -> None:
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


def _load(runs: Path | None, seeds: list[int] | None, steps: int | None) -> list[RecordedRun]:
    """The runs of a folder, or those that ship; only those of some seeds, or of so many steps."""
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


def _only_for(what: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None and value is not False:
            shown = f"--{name}" if value is True else f"--{name} {value}"
            raise ValueError(f"{shown} is for {what}")


def _only_with_train(**given: int | None) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"--{name} {value} is for training: add --train")


def main() -> None:
    """Entry point: an expected error is one line on stderr, its traceback with ``--debug``."""
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        err.print(f"resval-lens: {error}", style="red", highlight=False, markup=False)
        sys.exit(1)
