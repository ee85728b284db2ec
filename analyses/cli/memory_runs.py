"""``resval-lens memory curves``, ``memory lengths`` and ``memory encodings``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resval_lens.analyses.cli.memory_training import runs_for
from resval_lens.analyses.cli.options import (
    Json,
    MaybeJobs,
    MaybeSeeds,
    MaybeSteps,
    MaybeVariants,
    Out,
    Quiet,
    Runs,
    Seed,
    Train,
    notes,
    words,
    writable,
)
from resval_lens.analyses.cli.reporting import report
from resval_lens.analyses.results.result import plain
from resval_lens.models.presets import ENCODINGS
from resval_lens.numbers import numbers

if TYPE_CHECKING:
    from resval_lens.analyses.papers.memory.training.run import MemoryRun
    from resval_lens.training.recorded import RecordedRun

ALL = (*ENCODINGS, *(f"{name}-values" for name in ENCODINGS), "one-layer")
FOUR = ("absolute", "relative", "absolute-values", "relative-values")


def curves_command(
    variants: MaybeVariants = None,
    runs: Runs = None,
    train: Train = False,
    seeds: MaybeSeeds = None,
    steps: MaybeSteps = None,
    jobs: MaybeJobs = None,
    threshold: Annotated[
        float, typer.Option(help="Above it a memory, or the accuracy, is there.")
    ] = 0.9,
    known: Annotated[
        float, typer.Option(help="The same for W_F: its share of what the bigrams tell.")
    ] = 0.5,
    to: Out = Path("out"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """In which order does an induction head's training fill its memories?

    Recall of W_K¹, W_K², W_O² and W_F, what both heads look at, and in-context accuracy at every
    snapshot: the first step at which each is there, by variant, over seeds. Of every encoding, with
    and without values, and one-layer. From recorded runs it takes seconds; --train trains every
    variant first (1,000 steps, seed 0, into runs/memory), two or three minutes each and core; on
    the CPU.

    Example: `resval-lens memory curves --variants absolute,relative,one-layer`
    """
    from resval_lens.analyses.papers.memory.curves import curve_study

    writable(to)
    found = found_runs(variants, ALL, runs, train, seeds, steps, jobs, quiet)
    study = curve_study(found, threshold, known)
    report(study, to, "memory-curves", as_json=as_json)


def lengths_command(
    variants: MaybeVariants = None,
    runs: Runs = None,
    train: Train = False,
    seeds: MaybeSeeds = None,
    steps: MaybeSteps = None,
    jobs: MaybeJobs = None,
    lengths: Annotated[
        str, typer.Option(help="Tokens of a sequence; those over the models' context are skipped.")
    ] = "128,256,1024,2048",
    tokens: Annotated[int, typer.Option(help="Test tokens of each length.")] = 2**16,
    attention: Annotated[
        int, typer.Option(help="Sequences of the longest length, for attention.")
    ] = 8,
    seed: Seed = 0,
    to: Out = Path("out"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Do trained induction heads work on sequences longer than those they were trained on?

    In-context accuracy, loss and attention at every length and by position, layer 0's attention
    to t − 1 beside the constructed head's; and both layers' attention on one sequence twice as
    long as those of training. Of absolute and relative, each without and with values. Under a
    minute, with --train (1,000 steps, seed 0, into runs/memory) two or three minutes a model more;
    on the CPU.

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


def encodings_command(
    variants: MaybeVariants = None,
    runs: Runs = None,
    train: Train = False,
    seeds: MaybeSeeds = None,
    steps: MaybeSteps = None,
    jobs: MaybeJobs = None,
    to: Out = Path("out"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Positional encodings with and without a value stream: does the stream help to induce?

    Steps to in-context accuracies of .5, .9 and .95, final accuracies, t-tests paired by seed; and
    of every trained model the accuracy with its link cut, its first head silenced or made uniform,
    and its weights run with the other architecture. Of every encoding, with and without values, and
    one-layer. About a minute for eleven models on one core; --train trains every variant first
    (1,000 steps, seed 0, into runs/memory), two or three minutes each and core; on the CPU.

    Example: `resval-lens memory encodings --train --seeds 0-2`
    """
    from resval_lens.analyses.papers.memory.encodings import encoding_study
    from resval_lens.runtime import one_thread

    writable(to)
    found = found_runs(variants, ALL, runs, train, seeds, steps, jobs, quiet)
    with notes(quiet) as note, one_thread():
        study = encoding_study(found, note)
    report(study, to, "memory-encodings", as_json=as_json)


def found_runs(
    variants: str | None,
    default: Sequence[str],
    runs: Path | None,
    train: bool,
    seeds: str | None,
    steps: int | None,
    jobs: int | None,
    quiet: bool,
) -> list[RecordedRun[MemoryRun]]:
    """The runs of the variants asked for, every one of which must be there; or of ``default``."""
    names = list(default) if variants is None else words(variants)
    found = runs_for(names, runs, train, seeds, steps, jobs, quiet)
    there = {recorded.run.name for recorded in found}
    for name in names:
        if variants is not None and name not in there:
            raise ValueError(f"there is no run of {name!r}; there are {', '.join(sorted(there))}")
    return found


def _mapped(found: Sequence[RecordedRun[MemoryRun]]) -> list[RecordedRun[MemoryRun]]:
    """The first model of each variant without a stream; of all if every one has a stream."""
    first = {recorded.run.name: recorded for recorded in reversed(found) if recorded.has_model}
    ordered = [first[name] for name in reversed(first)]
    return [recorded for recorded in ordered if not recorded.run.streams] or ordered
