"""``resval-lens roles``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resval_lens.analyses.cli.loading import load_options
from resval_lens.analyses.cli.options import (
    Chat,
    Device,
    Draws,
    DType,
    Fold,
    General,
    Json,
    LanguageModel,
    MaybeSeed,
    MaybeStreams,
    MetricName,
    Out,
    Prepend,
    Prompts,
    Quiet,
    Setting,
    notes,
    tell_left_out,
    writable,
)
from resval_lens.analyses.cli.reporting import report


def roles_command(
    model: LanguageModel = Path("stories-small-values"),
    prompts: Prompts = 64,
    seed: MaybeSeed = None,
    attention: Annotated[
        float,
        typer.Option("--min-attention", help="Least mean attention weight that a role needs."),
    ] = 0.2,
    share: Annotated[
        float,
        typer.Option("--min-share", help="Least share of the logit difference that a role needs."),
    ] = 0.05,
    draws: Draws = 5,
    metric: MetricName = None,
    general: General = None,
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
    """Find which head does what in naming the indirect object, tested on other prompts.

    Heads get roles (name movers, S-inhibition, induction, ...) by measurements on the prompts, with
    corrupted prompts that have other names (ABC). On as many held-out prompts, each role is knocked
    out, resampled and at means, beside as many heads without a role, and the paths between roles
    are patched. Then all heads with a role are kept alone: faithfulness, completeness, minimality.
    --metric is for the paths; all else is measured by every metric.

    Example: `resval-lens roles stories-small-values`
    """
    from resval_lens.analyses.studies.role_study import role_study
    from resval_lens.analyses.tasks import Asked
    from resval_lens.analyses.tasks.problem import pose_two
    from resval_lens.runtime import one_thread

    with notes(quiet) as note, one_thread():
        note("prompts")
        asked = Asked(seed, "ABC", general, prepend, False, chat)
        how = load_options(streams, device, dtype, fold, setting)
        both = pose_two(str(model), prompts, asked, "ioi", how)
        scored, held_out = both if metric is None else (each.by(metric) for each in both)
        tell_left_out(scored.left_out, quiet)
        writable(to)
        study = role_study(
            scored, held_out, attention=attention, share=share, draws=draws, prepend=prepend,
            note=note,
        )  # fmt: skip
    report(study, to, "roles", as_json=as_json)
