"""Options of the commands that train on text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resval_lens.analyses.cli import completion
from resval_lens.analyses.cli.completion import one_of

Data = Annotated[
    str,
    typer.Option(
        help="stories (generated), tinystories, a name on the hub, a file or folder.",
        autocompletion=one_of(*completion.DATA),
    ),
]
Validation = Annotated[
    str | None, typer.Option(help="Text to validate on.", show_default="every 100th document")
]
Stories = Annotated[int, typer.Option("--stories", help="Stories to generate, of about 93 tokens.")]
TokenFolder = Annotated[
    Path | None, typer.Option(help="Folder of the token files.", show_default="runs/text/DATA")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write the token files again.")]
