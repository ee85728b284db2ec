"""``resval-lens amicl``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resval_lens.analyses.cli import completion
from resval_lens.analyses.cli import options as opt
from resval_lens.analyses.cli.completion import one_of
from resval_lens.analyses.cli.options import notes, writable
from resval_lens.analyses.cli.reporting import report

amicl_app = typer.Typer(
    no_args_is_help=True,
    help="Study AMICL, the one-layer associative memory, without training; on the CPU.",
)
Noise = Annotated[float, typer.Option(help="ε, how far an object's instances differ.")]
Dimensions = Annotated[int, typer.Option("--d", help="Dimensions of a token.")]
Classes = Annotated[int, typer.Option(help="K, classes to draw from.")]


@amicl_app.command("combinations")
def combinations_command(
    a: Annotated[float, typer.Option("--a", help="Weight of the previous token.")] = 2.0,
    trials: opt.Trials = 1_000,
    noise: Noise = 0.1,
    length: opt.Length = 20,
    d: Dimensions = 100,
    classes: Classes = 512,
    temperature: opt.Temperature = 1.0,
    seed: opt.Seed = 0,
    to: opt.Out = Path("out"),
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Measure recall of all similarities with all separations, for both readings.

    There are two readings: paper (its text) and notebook (the authors' code: a random last key,
    distances that are not negated, less noise). argmax must give the label exactly. identity and
    softmax must come nearest to it among the labels in the context, by distance and by angle. Each
    reading has --trials sequences. It runs on the CPU.

    Example: `resval-lens amicl combinations --a 2`
    """
    from resval_lens.analyses.papers.amicl.combinations import combinations
    from resval_lens.analyses.papers.amicl.model import AMICLConfig, PairTask
    from resval_lens.runtime import one_thread

    check_trials(trials, seed)
    AMICLConfig(a=a, temperature=temperature)
    task = PairTask(d=d, length=length, classes=classes, noise=noise)
    writable(to)
    with notes(quiet) as note, one_thread():
        result = combinations(a, seed, trials, task, note, temperature)
    report(result, to, "amicl-combinations", as_json=as_json)


@amicl_app.command("sweep")
def sweep_command(
    trials: opt.Trials = 2_000,
    similarity: Annotated[
        str,
        typer.Option(
            help="dot, pearson, manhattan or euclidean.",
            autocompletion=one_of(*completion.SIMILARITIES),
        ),
    ] = "dot",
    separation: Annotated[
        str,
        typer.Option(
            help="identity, softmax or argmax.", autocompletion=one_of(*completion.SEPARATIONS)
        ),
    ] = "argmax",
    reading: Annotated[
        str,
        typer.Option(
            help="paper (its text) or notebook (the authors' code).",
            autocompletion=one_of(*completion.READINGS),
        ),
    ] = "paper",
    temperature: opt.Temperature = 1.0,
    seed: opt.Seed = 0,
    to: opt.Out = Path("out"),
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Find the best a for each task. The paper tried one task, and a from 0 to 2.

    Here a goes from 0 to 32. Tasks have objects with more and less noise, gaps between object and
    label, look-alikes, objects with several labels of which the last is faint, and values through a
    map that is learned from examples. Each task has --trials sequences, the same for every a.
    It runs on the CPU.

    Example: `resval-lens amicl sweep --trials 2000`
    """
    from resval_lens.analyses.papers.amicl.model import AMICLConfig
    from resval_lens.analyses.papers.amicl.sweep import sweep
    from resval_lens.runtime import one_thread

    check_trials(trials, seed)
    cfg = AMICLConfig(
        similarity=similarity,  # type: ignore[arg-type]
        separation=separation,  # type: ignore[arg-type]
        temperature=temperature,
        reading=reading,  # type: ignore[arg-type]
    )
    writable(to)
    with notes(quiet) as note, one_thread():
        result = sweep(seed=seed, trials=trials, cfg=cfg, note=note)
    report(result, to, "amicl-sweep", as_json=as_json)


@amicl_app.command("transformer")
def transformer_command(
    trials: opt.Trials = 1_000,
    seed: opt.Seed = 0,
    to: opt.Out = Path("out"),
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Show that a two-layer attention model with a value stream, set by hand, is AMICL.

    It has the same attention and the same recall; with the link cut it recalls nothing. Beside it
    is a model without the stream, with the same residual space and with more. Each value of a has
    --trials sequences. It takes half a minute, on the CPU.

    Example: `resval-lens amicl transformer`
    """
    from resval_lens.analyses.papers.amicl.bridge import transformer_study
    from resval_lens.runtime import one_thread

    check_trials(trials, seed)
    writable(to)
    with notes(quiet) as note, one_thread():
        result = transformer_study(trials, seed, note)
    report(result, to, "amicl-transformer", as_json=as_json)


def check_trials(trials: int, seed: int) -> None:
    """Raises ValueError for no trials, or a seed that draws nothing."""
    if trials < 1:
        raise ValueError(f"trials must be 1 or more; got {trials}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be from 0 to 2^63 − 1; got {seed}")
