"""``resval-lens train lm``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.progress import Progress, TaskID

from resval_lens.analyses.cli.completion import CARRIES, TRACKERS, one_of
from resval_lens.analyses.cli.console import err, progress_bars, told_to_stop
from resval_lens.analyses.cli.options import (
    Json,
    Quiet,
    Streams,
    folder_words,
    notes,
    writable,
)
from resval_lens.analyses.cli.reporting import report_runs
from resval_lens.analyses.cli.text_options import Data, Overwrite, Stories, TokenFolder, Validation
from resval_lens.analyses.cli.training_options import (
    CheckpointBlocks,
    KeepSnapshots,
    MaybeBatch,
    MaybeLearningRate,
    MaybeMicroBatch,
    MaybePrecision,
    MaybeWidth,
    Preset,
    RunName,
    RunsFolder,
    Seeds,
    SnapshotEvery,
    Spec,
    Threads,
)
from resval_lens.numbers import numbers


def train_lm_command(
    preset: Preset = "stories-small",
    streams: Streams = "",
    carry: Annotated[
        str,
        typer.Option(
            help="raw (the authors' language-model code) or sum (the formula), where --streams "
            "does not set it.",
            autocompletion=one_of(*CARRIES),
        ),
    ] = "raw",
    spec: Spec = "reference",
    n_layers: Annotated[
        int | None, typer.Option(help="Layers.", show_default="the preset's")
    ] = None,
    d_model: MaybeWidth = None,
    name: RunName = None,
    seeds: Seeds = "0",
    data: Data = "stories",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Folder, file, hub name, or bpe:4096 to learn one.",
            show_default="the stories' own",
        ),
    ] = None,
    validation: Validation = None,
    n_stories: Stories = 300_000,
    token_files: TokenFolder = None,
    overwrite: Overwrite = False,
    steps: Annotated[
        int | None, typer.Option(help="Training steps.", show_default="the preset's")
    ] = None,
    until: Annotated[
        int | None,
        typer.Option(
            help="Stop after this step, on the schedule of --steps.", show_default="the last"
        ),
    ] = None,
    batch: MaybeBatch = None,
    micro_batch: MaybeMicroBatch = None,
    lr: MaybeLearningRate = None,
    precision: MaybePrecision = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Train through torch.compile.")
    ] = False,
    checkpoint_blocks: CheckpointBlocks = None,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="Shard over processes (FSDP2).")] = False,
    tracker: Annotated[
        str | None,
        typer.Option(
            help="wandb or tensorboard.", show_default="none", autocompletion=one_of(*TRACKERS)
        ),
    ] = None,
    runs: RunsFolder = Path("runs/lm"),
    snapshot_every: SnapshotEvery = 500,
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations.")] = 500,
    keep_snapshots: KeepSnapshots = False,
    threads: Threads = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a language model, classic or with a stream, on stories, TinyStories or your own text.

    Seeds are trained one after the other. --d-model changes the number of heads, not their width,
    and scales the MLP's width. After a kill (Ctrl-C, SIGTERM), the same command resumes from the
    newest snapshot. accelerate chooses the device: a GPU if there is one. For several, use
    `accelerate launch -m resval_lens.analyses train lm ...`.

    Example: `resval-lens train lm stories-small --streams v`
    """
    import torch
    from accelerate import PartialState

    from resval_lens.analyses.comparison.lm_progress import evaluation, ioi_sets
    from resval_lens.io.tokenizers import vocabulary_size
    from resval_lens.models.language_models import language_model_config, resized
    from resval_lens.models.language_models import preset as find_preset
    from resval_lens.runtime import keep_freed_memory
    from resval_lens.tasks.text.token_files import checksum, read_meta
    from resval_lens.training.lm import train_lm
    from resval_lens.training.lm_data import GENERATED, prepare
    from resval_lens.training.lm_run import LMRun

    processes = PartialState(cpu=not torch.accelerator.is_available())
    chosen = find_preset(preset, spec)
    planned = numbers(seeds)
    changes = {} if d_model is None else resized(chosen.model, d_model)
    changes |= {} if n_layers is None else {"n_layers": n_layers}
    language_model_config(preset, streams, spec, cast("Any", carry), **changes)
    _check_tracker(tracker)
    writable(runs)
    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()
    folder = token_files or Path("runs/text") / Path(data).name
    with notes(quiet) as say, processes.main_process_first():
        found = prepare(data, folder, tokenizer, validation, n_stories, overwrite, say)
    given = {
        "steps": steps, "batch": batch, "lr": lr, "precision": precision,
        "checkpoint_blocks": checkpoint_blocks,
    }  # fmt: skip
    settings = chosen.training | {k: v for k, v in given.items() if v is not None}
    if steps is not None:  # a short run warms up for a tenth of it
        settings["warmup"] = min(settings["warmup"], steps // 10)
    config = language_model_config(
        preset, streams, spec, cast("Any", carry),
        **changes, d_vocab=vocabulary_size(found.tokenizer),
    )  # fmt: skip
    name = name or _name(preset, spec, config, bool(changes))
    finished = []
    for seed in planned:
        run = LMRun(
            name, config.to_json(), checksum(read_meta(found.train.folder)), seed,
            micro_batch=micro_batch, compile=compile, snapshot_every=snapshot_every,
            evaluate_every=evaluate_every, until=until,
            text=None if data == GENERATED else found.train.source, **settings,
        )  # fmt: skip
        rows, valid = found.rows(run.rows, config.n_ctx)
        sets, unsaid = ioi_sets(found.tokenizer, run.rows, data == GENERATED)
        for prompts, reason in unsaid.items() if processes.is_main_process else ():
            err.print(f"no {prompts} IOI prompts along the way: {reason}", highlight=False)
        accelerator = _accelerator(run, runs, tracker)
        shown = not quiet and accelerator.is_main_process
        with progress_bars(not shown) as bars, told_to_stop() as told:
            task = bars.add_task(run.folder_name, total=run.last_step, note="")
            model = train_lm(
                run, rows, runs / run.folder_name,
                evaluate=evaluation(run, valid, sets, found.tokenizer),
                progress=_progress(bars, task, shown), should_stop=told.is_set,
                accelerator=accelerator, shard=fsdp,
                keep_snapshots=None if keep_snapshots else 2,
                tokenizer_json=found.tokenizer.to_str(),
            )  # fmt: skip
        if model is None:
            accelerator.end_training()
            err.print("stopped; the same command resumes from here", style="yellow")
            raise typer.Exit(130)
        finished.append(runs / run.folder_name)
        accelerator.end_training()
    if processes.is_main_process:
        report_runs(finished, as_json)


def _name(preset: str, spec: str, config: Any, resized: bool) -> str:
    """Of a run: preset, size if it is another, streams, spec if it is another."""
    size = f"-{config.n_layers}x{config.d_model}" if resized else ""
    carries = {stream.carry for stream in config.streams}
    flowing = "".join(stream.of for stream in config.streams)
    if len(carries) == 1:  # at the end of the name
        shown = folder_words(tuple(replace(stream, carry="sum") for stream in config.streams))
    else:
        shown = folder_words(config.streams)
    carry = f"-{carries.pop()}" if len(carries) == 1 else ""
    end = f"-{spec}" if spec != "reference" else ""
    return f"{preset}{size}-{shown}{carry}{end}" if flowing else f"{preset}{size}-classic{end}"


def _progress(
    bars: Progress, task: TaskID, shown: bool
) -> Callable[[int, dict[str, Any] | None], None]:
    """Moves a bar, and prints a line where the model was evaluated."""

    def progress(step: int, metrics: dict[str, Any] | None) -> None:
        bars.update(task, completed=step)
        if metrics and "train_loss" in metrics:
            speed = f"{metrics['tokens_per_second']:,.0f} tok/s"
            bars.update(task, note=f"loss {metrics['train_loss']:.3f}, {speed}")
        if metrics and "sample" in metrics and shown:
            bars.console.print(_line(metrics), highlight=False, markup=False)

    return progress


def _line(metrics: dict[str, Any]) -> str:
    words = [f"step {metrics['step']}", f"validation loss {metrics['valid_loss']:.3f}"]
    words += [
        f"IOI {name} {scores['accuracy']:.0%} (P(IO) {scores['p_io']:.2f}, P(S) "
        f"{scores['p_subject']:.2f})"
        for name, scores in metrics.get("ioi", {}).items()
    ]
    return f"{', '.join(words)}\n  {json.dumps(metrics['sample'], ensure_ascii=False)}"


def _check_tracker(tracker: str | None) -> None:
    from resval_lens.io.extras import needed

    if tracker not in (None, "wandb", "tensorboard"):
        raise ValueError(f"tracker must be wandb or tensorboard; got {tracker!r}")
    if tracker is not None:  # accelerate would go on without it
        needed(tracker, "trackers", f"--tracker {tracker}")


def _accelerator(run: Any, runs: Path, tracker: str | None) -> Any:
    from accelerate.utils import ProjectConfiguration

    from resval_lens.training.lm import make_accelerator

    options: dict[str, Any] = {}
    if tracker is not None:
        folder = str(runs / run.folder_name)
        options |= {
            "log_with": tracker,
            "project_config": ProjectConfiguration(project_dir=folder, logging_dir=folder),
        }
    accelerator = make_accelerator(run, **options)
    if tracker is not None:
        wandb = {"name": run.folder_name, "dir": str(runs / run.folder_name)}
        accelerator.init_trackers("resval-lens", init_kwargs={"wandb": wandb})
    return accelerator
