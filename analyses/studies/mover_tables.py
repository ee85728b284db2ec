"""What moves the answer, and the tests of it, in tables and sentences."""

from __future__ import annotations

from rich.table import Table

from resval_lens.analyses.results.tables import NARROW, Row, in_groups, table
from resval_lens.analyses.studies.knockout_tables import (
    alone_table,
    knocked_out_table,
    needed_sentences,
    some,
    told,
)
from resval_lens.analyses.studies.movers import LEVELS, PUBLISHED, ROLES, Mover, MoverStudy

WHAT = "heads and MLPs"


def mover_tables(study: MoverStudy) -> list[Table]:
    """Nodes by role, roles knocked out, edges between levels, and the circuit of all nodes."""
    nodes = next(iter(study.knockouts.values())).minimality
    title = f"The circuit of the {len(nodes)} {WHAT} that have a role"
    return [
        _ability(study),
        _nodes(study),
        knocked_out_table(study.knockouts, study.held_out, WHAT),
        _edges(study),
        alone_table(study.knockouts, WHAT, title),
    ]


def mover_sentences(study: MoverStudy) -> list[str]:
    """Whether the model does the task, what moves the answer, and which roles it needs."""
    ability = "; ".join(
        f"{name} {each.clean:z.3f} (corrupted {each.corrupted:z.3f})"
        for name, each in study.ability.items()
    )
    there = [f"{role} ({len(study.movers[role])})" for role in ROLES if study.movers[role]]
    said = f"Nodes by role: {', '.join(there)}."
    published = PUBLISHED.get(study.facts.task, {})
    missing = [role for role in published if not study.movers[role]]
    if published:
        said += (
            f" Published for GPT-2 small but not found here: {', '.join(missing)}."
            if missing
            else " Every role published for GPT-2 small has nodes here."
        )
    return [
        f"{study.facts.model} on {study.held_out} prompts of {study.facts.task}: {ability}.",
        said,
        *needed_sentences(study.knockouts, WHAT),
    ]


def _ability(study: MoverStudy) -> Table:
    rows = [
        (name, f"{each.clean:z.3f}", f"{each.corrupted:z.3f}")
        for name, each in study.ability.items()
    ]
    return table(
        f"{study.facts.model}: {study.facts.task_and_corruption}", ("measure",),
        ("prompts", "corrupted"), rows, f"{study.held_out} held-out prompts", NARROW,
    )  # fmt: skip


def _nodes(study: MoverStudy) -> Table:
    levels, published = study.levels, PUBLISHED.get(study.facts.task, {})
    rows: list[Row] = []
    for role in ROLES:
        found = study.movers[role]
        if not found and role not in published:
            continue
        said = (f"{each.node} {each.effect:+z.2f}{_attends(each)}" for each in found)
        theirs = [" ".join(published.get(role, ()))] if published else []
        rows.append((role, *theirs, some(said), str(len(found))))
    made = table(
        f"{study.facts.model}: what moves the answer ({study.facts.prompts} prompts)",
        ("role", *["GPT-2 small"] * bool(published), "here, strongest first"), ("nodes",), rows,
        f"change of the {study.facts.metric} in parts of its gap, ≥ {levels.share:g}, with the "
        "edges into the next level corrupted\n(a head's attention from the end to the tokens that "
        f"corrupted prompts change; even: {levels.even:z.2f})"
        + "; GPT-2 small: Hanna et al. 2023" * bool(published),
        NARROW,
    )  # fmt: skip
    for column in made.columns[1:-1]:
        column.no_wrap = False
    return made


def _attends(mover: Mover) -> str:
    return "" if mover.attends is None else f" ({mover.attends:z.2f})"


def _edges(study: MoverStudy) -> Table:
    rows: list[list[str]] = []
    resample, mean = (study.knockouts[ablation].edges or () for ablation in ("resample", "mean"))
    for what, one, other in zip(
        LEVELS, resample, mean, strict=False
    ):  # no level after an empty one
        for metric in one.effects:
            both = (*told(one.effects[metric]), *told(other.effects[metric]))
            rows.append([what, metric, *both])
    return table(
        "All edges from a level into the next corrupted: change", ("",),
        ("resampled [95%]", "others", "at means [95%]", "others"), in_groups(rows),
        f"others: from as many {WHAT} without a role", NARROW,
    )  # fmt: skip
