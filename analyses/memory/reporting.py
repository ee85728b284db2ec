"""What the commands on associative memories share: options, and how they report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resval_lens.analyses.console import out

if TYPE_CHECKING:
    from rich.table import Table

Seeds = Annotated[str | None, typer.Option(help="Only these runs, like 0,1,2 or 0-3.")]
Steps = Annotated[int | None, typer.Option(help="With --train; 1000.")]
Jobs = Annotated[int | None, typer.Option(help="With --train: runs at a time, a core each.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for JSON and PNG.")]


def report(
    data: Mapping[str, Any], path: Path, tables: Sequence[Table], drawn: Sequence[Path]
) -> None:
    """Writes ``data`` as JSON with its provenance; prints tables, what was found, and the paths.

    Args:
        data: with ``found``, sentences.
        drawn: pictures that lie there already.
    """
    from resval_lens.files import write_json
    from resval_lens.provenance import provenance

    write_json(path, {**data, "provenance": provenance()})
    for table in tables:
        out.print(table)
    for sentence in data["found"]:
        out.print(f"• {sentence}", highlight=False)
    out.print("\n" + "\n".join(str(each) for each in (*drawn, path)), highlight=False)
