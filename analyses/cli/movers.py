"""``resval-lens movers``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resval_lens.analyses.cli.loading import load_options
from resval_lens.analyses.cli.options import (
    Chat,
    CorruptedBy,
    Device,
    Draws,
    DType,
    Fold,
    General,
    Json,
    MaybeSeed,
    MaybeStreams,
    MetricName,
    Model,
    Out,
    Prepend,
    Prompts,
    Quiet,
    Setting,
    SeveralTokens,
    TaskName,
    notes,
    tell_left_out,
    writable,
)
from resval_lens.analyses.cli.reporting import report


def movers_command(
    model: Model = "stories-small-values",
    prompts: Prompts = 64,
    seed: MaybeSeed = None,
    share: Annotated[
        float,
        typer.Option("--min-effect", help="Least effect, as a share of the metric's gap."),
    ] = 0.03,
    tried: Annotated[
        int, typer.Option(help="Senders to try for each level, by EAP-IG scores.")
    ] = 64,
    draws: Draws = 3,
    metric: MetricName = None,
    task: TaskName = None,
    corruption: CorruptedBy = None,
    general: General = None,
    several_tokens: SeveralTokens = False,
    chat: Chat = False,
    prepend: Prepend = "auto",
    streams: MaybeStreams = None,
    dtype: DType = None,
    fold: Fold = False,
    setting: Setting = None,
    device: Device = "cpu",
    to: Out = Path("out"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the heads and MLPs that move a task's answer, and what moves them; then test both.

    From the logits back, edges from each node into the next level are corrupted (path patching),
    on the prompts. On as many held-out prompts every level is knocked out, resampled and at means,
    beside as many other heads and MLPs, and the edges between levels are corrupted together. Then
    all nodes with a role are kept alone: faithfulness, completeness, minimality.

    Example: `resval-lens movers stories-small-classic --task ioi`
    """
    from resval_lens.analyses.studies.movers import mover_study
    from resval_lens.analyses.tasks import Asked
    from resval_lens.analyses.tasks.problem import pose_two
    from resval_lens.runtime import one_thread

    with notes(quiet) as note, one_thread():
        note("prompts")
        asked = Asked(seed, corruption, general, prepend, several_tokens, chat)
        how = load_options(streams, device, dtype, fold, setting)
        both = pose_two(model, prompts, asked, task, how)
        scored, held_out = both if metric is None else (each.by(metric) for each in both)
        tell_left_out(scored.left_out, quiet)
        writable(to)
        study = mover_study(scored, held_out, share=share, tried=tried, draws=draws, note=note)
    report(study, to, "movers", as_json=as_json)
