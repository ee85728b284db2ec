"""What the link does, over seeds: the results page's section, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from resval_lens.analyses.comparison.link_grading import GRADES
from resval_lens.analyses.comparison.link_moments import LAST, MOMENTS
from resval_lens.analyses.comparison.link_over_seeds import (
    FILE,
    RECORDED,
    STUDY,
    LinkOverSeeds,
    link_over_seeds,
    link_studies,
)
from resval_lens.analyses.comparison.link_over_seeds_rows import GRADED_TASKS, LINKED, Difference
from resval_lens.analyses.comparison.link_over_seeds_told import (
    sentences,
    table_of_tests,
)
from resval_lens.analyses.report.markdown import as_markdown, bullets, made, markdown_table
from resval_lens.analyses.results.seeds import Spread
from resval_lens.io.files import read_json
from resval_lens.tasks.icl import TASKS


@cache
def recorded_link(folder: Path = RECORDED) -> LinkOverSeeds:
    """The study over the seeds that ship, or of another folder's."""
    return link_over_seeds(link_studies([folder]))


def link_over_seeds_section(folder: Path | None = None) -> str:
    """Sentences; edits, degrees and recovery, each with its tests."""
    folder = folder or RECORDED
    study = recorded_link(folder)
    said = bullets(_escaped(sentences(study)))
    steps = "; ".join(
        f"{_at(at)}: " + ", ".join(f"{kind} {x.told(',.0f')}" for kind, x in kinds.items())
        for at, kinds in study.steps.items()
    )
    return "\n\n".join((
        said,
        f"Steps of the snapshots: {steps}. {_norms(study)}",
        f"**Edits of the link.** {_edits(study, [LINKED])}",
        _tests("Edits, IC, first − second, paired by seed", study.edit_tests),
        f"**Runs without links.** {_edits(study, [k for k in study.seeds if k != LINKED])}",
        f"**By degrees.** {_degrees(study)}",
        _tests(
            "Slopes, first − second, paired by seed",
            [test for test in study.degree_tests if test.first != "link, dimensions"],
        ),
        f"**More steps without it.** {_recovered(study)}",
        _tests("After more steps, IC, first − second, paired by seed", study.recovery_tests),
        _made(folder),
    ))  # fmt: skip


def _made(folder: Path) -> str:
    """Which command made the first run's study; the others' differ in the run."""
    first, *others = sorted(folder.glob(f"*/{FILE}"))
    how = read_json(first, STUDY).get("provenance")
    if how is None:
        return ""
    return f"{made(how).rstrip()} So were those of the {len(others)} other runs, each on its own."


def _norms(study: LinkOverSeeds) -> str:
    """How large the parts of the values are."""
    told = "; ".join(
        f"{_at(at)}: " + ", ".join(f"{part} {x.told('.2f')}" for part, x in kinds[LINKED].items())
        for at, kinds in study.norms.items()
        if LINKED in kinds
    )
    return f"Norms of layer 1’s values on IC ({LINKED}): {told}."


def _escaped(texts: Sequence[str]) -> list[str]:
    return [text.replace(">", "&gt;") for text in texts]


def _at(moment: str) -> str:
    return moment if moment == LAST else moment.replace(">", "&gt;")


def _row(by_moment: Mapping[str, Mapping[str, Spread]]) -> list[str]:
    """IC, IC2 and IW at each moment."""
    return [
        by_moment[at][task].told(".3f") if at in by_moment else ""
        for task in GRADED_TASKS
        for at in MOMENTS
    ]


COLUMNS = [f"{TASKS[task]}, {_at(at)}" for task in GRADED_TASKS for at in MOMENTS]


def _edits(study: LinkOverSeeds, kinds: Sequence[str]) -> str:
    rows: dict[tuple[str, str], dict[str, Mapping[str, Spread]]] = {}
    for each in study.edits:
        if each.kind in kinds:
            rows.setdefault((each.kind, each.edit), {})[each.moment] = each.accuracy
    table = markdown_table(
        ["run", "edit", *COLUMNS], ([*key, *_row(found)] for key, found in rows.items()), 2
    )
    seeds = "; ".join(f"{kind}: {len(study.seeds[kind])} seeds" for kind in kinds)
    return f"Accuracy ({seeds}; {study.sequences:,} sequences).\n\n{table}"


def _degrees(study: LinkOverSeeds) -> str:
    shown = [GRADES.index(c) for c in (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)]
    rows = [
        [
            each.kind,
            each.scaled,
            _at(each.moment),
            TASKS[each.task],
            *(f"{each.mean[i]:.3f}" for i in shown),
            each.slope.told("+z.3f"),
            "" if each.correlation.mean is None else each.correlation.told("+z.2f"),
        ]
        for each in study.degrees
        if each.task in GRADED_TASKS and each.kind == LINKED
    ]
    columns = ["run", "scaled", "at", "task", *(f"c = {GRADES[i]:g}" for i in shown), "slope", "r"]
    return (
        f"Accuracy with c of it left (means), the slope of accuracy on c over {len(GRADES)} "
        f"values, and Pearson’s r, by seed.\n\n{markdown_table(columns, rows, 4)}"
    )


def _recovered(study: LinkOverSeeds) -> str:
    rows = [
        [
            each.kind,
            each.removed,
            _at(each.moment),
            *(
                f"{each.before[task].told('.3f')} → {each.after[task].told('.3f')}"
                for task in GRADED_TASKS
            ),
        ]
        for each in study.recovered
    ]
    steps = ", ".join(dict.fromkeys(f"{each.steps:,}" for each in study.recovered))
    table = markdown_table(
        ["run", "removed", "at", *(TASKS[task] for task in GRADED_TASKS)], rows, 3
    )
    return f"Accuracy before → after {steps} steps.\n\n{table}"


def _tests(title: str, tests: Sequence[Difference]) -> str:
    return "\n\n".join(_escaped(as_markdown([table_of_tests(title, tests)])))
