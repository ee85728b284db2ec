"""Studies of a pretrained model in Markdown: roles, movers, repeats in text, a naming circuit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from resval_lens.analyses.report.markdown import as_markdown, made
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
    file, kind = STUDIES[name]
    document = read_json(folder / file, "a study")
    study = kind.from_dict(document)
    tables = study.tables()
    if isinstance(study, CircuitReport):
        tables = [measured_table(study.study.measured), scores_table(study.study)]
    said = "\n".join(f"- {each}" for each in sentences(name, folder))
    return "\n\n".join([said, *as_markdown(tables), made(document["provenance"])])


def sentences(name: str, folder: Path) -> list[str]:
    """What a study says; of a circuit also which roles its strongest heads have."""
    said = list(_read(name, folder).sentences())
    if name == "naming-circuit":
        said.append(_writers(folder))
    return said


def _read(name: str, folder: Path) -> Result:
    file, kind = STUDIES[name]
    return kind.from_dict(read_json(folder / file, "a study"))


def _writers(folder: Path) -> str:
    """The roles of the heads whose edges into the logits are strongest."""
    circuit, roles = _read("naming-circuit", folder), _read("roles", folder)
    assert isinstance(circuit, CircuitReport)
    assert isinstance(roles, RoleStudy)
    by_head: dict[str, list[str]] = {}
    for role, heads in roles.roles.roles.items():
        for each in heads:
            by_head.setdefault(each.head, []).append(role)
    into = {
        edge.removesuffix("->logits"): line.score
        for line in circuit.study.strongest
        if (edge := line.edge).endswith("->logits") and edge.startswith("a")
    }
    told = [f"{head} {score:+.2f} ({_or(by_head.get(head, ()))})" for head, score in into.items()]
    return (
        f"Of the {len(circuit.study.strongest)} strongest edges, those from heads into the logits, "
        f"with the roles that the heads have by {roles.facts.metric}: {', '.join(told)}."
    )


def _or(names: Sequence[str]) -> str:
    return " and ".join(names) or "none"
