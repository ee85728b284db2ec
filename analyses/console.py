"""Two consoles: results on stdout, progress and errors on stderr."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

out = Console()
err = Console(stderr=True, soft_wrap=True)


def progress_bars(quiet: bool = False) -> Progress:
    """Bars with steps done and time left, on stderr; where it is narrow the bars give way."""
    whole = Column(no_wrap=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(table_column=whole),
        TimeRemainingColumn(compact=True, table_column=whole),
        TextColumn("left"),
        TextColumn("{task.fields[note]}"),
        console=err,
        disable=quiet,
    )
