"""``resval-lens train memory``, and training first in the experiments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resval_lens.analyses.cli import options as opt
from resval_lens.analyses.cli import training_options as of_runs
from resval_lens.analyses.cli.completion import TRIGGERS, UNITS, one_of
from resval_lens.analyses.cli.options import folder_words, only_with_train, words
from resval_lens.analyses.cli.reporting import report_runs
from resval_lens.analyses.cli.text_options import Text, is_file
from resval_lens.numbers import numbers

if TYPE_CHECKING:
    from resval_lens.analyses.papers.memory.training import MemoryRun
    from resval_lens.training.recorded import RecordedRun


def train_memory_command(
    variants: of_runs.Variants = "absolute,relative,absolute-values,relative-values",
    streams: of_runs.TrainedStreams = None,
    seeds: of_runs.Seeds = "0",
    steps: of_runs.Steps = 1_000,
    batch: of_runs.Batch = 64,
    lr: of_runs.LearningRate = 0.1,
    momentum: Annotated[float, typer.Option(help="Momentum of SGD.")] = 0.9,
    d_model: of_runs.Width = 128,
    length: opt.Length = 128,
    text: Text = None,
    unit: Annotated[
        str | None,
        typer.Option(
            help="Tokens of --text: characters or words.",
            show_default="characters",
            autocompletion=one_of(*UNITS),
        ),
    ] = None,
    triggers: Annotated[
        str,
        typer.Option(
            help="fixed (the most frequent tokens) or drawn (per sequence).",
            autocompletion=one_of(*TRIGGERS),
        ),
    ] = "fixed",
    n_triggers: of_runs.Triggers = 5,
    snapshot_every: of_runs.SnapshotEvery = 20,
    jobs: of_runs.Jobs = 0,
    runs: of_runs.RunsFolder = Path("runs/memory"),
    keep_snapshots: of_runs.KeepSnapshots = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train simplified transformers on bigrams with triggers (arXiv 2412.11459).

    A model has two layers of one head. W_K, the last W_O and a linear feed-forward are trained by
    SGD (the papers' --batch is 512). What follows a trigger is drawn fresh in each sequence; an
    induction head finds it. Variants: absolute, relative, sinusoidal, rotary, alibi, each also with
    -values added (a value stream); one-layer; absolute, relative and relative-values with -drawn
    (triggers drawn per sequence) or -held-out added. --streams gives all of them these streams.
    A run takes two or three minutes on one core; training is a CPU program. A snapshot's weights
    take 2 MB. After a kill, the same command resumes from the newest snapshots.

    Example: `resval-lens train memory --variants absolute,relative --seeds 0,1`
    """
    from resval_lens.analyses.papers.memory.tasks.bigrams import Bigrams, tiny_shakespeare
    from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask

    if unit not in (None, *UNITS):
        raise ValueError(f"unit must be characters or words; got {unit!r}")
    if text is None and unit is not None:
        raise ValueError(f"--unit {unit} is for --text: bigrams are Tiny Shakespeare's otherwise")
    count: Any = unit or "characters"
    if text is None:
        bigrams = tiny_shakespeare()
    elif is_file(text) or len(text.split()) < 2:  # one word has no bigrams: a file is missing
        bigrams = Bigrams.count_file(text, count)
    else:
        bigrams = Bigrams.count(text, count)
    task = TriggerTask(bigrams, length, n_triggers, triggers)  # type: ignore[arg-type]
    planned = planned_runs(
        words(variants), numbers(seeds), streams, task=task, steps=steps, batch=batch, lr=lr,
        momentum=momentum, d_model=d_model, snapshot_every=snapshot_every,
        n_ctx=max(2_048, 2 * length),
    )  # fmt: skip
    from resval_lens.analyses.cli.training_bars import train_with_bars

    train_with_bars(planned, runs, jobs, keep_snapshots, quiet)
    report_runs([runs / run.folder_name for run in planned], as_json)


def planned_runs(
    names: list[str], seeds: list[int], streams: str | None = None, **settings: Any
) -> list[Any]:
    """A MemoryRun of each variant and seed.

    Args:
        streams: instead of the variants' own, which the runs' names then say.

    Raises:
        ValueError: an unknown variant, or a setting that cannot be.
    """
    from dataclasses import replace

    from resval_lens.analyses.papers.memory.training import MemoryRun, default_task
    from resval_lens.models.presets import memory_variant
    from resval_lens.streams import parse_streams

    planned = []
    for seed in seeds:
        for name in names:
            own = memory_variant(name)
            task = settings.get("task") or default_task()
            task = replace(task, **own.pop("task", {}))
            run = name
            if streams is not None:
                own["streams"] = parse_streams(streams, own.get("n_layers", 2))
                run = f"{name}-{folder_words(own['streams'])}"
            planned.append(MemoryRun(run, seed=seed, **{**settings, "task": task}, **own))
    return planned


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
    """The runs an experiment is about: trained now, of a folder, or those that ship.

    Of the variants asked for, every one of which must be there; or of ``default``.

    Raises:
        ValueError: there are none; training settings without --train.
    """
    from resval_lens.analyses.cli.training_bars import train_with_bars
    from resval_lens.analyses.papers.memory.training import MemoryRun
    from resval_lens.training.recorded import SHIPPED, load_runs

    names = list(default) if variants is None else words(variants)
    wanted = None if seeds is None else numbers(seeds)
    if train:
        runs, wanted = runs or Path("runs/memory"), wanted or [0]
        planned = planned_runs(names, wanted, steps=1_000 if steps is None else steps)
        train_with_bars(planned, runs, jobs or 0, False, quiet)
    else:
        only_with_train(steps=steps, jobs=jobs)
    found = [
        recorded
        for recorded in load_runs(MemoryRun, runs)
        if recorded.run.name in names
        and (wanted is None or recorded.run.seed in wanted)
        and (steps is None or recorded.run.steps == steps)
    ]
    if not found:
        raise ValueError(
            f"{runs or SHIPPED / MemoryRun.shipped} holds no run of {', '.join(names)} and seeds "
            f"{seeds or '(any)'}"
        )
    there = {recorded.run.name for recorded in found}
    for name in names:
        if variants is not None and name not in there:
            raise ValueError(f"there is no run of {name!r}; there are {', '.join(sorted(there))}")
    return found
