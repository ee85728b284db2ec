"""``resval-lens memory``: the experiments on induction heads as associative memories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resval_lens.analyses.cli.memory_knowledge import (
    analogies_command,
    construction_command,
    held_out_command,
    knowledge_command,
)
from resval_lens.analyses.cli.memory_runs import (
    curves_command,
    encodings_command,
    lengths_command,
)
from resval_lens.analyses.cli.options import Json, Length, Out, Quiet, Seed, notes, writable
from resval_lens.analyses.cli.reporting import report

memory_app = typer.Typer(
    no_args_is_help=True,
    help="Induction heads as associative memories (arXiv 2412.11459): written down and trained; on "
    "the CPU.",
)


def one_step_command(
    d_vocab: Annotated[int, typer.Option(help="Tokens.")] = 16,
    length: Length = 16,
    shortest: Annotated[
        int | None,
        typer.Option(help="Tokens of the shortest sequence.", show_default="--length, as of all"),
    ] = None,
    each: Annotated[
        int, typer.Option(help="Sequences for each place of what is to be recalled.")
    ] = 64,
    seed: Seed = 0,
    to: Out = Path("out"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """One gradient step on each matrix, from zero: which memories does it write?

    W_O², then W_K², then W_K¹, on sequences whose last token was there before. Coefficients of the
    real gradients beside their closed form; absolute beside relative positions, without and with a
    value stream; and what three single steps recall, in longer sequences, too. A minute or two, on
    the CPU.

    Example: `resval-lens memory one-step --d-vocab 12`
    """
    from resval_lens.analyses.papers.memory.comparable import check_seed
    from resval_lens.analyses.papers.memory.one_step_study import one_step_study
    from resval_lens.runtime import one_thread

    check_seed(seed)
    writable(to)
    with notes(quiet) as note, one_thread():
        note("gradients of four models")
        study = one_step_study(
            d_vocab=d_vocab, length=length, shortest=shortest, each=each, seed=seed
        )
    report(study, to, "memory-one-step", as_json=as_json)


memory_app.command("construction")(construction_command)
memory_app.command("one-step")(one_step_command)
memory_app.command("curves")(curves_command)
memory_app.command("lengths")(lengths_command)
memory_app.command("knowledge")(knowledge_command)
memory_app.command("held-out")(held_out_command)
memory_app.command("analogies")(analogies_command)
memory_app.command("encodings")(encodings_command)
