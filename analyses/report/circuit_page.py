"""``resval-lens circuit``: one circuit on a page that opens offline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resval_lens.analyses.display.circuit import circuits_body
from resval_lens.analyses.display.page import page, words
from resval_lens.analyses.display.tables import html_table
from resval_lens.analyses.report.result_page import provenance, sentences
from resval_lens.analyses.studies.circuit import CircuitReport
from resval_lens.analyses.studies.circuit_drawing import evaluated_drawings


def circuit_page(found: CircuitReport, document: Mapping[str, Any]) -> str:
    """The page: the circuit, what was found, the tables.

    Args:
        document: what ``circuit.json`` holds, with its provenance.
    """
    title = f"Circuit of {found.facts.model}: {found.facts.task_and_corruption}"
    parts = [
        f"<h1>{words(title)}</h1>",
        "<p>The strength of an edge is what the metric loses without it. Every edge that is not in "
        "the circuit carries what it carries on the corrupted prompt.</p>",
        circuits_body(evaluated_drawings({"": found.study.circuit}), title),
        sentences(found.sentences()),
        *(html_table(table) for table in found.tables() if not isinstance(table, str)),
        provenance(document["provenance"], {}, "circuit.json"),
    ]
    return page(title, "\n".join(parts))
