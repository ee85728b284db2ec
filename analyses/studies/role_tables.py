"""Roles of heads, and the tests of them, in tables."""

from __future__ import annotations

from rich.table import Table

from resval_lens.analyses.results.tables import NARROW, table
from resval_lens.analyses.studies.knockout_tables import (
    alone_table,
    knocked_out_table,
    needed_sentences,
    some,
    told,
)
from resval_lens.analyses.studies.role_study import PUBLISHED, RoleStudy
from resval_lens.analyses.studies.roles import ROLES
from resval_lens.numbers import number


def role_tables(study: RoleStudy) -> list[Table]:
    """Heads by role, roles knocked out, paths, and the circuit of all heads with a role."""
    heads = len(next(iter(study.knockouts.values())).minimality)
    title = f"The circuit of the {heads} heads that have a role, and all MLPs"
    return [
        _heads(study),
        knocked_out_table(study.knockouts, study.held_out, "heads"),
        *([_paths(study)] if study.paths else []),
        alone_table(study.knockouts, "heads", title),
    ]


def role_sentences(study: RoleStudy) -> list[str]:
    """Which roles there are, which of them the prompts need, and how far they make a circuit."""
    found = study.roles.roles
    missing = [role for role in PUBLISHED if not found[role]]
    there = [f"{role} ({len(found[role])})" for role in ROLES if found[role]]
    said = f"Roles of heads: {', '.join(there)}." + (
        f" Published for GPT-2 small but not found here: {', '.join(missing)}." if missing else ""
    )
    of_heads = study.roles.of_heads()
    several = [f"{head} ({' and '.join(own)})" for head, own in of_heads.items() if len(own) > 1]
    metric, own = next(iter(study.knockouts["resample"].circuit.items()))
    costs = sorted(
        (each.effects[metric].change.value, each.role) for each in study.knockouts["resample"].roles
    )
    return [
        said,
        f"Knocking out a role changes the {metric} ({own.clean:.2f}) by: "
        + ", ".join(f"{role} {number(cost, '+z.2f')}" for cost, role in costs)
        + (f". Heads of several roles: {', '.join(several)}." if several else "."),
        *_directly(study),
        *needed_sentences(study.knockouts, "heads"),
    ]


def _directly(study: RoleStudy) -> list[str]:
    """What the heads write that are known to write the name, without what others make of it."""
    return [
        f"Corrupting only what the heads that write names ({' '.join(path.senders)}) send straight "
        f"into the logits changes the {study.facts.metric} by "
        f"{path.effect.change.told('+z.2f').replace('-', '−')}; other heads of these layers by at "
        f"most {number(max(path.effect.drawn, key=abs), '+z.2f')}."
        for path in study.paths
        if path.receivers == ("logits",) and path.effect.drawn
    ]


def _heads(study: RoleStudy) -> Table:
    criteria = study.roles.criteria
    rows = [
        (role, " ".join(PUBLISHED.get(role, ())), some(head.head for head in had), str(len(had)))
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


def _paths(study: RoleStudy) -> Table:
    rows = [(some(p.senders), some(p.receivers), *told(p.effect)) for p in study.paths]
    return table(
        f"Paths: change of the {study.facts.metric}", ("from", "into"),
        ("change [95%]", "others"), rows,
        "all senders' paths corrupted together; others: from as many heads without a role", NARROW,
    )  # fmt: skip
