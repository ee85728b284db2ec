"""``resval-lens train icl`` and ``link-in-training``: the two-layer classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resval_lens.analyses.cli import completion
from resval_lens.analyses.cli.options import (
    Json,
    Out,
    Quiet,
    Sequences,
    folder_words,
    notes,
    words,
    writable,
)
from resval_lens.analyses.cli.reporting import report, report_runs
from resval_lens.analyses.cli.training_options import (
    ClassifierVariants,
    Jobs,
    KeepSnapshots,
    LearningRate,
    RunsFolder,
    Seeds,
    Spec,
    Steps,
    TrainedStreams,
)
from resval_lens.numbers import numbers

if TYPE_CHECKING:
    from resval_lens.training.icl_run import ICLRun
    from resval_lens.training.recorded import RecordedRun


def train_icl_command(
    variants: ClassifierVariants = "classic,queries,keys,values",
    streams: TrainedStreams = None,
    seeds: Seeds = "0-3",
    steps: Steps = 75_000,
    spec: Spec = "reference",
    lr: LearningRate = 0.01,
    jobs: Jobs = 0,
    runs: RunsFolder = Path("runs/icl"),
    keep_snapshots: KeepSnapshots = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train two-layer in-context classifiers (arXiv 2412.15113, section 3).

    Every variant is trained with every seed, in steps of 128 sequences. Variants of one seed share
    vectors, batches and initial weights. Variants: classic, queries, keys, values, values-detached,
    queries-values, queries-keys-values, values-half; own-half, own-root-2 and own-2 (layer 1's
    values scaled, no link), size-root-2 and rate-2 (its W_V larger at first, or learning faster),
    values-norm-matched, values-no-own. --streams trains any other streams instead. A snapshot's
    weights take 1 MB. After a kill, the same command resumes from the newest snapshots. Training is
    a CPU program.

    Example: `resval-lens train icl --variants classic,values --seeds 0,1 --steps 45000`
    """
    planned = train_icl_runs(
        words(variants), numbers(seeds), steps, spec, jobs, runs, keep_snapshots, quiet, lr, streams
    )
    report_runs([runs / name for name in planned], as_json)


def link_in_training_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run trained with --keep-snapshots.")],
    sequences: Sequences = 2_000,
    recover: Annotated[
        int,
        typer.Option(help="Further training steps after links are removed; 0: none.", min=0),
    ] = 200,
    every: Annotated[
        int, typer.Option(help="Measure every n-th snapshot, counted from the last.", min=1)
    ] = 1,
    to: Out = Path("out"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Cut the links at every snapshot of a run: when in training does the model need them?

    Cuts use the first --sequences of each of the run's own test sets, on the CPU. A cut also
    removes gain, so there are controls on the first 500: links at their means and resampled, layer
    1's own part cut, and links cut with the own part larger or with the norm of both together kept.
    Three snapshots get more, on the first 3,000: the first with IC (accuracy on classes that were
    never trained) above .5, the first above .95, and the last. There links are also scaled by
    degrees from 1 to 0, and --recover more steps are trained without links, and as many with them.
    In a run without links its own values are edited. This trains a run to study:
    `resval-lens train icl --variants values --seeds 0 --steps 45000 --keep-snapshots`.

    Example: `resval-lens link-in-training runs/icl/values-seed0`
    """
    from resval_lens.analyses.comparison.link_in_training import link_in_training
    from resval_lens.runtime import one_thread
    from resval_lens.training.icl_run import ICLRun
    from resval_lens.training.recorded import load_run

    writable(to)
    with notes(quiet) as note, one_thread():
        study = link_in_training(
            load_run(run, ICLRun), sequences, recover=recover, every=every, note=note
        )
    report(study, to, "link-in-training", as_json=as_json)


def train_icl_runs(
    names: list[str],
    seeds: list[int],
    steps: int,
    spec: str,
    jobs: int,
    folder: Path,
    keep_snapshots: bool,
    quiet: bool,
    lr: float = 0.01,
    streams: str | None = None,
) -> list[str]:
    """Trains the variants with every seed, with bars; the names of the runs' folders.

    Args:
        streams: to train instead of the variants.

    Raises:
        ValueError: an unknown variant or spec, and what training refuses.
    """
    from resval_lens.analyses.cli.training_bars import train_with_bars
    from resval_lens.models.presets import PART_OF_GAIN, icl_variant
    from resval_lens.streams import parse_streams
    from resval_lens.training.icl_run import ICLRun

    if spec not in completion.SPECS:
        raise ValueError(f"spec must be 'reference' or 'paper'; got {spec!r}")
    if streams is None:
        chosen = {name.strip(): icl_variant(name.strip()) for name in names}
    else:
        parsed = parse_streams(streams, 2)
        chosen = {folder_words(parsed): parsed}
    planned = [
        ICLRun(name, own, seed, spec, steps=steps, lr=lr, **PART_OF_GAIN.get(name, {}))  # type: ignore[arg-type]
        for seed in seeds
        for name, own in chosen.items()
    ]
    train_with_bars(planned, folder, jobs, keep_snapshots, quiet)
    return [run.folder_name for run in planned]


def load_recorded(
    runs: Path | None, seeds: list[int] | None, steps: int | None
) -> list[RecordedRun[ICLRun]]:
    """The runs of a folder, or those that ship; only those of some seeds, or of so many steps.

    Raises:
        ValueError: there is none.
    """
    from resval_lens.training.icl_run import ICLRun
    from resval_lens.training.recorded import SHIPPED, load_runs

    found = [
        recorded
        for recorded in load_runs(ICLRun, runs)
        if (seeds is None or recorded.run.seed in seeds)
        and (steps is None or recorded.run.steps == steps)
    ]
    if not found:
        raise ValueError(f"{runs or SHIPPED / ICLRun.shipped} holds no run of seeds {seeds}")
    return found
