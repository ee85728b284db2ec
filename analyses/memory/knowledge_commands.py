"""``resval-lens memory construction``, ``knowledge``, ``held-out`` and ``analogies``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resval_lens.analyses.memory.reporting import Jobs, Out, Seeds, Steps, report
from resval_lens.analyses.memory.run_commands import found_runs
from resval_lens.analyses.memory.training import Runs, Train
from resval_lens.analyses.options import Quiet, notes, numbers, writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

    from resval_lens.recorded_memory import RecordedMemoryRun

Seed = Annotated[int, typer.Option(help="Draws prompts, sequences and constructed models.")]

KNOWLEDGE_VARIANTS = [
    "absolute",
    "relative",
    "absolute-values",
    "relative-values",
    "absolute-drawn",
    "relative-drawn",
    "relative-values-drawn",
]
HELD_OUT_VARIANTS = [
    "absolute",
    "relative",
    "relative-values",
    "absolute-held-out",
    "relative-held-out",
    "relative-values-held-out",
]


def construction_command(
    widths: Annotated[
        str, typer.Option(help="d_model of models of random vectors, like 128,512.")
    ] = "128,256,512,1024,2048",
    tau1: Annotated[float, typer.Option(help="Strength of the previous-token head.")] = 10.0,
    tau2: Annotated[float, typer.Option(help="Strength of the induction head.")] = 10.0,
    tau3: Annotated[float, typer.Option(help="Strength of its output, in nats.")] = 10.0,
    length: Annotated[int, typer.Option(help="T, positions that an absolute head knows.")] = 128,
    sequences: Annotated[int, typer.Option(help="Sequences of 2 T tokens.")] = 6,
    seed: Seed = 0,
    to: Out = Path("out"),
    quiet: Quiet = False,
) -> None:
    """An induction head written down: does it compute its closed form (arXiv 2412.11459)?

    Absolute and relative positions, with and without a value stream; exact (dual vectors) and with
    random vectors of several widths. Attention to the previous token by position, in-context
    accuracy, and the gap of global knowledge at which the context loses. Under a minute.

    Example: `resval-lens memory construction --widths 128,512`
    """
    from resval_lens.analyses.memory import knowledge_figures, knowledge_tables
    from resval_lens.analyses.memory.construction import Strengths, construction_study
    from resval_lens.runtime import one_thread

    strengths = Strengths(tau1, tau2, tau3)
    writable(to)
    with notes(quiet) as note, one_thread():
        study = construction_study(
            seed, numbers(widths, "widths"), strengths,
            trained=length, sequences=sequences, note=note,
        )  # fmt: skip
    _report(
        study, "construction", to, knowledge_figures.construction(study),
        [knowledge_tables.construction_table(study), knowledge_tables.deviations_table(study)],
        knowledge_tables.construction_sentences(study),
    )  # fmt: skip


def knowledge_command(
    variants: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, as in train memory; absolute and relative, each without and "
            "with values, and the three with -drawn, if not given."
        ),
    ] = None,
    runs: Runs = None,
    train: Train = False,
    seeds: Seeds = None,
    steps: Steps = None,
    jobs: Jobs = None,
    prompts: Annotated[int, typer.Option(help="For each pair of counts.")] = 200,
    tau3: Annotated[float, typer.Option(help="Of the constructed models, in nats.")] = 10.0,
    seed: Seed = 0,
    to: Out = Path("out"),
    quiet: Quiet = False,
) -> None:
    """Context against training: after ", A B1, A B1, A B2, A", which of them? (arXiv 2412.11459)

    B1 and B2 follow A one to five times each. A constructed model's margin is the gap of global
    knowledge plus τ3 (n1 − n2)/(n1 + n2); of trained ones both weights are fitted: with A among the
    triggers and among other tokens; and with any A where each sequence drew its triggers anew
    (-drawn). About a minute; --train trains every variant first, two or three minutes each and
    core.

    Example: `resval-lens memory knowledge --prompts 400`
    """
    from resval_lens.analyses.memory import knowledge_figures, knowledge_tables
    from resval_lens.analyses.memory.construction import Strengths, constructed_subjects
    from resval_lens.analyses.memory.knowledge import (
        check_seed,
        knowledge_study,
        trained_subjects,
    )
    from resval_lens.runtime import one_thread

    check_seed(seed)
    _check_size("prompts", prompts, 2)
    strengths = Strengths(tau3=tau3)
    writable(to)
    found = with_models(
        found_runs(variants, KNOWLEDGE_VARIANTS, runs, train, seeds, steps, jobs, quiet)
    )
    with notes(quiet) as note, one_thread():
        trained = trained_subjects(found)
        note("constructing")
        constructed = constructed_subjects(found[0].run.task.bigrams, strengths.tau3, seed)
        subjects = [*constructed, *trained]
        study = knowledge_study(subjects, prompts, seed, note)
    _report(
        study, "knowledge", to, knowledge_figures.knowledge(study),
        knowledge_tables.knowledge_tables(study), knowledge_tables.knowledge_sentences(study),
    )  # fmt: skip


def held_out_command(
    variants: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, as in train memory; absolute, relative and relative-values, "
            "each without and with -held-out, if not given."
        ),
    ] = None,
    runs: Runs = None,
    train: Train = False,
    seeds: Seeds = None,
    steps: Steps = None,
    jobs: Jobs = None,
    sequences: Annotated[int, typer.Option(help="Of each of the two tests.")] = 128,
    seed: Seed = 0,
    to: Out = Path("out"),
    quiet: Quiet = False,
) -> None:
    """Outputs that were none in training: does the head copy any token? (arXiv 2412.11459)

    Trained with outputs among the first 75% of the tokens, tested there and on the rest; beside
    them ordinary runs, and constructed models that know all tokens or the first 75%. Half a
    minute; --train trains every variant first, two or three minutes each and core.

    Example: `resval-lens memory held-out --sequences 256`
    """
    from resval_lens.analyses.memory import knowledge_figures, knowledge_tables
    from resval_lens.analyses.memory.held_out import held_out_study
    from resval_lens.analyses.memory.knowledge import check_seed
    from resval_lens.runtime import one_thread

    check_seed(seed)
    _check_size("sequences", sequences, 1)
    writable(to)
    found = with_models(
        found_runs(variants, HELD_OUT_VARIANTS, runs, train, seeds, steps, jobs, quiet)
    )
    with notes(quiet) as note, one_thread():
        study = held_out_study(found, sequences, seed, note)
    _report(
        study, "held-out", to, knowledge_figures.held_out(study),
        [knowledge_tables.held_out_table(study)], knowledge_tables.held_out_sentences(study),
    )  # fmt: skip


def analogies_command(
    analogies: Annotated[
        Path | None,
        typer.Option(help="questions-words.txt or a file like it; else pairs are made up."),
    ] = None,
    section: Annotated[
        str | None, typer.Option(help="Of --analogies; capital-world if not given.")
    ] = None,
    pairs: Annotated[int | None, typer.Option(help="Made-up capitals; 116 if not given.")] = None,
    variants: Annotated[
        str,
        typer.Option(help="Comma-separated, as in train memory; none with -drawn or -held-out."),
    ] = "absolute,relative,absolute-values,relative-values",
    seeds: Annotated[str, typer.Option(help="Like 0,1,2 or 0-3.")] = "0",
    steps: Annotated[int, typer.Option(help="Training steps.")] = 1_000,
    batch: Annotated[int, typer.Option(help="Sequences a step.")] = 32,
    lr: Annotated[float, typer.Option(help="Learning rate of SGD.")] = 0.2,
    d_model: Annotated[int, typer.Option(help="Width of the residual stream.")] = 128,
    length: Annotated[int, typer.Option(help="Tokens of a training sequence.")] = 128,
    n_triggers: Annotated[
        int, typer.Option(help="Capitals of a sequence that another country follows.")
    ] = 5,
    zipf: Annotated[
        float, typer.Option(help="The k-th capital is ∝ k^−zipf as frequent; 0: all alike.")
    ] = 1.0,
    leak: Annotated[float, typer.Option(help="Probability of other countries in general.")] = 0.0,
    runs: Annotated[
        Path, typer.Option(help="Folder of the training runs; finished ones like these are read.")
    ] = Path("runs/analogies"),
    jobs: Annotated[int, typer.Option(help="Runs at a time, a core each; 0: all cores.")] = 0,
    sequences: Annotated[int, typer.Option(help="For accuracy on longer sequences.")] = 128,
    seed: Seed = 0,
    to: Out = Path("out"),
    quiet: Quiet = False,
) -> None:
    """Capitals and countries: what training taught against what the context says.

    Trains simplified transformers on "capital country" sequences in which other countries follow
    some capitals (arXiv 2412.11459), two or three minutes a run and core; runs in --runs that are
    finished and have all these settings are read. Then: countries recalled without context; who
    wins as the context repeats another one; capitals that training never had; sequences of twice
    the length.

    Example: `resval-lens memory analogies --analogies questions-words.txt`
    """
    from resval_lens.analyses.memory import knowledge_figures, knowledge_tables
    from resval_lens.analyses.memory.analogies import (
        analogies_study,
        capitals_task,
        check_variants,
        finished_run,
    )
    from resval_lens.analyses.memory.knowledge import check_seed
    from resval_lens.analyses.memory.training import planned_runs
    from resval_lens.analyses.training_bars import train_with_bars
    from resval_lens.recorded_memory import RecordedMemoryRun
    from resval_lens.runtime import one_thread
    from resval_lens.tasks.analogies import generated_pairs, read_pairs

    if analogies is None:
        if section is not None:
            raise ValueError(f"--section {section} is for --analogies: add --analogies FILE")
        words = generated_pairs(116 if pairs is None else pairs, 0)
    else:
        if pairs is not None:
            raise ValueError(f"--pairs {pairs} is for made-up capitals: leave out --analogies")
        words = read_pairs(analogies, section or "capital-world")
    check_seed(seed)
    _check_size("sequences", sequences, 1)
    names = [name.strip() for name in variants.split(",")]
    check_variants(names)
    task = capitals_task(words, n_triggers, length, leak, zipf)
    planned = planned_runs(
        names, numbers(seeds), task=task, steps=steps, batch=batch, lr=lr,
        d_model=d_model, snapshot_every=100, n_ctx=max(512, 2 * length),
    )  # fmt: skip
    writable(to)
    missing = [run for run in planned if finished_run(runs, run) is None]
    if missing:
        train_with_bars(missing, runs, jobs, False, quiet)
    found = [RecordedMemoryRun.load(runs / run.folder_name) for run in planned]
    with notes(quiet) as note, one_thread():
        study = analogies_study(found, sequences, seed, note)
    facts = {"source": "generated" if analogies is None else analogies.name, "zipf": zipf}
    _report(
        {**facts, **study}, "analogies", to, knowledge_figures.analogies(study),
        knowledge_tables.analogies_tables(study), knowledge_tables.analogies_sentences(study),
    )  # fmt: skip


def with_models(runs: Sequence[RecordedMemoryRun]) -> list[RecordedMemoryRun]:
    """The runs whose trained model was kept.

    Raises:
        ValueError: there are none.
    """
    kept = [recorded for recorded in runs if recorded.has_model]
    if not kept:
        names = ", ".join(recorded.run.folder_name for recorded in runs)
        raise ValueError(f"none of {names} holds a trained model; add --train, or finish a run")
    return kept


def _check_size(name: str, value: int, least: int) -> None:
    if value < least:  # before minutes of training
        raise ValueError(f"{name} must be {least} or more; got {value}")


def _report(
    study: dict[str, Any],
    name: str,
    to: Path,
    figure: Figure,
    shown: Sequence[Table],
    said: Sequence[str],
) -> None:
    from resval_lens.analyses.figures import save

    drawn = save(figure, to / f"memory-{name}.png")
    report({"found": list(said), **study}, to / f"memory-{name}.json", shown, [drawn])
