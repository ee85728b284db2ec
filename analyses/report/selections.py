"""Selections of edges in tables of Markdown: CPR and CMD of each, beside the first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from resval_lens.analyses.report.markdown import made, markdown_table
from resval_lens.analyses.studies.selections import Area, SelectionCurve, SelectionStudy


def selections(report: Mapping[str, Any]) -> str:
    """A table of each model: selections, and their areas by every method's scores."""
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for document in report["studies"]:
        by_model.setdefault(document["model"], []).append(document)
    return "\n".join(_of_model(name, several) for name, several in by_model.items())


def _of_model(name: str, documents: list[Mapping[str, Any]]) -> str:
    studies = [SelectionStudy.from_dict(each) for each in documents]
    first = studies[0]
    curves = {
        (each.method, each.select, each.bootstrapped): each
        for study in studies
        for each in study.curves
    }
    methods = sorted({method for method, *_ in curves})
    rules = list(dict.fromkeys((select, sure) for _, select, sure in curves))
    rows = []
    for select, sure in rules:
        cells = [f"`{select}`" + ", stable first" * sure]
        for method in methods:
            curve = curves.get((method, select, sure))
            cells += ["", ""] if curve is None else [_cell(curve, "cpr"), _cell(curve, "cmd")]
        rows.append(cells)
    columns = ["selection", *(f"{area}, {m}" for m in methods for area in ("CPR", "CMD"))]
    stable = {name: one for study in studies for name, one in study.stable.items()}
    said = " and ".join(f"{stable[m].edges:,} by {m}" for m in methods)
    plain, stable_first = (f"{_gap(curves.values(), which):.2%}" for which in (False, True))
    return (
        f"**{name}**, {first.n_edges_of_model:,} edges, scored on {first.facts.prompts} prompts "
        f"and run on {first.held_out} others. Scores that keep their sign: {said}. An optimum’s "
        f"sum is at most {plain} below the best, stable first at most {stable_first}.\n\n"
        f"{markdown_table(columns, rows)}\n"
        + "\n".join(made(document["provenance"]) for document in documents)
    )


def _gap(curves: Iterable[SelectionCurve], bootstrapped: bool) -> float:
    """The largest gap of a circuit; 0 where no selection has any."""
    own = [each.gaps or () for each in curves if each.bootstrapped == bootstrapped]
    return max((gap for gaps in own for gap in gaps), default=0.0)


def _cell(curve: SelectionCurve, area: Area) -> str:
    """The area with its interval: bold where better than the first selection's, italic where
    worse."""
    mark = {1: "**", 0: "", -1: "*"}[curve.verdict(area)]
    found = curve.cpr if area == "cpr" else curve.cmd
    return f"{mark}{found.told()}{mark}"
