"""``resval-lens memory``: the experiments on induction heads as associative memories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resval_lens.analyses.memory.knowledge_commands import (
    analogies_command,
    construction_command,
    held_out_command,
    knowledge_command,
)
from resval_lens.analyses.memory.reporting import Out, report
from resval_lens.analyses.memory.run_commands import (
    curves_command,
    encodings_command,
    lengths_command,
)
from resval_lens.analyses.options import Quiet, notes, writable

memory_app = typer.Typer(
    no_args_is_help=True,
    help="Induction heads as associative memories (arXiv 2412.11459): written down and trained.",
)


def one_step_command(
    d_vocab: Annotated[int, typer.Option(help="Tokens.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens of the longest training sequence.")] = 16,
    shortest: Annotated[
        int | None, typer.Option(help="Of the shortest; all as long as the longest if not given.")
    ] = None,
    each: Annotated[
        int, typer.Option(help="Sequences for each place of what is to be recalled.")
    ] = 64,
    seed: Annotated[int, typer.Option(help="Draws vectors and sequences.")] = 0,
    to: Out = Path("out"),
    quiet: Quiet = False,
) -> None:
    """One gradient step on each matrix, from zero: which memories does it write?

    W_O², then W_K², then W_K¹, on sequences whose last token was there before. Coefficients of the
    real gradients beside their closed form; absolute beside relative positions, without and with a
    value stream; and what three single steps recall, in longer sequences, too. A minute or two.

    Example: `resval-lens memory one-step --d-vocab 12`
    """
    from resval_lens.analyses.figures import save
    from resval_lens.analyses.memory.knowledge import check_seed
    from resval_lens.analyses.memory.one_step_study import draw, one_step_study, sentences, table
    from resval_lens.runtime import one_thread

    check_seed(seed)
    writable(to)
    with notes(quiet) as note, one_thread():
        note("gradients of four models")
        study = one_step_study(
            d_vocab=d_vocab, length=length, shortest=shortest, each=each, seed=seed
        )
    drawn = save(draw(study), to / "memory-one-step.png")
    data = {"found": sentences(study), **study}
    report(data, to / "memory-one-step.json", [table(study)], [drawn])


memory_app.command("construction")(construction_command)
memory_app.command("one-step")(one_step_command)
memory_app.command("curves")(curves_command)
memory_app.command("lengths")(lengths_command)
memory_app.command("knowledge")(knowledge_command)
memory_app.command("held-out")(held_out_command)
memory_app.command("analogies")(analogies_command)
memory_app.command("encodings")(encodings_command)
