"""A study's result on one page that opens offline: what was found, figures, tables, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from resval_lens.analyses.display.display import figure_html
from resval_lens.analyses.display.page import page, words
from resval_lens.analyses.display.tables import html_table
from resval_lens.analyses.results.result import Result


def result_page(result: Result, document: Mapping[str, Any], title: str, name: str) -> str:
    """The page of any result: its sentences, figures and tables as they are.

    Args:
        document: the result as JSON, with its provenance.
        name: of the JSON file that holds it all.
    """
    tables = "".join(
        f"<p>{words(each)}</p>" if isinstance(each, str) else html_table(each)
        for each in result.tables()
    )
    figures = "".join(
        drawn_figure(figure, PurePath(file).stem.replace("-", " "), "")
        for file, figure in result.figures().items()
    )
    sections = {"Found": sentences(result.sentences()), "Tables": tables, "Figures": figures,
                "Provenance": provenance(document["provenance"], {}, name)}  # fmt: skip
    body = "".join(
        f'<section aria-labelledby="{heading.lower()}"><h2 id="{heading.lower()}">{heading}</h2>'
        f"{made}</section>"
        for heading, made in sections.items()
        if made
    )
    return page(title, f"<h1>{words(title)}</h1>{body}", with_circuitsvis=False)


def sentences(said: Sequence[str]) -> str:
    """A list of what was found; nothing where there is nothing."""
    lines = "".join(f"<li>{words(sentence)}</li>" for sentence in said)
    return f"<ul>{lines}</ul>" if lines else ""


def provenance(
    facts: Mapping[str, Any], settings: Mapping[str, Any], name: str, besides: str = ""
) -> str:
    """Where a page's numbers are from, and the JSON file that has them all."""
    rows = {
        "command": f"<code>{words(facts['command'])}</code>",
        "created": words(facts["created"]),
        "git commit": words(facts["git_commit"] or "not in a git checkout"),
        **{words(name): words(number) for name, number in facts["versions"].items()},
        "machine": words(facts["machine"]),
        **{words(name): words(str(value)) for name, value in settings.items()},
    }
    lines = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows.items())
    return (
        f"<dl>{lines}</dl><p class='rv-quiet'>All numbers of this page, and more, are in the "
        f"{words(name)} that the same command wrote{words(besides)}.</p>"
    )


def drawn_figure(figure: Figure, name: str, caption: str) -> str:
    """A figure with its numbers under the pointer; it is closed."""
    body = figure_html(figure, name, caption)
    figure.set_layout_engine("none")  # an image of it is laid out as the page is
    plt.close(figure)
    return body
