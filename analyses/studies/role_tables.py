"""Roles of heads, and the tests of them, in tables."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from resval_lens.analyses.results.tables import NARROW, Row, table
from resval_lens.analyses.studies.knockouts import Effect, Knockouts, RoleEffect
from resval_lens.analyses.studies.role_study import PUBLISHED, RoleStudy
from resval_lens.analyses.studies.roles import ROLES

MOST = 12
"""Heads of a role that a table names."""


def role_tables(study: RoleStudy) -> list[Table]:
    """Heads by role, roles knocked out, paths, and the circuit of all heads with a role."""
    return [_heads(study), _knocked_out(study), *([_paths(study)] if study.paths else []),
            _circuit(study)]  # fmt: skip


def role_sentences(study: RoleStudy) -> list[str]:
    """Which roles there are, which of them the prompts need, and how far they make a circuit.

    Needed is a role whose knock-out lowers a metric under both ablations: the intervals lie below
    0, and the change is below that of every draw of other heads.
    """
    found = study.roles.roles
    missing = [role for role in PUBLISHED if not found[role]]
    there = [f"{role} ({len(found[role])})" for role in ROLES if found[role]]
    said = [
        f"Roles that heads have: {', '.join(there)}."
        + (f" Published for GPT-2 small and not here: {', '.join(missing)}." if missing else "")
    ]
    resample, mean = (study.knockouts[ablation] for ablation in ("resample", "mean"))
    for metric in resample.circuit:
        needed = [
            one.role
            for one, other in zip(resample.roles, mean.roles, strict=True)
            if all(_lowers(each.effects[metric]) for each in (one, other))
        ]
        f, others = resample.circuit[metric].faithfulness, max(resample.circuit[metric].drawn)
        at_means = mean.circuit[metric].faithfulness
        said.append(
            f"{metric}: needed, resampled and at means: {', '.join(needed) or 'no role'}. The "
            f"circuit of all {len(resample.minimality)} heads keeps {f:.0%} of it (others at means "
            f"{at_means:.0%}), the best of as many other heads {others:.0%}."
        )
    return said


def _lowers(effect: Effect) -> bool:
    return effect.change.high < 0 and effect.change.value < min(effect.drawn)


def _heads(study: RoleStudy) -> Table:
    criteria = study.roles.criteria
    rows = [
        (role, " ".join(PUBLISHED.get(role, ())), _some(head.head for head in had), str(len(had)))
        for role in ROLES
        if (had := study.roles.roles[role]) or role in PUBLISHED
    ]
    made = table(
        f"{study.facts.model}: heads by role ({study.facts.prompts} prompts)",
        ("role", "GPT-2 small", "here, most typical first"), ("heads",), rows,
        f"attention ≥ {criteria.attention:g}, shares ≥ {criteria.share:g}; GPT-2 small: "
        "layer.head, Wang et al. 2022",
        NARROW,
    )  # fmt: skip
    for column in made.columns[1:3]:
        column.no_wrap = False
    return made


def _some(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - MOST} more" if len(every) > MOST else ""
    return " ".join(every[:MOST]) + more


def _knocked_out(study: RoleStudy) -> Table:
    rows: list[Row] = []
    resample, mean = (study.knockouts[ablation].roles for ablation in ("resample", "mean"))
    for metric in resample[0].effects:
        rows += [None, [f"[bold]{metric}[/bold]"]]
        for one, other in zip(resample, mean, strict=True):
            told = (*_told(one.effects[metric]), *_told(other.effects[metric]))
            rows.append([f"  {one.role}", *told, f"{one.incomplete[metric]:.2f}"])
    return table(
        f"Roles knocked out: change on {study.held_out} other prompts", ("",),
        ("resampled [95%]", "others", "at means [95%]", "others", "incomplete"), rows,
        "others: as many heads without a role, of layers as near as there are (the draw that "
        "changes most);\nincomplete: |circuit − model|, both without the role, resampled",
        NARROW,
    )  # fmt: skip


def _told(effect: Effect) -> tuple[str, str]:
    return effect.change.told("+z.2f"), f"{max(effect.drawn, key=abs):+z.2f}"


def _paths(study: RoleStudy) -> Table:
    rows = [(_some(p.senders), _some(p.receivers), *_told(p.effect)) for p in study.paths]
    return table(
        f"Paths: change of the {study.facts.metric}", ("from", "into"),
        ("change [95%]", "others"), rows,
        "all senders' paths corrupted together; others: from as many heads without a role", NARROW,
    )  # fmt: skip


def _circuit(study: RoleStudy) -> Table:
    rows: list[Row] = []
    for ablation, found in study.knockouts.items():
        for metric, own in found.circuit.items():
            rows.append((
                ablation, metric, f"{own.clean:.3f}", f"{own.corrupted:.3f}", f"{own.circuit:.3f}",
                f"{own.faithfulness:.2f}", f"{max(own.drawn):.2f}",
            ))  # fmt: skip
    heads = next(iter(study.knockouts.values())).minimality
    return table(
        f"The circuit of the {len(heads)} heads that have a role, and all MLPs",
        ("other heads", "metric"), ("model", "corrupted", "circuit", "f", "others' f"), rows,
        "others' f: the best of as many heads without a role", NARROW,
    )  # fmt: skip
