"""The command line: ``resval-lens --help``.

Heavy imports stand inside the commands, so that help, completion and errors come at once.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from resval_lens.analyses.cli.amicl import amicl_app
from resval_lens.analyses.cli.attention import attention_command
from resval_lens.analyses.cli.circuit import (
    attribute_command,
    circuit_command,
)
from resval_lens.analyses.cli.compare import compare_command
from resval_lens.analyses.cli.completion import IMAGES, one_of
from resval_lens.analyses.cli.console import err
from resval_lens.analyses.cli.eval import eval_app
from resval_lens.analyses.cli.generate import generate_command
from resval_lens.analyses.cli.graft import grafts_command, train_graft_command
from resval_lens.analyses.cli.icl import (
    link_in_training_command,
    train_icl_command,
)
from resval_lens.analyses.cli.induction import induction_command
from resval_lens.analyses.cli.interventions import ablate_command, patch_command
from resval_lens.analyses.cli.lm import train_lm_command
from resval_lens.analyses.cli.memory import memory_app
from resval_lens.analyses.cli.memory_training import train_memory_command
from resval_lens.analyses.cli.movers import movers_command
from resval_lens.analyses.cli.plan import plan_app
from resval_lens.analyses.cli.reporting import FIGURE_FORMAT, PURPOSE, WITH_PAGE
from resval_lens.analyses.cli.reproduce import reproduce_command
from resval_lens.analyses.cli.roles import roles_command
from resval_lens.analyses.cli.runs import runs_app
from resval_lens.analyses.cli.selections import selections_command
from resval_lens.analyses.cli.ways import ways_command
from resval_lens.analyses.tasks.task import PromptWarning

STOPPED = 130
"""The exit code after Ctrl-C: 128 and the signal's number, as shells have it."""

EPILOG = """Results go to stdout (with --json one JSON document), progress and errors to stderr.

Exit codes: 0 done; 1 an error, in one line on stderr; 2 wrong usage; 130 stopped by Ctrl-C (the
same `train` command then resumes).
"""


ANYWHERE = {"--page": 0, "--debug": 0, "--figures": 1}
"""Options of all commands, which may stand behind the command, too, with their values' number."""


class Commands(TyperGroup):
    """Commands that Ctrl-C ends with one line and exit code 130, without a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the options of all commands wherever they stand before a ``--``."""
        end = args.index("--") if "--" in args else len(args)
        first, rest = [], []
        words = iter(args[:end])
        for word in words:
            name, equals, _ = word.partition("=")
            if name not in ANYWHERE:
                rest.append(word)
                continue
            first += [word, *islice(words, 0 if equals else ANYWHERE[name])]
        return super().parse_args(ctx, [*first, *rest, *args[end:]])

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            err.print("stopped", style="yellow")
            raise typer.Exit(STOPPED) from None


class Command(TyperCommand):
    """A command whose page says what it is for."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        PURPOSE.set((self.help or "").split("\n\n")[0])
        return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Look into transformers, with a residual value stream or without one.",
    epilog=EPILOG,
)
train_app = typer.Typer(
    no_args_is_help=True, help="Train models. The same command resumes a killed run."
)
train_app.command("icl")(train_icl_command)
train_app.command("lm")(train_lm_command)
train_app.command("graft")(train_graft_command)
train_app.command("memory")(train_memory_command)
COMMANDS: dict[str, dict[str, Any]] = {
    "Look into a model": {
        "attention": attention_command,
        "patch": patch_command,
        "attribute": attribute_command,
        "circuit": circuit_command,
        "ablate": ablate_command,
        "induction": induction_command,
        "roles": roles_command,
        "movers": movers_command,
        "generate": generate_command,
        "eval": eval_app,
        "plan": plan_app,
    },
    "Compare": {
        "compare": compare_command,
        "ways": ways_command,
        "grafts": grafts_command,
        "selections": selections_command,
        "link-in-training": link_in_training_command,
    },
    "Train": {"train": train_app, "runs": runs_app},
    "The papers": {"reproduce": reproduce_command, "amicl": amicl_app, "memory": memory_app},
}
"""Every command, in the parts and the order that help has them in."""
for panel, commands in COMMANDS.items():
    for name, command in commands.items():
        if isinstance(command, typer.Typer):
            for each in command.registered_commands:
                each.cls = Command
            app.add_typer(command, name=name, rich_help_panel=panel)
        else:
            app.command(name, cls=Command, rich_help_panel=panel)(command)


def show_version(asked: bool | None) -> bool:
    """Prints the version, and the git commit (``+``: with changes) where the source is a checkout.

    Raises:
        typer.Exit: afterwards.
    """
    if not asked:
        return False
    from resval_lens import __version__
    from resval_lens.io.provenance import git_commit

    commit = git_commit()
    typer.echo(f"resval-lens {__version__}" + (f" (commit {commit})" if commit else ""))
    raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the whole traceback of an error.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    figures: Annotated[
        str | None,
        typer.Option(
            help=f"Format of the figures that a command writes: {', '.join(IMAGES)}.",
            autocompletion=one_of(*IMAGES),
            show_default="png",
        ),
    ] = None,
    page: Annotated[
        bool,
        typer.Option(
            "--page",
            help="Write one HTML page of the result, too, beside its JSON: opens offline.",
        ),
    ] = False,
) -> None:
    """Read before any command, wherever they stand; main() looks at --debug itself."""
    if figures not in (None, *IMAGES):
        raise ValueError(f"--figures must be one of {', '.join(IMAGES)}; got {figures!r}")
    FIGURE_FORMAT.set(figures)
    WITH_PAGE.set(page)


def show_warning(
    others: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any,
    **how: Any,
) -> None:  # fmt: skip
    """A warning about prompts as a note without its place in the code; ``others`` shows others."""
    if issubclass(category, PromptWarning):
        err.print(f"note: {message}", highlight=False, markup=False)
    else:
        others(message, category, *where, **how)


def main() -> None:
    """Entry point: an expected error is one line on stderr, its traceback with ``--debug``."""
    warnings.showwarning = partial(show_warning, warnings.showwarning)
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        # A name from a file could hold what a terminal obeys.
        words = " ".join(str(error).split())
        line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
        err.print(f"resval-lens: {line}", style="red", highlight=False, markup=False)
        sys.exit(1)
