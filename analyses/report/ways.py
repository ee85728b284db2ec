"""Ways for values to skip layers in tables of Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resval_lens.analyses.comparison.ways import Ways
from resval_lens.analyses.report.markdown import as_markdown, bullets, made, markdown_table


def ways(document: Mapping[str, Any]) -> str:
    """Every measure over seeds, what each layer's links are worth, and the strongest links."""
    study = Ways.from_dict(document)
    parts = [
        bullets(study.sentences()),
        f"{study.prompts} prompts; edges are scored on as many others.",
        *as_markdown(study.tables()),
    ]
    strongest = [
        [run.way, str(run.seed), ", ".join(f"`{e.edge}` {e.score:+z.2f}" for e in links)]
        for run in study.runs
        if run.circuit is not None and (links := run.circuit.strongest_links)
    ]
    columns = ["way", "seed", "strongest links of the circuit, with their scores"]
    parts += [markdown_table(columns, strongest, 3), made(document["provenance"])]
    return "\n\n".join(parts)
