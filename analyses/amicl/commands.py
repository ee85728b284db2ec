"""``resval-lens amicl`` and the figures of AMICL in ``resval-lens reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resval_lens.analyses.console import out
from resval_lens.analyses.options import Quiet, notes, writable

FIGURES = ("figure-6", "figure-7", "figure-8")

amicl_app = typer.Typer(
    no_args_is_help=True, help="AMICL, the one-layer associative memory, without training."
)
Seed = Annotated[int, typer.Option(help="Draws the trials.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for JSON and PNG.")]
Noise = Annotated[float, typer.Option(help="ε, how far an object's instances differ.")]
Length = Annotated[int, typer.Option(help="s, tokens of a sequence.")]
Dimensions = Annotated[int, typer.Option("--d", help="Dimensions of a token.")]
Classes = Annotated[int, typer.Option(help="K, classes to draw from.")]
Temperature = Annotated[float, typer.Option(help="T of softmax.")]


def reproduce_figure(what: str, seed: int, trials: int, to: Path, quiet: bool) -> None:
    """Figure 6, 7 or 8 of the paper: tables, JSON and PNG, ours beside the published numbers.

    Figure 7 is measured at 104 values of a, each with ``trials`` of its own.

    Raises:
        ValueError: trials below 1, a seed outside 0 to 2⁶³ − 1, a folder that cannot be written to.
    """
    from resval_lens.analyses.amicl import figures, recall, tables
    from resval_lens.analyses.figures import save
    from resval_lens.files import write_json
    from resval_lens.provenance import provenance
    from resval_lens.runtime import one_thread

    _check(trials, seed)
    writable(to)
    with notes(quiet) as note, one_thread():
        if what == "figure-6":
            result = recall.figure_6(seed, trials, note=note)
            shown, figure = [tables.figure_6_table(result)], figures.figure_6(result)
        elif what == "figure-7":
            result = recall.figure_7(seed, trials, note=note)
            shown, figure = tables.figure_7_tables(result), figures.figure_7(result)
        else:
            result = recall.figure_8(seed, trials, note=note)
            shown, figure = tables.figure_8_tables(result), figures.figure_8(result)
    path = to / f"{what}.json"
    write_json(path, {"seed": seed, **result, "provenance": provenance()})
    for table in shown:
        out.print(table)
    if what == "figure-7":
        out.print(f"• {tables.figure_7_sentence(result)}", highlight=False)
    out.print(f"{save(figure, to / f'{what}.png')}\n{path}", highlight=False)


@amicl_app.command("combinations")
def combinations_command(
    a: Annotated[float, typer.Option("--a", help="Weight of the previous token.")] = 2.0,
    trials: Annotated[int, typer.Option(help="Of each reading.")] = 1_000,
    noise: Noise = 0.1,
    length: Length = 20,
    d: Dimensions = 100,
    classes: Classes = 512,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    to: Out = Path("out"),
    quiet: Quiet = False,
) -> None:
    """All similarities with all separations, for both readings: how often is the label recalled?

    Readings: paper (its text) and notebook (the authors' code: a random last key, distances that
    are not negated, less noise). argmax must hit the label exactly; identity and softmax must
    come nearest to it among the labels in the context, by distance and by angle.

    Example: `resval-lens amicl combinations --a 2`
    """
    from resval_lens.amicl import AMICLConfig, PairTask
    from resval_lens.analyses.amicl import recall, tables
    from resval_lens.files import write_json
    from resval_lens.provenance import provenance
    from resval_lens.runtime import one_thread

    _check(trials, seed)
    AMICLConfig(a=a, temperature=temperature)
    task = PairTask(d=d, length=length, classes=classes, noise=noise)
    writable(to)
    with notes(quiet) as note, one_thread():
        result = recall.combinations(a, seed, trials, task, note, temperature)
    path = to / "amicl-combinations.json"
    write_json(path, {"seed": seed, **result, "provenance": provenance()})
    out.print(tables.combinations_table(result))
    out.print(str(path), highlight=False)


@amicl_app.command("sweep")
def sweep_command(
    trials: Annotated[int, typer.Option(help="Of each task; every a sees the same.")] = 2_000,
    similarity: Annotated[str, typer.Option(help="dot, pearson, manhattan or euclidean.")] = "dot",
    separation: Annotated[str, typer.Option(help="identity, softmax or argmax.")] = "argmax",
    reading: Annotated[
        str, typer.Option(help="paper (its text) or notebook (the authors' code).")
    ] = "paper",
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    to: Out = Path("out"),
    quiet: Quiet = False,
) -> None:
    """Which a is best for which task? The paper tried one task, and a from 0 to 2.

    Here a goes from 0 to 32: on objects with more and less noise, on gaps between object and label,
    on look-alikes, on objects that stand with several labels of which the last is dimly seen, and
    with values through a map that is learned from examples.

    Example: `resval-lens amicl sweep --trials 2000`
    """
    from resval_lens.amicl import AMICLConfig
    from resval_lens.analyses.amicl import figures, tables
    from resval_lens.analyses.amicl.sweep import sentences, sweep
    from resval_lens.analyses.figures import save
    from resval_lens.files import write_json
    from resval_lens.provenance import provenance
    from resval_lens.runtime import one_thread

    _check(trials, seed)
    cfg = AMICLConfig(
        similarity=similarity,  # type: ignore[arg-type]
        separation=separation,  # type: ignore[arg-type]
        temperature=temperature,
        reading=reading,  # type: ignore[arg-type]
    )
    writable(to)
    with notes(quiet) as note, one_thread():
        result = sweep(seed=seed, trials=trials, cfg=cfg, note=note)
    found = sentences(result)
    path = to / "amicl-sweep.json"
    write_json(path, {"seed": seed, "found": found, **result, "provenance": provenance()})
    out.print(tables.sweep_table(result))
    for sentence in found:
        out.print(f"• {sentence}", highlight=False)
    out.print(f"\n{save(figures.sweep(result), to / 'amicl-sweep.png')}\n{path}", highlight=False)


@amicl_app.command("transformer")
def transformer_command(
    trials: Annotated[int, typer.Option(help="At each value of a.")] = 1_000,
    seed: Seed = 0,
    to: Out = Path("out"),
    quiet: Quiet = False,
) -> None:
    """A two-layer attention model with a value stream, its weights set by hand, is AMICL.

    The same attention, the same recall; with the link cut nothing is recalled. Beside it what a
    model without the stream can do in the same residual space, and with more of it. Half a minute.

    Example: `resval-lens amicl transformer`
    """
    from resval_lens.analyses.amicl.transformer_figure import draw, table, transformer_study
    from resval_lens.analyses.figures import save
    from resval_lens.files import write_json
    from resval_lens.provenance import provenance
    from resval_lens.runtime import one_thread

    _check(trials, seed)
    writable(to)
    with notes(quiet) as note, one_thread():
        result = transformer_study(trials, seed, note)
    path = to / "amicl-transformer.json"
    write_json(path, {"seed": seed, **result, "provenance": provenance()})
    out.print(table(result))
    out.print(f"{save(draw(result), to / 'amicl-transformer.png')}\n{path}", highlight=False)


def _check(trials: int, seed: int) -> None:
    if trials < 1:
        raise ValueError(f"trials must be 1 or more; got {trials}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be from 0 to 2^63 − 1; got {seed}")
