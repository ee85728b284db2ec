"""Options of commands that train, or read the runs of training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resval_lens.analyses.cli import completion
from resval_lens.analyses.cli.completion import one_of, some_of
from resval_lens.analyses.cli.options import FLOWING, MEMORY

_STEPS, _JOBS = "Training steps.", "Parallel processes, one core each; 0: all cores."
_SEEDS, _RUNS = "Seeds of runs, like 0,1,2 or 0-3.", "Folder of training runs."
_VARIANTS = "Variants by name, comma-separated."
Seeds = Annotated[str, typer.Option(help=_SEEDS)]
MaybeSeeds = Annotated[str | None, typer.Option(help=_SEEDS, show_default="all there are")]
Steps = Annotated[int, typer.Option(help=_STEPS)]
MaybeSteps = Annotated[
    int | None, typer.Option(help=_STEPS, show_default="with --train, those of the shipped runs")
]
Jobs = Annotated[int, typer.Option(help=_JOBS)]
MaybeJobs = Annotated[int | None, typer.Option(help=_JOBS, show_default="with --train, 0")]
RunsFolder = Annotated[Path, typer.Option("--runs", help=_RUNS)]
Runs = Annotated[Path | None, typer.Option(help=_RUNS, show_default="the shipped ones")]
Train = Annotated[bool, typer.Option("--train", help="Train first, into --runs.")]
ClassifierVariants = Annotated[
    str,
    typer.Option(
        "--variants", help=_VARIANTS, autocompletion=some_of(*completion.CLASSIFIER_VARIANTS)
    ),
]
Variants = Annotated[
    str,
    typer.Option(
        "--variants", help=_VARIANTS, autocompletion=some_of(*completion.SIMPLIFIED_VARIANTS)
    ),
]
MaybeVariants = Annotated[
    str | None,
    typer.Option(
        "--variants",
        help=_VARIANTS,
        show_default="those named above",
        autocompletion=some_of(*completion.SIMPLIFIED_VARIANTS),
    ),
]
KeepSnapshots = Annotated[
    bool, typer.Option("--keep-snapshots", help="Keep every snapshot's weights.")
]
SnapshotEvery = Annotated[int, typer.Option(help="Steps between snapshots.")]
_BATCH, _LR = "Sequences of a training step.", "Learning rate."
Batch = Annotated[int, typer.Option(help=_BATCH)]
MaybeBatch = Annotated[int | None, typer.Option(help=_BATCH, show_default="the preset's")]
LearningRate = Annotated[float, typer.Option(help=_LR)]
MaybeLearningRate = Annotated[float | None, typer.Option(help=_LR, show_default="the preset's")]
_WIDTH = "Width of the residual stream."
Width = Annotated[int, typer.Option("--d-model", help=_WIDTH)]
MaybeWidth = Annotated[
    int | None, typer.Option("--d-model", help=_WIDTH, show_default="the preset's")
]
Triggers = Annotated[int, typer.Option("--n-triggers", help="Triggers of a sequence.")]

RunName = Annotated[
    str | None,
    typer.Option("--name", help="Name of the runs' folders.", show_default="what is trained"),
]
Threads = Annotated[int, typer.Option(help="CPU threads; 0: torch's choice.")]
_PRECISION = "fp32, bf16 or fp16."
MaybePrecision = Annotated[
    str | None,
    typer.Option(
        help=_PRECISION, show_default="the preset's", autocompletion=one_of(*completion.PRECISIONS)
    ),
]
Precision = Annotated[
    str, typer.Option(help=_PRECISION, autocompletion=one_of(*completion.PRECISIONS))
]

# Language models' presets.
Preset = Annotated[
    str,
    typer.Argument(
        help="stories-small, stories-nanochat, tinystories-8m or llama-1b.",
        autocompletion=one_of(*completion.PRESETS),
    ),
]
Spec = Annotated[
    str,
    typer.Option(
        help="reference (the authors' public code) or paper (its text).",
        autocompletion=one_of(*completion.SPECS),
    ),
]
TrainedStreams = Annotated[
    str | None,
    typer.Option(
        "--streams",
        help=FLOWING,
        show_default="those of the variants",
        autocompletion=one_of(*completion.STREAMS),
    ),
]
_MICRO_BATCH = "Sequences at a time on one device."
MicroBatch = Annotated[int, typer.Option(help=_MICRO_BATCH, rich_help_panel=MEMORY)]
MaybeMicroBatch = Annotated[
    int | None, typer.Option(help=_MICRO_BATCH, show_default="all at once", rich_help_panel=MEMORY)
]
CheckpointBlocks = Annotated[
    bool | None,
    typer.Option(
        "--checkpoint-blocks/--no-checkpoint",  # short enough to leave room for help
        help="Recompute blocks in the backward pass.",
        show_default="the preset's",
        rich_help_panel=MEMORY,
    ),
]
