"""Options of the commands that read text."""

from __future__ import annotations

import os.path
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from resval_lens.analyses.cli import completion
from resval_lens.analyses.cli.completion import one_of

Text = Annotated[
    str | None,
    typer.Option("--text", help="A text, or a file of text.", show_default="none"),
]
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


def is_file(text: str) -> bool:
    """Whether ``--text`` names a file: one that is there, or a name like ``notes.txt``."""
    is_name = len(text.split()) == 1 and Path(text).suffix in (".txt", ".jsonl", ".parquet")
    return is_name or os.path.exists(text)


def documents(text: str) -> Iterator[str]:
    """Documents of the file that ``text`` names, or ``text`` itself where it names none.

    Raises:
        ValueError: a name like ``notes.txt`` of a file that is missing.
    """
    from resval_lens.tasks.text import read_texts

    return read_texts(Path(text)) if is_file(text) else iter([text])
