"""Studies of a pretrained model in Markdown: roles, movers, repeats in text, a naming circuit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from resval_lens.analyses.report.markdown import as_markdown, bullets, made
from resval_lens.analyses.results.result import Result
from resval_lens.analyses.studies.circuit import CircuitReport, measured_table, scores_table
from resval_lens.analyses.studies.induction import InductionStudy
from resval_lens.analyses.studies.movers import MoverStudy
from resval_lens.analyses.studies.role_study import RoleStudy
from resval_lens.io.files import read_json

Kind = TypeVar("Kind", bound=Result)

STUDIES: Mapping[str, tuple[str, type[Result]]] = {
    "roles": ("roles.json", RoleStudy),
    "movers": ("greater-than.json", MoverStudy),
    "repeats": ("repeats.json", InductionStudy),
    "naming-movers": ("naming-movers.json", MoverStudy),
    "naming-circuit": ("naming-circuit.json", CircuitReport),
}
"""By the name of a part of the page: its document beside the page, and what that is."""


def part(name: str, folder: Path) -> str:
    """Sentences, and the tables of a study; of a circuit of thousands of edges the strongest."""
    study, provenance = _read(name, folder)
    tables = study.tables()
    if isinstance(study, CircuitReport):
        tables = [measured_table(study.study.measured), scores_table(study.study)]
    return "\n\n".join([bullets(sentences(name, folder)), *as_markdown(tables), made(provenance)])


def sentences(name: str, folder: Path) -> list[str]:
    """What a study says; of a circuit also which roles its strongest heads have."""
    study, _ = _read(name, folder)
    said = list(study.sentences())
    if name == "naming-circuit":
        said.append(_writers(folder))
    return said


@cache
def _read(name: str, folder: Path) -> tuple[Result, Mapping[str, Any]]:
    """A study and where it comes from; both pages and several parts ask for one."""
    file, kind = STUDIES[name]
    document = read_json(folder / file, "a study")
    return kind.from_dict(document), document["provenance"]


def _writers(folder: Path) -> str:
    """The roles of the heads whose edges into the logits are strongest."""
    circuit, roles = (_read(each, folder)[0] for each in ("naming-circuit", "roles"))
    assert isinstance(circuit, CircuitReport)
    assert isinstance(roles, RoleStudy)
    by_head = roles.roles.of_heads()
    into = {
        edge.removesuffix("->logits"): line.score
        for line in circuit.study.strongest
        if (edge := line.edge).endswith("->logits") and edge.startswith("a")
    }
    told = [f"{head} {score:+z.2f} ({_or(by_head.get(head, ()))})" for head, score in into.items()]
    return (
        f"Of the {len(circuit.study.strongest)} strongest edges, those from heads into the logits, "
        f"with the roles that the heads have by {roles.facts.metric}: {', '.join(told)}."
    )


def _or(names: Sequence[str]) -> str:
    return " and ".join(names) or "none"
