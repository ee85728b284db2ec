"""How every command ends: results are written, and printed as tables or, with --json, as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from resval_lens.analyses.cli.console import out
from resval_lens.analyses.results.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

FIGURE_FORMAT: ContextVar[str | None] = ContextVar("figures", default=None)
"""What ``resval-lens --figures`` asks for; None: figures are what their names say."""

WITH_PAGE: ContextVar[bool] = ContextVar("page", default=False)
"""Whether ``resval-lens --page`` asks for a page beside the other files."""

PURPOSE: ContextVar[str] = ContextVar("purpose", default="")
"""What the running command is for: the first paragraph of its help."""


def report(
    data: Result | Mapping[str, Any],
    to: Path | None,
    name: str,
    *,
    as_json: bool,
    tables: Sequence[Table | str] = (),
    found: Sequence[str] = (),
    figures: Mapping[str, Figure] | None = None,
    beside: Mapping[str, Mapping[str, Any]] | None = None,
    pages: Mapping[Path, Callable[[Mapping[str, Any]], str]] | None = None,
) -> None:
    """Writes results into a folder; prints tables, sentences and paths, or one JSON document.

    The document is the same to the byte as the ``{name}.json`` that is written: ``data``, with
    ``found`` first and ``provenance`` last. Each table is a ``{name}.csv``, or of several
    ``{name}-1.csv``, ... in their order.

    Args:
        data: a study's result, whose own tables, sentences and figures come first.
        to: the folder; None writes nothing.
        tables: tables, or lines of text between them.
        found: sentences.
        figures: pictures by file name, whose ending ``--figures`` overrules.
        beside: further JSON documents by file name, which are written and not printed.
        pages: HTML by path, made of the document; without any, ``--page`` makes ``{name}.html``.
    """
    from resval_lens.io.files import write_bytes
    from resval_lens.io.provenance import provenance

    made = provenance()
    title = _title(name, data)
    if isinstance(data, Result):
        tables, found = (*data.tables(), *tables), (*data.sentences(), *found)
        figures = {**(data.figures() if to is not None else {}), **(figures or {})}
        data = data.to_dict()
    head = {"found": list(found)} if found else {}
    document = {**head, **data, "provenance": made}
    text = as_text(document)
    if WITH_PAGE.get() and to is not None and not pages:
        from resval_lens.analyses.report.result_page import result_page

        def page(document: Mapping[str, Any]) -> str:
            return result_page(
                document, title, PURPOSE.get(), f"{name}.json", found, figures or {}, tables
            )

        pages = {to / f"{name}.html": page}
    written = {path: make(document).encode() for path, make in (pages or {}).items()}
    paths = []
    if to is not None:
        from resval_lens.analyses.drawing.figures import save

        to.mkdir(parents=True, exist_ok=True)
        kind = FIGURE_FORMAT.get()
        named = {(to / file): figure for file, figure in (figures or {}).items()}
        paths = [
            save(figure, path.with_suffix(f".{kind}") if kind else path)
            for path, figure in named.items()
        ]
        documents = {
            file: as_text({**one, "provenance": made}) for file, one in (beside or {}).items()
        }
        for file, words in {**as_csvs(tables, name), **documents, f"{name}.json": text}.items():
            write_bytes(to / file, words.encode())
            paths.append(to / file)
    for path, content in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
        paths.append(path)
    if as_json:
        typer.echo(text, nl=False)
        return
    for table in tables:
        out.print(table, highlight=False, markup=not isinstance(table, str))
    for sentence in found:
        out.print(f"• {sentence}", highlight=False, markup=False)
    if paths:
        out.print(
            ("\n" if found else "") + "\n".join(map(str, paths)),
            highlight=False,
            soft_wrap=True,
            markup=False,
        )


def _title(name: str, data: object) -> str:
    """What a page is of: the command's name; of a study also its models, and the task."""
    several = [x.facts for x in getattr(data, "models", ()) if hasattr(x, "facts")]  # compared
    facts = several[0] if several else getattr(data, "facts", None)
    models = " and ".join(each.model for each in several) or getattr(facts, "model", None)
    of = (models, getattr(facts, "task_and_corruption", None))
    what = name.replace("-", " ").capitalize()
    return ": ".join(filter(None, [what, ", ".join(filter(None, of))]))


def as_csvs(tables: Sequence[Table | str], name: str) -> dict[str, str]:
    """Each table as CSV by file name, numbered where there are several."""
    from resval_lens.analyses.results.tables import as_csv

    own = [as_csv(table) for table in tables if not isinstance(table, str)]
    numbered = [f"-{number}" for number in range(1, len(own) + 1)] if len(own) > 1 else [""]
    return {f"{name}{number}.csv": text for number, text in zip(numbered, own, strict=False)}


def report_runs(folders: Sequence[Path], as_json: bool) -> None:
    """Prints where finished training runs left their models; as JSON, with the last metrics.

    Of runs that kept no model it is their folder.
    """
    from resval_lens.io.provenance import provenance
    from resval_lens.training.run_folder import read_metrics

    kept = [folder / "model" if (folder / "model").is_dir() else None for folder in folders]
    if not as_json:
        for folder, model in zip(folders, kept, strict=True):
            out.print(str(model or folder), highlight=False, soft_wrap=True, markup=False)
        return
    runs = [
        {
            "folder": str(folder),
            "model": None if model is None else str(model),
            "metrics": read_metrics(folder)[-1],
        }
        for folder, model in zip(folders, kept, strict=True)
    ]
    typer.echo(as_text({"runs": runs, "provenance": provenance()}), nl=False)


def as_text(content: Any) -> str:
    """Indented JSON; numbers that JSON has not, NaN and the infinite, are null."""
    import json

    return json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
