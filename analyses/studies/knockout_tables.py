"""Roles knocked out, and the circuit of all nodes with a role, in tables and sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.table import Table

from resval_lens.analyses.results.tables import NARROW, Row, in_groups, table
from resval_lens.analyses.studies.knockouts import Effect, Knockouts

MOST = 12
"""Nodes of a role that a table names."""


def some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - MOST} more" if len(every) > MOST else ""
    return " ".join(every[:MOST]) + more


def told(effect: Effect) -> tuple[str, str]:
    """A change above its interval, and the draw of others that changes most."""
    value, _, interval = effect.change.told("+z.2f").partition(" ")
    return f"{value}\n{interval}", f"{max(effect.drawn, key=abs):+z.2f}"


def needed_sentences(knockouts: Mapping[str, Knockouts], what: str) -> list[str]:
    """Of each metric which roles it needs, and how far all nodes with a role make a circuit.

    Needed is a role whose knock-out lowers a metric under both ablations
    (:attr:`~resval_lens.analyses.studies.knockouts.Effect.lowers`).
    """
    resample, mean = (knockouts[ablation] for ablation in ("resample", "mean"))
    said = []
    for metric in resample.circuit:
        needed = [
            one.role
            for one, other in zip(resample.roles, mean.roles, strict=True)
            if one.effects[metric].lowers and other.effects[metric].lowers
        ]
        f, others = resample.circuit[metric].faithfulness, max(resample.circuit[metric].drawn)
        at_means = mean.circuit[metric].faithfulness
        said.append(
            f"{metric}: needed both resampled and at means: {', '.join(needed) or 'no role'}. The "
            f"circuit of all {len(resample.minimality)} {what} keeps {f:.0%} of it "
            f"({at_means:.0%} with others at means); the best of as many other {what} keeps "
            f"{others:.0%}."
        )
    return said


def knocked_out_table(knockouts: Mapping[str, Knockouts], held_out: int, what: str) -> Table:
    """What each metric loses without a role; ``what`` has roles, say heads."""
    rows: list[list[str]] = []
    resample, mean = (knockouts[ablation].roles for ablation in ("resample", "mean"))
    for metric in resample[0].effects:
        for one, other in zip(resample, mean, strict=True):
            both = (*told(one.effects[metric]), *told(other.effects[metric]))
            rows.append([metric, one.role, *both, f"{one.incomplete[metric]:z.2f}"])
    return table(
        f"Roles knocked out: change on {held_out} other prompts", ("",),
        ("resampled [95%]", "others", "at means [95%]", "others", "apart"), in_groups(rows),
        f"others: as many {what} without a role, of layers as near as there are (the draw that "
        "changes most);\napart: |circuit − model|, both without the role, resampled",
        NARROW,
    )  # fmt: skip


def alone_table(knockouts: Mapping[str, Knockouts], what: str, title: str) -> Table:
    """What all nodes with a role keep of each metric, beside as many others."""
    rows: list[Row] = []
    for ablation, found in knockouts.items():
        for metric, own in found.circuit.items():
            rows.append((
                ablation, metric,
                *(f"{x:z.3f}" for x in (own.clean, own.corrupted, own.circuit)),
                f"{own.faithfulness:z.2f}", f"{max(own.drawn):z.2f}",
            ))  # fmt: skip
    return table(
        title, (f"other {what}", "metric"), ("model", "corrupted", "circuit", "f", "others' f"),
        rows, f"others' f: the best of as many {what} without a role", NARROW,
    )  # fmt: skip
