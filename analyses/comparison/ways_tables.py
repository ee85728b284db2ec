"""Ways for values to skip layers, in tables and sentences."""

from __future__ import annotations

import math

from rich.table import Table

from resval_lens.analyses.comparison.ways import GROUPS, LEVELS, WHOLE, Ways
from resval_lens.analyses.results.seeds import SURE, TTests, spread
from resval_lens.analyses.results.tables import NARROW, in_sections, p_cell, p_told, table


def ways_tables(study: Ways) -> list[Table]:
    """Every measure, the tests, and what each layer's links are worth."""
    seeds = {way: sum(run.way == way for run in study.runs) for way in study.ways}
    counts = ", ".join(f"{name} {count}" for name, count in seeds.items())
    first, *others = study.ways
    whole = table(
        f"Ways for values to skip layers (seeds: {counts})", ("",), study.ways,
        (line and line[1:] for line in in_sections(_lines(study))),
        "mean ± population sd over seeds; a step is that of the first evaluation above",
        NARROW,
    )  # fmt: skip
    tested = [
        (row.measure, *(_told_p(row.tests[way]) for way in others))
        for row in study.rows
        if any(row.tests[way].p_holm is not None for way in others)
    ]
    tests = table(
        f"Against {first}", ("p, independent / paired by seed",), others, tested,
        "t-tests, each kind corrected by Holm for this table", NARROW,
    )  # fmt: skip
    return [whole, *([tests] if tested else []), _cut_table(study)]


def ways_sentences(study: Ways) -> list[str]:
    """When the task emerges, what cutting the links costs, and what of circuits they carry."""
    rows = {row.measure: row.ways for row in study.rows}
    first, *others = study.ways
    said, step = [], f"training: step of {LEVELS[0][1]} > 0.5, seen"
    if step in rows:
        sooner = sorted(study.ways, key=lambda way: rows[step][way].mean or math.inf)
        told = "; ".join(
            f"{way} {', '.join(_step(x) for x in rows[step][way].by_seed.values())}"
            for way in sooner
        )
        said.append(f"P(IO) on seen prompts exceeds .5 at step (each seed): {told}.")
    for name, kind in (
        ("p_holm", "independent runs"),
        ("p_paired_holm", "runs paired by seed"),
    ):
        tests = [(row.measure, way, getattr(test, name)) for row in study.rows
                 for way, test in row.tests.items()]  # fmt: skip
        tried = [each for each in tests if each[2] is not None]
        stand = [f"{measure} ({way}, {p_told(p)})" for measure, way, p in tried if p < SURE]
        said.append(
            f"Of {len(tried)} differences from {first}, tested as {kind}, "
            f"{len(stand) or 'none'} stand{'s' * (len(stand) == 1)} after Holm's correction"
            + (f": {', '.join(stand)}." if stand else ".")
        )
    for way in others:
        own = {name: rows[name][way] for name in rows}
        cut, left = own["links cut: P(IO)"], own["trained: P(IO)"]
        if cut.mean is None or left.mean is None:
            continue
        more = own["links cut: story loss, more by"].told("z.2f")
        share = own["circuit: share of its effect through links"]
        through = "" if share.mean is None else (
            f" {share.told('.0%')} of its circuits' effect runs through links."
        )  # fmt: skip
        said.append(
            f"{way}: with links cut, P(IO) is {cut.told('.2f')} instead of {left.mean:z.2f}, the "
            f"logit difference {own['links cut: logit difference'].told('.1f')} instead of "
            f"{own['trained: logit difference'].mean or 0:z.1f}, and stories cost {more} nats "
            f"more.{through}"
        )
    return said


def _lines(study: Ways) -> list[tuple[str, ...]]:
    found = []
    for row in study.rows:
        group, _, name = row.measure.partition(": ")
        form = ",.0f" if row.measure in WHOLE or name.startswith("step") else "z.3f"
        told = [row.ways[way].told(form) if row.ways[way].by_seed else "" for way in study.ways]
        found.append((group, row.measure if group in GROUPS[2:] else name, *told))
    return found


def _cut_table(study: Ways) -> Table:
    metrics = tuple(study.runs[0].clean)
    groups: dict[tuple[str, str], dict[int, list[float]]] = {}
    for run in study.runs:
        for cut in run.cuts:
            left = [cut.measures[name] - run.clean[name] for name in metrics]
            groups.setdefault((run.way, cut.links), {})[run.seed] = [
                *left, cut.story_loss - run.story_loss
            ]  # fmt: skip
    rows = [
        (
            *names,
            *(
                spread(dict(zip(of, column, strict=True))).told("+z.3f")
                for column in zip(*of.values(), strict=True)
            ),
        )
        for names, of in groups.items()
    ]
    return table(
        "Links at zero: change", ("way", "links"), (*metrics, "story loss"),
        in_sections(rows), "against the model with all links; loss in nats a token",
    )  # fmt: skip


def _step(step: float | None) -> str:
    return "never" if step is None else f"{step:,.0f}"


def _told_p(tests: TTests) -> str:
    both = tests.p_holm, tests.p_paired_holm
    return "" if both == (None, None) else " / ".join(p_cell(p) or "–" for p in both)
