"""``resval-lens train graft`` and ``grafts``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.progress import Progress, TaskID

from resval_lens.analyses.cli.console import err, progress_bars, told_to_stop
from resval_lens.analyses.cli.loading import load_language_model, load_options
from resval_lens.analyses.cli.options import (
    Against,
    Device,
    Json,
    LanguageModel,
    Length,
    Out,
    Quiet,
    Setting,
    Streams,
    TaskName,
    folder_words,
    notes,
    writable,
)
from resval_lens.analyses.cli.reporting import report, report_runs
from resval_lens.analyses.cli.text_options import Data, Overwrite, Stories, TokenFolder, Validation
from resval_lens.analyses.cli.training_options import (
    Batch,
    KeepSnapshots,
    LearningRate,
    Precision,
    RunName,
    RunsFolder,
    Seeds,
    SnapshotEvery,
    Steps,
    Threads,
)
from resval_lens.numbers import numbers


def train_graft_command(
    model: LanguageModel,
    streams: Streams = "v(mix=head, carried=0)",
    low_rank: Annotated[
        int, typer.Option(help="Rank of additional updates of each W_V and W_O; 0: none.")
    ] = 0,
    name: RunName = None,
    seeds: Seeds = "0",
    data: Data = "stories",
    validation: Validation = None,
    n_stories: Stories = 20_000,
    token_files: TokenFolder = None,
    overwrite: Overwrite = False,
    steps: Steps = 100,
    batch: Batch = 4,
    length: Length = 256,
    lr: LearningRate = 0.02,
    low_rank_lr: Annotated[float, typer.Option(help="Learning rate of low-rank updates.")] = 1e-3,
    held_out: Annotated[
        int,
        typer.Option(
            "--held-out-rows", help="Sequences of --validation for the loss before and after."
        ),
    ] = 64,
    precision: Precision = "fp32",
    runs: RunsFolder = Path("runs/graft"),
    snapshot_every: SnapshotEvery = 5,
    keep_snapshots: KeepSnapshots = False,
    keep_model: Annotated[
        bool, typer.Option("--keep-model", help="Save the whole model with its graft.")
    ] = False,
    cut_rows: Annotated[
        int, typer.Option(help="Held-out sequences for cutting each layer at the end; 0: none.")
    ] = 0,
    circuit_prompts: Annotated[
        int, typer.Option(help="Prompts for finding circuits at the end; 0: none.")
    ] = 0,
    task: TaskName = None,
    device: Device = "cpu",
    setting: Setting = None,
    threads: Threads = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train streams that are grafted on a model. The model's own weights stay fixed.

    `v(mix=head, carried=0)` starts as the model itself and learns one number per link. Controls
    have as many: `v(mix=head_gain)` (a gain of each head, no link), `v(source=first, mix=head,
    carried=0)` and `v(mix=next_head, carried=0)` (each head receives another's values).
    `v(mix=head_pair,
    carried=0)` learns gain and link. A step is --batch sequences of --length tokens in the model's
    own tokens; seeds draw them. A run saves what is learned, not the model. After a kill (Ctrl-C,
    SIGTERM), the same command resumes from the newest snapshot. It can also measure, at the end or
    later, what cutting each layer costs, and the task's circuit before and after.

    Example: `resval-lens train graft gpt2 --streams "v(mix=head, carried=0)" --seeds 0-2`
    """
    import torch
    from tokenizers import Tokenizer

    from resval_lens.analyses.comparison.graft_measuring import measure_links
    from resval_lens.io.provenance import within
    from resval_lens.io.tokenizers import fingerprint
    from resval_lens.runtime import keep_freed_memory
    from resval_lens.streams import parse_streams
    from resval_lens.tasks.text.token_files import checksum, read_meta
    from resval_lens.training.graft import train_graft
    from resval_lens.training.graft_run import GraftRun, weights_sha256
    from resval_lens.training.lm_data import GENERATED, prepare

    flowing = parse_streams(streams)
    planned = [
        GraftRun(
            name or folder_words(flowing) + (f"-rank-{low_rank}" if low_rank else ""),
            within(str(model)), "", "", "", flowing, low_rank, seed, steps, batch, length, lr,
            low_rank_lr, held_out, cast("Any", precision), snapshot_every,
        )
        for seed in numbers(seeds)
    ]  # fmt: skip
    writable(runs)
    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()
    with notes(quiet) as say:
        say(f"loading {model}")
        base = load_language_model(model, load_options(None, device, None, False, setting))
        words = getattr(base.tokenizer, "backend_tokenizer", None)
        if not isinstance(words, Tokenizer):
            raise ValueError(f"{model}: its tokenizer cannot be kept as a tokenizer.json")
        own = f"{Path(data).name}-{fingerprint(words)[:8]}"
        folder = token_files or Path("runs/text") / own
        found = prepare(data, folder, words, validation, n_stories, overwrite, say)
        rows, valid = found.rows("packed", length)
        known: dict[str, Any] = {
            "weights": weights_sha256(base),
            "data": checksum(read_meta(found.train.folder)),
            "held_out_data": checksum(read_meta(found.valid.folder)),
            "text": None if data == GENERATED else found.train.source,
        }
    finished = []
    for each in planned:
        run = replace(each, **known)
        with progress_bars(quiet) as bars, told_to_stop() as told:
            bar = bars.add_task(run.folder_name, total=run.steps, note="")
            trained = train_graft(
                run, base, rows, valid, runs / run.folder_name,
                progress=_progress(bars, bar), should_stop=told.is_set,
                keep_snapshots=keep_snapshots, keep_model=keep_model,
            )  # fmt: skip
        if trained is None:
            err.print("stopped; the same command resumes from here", style="yellow")
            raise typer.Exit(130)
        finished.append(runs / run.folder_name)
        if run.streams and (cut_rows or circuit_prompts):
            with notes(quiet) as say:
                measure_links(
                    runs / run.folder_name, str(model), base, valid, cut_rows, circuit_prompts,
                    task or "ioi", say,
                )  # fmt: skip
    report_runs(finished, as_json)


def grafts_command(
    runs: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of runs of `train graft` on one model.", show_default="the shipped ones"
        ),
    ] = None,
    against: Against = None,
    records: Annotated[
        Path | None,
        typer.Option(help="Folder that finished runs are copied to.", show_default="none"),
    ] = None,
    to: Out = Path("out"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare grafts of equal size: loss saved on held-out text, and what links are worth.

    It reads the records of finished runs, in seconds on the CPU. It shows losses before and after
    (paired by row, with bootstrap intervals) and what streams learned, by layer and head. Where
    they were measured, it adds the cost of cutting each layer, beside its size, and the task's
    circuit.

    Example: `resval-lens grafts runs/graft --against link`
    """
    from resval_lens.analyses.comparison.grafts import grafts
    from resval_lens.training.graft_run import GraftRun
    from resval_lens.training.recorded import export_run, load_runs

    writable(to)
    with notes(quiet) as say:
        say("reading records")
        recorded = load_runs(GraftRun, runs)
        found = grafts(recorded, against)
        if records is not None:
            for each in recorded:
                if each.done:
                    export_run(each, records)
    report(found, to, "grafts", as_json=as_json)


def _progress(bars: Progress, task: TaskID) -> Any:
    def progress(step: int, metrics: dict[str, Any] | None) -> None:
        bars.update(task, completed=step)
        if metrics and metrics["train_loss"] is not None:
            bars.update(task, note=f"loss {metrics['train_loss']:.3f}")

    return progress
