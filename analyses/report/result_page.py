"""A study's result on one page that opens offline: what was found, figures, tables, provenance."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import unescape
from pathlib import PurePath
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from rich.table import Table

from resval_lens.analyses.display.display import figure_html
from resval_lens.analyses.display.page import page, permalink, slug, tools, words
from resval_lens.analyses.display.tables import html_table
from resval_lens.analyses.studies.patching import Patching

Drawn = Callable[[], tuple[Figure, str, str]]
"""Draws a figure, and gives its name and caption."""
SITES = {
    "resid_pre": "the residual stream before each layer",
    "z": "heads' outputs",
    "q_link": "what arrives over the query links",
    "k_link": "what arrives over the key links",
    "v_link": "what arrives over the value links",
}
WIDE = 12
"""Heat maps of more rows or columns stand alone on a line."""
PATCHED = (
    "The corrupted run takes one activation from the clean run: how much of the gap between the "
    "two does it recover (0: as corrupted, 1: as clean)? Below 0 the activation works against the "
    "answer."
)
IOI = (
    "IOI is naming the indirect object (IO), the one of two names that the prompt says once; the "
    "subject (S) is the other."
)
HOW = (
    '<p class="rv-quiet">Point at or touch a part of a figure, or Tab to it and go on with the '
    "arrow keys: it says its number. The buttons above a figure or a table save it; the PDF is the "
    "print view of that figure alone. ¶ is a link to the place. Wide figures and tables scroll "
    "sideways.</p>"
)


def result_page(
    document: Mapping[str, Any],
    title: str,
    purpose: str,
    name: str,
    said: Sequence[str],
    figures: Mapping[str, Figure],
    tables: Sequence[Table | str],
) -> str:
    """The page of any result: what was found, its figures, its tables.

    Args:
        document: the result as JSON, with its provenance.
        purpose: what it answers, in a sentence.
        name: of the JSON file that holds it all.
        figures: by file name; they are closed.
    """
    sections = {
        "Found": sentences(said),
        "Figures": "".join(
            drawn_figure(figure, PurePath(file).stem.replace("-", " "), "")
            for file, figure in figures.items()
        ),
        "Tables": "".join(
            f"<p>{words(each)}</p>" if isinstance(each, str) else html_table(each)
            for each in tables
        ),
        "Provenance": provenance(document["provenance"], {}, name),
    }
    lead = f"<p>{words(purpose)}</p>" if purpose else ""
    return sections_page(title, lead + HOW, sections)


def sections_page(title: str, lead: str, sections: Mapping[str, str]) -> str:
    """A page of ``sections``, HTML by heading; empty ones are left out.

    The contents stand below the lead; each section and each heading in it has its permalink.
    """
    shown = {heading: made for heading, made in sections.items() if made}
    contents = "".join(f'<li><a href="#{slug(each)}">{words(each)}</a></li>' for each in shown)
    body = [
        f"<h1>{words(title)}</h1>{lead}",
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>',
        *(_section(heading, made) for heading, made in shown.items()),
    ]
    return page(title, "\n".join(body))


def _section(heading: str, made: str) -> str:
    def linked(found: re.Match[str]) -> str:
        name = unescape(found[1])
        return f"<h3>{found[1]}{permalink(f'{heading} {name}', name)}</h3>"

    made = re.sub("<h3>([^<]*)</h3>", linked, made)
    name = words(heading)
    own = permalink(heading, heading)
    return f'<section aria-label="{name}"><h2>{name}{own}</h2>{made}</section>'


def findings(said: Sequence[str], drawn: Mapping[str, Drawn]) -> str:
    """What a page opens with: sentences, each with its figure below it.

    Args:
        drawn: by sentence; those without one stand alone.
    """
    lines = "".join(
        f'<li class="rv-finding"><p>{words(sentence)}</p>'
        f"{drawn_figure(*drawn[sentence]()) if sentence in drawn else ''}</li>"
        for sentence in said
    )
    return f'<ol class="rv-lead">{lines}</ol>'


def folded(said: Sequence[str]) -> str:
    """:func:`sentences`, folded."""
    if not said:
        return "<p>Nothing that is not above.</p>"
    return (
        f"<details><summary>{len(said)} sentences, with one number each</summary>"
        f"{sentences(said)}</details>"
    )


def patched_figures(patched: Sequence[tuple[str, Patching, Figure]]) -> str:
    """Heat maps by site, each with its model's name; small ones side by side."""
    sites = list(dict.fromkeys(found.site for _, found, _ in patched))
    maps = []
    for name, found, figure in sorted(patched, key=lambda each: sites.index(each[1].site)):
        what = f"{name}: {SITES.get(found.site, found.site)}"
        caption = f"{what}, by {' and '.join(found.axes)}."
        maps.append(drawn_figure(figure, f"{what}, patched", caption))
    wide = max(len(labels) for _, found, _ in patched for labels in found.axes.values()) > WIDE
    return "".join(maps) if wide else f'<div class="rv-pairs">{"".join(maps)}</div>'


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
    body = figure_html(figure, name, caption, tools(f"figure {name}", name))
    figure.set_layout_engine("none")  # an image of it is laid out as the page is
    plt.close(figure)
    return body
