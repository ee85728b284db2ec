"""``resval-lens train memory``, and training first in the experiments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resval_lens.analyses.options import Quiet, numbers

if TYPE_CHECKING:
    from resval_lens.recorded_memory import RecordedMemoryRun

Runs = Annotated[
    Path | None, typer.Option(help="Folder of training runs; the shipped ones if not given.")
]
Train = Annotated[bool, typer.Option("--train", help="Train first, into --runs (or runs/memory).")]


def train_memory_command(
    variants: Annotated[
        str,
        typer.Option(
            help="Comma-separated: absolute, relative, sinusoidal, rotary, alibi; each with "
            "-values added has a value stream; one-layer; absolute, relative and "
            "relative-values with -drawn (triggers drawn per sequence) or -held-out added."
        ),
    ] = "absolute,relative,absolute-values,relative-values",
    seeds: Annotated[str, typer.Option(help="Like 0,1,2 or 0-3.")] = "0",
    steps: Annotated[int, typer.Option(help="Training steps.")] = 1_000,
    batch: Annotated[int, typer.Option(help="Sequences a step; the papers' is 512.")] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate of SGD.")] = 0.1,
    momentum: Annotated[float, typer.Option(help="Of SGD.")] = 0.9,
    d_model: Annotated[int, typer.Option(help="Width of the residual stream.")] = 128,
    length: Annotated[int, typer.Option(help="Tokens of a training sequence.")] = 128,
    text: Annotated[
        Path | None, typer.Option(help="Count bigrams in this file; else Tiny Shakespeare's.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="characters or words, with --text; characters.")
    ] = None,
    triggers: Annotated[
        str, typer.Option(help="fixed (the most frequent tokens) or drawn (per sequence).")
    ] = "fixed",
    n_triggers: Annotated[int, typer.Option(help="Triggers of a sequence.")] = 5,
    snapshot_every: Annotated[int, typer.Option(help="Steps between snapshots.")] = 20,
    jobs: Annotated[int, typer.Option(help="Runs at a time, a core each; 0: all cores.")] = 0,
    runs: Annotated[Path, typer.Option(help="Folder of the training runs.")] = Path("runs/memory"),
    keep_snapshots: Annotated[
        bool, typer.Option("--keep-snapshots", help="Keep every snapshot's weights (2 MB each).")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train simplified transformers on bigrams with triggers (arXiv 2412.11459).

    Two layers of one head, of which W_K, the last W_O and a linear feed-forward are trained. What
    follows a trigger is drawn anew in each sequence: an induction head finds it. Two or three
    minutes a run and core. Killed or stopped, the same command goes on from the newest snapshots.

    Example: `resval-lens train memory --variants absolute,relative --seeds 0,1`
    """
    from resval_lens.tasks.bigrams import Bigrams, tiny_shakespeare
    from resval_lens.tasks.triggers import TriggerTask

    if by not in (None, "characters", "words"):
        raise ValueError(f"by must be characters or words; got {by!r}")
    if text is None and by is not None:
        raise ValueError(f"--by {by} is for --text: bigrams are Tiny Shakespeare's otherwise")
    count: Any = by or "characters"
    bigrams = tiny_shakespeare() if text is None else Bigrams.count_file(text, count)
    task = TriggerTask(bigrams, length, n_triggers, triggers)  # type: ignore[arg-type]
    planned = planned_runs(
        variants.split(","), numbers(seeds), task=task, steps=steps, batch=batch, lr=lr,
        momentum=momentum, d_model=d_model, snapshot_every=snapshot_every,
        n_ctx=max(2_048, 2 * length),
    )  # fmt: skip
    from resval_lens.analyses.training_bars import train_with_bars

    train_with_bars(planned, runs, jobs, keep_snapshots, quiet)


def planned_runs(names: list[str], seeds: list[int], **settings: Any) -> list[Any]:
    """A MemoryRun of each variant and seed.

    Raises:
        ValueError: an unknown variant, or a setting that cannot be.
    """
    from dataclasses import replace

    from resval_lens.presets import memory_variant
    from resval_lens.training.memory_run import MemoryRun, default_task

    planned = []
    for seed in seeds:
        for name in (name.strip() for name in names):
            own = memory_variant(name)
            task = settings.get("task") or default_task()
            task = replace(task, **own.pop("task", {}))
            planned.append(MemoryRun(name, seed=seed, **{**settings, "task": task}, **own))
    return planned


def runs_for(
    names: list[str],
    runs: Path | None,
    train: bool,
    seeds: str | None,
    steps: int | None,
    jobs: int | None,
    quiet: bool,
) -> list[RecordedMemoryRun]:
    """The runs an experiment is about: trained now, of a folder, or those that ship.

    Raises:
        ValueError: there are none; training settings without --train.
    """
    from resval_lens.analyses.training_bars import train_with_bars
    from resval_lens.recorded_memory import SHIPPED_MEMORY, load_memory_runs

    wanted = None if seeds is None else numbers(seeds)
    if train:
        runs, wanted = runs or Path("runs/memory"), wanted or [0]
        planned = planned_runs(names, wanted, steps=1_000 if steps is None else steps)
        train_with_bars(planned, runs, jobs or 0, False, quiet)
    else:
        for name, value in {"steps": steps, "jobs": jobs}.items():
            if value is not None:
                raise ValueError(f"--{name} {value} is for training: add --train")
    found = [
        recorded
        for recorded in load_memory_runs(runs or SHIPPED_MEMORY)
        if recorded.run.name in names
        and (wanted is None or recorded.run.seed in wanted)
        and (steps is None or recorded.run.steps == steps)
    ]
    if not found:
        raise ValueError(
            f"{runs or SHIPPED_MEMORY} holds no run of {', '.join(names)} and seeds "
            f"{seeds or '(any)'}"
        )
    return found
