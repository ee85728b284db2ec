"""``resval-lens memory``: the experiments on induction heads as associative memories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resval_lens.analyses.cli import options as opt
from resval_lens.analyses.cli import training_options as of_runs
from resval_lens.analyses.cli.memory_training import found_runs, planned_runs
from resval_lens.analyses.cli.options import notes, words, writable
from resval_lens.analyses.cli.reporting import report
from resval_lens.analyses.results.result import plain
from resval_lens.models.presets import ENCODINGS
from resval_lens.numbers import numbers

if TYPE_CHECKING:
    from resval_lens.analyses.papers.memory.training import MemoryRun
    from resval_lens.training.recorded import RecordedRun

memory_app = typer.Typer(
    no_args_is_help=True,
    help="Study induction heads as associative memories (arXiv 2412.11459), constructed and "
    "trained; on the CPU.",
)
ALL = (*ENCODINGS, *(f"{name}-values" for name in ENCODINGS), "one-layer")
FOUR = ("absolute", "relative", "absolute-values", "relative-values")
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


@memory_app.command("construction")
def construction_command(
    widths: Annotated[
        str, typer.Option(help="d_model of models of random vectors, like 128,512.")
    ] = "128,256,512,1024,2048",
    tau1: Annotated[float, typer.Option(help="Strength of the previous-token head.")] = 10.0,
    tau2: Annotated[float, typer.Option(help="Strength of the induction head.")] = 10.0,
    tau3: opt.Tau3 = 10.0,
    length: opt.Length = 128,
    sequences: opt.Sequences = 6,
    seed: opt.Seed = 0,
    to: opt.Out = Path("out"),
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Check a constructed induction head against its closed form (arXiv 2412.11459).

    It has absolute and relative positions, with and without a value stream, with exact (dual)
    vectors and with random vectors of several widths. The results are attention to the previous
    token by position, in-context accuracy, and the gap of global knowledge at which the context
    loses. An absolute head knows --length positions; test sequences are twice as long. It takes
    under a minute, on the CPU.

    Example: `resval-lens memory construction --widths 128,512`
    """
    from resval_lens.analyses.papers.memory.construction import Strengths
    from resval_lens.analyses.papers.memory.construction_study import construction_study
    from resval_lens.runtime import one_thread

    strengths = Strengths(tau1, tau2, tau3)
    writable(to)
    with notes(quiet) as note, one_thread():
        study = construction_study(
            seed, numbers(widths, "widths"), strengths,
            trained=length, sequences=sequences, note=note,
        )  # fmt: skip
    report(study, to, "memory-construction", as_json=as_json)


@memory_app.command("one-step")
def one_step_command(
    d_vocab: Annotated[int, typer.Option(help="Tokens.")] = 16,
    length: opt.Length = 16,
    shortest: Annotated[
        int | None,
        typer.Option(help="Tokens of the shortest sequence.", show_default="--length, as of all"),
    ] = None,
    each: Annotated[
        int, typer.Option(help="Sequences for each position of the token to recall.")
    ] = 64,
    seed: opt.Seed = 0,
    to: opt.Out = Path("out"),
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Take one gradient step on each matrix, from zero: which memories does it write?

    The steps are on W_O², then W_K², then W_K¹, with sequences whose last token occurred before.
    The coefficients of the real gradients stand beside their closed form, for absolute and relative
    positions, without and with a value stream. The command also shows what three single steps
    recall, in longer sequences, too. It takes a minute or two, on the CPU.

    Example: `resval-lens memory one-step --d-vocab 12`
    """
    from resval_lens.analyses.papers.memory.comparable import check_seed
    from resval_lens.analyses.papers.memory.one_step_study import one_step_study
    from resval_lens.runtime import one_thread

    check_seed(seed)
    writable(to)
    with notes(quiet) as note, one_thread():
        note("gradients of four models")
        study = one_step_study(
            d_vocab=d_vocab, length=length, shortest=shortest, each=each, seed=seed
        )
    report(study, to, "memory-one-step", as_json=as_json)


@memory_app.command("curves")
def curves_command(
    variants: of_runs.MaybeVariants = None,
    runs: of_runs.Runs = None,
    train: of_runs.Train = False,
    seeds: of_runs.MaybeSeeds = None,
    steps: of_runs.MaybeSteps = None,
    jobs: of_runs.MaybeJobs = None,
    level: Annotated[
        float, typer.Option(help="Level above which a memory, or the accuracy, counts as learned.")
    ] = 0.9,
    known: Annotated[
        float, typer.Option(help="The same for W_F, as a share of what the bigrams determine.")
    ] = 0.5,
    to: opt.Out = Path("out"),
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Find the order in which training fills an induction head's memories.

    The measures are recall of W_K¹, W_K², W_O² and W_F, the attention of both heads, and in-context
    accuracy, at every snapshot. The tables have the first step at which each passes its level, by
    variant, over seeds. Variants are every encoding, with and without values, and one-layer. From
    recorded runs it takes seconds. --train trains every variant first (1,000 steps, seed 0, into
    runs/memory), two or three minutes each on one core, on the CPU.

    Example: `resval-lens memory curves --variants absolute,relative,one-layer`
    """
    from resval_lens.analyses.papers.memory.curves import curve_study

    writable(to)
    found = found_runs(variants, ALL, runs, train, seeds, steps, jobs, quiet)
    study = curve_study(found, level, known)
    report(study, to, "memory-curves", as_json=as_json)


@memory_app.command("lengths")
def lengths_command(
    variants: of_runs.MaybeVariants = None,
    runs: of_runs.Runs = None,
    train: of_runs.Train = False,
    seeds: of_runs.MaybeSeeds = None,
    steps: of_runs.MaybeSteps = None,
    jobs: of_runs.MaybeJobs = None,
    lengths: Annotated[
        str, typer.Option(help="Tokens of a sequence; those over the models' context are skipped.")
    ] = "128,256,1024,2048",
    tokens: Annotated[int, typer.Option(help="Test tokens of each length.")] = 2**16,
    attention: Annotated[
        int, typer.Option(help="Sequences of the longest length, for attention.")
    ] = 8,
    seed: opt.Seed = 0,
    to: opt.Out = Path("out"),
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Test trained induction heads on sequences longer than in training.

    The measures are in-context accuracy, loss and attention at every length and by position. Layer
    0's attention to t − 1 stands beside the constructed head's. A figure has both layers' attention
    on one sequence twice as long as in training. Variants are absolute and relative, each without
    and with values. It takes under a minute; --train (1,000 steps, seed 0, into runs/memory) adds
    two or three minutes a model. All runs on the CPU.

    Example: `resval-lens memory lengths --lengths 128,256,512`
    """
    from resval_lens.analyses.papers.memory.comparable import check_seed
    from resval_lens.analyses.papers.memory.lengths import attention_maps, length_study
    from resval_lens.analyses.papers.memory.positions import attention_map
    from resval_lens.runtime import one_thread

    wanted = numbers(lengths, "lengths")
    check_seed(seed)
    writable(to)
    found = found_runs(variants, FOUR, runs, train, seeds, steps, jobs, quiet)
    with notes(quiet) as note, one_thread():
        study = length_study(found, wanted, tokens, attention, seed, note)
        note("attention on one sequence")
        maps = {
            recorded.run.name: attention_map(
                recorded.model(), recorded.run.task, 2 * recorded.run.task.length, seed
            )
            for recorded in _mapped(found)
        }
    report(
        study, to, "memory-lengths", as_json=as_json,
        figures={"memory-attention.png": attention_maps(maps)},
        beside={"memory-attention.json": {"maps": plain(maps)}},  # a map has 33,000 numbers
    )  # fmt: skip


@memory_app.command("knowledge")
def knowledge_command(
    variants: of_runs.MaybeVariants = None,
    runs: of_runs.Runs = None,
    train: of_runs.Train = False,
    seeds: of_runs.MaybeSeeds = None,
    steps: of_runs.MaybeSteps = None,
    jobs: of_runs.MaybeJobs = None,
    prompts: opt.Prompts = 200,
    tau3: opt.Tau3 = 10.0,
    seed: opt.Seed = 0,
    to: opt.Out = Path("out"),
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Test context against training: after ", A B1, A B1, A B2, A", B1 or B2? (arXiv 2412.11459)

    B1 and B2 follow A one to five times each, in --prompts of each pair of counts. A constructed
    model's margin is the gap of global knowledge plus τ3 (n1 − n2)/(n1 + n2). For trained models
    both weights are fitted: with A among the triggers and among other tokens, and with any A where
    each sequence drew its own triggers (-drawn). Variants are absolute and relative, each without
    and with values, and the three with -drawn. It takes about a minute. --train trains every
    variant
    first (1,000 steps, seed 0, into runs/memory), two or three minutes each on one core, on the
    CPU.

    Example: `resval-lens memory knowledge --prompts 400`
    """
    from resval_lens.analyses.papers.memory.asked import constructed_models, trained_models
    from resval_lens.analyses.papers.memory.comparable import check_seed
    from resval_lens.analyses.papers.memory.construction import Strengths
    from resval_lens.analyses.papers.memory.knowledge import knowledge_study
    from resval_lens.runtime import one_thread

    check_seed(seed)
    _check_size("prompts", prompts, 2)
    strengths = Strengths(tau3=tau3)
    writable(to)
    found = with_models(
        found_runs(variants, KNOWLEDGE_VARIANTS, runs, train, seeds, steps, jobs, quiet)
    )
    with notes(quiet) as note, one_thread():
        trained = trained_models(found)
        note("constructing")
        constructed = constructed_models(found[0].run.task.bigrams, strengths.tau3, seed)
        models = [*constructed, *trained]
        study = knowledge_study(models, prompts, seed, note)
    report(study, to, "memory-knowledge", as_json=as_json)


@memory_app.command("held-out")
def held_out_command(
    variants: of_runs.MaybeVariants = None,
    runs: of_runs.Runs = None,
    train: of_runs.Train = False,
    seeds: of_runs.MaybeSeeds = None,
    steps: of_runs.MaybeSteps = None,
    jobs: of_runs.MaybeJobs = None,
    sequences: opt.Sequences = 128,
    seed: opt.Seed = 0,
    to: opt.Out = Path("out"),
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Test outputs that training never had: does the head copy any token? (arXiv 2412.11459)

    Models are trained with outputs among the first 75% of the tokens, and tested there and on the
    rest. Beside them are ordinary runs, and constructed models that know all tokens or the first
    75%. Variants are absolute, relative and relative-values, each without and with -held-out. It
    takes half a minute. --train trains every variant first (1,000 steps, seed 0, into runs/memory),
    two or three minutes each on one core, on the CPU.

    Example: `resval-lens memory held-out --sequences 256`
    """
    from resval_lens.analyses.papers.memory.comparable import check_seed
    from resval_lens.analyses.papers.memory.held_out import held_out_study
    from resval_lens.runtime import one_thread

    check_seed(seed)
    _check_size("sequences", sequences, 1)
    writable(to)
    found = with_models(
        found_runs(variants, HELD_OUT_VARIANTS, runs, train, seeds, steps, jobs, quiet)
    )
    with notes(quiet) as note, one_thread():
        study = held_out_study(found, sequences, seed, note)
    report(study, to, "memory-held-out", as_json=as_json)


@memory_app.command("analogies")
def analogies_command(
    analogies: Annotated[
        Path | None,
        typer.Option(help="questions-words.txt or a file like it.", show_default="made-up pairs"),
    ] = None,
    section: Annotated[
        str | None, typer.Option(help="Section of --analogies.", show_default="capital-world")
    ] = None,
    pairs: Annotated[int | None, typer.Option(help="Made-up capitals.", show_default="116")] = None,
    variants: of_runs.Variants = "absolute,relative,absolute-values,relative-values",
    seeds: of_runs.Seeds = "0",
    steps: of_runs.Steps = 1_000,
    batch: of_runs.Batch = 32,
    lr: of_runs.LearningRate = 0.2,
    d_model: of_runs.Width = 128,
    length: opt.Length = 128,
    n_triggers: of_runs.Triggers = 5,
    zipf: Annotated[
        float, typer.Option(help="Frequency of the k-th capital is ∝ k^−zipf; 0: all equal.")
    ] = 1.0,
    leak: Annotated[float, typer.Option(help="Probability of other countries in general.")] = 0.0,
    runs: of_runs.RunsFolder = Path("runs/analogies"),
    jobs: of_runs.Jobs = 0,
    sequences: opt.Sequences = 128,
    seed: opt.Seed = 0,
    to: opt.Out = Path("out"),
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Test knowledge from training against the context, on capitals and countries.

    It trains simplified transformers on "capital country" sequences in which other countries follow
    some capitals, the triggers (arXiv 2412.11459). Any variant without -drawn or -held-out works.
    A run takes two or three minutes on one core, on the CPU; finished runs in --runs with the same
    settings are read instead. It then measures countries recalled without context, which country
    wins as the context repeats another one, capitals that training never had, and --sequences of
    twice the length.

    Example: `resval-lens memory analogies --pairs 58 --variants relative`
    """
    from resval_lens.analyses.cli.training_bars import train_with_bars
    from resval_lens.analyses.papers.memory.analogies import (
        analogies_study,
        check_variants,
    )
    from resval_lens.analyses.papers.memory.capitals import capitals_task
    from resval_lens.analyses.papers.memory.comparable import check_seed
    from resval_lens.analyses.papers.memory.tasks.analogies import generated_pairs, read_pairs
    from resval_lens.analyses.papers.memory.training import MemoryRun, finished_run
    from resval_lens.runtime import one_thread
    from resval_lens.training.recorded import load_run

    if analogies is None:
        if section is not None:
            raise ValueError(f"--section {section} is for --analogies: add --analogies FILE")
        capitals = generated_pairs(116 if pairs is None else pairs, 0)
    else:
        if pairs is not None:
            raise ValueError(f"--pairs {pairs} is for made-up capitals: leave out --analogies")
        capitals = read_pairs(analogies, section or "capital-world")
    check_seed(seed)
    _check_size("sequences", sequences, 1)
    names = words(variants)
    check_variants(names)
    task = capitals_task(capitals, n_triggers, length, leak, zipf)
    planned = planned_runs(
        names, numbers(seeds), task=task, steps=steps, batch=batch, lr=lr,
        d_model=d_model, snapshot_every=100, n_ctx=max(512, 2 * length),
    )  # fmt: skip
    writable(to)
    missing = [run for run in planned if finished_run(runs, run) is None]
    if missing:
        train_with_bars(missing, runs, jobs, False, quiet)
    found = [load_run(runs / run.folder_name, MemoryRun) for run in planned]
    source = "generated" if analogies is None else analogies.name
    with notes(quiet) as note, one_thread():
        study = analogies_study(found, sequences, seed, note, source, zipf)
    report(study, to, "memory-analogies", as_json=as_json)


@memory_app.command("encodings")
def encodings_command(
    variants: of_runs.MaybeVariants = None,
    runs: of_runs.Runs = None,
    train: of_runs.Train = False,
    seeds: of_runs.MaybeSeeds = None,
    steps: of_runs.MaybeSteps = None,
    jobs: of_runs.MaybeJobs = None,
    to: opt.Out = Path("out"),
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Compare positional encodings with and without a value stream: does it help induction?

    The tables have steps to in-context accuracies of .5, .9 and .95, final accuracies, and t-tests
    paired by seed. For every trained model they add the accuracy with its link cut, with its first
    head silenced or made uniform, and with its weights run in the other architecture. Variants are
    every encoding, with and without values, and one-layer. It takes about a minute for eleven
    models on one core. --train trains every variant first (1,000 steps, seed 0, into runs/memory),
    two or three minutes each on one core, on the CPU.

    Example: `resval-lens memory encodings --train --seeds 0-2`
    """
    from resval_lens.analyses.papers.memory.encodings import encoding_study
    from resval_lens.runtime import one_thread

    writable(to)
    found = found_runs(variants, ALL, runs, train, seeds, steps, jobs, quiet)
    with notes(quiet) as note, one_thread():
        study = encoding_study(found, note)
    report(study, to, "memory-encodings", as_json=as_json)


def _mapped(found: Sequence[RecordedRun[MemoryRun]]) -> list[RecordedRun[MemoryRun]]:
    """The first model of each variant without a stream; of all if every one has a stream."""
    first = {recorded.run.name: recorded for recorded in reversed(found) if recorded.has_model}
    ordered = [first[name] for name in reversed(first)]
    return [recorded for recorded in ordered if not recorded.run.streams] or ordered


def with_models(runs: Sequence[RecordedRun[MemoryRun]]) -> list[RecordedRun[MemoryRun]]:
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
