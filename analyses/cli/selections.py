"""``resval-lens selections``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resval_lens.analyses.circuits.methods import METHODS
from resval_lens.analyses.circuits.selection import COMPARED, compared
from resval_lens.analyses.cli.completion import some_of
from resval_lens.analyses.cli.loading import load_options
from resval_lens.analyses.cli.options import (
    CorruptedBy,
    Device,
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
    TaskName,
    notes,
    tell_left_out,
    words,
    writable,
)
from resval_lens.analyses.cli.reporting import report

PROMPTED = [name for name, method in METHODS.items() if method.has_prompts]


def selections_command(
    model: Model = "stories-small-values",
    methods: Annotated[
        str,
        typer.Option(
            help=f"How edges are scored, several with commas: {', '.join(PROMPTED)}.",
            autocompletion=some_of(*PROMPTED),
        ),
    ] = "eap,eap-ig",
    selections: Annotated[
        str | None,
        typer.Option(
            help=f"Rules, several with commas: {', '.join(COMPARED)}.",
            autocompletion=some_of(*COMPARED),
            show_default="all",
        ),
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option(help="Held-out prompts to run circuits on, at most.", show_default="as many"),
    ] = None,
    resamples: Annotated[
        int, typer.Option(help="Resamples of the prompts, of scores and of intervals.")
    ] = 1000,
    seconds: Annotated[
        float,
        typer.Option(help="Time limit for the best sum of each circuit; then its gap is given."),
    ] = 60.0,
    metric: MetricName = None,
    prompts: Prompts = 64,
    seed: MaybeSeed = None,
    task: TaskName = None,
    corruption: CorruptedBy = None,
    general: General = None,
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
    """Compare rules that choose circuits from scores: CPR and CMD of each, with 95% intervals.

    Edges are scored on the prompts. Circuits are run on held-out prompts, each once; intervals are
    over resamples of these. Every rule is tried on the scores as they are, and with edges last if
    their scores change sign over resamples of the prompts.

    Example: `resval-lens selections stories-small-classic --corruption ABC`
    """
    from resval_lens.analyses.circuits.bootstrap import Bootstrap
    from resval_lens.analyses.studies.selections import selection_study
    from resval_lens.analyses.tasks import Asked
    from resval_lens.analyses.tasks.problem import pose_two
    from resval_lens.checks import check_whole
    from resval_lens.runtime import one_thread

    chosen = words(methods)
    for name in chosen:
        if name not in PROMPTED:
            raise ValueError(f"methods must be among {', '.join(PROMPTED)}; got {name!r}")
    if held_out is not None:
        check_whole("held-out", held_out, 1)
    bootstrap = Bootstrap(resamples, seed or 0)
    rules = compared(seconds)
    if selections is not None:
        for name in words(selections):
            if name not in rules:
                raise ValueError(f"selections must be among {', '.join(rules)}; got {name!r}")
        rules = {name: rules[name] for name in words(selections)}
    with notes(quiet) as note, one_thread():
        note("prompts")
        asked = Asked(seed, corruption, general, prepend)
        how = load_options(streams, device, dtype, fold, setting)
        scored, others = pose_two(model, prompts, asked, task, how)
        tell_left_out(scored.left_out, quiet)
        if held_out is not None:
            if held_out > len(others.pairs):
                raise ValueError(
                    f"held-out must be at most {len(others.pairs)}, as many as edges are scored "
                    f"on; got {held_out}"
                )
            others = others.rows(slice(0, held_out))
        if metric is not None:
            scored, others = scored.by(metric), others.by(metric)
        writable(to)
        study = selection_study(scored, others, chosen, rules, bootstrap=bootstrap, note=note)
    report(study, to, "selections", as_json=as_json)
