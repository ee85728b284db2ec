"""What the study of the link over seeds found, in sentences and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from resval_lens.analyses.comparison.link_controls import CUT, CUT_KEPT, DOUBLED, TRAINED
from resval_lens.analyses.comparison.link_grading import GRADES
from resval_lens.analyses.comparison.link_moments import LAST, LEVELS, MOMENTS
from resval_lens.analyses.comparison.link_over_seeds import LinkOverSeeds
from resval_lens.analyses.comparison.link_over_seeds_rows import GRADED_TASKS, LINKED, Difference
from resval_lens.analyses.comparison.link_recovery import KEPT
from resval_lens.analyses.results.seeds import SURE, Spread, holm, spread, t_tests
from resval_lens.analyses.results.tables import in_sections, optional, p_cell, p_told, table
from resval_lens.tasks.icl import TASKS

if TYPE_CHECKING:
    from rich.table import Table

WHEN = {
    **{name: f"at the first snapshot with {name}" for name in LEVELS},
    LAST: "at the last snapshot",
}
SMALLER = "own × √½"
"""The edit of own values by what a cut link leaves of the size of own and link together."""
_AXIS_NAMES = {**TASKS, "ic − iw": "IC − IW"}


def paired_test(tests: Sequence[Difference], moment: str, first: str, second: str, task: str = "ic",
            kind: str = LINKED) -> Difference | None:  # fmt: skip
    """The one of these; None where it was not made."""
    key = moment, kind, task, first, second
    found = (x for x in tests if (x.moment, x.kind, x.task, x.first, x.second) == key)
    return next(found, None)


def _paired(test: Difference) -> str:
    """The paired p, and after Holm's correction."""
    own = test.tests
    if own.p_paired is None:
        return "no test"
    return f"{p_told(own.p_paired)}, by Holm {p_told(own.p_paired_holm)}"


def is_sure(test: Difference) -> bool:
    """Whether the paired test stands after Holm's correction."""
    return test.tests.p_paired_holm is not None and test.tests.p_paired_holm < SURE


def sentences(study: LinkOverSeeds) -> list[str]:
    """Cut, gain, prediction, recovery: a sentence or two each."""
    found = [f"{len(study.seeds[LINKED])} seeds, {study.sequences:,} sequences of each test."]
    for at in _moments(study):
        found += _gain(study, at)
    found += _whole_study(study)
    for kind, scaled in dict.fromkeys((each.kind, each.first) for each in study.degree_tests):
        found += [said for at in MOMENTS for said in _prediction(study, at, kind, scaled)]
    found += [said for at in _moments(study) for said in _at_one_size(study, at)]
    found += [said for at in _moments(study) for said in _recovery(study, at)]
    return found


def _moments(study: LinkOverSeeds) -> list[str]:
    return [at for at in MOMENTS if LINKED in study.steps[at]]


def _gain(study: LinkOverSeeds, at: str) -> Iterator[str]:
    """What a cut costs, what of it a larger own part gives back, and what is left."""
    trained, cut = study.accuracy(at, TRAINED), study.accuracy(at, CUT)
    test = paired_test(study.edit_tests, at, TRAINED, CUT)
    assert test is not None
    iw = [study.accuracy(at, edit, "iw").told(".3f") for edit in (TRAINED, CUT)]
    yield (
        f"A{WHEN[at][1:]} cutting the link takes IC from {trained.told('.3f')} to "
        f"{cut.told('.3f')} ({_paired(test)}), IW from {iw[0]} to {iw[1]}."
    )
    said, more = [], []
    for edit in (CUT_KEPT, DOUBLED):
        left = paired_test(study.edit_tests, at, TRAINED, edit)
        assert left is not None
        back = spread({
            seed: (study.accuracy(at, edit).by_seed[seed] - cut.by_seed[seed])  # type: ignore[operator]
            / (trained.by_seed[seed] - cut.by_seed[seed])  # type: ignore[operator]
            for seed in trained.by_seed
            if trained.by_seed[seed] != cut.by_seed[seed]
        })  # fmt: skip
        more.append(left)
        said.append(
            f"“{edit}” restores {back.told('.0%')} of that IC, and "
            f"{left.difference.told('z.3f')} is still missing ({_paired(left)})"
        )
    missing = all((x.difference.mean or 0) > 0 and is_sure(x) for x in more)
    verdict = (
        "the link carries more than these gains"
        if missing
        else "it is not shown that the link carries more than gain"
    )
    yield f"{'; '.join(said)}: {verdict}."


def _whole_study(study: LinkOverSeeds) -> Iterator[str]:
    """What stays missing after a cut that keeps size, corrected for every test of the study."""
    every = [*study.edit_tests, *study.degree_tests, *study.recovery_tests]
    tested = [each for each in every if each.tests.p_paired is not None]
    p = holm([each.tests.p_paired for each in tested])
    parts = [
        f"{p_told(x)} {WHEN[each.moment]}"
        for each, x in zip(tested, p, strict=True)
        if (each.kind, each.first, each.second) == (LINKED, TRAINED, CUT_KEPT) and x is not None
    ]
    if parts:
        yield (
            f"Corrected for all {len(tested)} tests of the study instead of those of a table, what "
            f"“{CUT_KEPT}” leaves missing has {', '.join(parts)}."
        )


SCALED = {
    "link": "the link", "link, norm kept": "the link with the norm kept",
    "own": "layer 1’s own values",
}  # fmt: skip
"""What is scaled, in sentences; a table has the others, too."""


def _prediction(study: LinkOverSeeds, at: str, kind: str, scaled: str) -> Iterator[str]:
    """Slopes of accuracy on what is left of the link, or of the own part: is it as predicted?"""
    slopes = {
        task: paired_test(study.degree_tests, at, scaled, "none", task, kind)
        for task in GRADED_TASKS
    }
    if scaled not in SCALED or None in slopes.values():
        return
    tests = {task: test for task, test in slopes.items() if test is not None}
    told = ", ".join(
        f"{TASKS[task]} {test.difference.told('+z.2f')} ({p_told(test.tests.p_paired_holm)})"
        if test.tests.p_paired_holm is not None
        else f"{TASKS[task]} {test.difference.told('+z.2f')}"
        for task, test in tests.items()
    )
    ways = {
        task: 0 if not is_sure(test) else 1 if (test.difference.mean or 0) > 0 else -1
        for task, test in tests.items()
    }
    hits = ways["ic"] == ways["ic2"] == 1
    verdict = (
        "IC and IC2 fall with it" if hits else "it is not shown that IC and IC2 both fall with it"
    )
    verdict += {
        1: ", and so does IW" if hits else "; IW falls", -1: "; IW rises",
        0: "; no change of IW is shown",
    }[ways["iw"]]  # fmt: skip
    model = "" if kind == LINKED else f"In {kind}, which has no link, "
    said = f"{model}scaling {SCALED[scaled]} down {WHEN[at]}: slopes of accuracy {told}: {verdict}."
    yield said[0].upper() + said[1:]


def _at_one_size(study: LinkOverSeeds, at: str) -> Iterator[str]:
    """A cut link beside own values without a link that are made smaller by as much, about."""

    def change(kind: str, edit: str, task: str) -> Spread:
        trained, edited = (study.accuracy(at, x, task, kind).by_seed for x in (TRAINED, edit))
        return spread({
            seed: edited[seed] - trained[seed] for seed in trained  # type: ignore[operator]
        })  # fmt: skip

    cut = {task: change(LINKED, CUT, task) for task in ("ic", "iw")}
    told = []
    for kind in study.steps[at]:
        if any((each.moment, each.kind, each.edit) == (at, kind, SMALLER) for each in study.edits):
            smaller = {task: change(kind, SMALLER, task) for task in cut}
            p = t_tests(cut["ic"].by_seed, smaller["ic"].by_seed).p_paired
            told.append(
                f"{smaller['ic'].told('+z.3f')} and {smaller['iw'].told('+z.3f')} in {kind}"
                + (f" ({p_told(p)} of IC’s difference)" if p is not None else "")
            )
    if told:
        yield (
            f"A{WHEN[at][1:]}, where both lose about the same size: cutting the link changes IC by "
            f"{cut['ic'].told('+z.3f')} and IW by {cut['iw'].told('+z.3f')}; “{SMALLER}” without a "
            f"link by {', '.join(told)}; paired, not corrected."
        )


def _recovery(study: LinkOverSeeds, at: str) -> Iterator[str]:
    """What more steps without the link give back of what they would have been."""
    own = {
        each.removed: each for each in study.recovered if (each.moment, each.kind) == (at, LINKED)
    }
    if not own:
        return
    kept, cut = own[KEPT], own[CUT]
    missing = [
        paired_test(study.recovery_tests, at, f"{KEPT}, after", f"{removed}, after")
        for removed in (CUT, DOUBLED)
    ]
    alone, doubled = (f"{x.difference.told('z.3f')} ({_paired(x)})" for x in missing if x)
    yield (
        f"{cut.steps:,} more steps {WHEN[at]}: without the link IC goes from "
        f"{cut.before['ic'].told('.3f')} to {cut.after['ic'].told('.3f')}, with it from "
        f"{kept.before['ic'].told('.3f')} to {kept.after['ic'].told('.3f')}; the difference is "
        f"{alone}, and with own values doubled {doubled}."
    )


def tables(study: LinkOverSeeds) -> list[Table]:
    """Edits; their tests; degrees; their tests; recovery; its tests."""
    tasks = tuple(TASKS.values())
    edits = table(
        f"Accuracy under edits, mean ± sd over seeds ({study.sequences:,} sequences)",
        ("at", "run", "edit"),
        tasks,
        in_sections(
            [each.moment, each.kind, each.edit, *(each.accuracy[t].told(".3f") for t in TASKS)]
            for each in study.edits
        ),
    )
    degrees = table(
        "Accuracy with c of it left",
        ("at", "run", "scaled", "task"),
        (*(f"{c:g}" for c in GRADES[::2]), "slope", "r"),
        in_sections(
            [
                each.moment,
                each.kind,
                each.scaled,
                TASKS[each.task],
                *(f"{mean:.3f}" for mean in each.mean[::2]),
                each.slope.told("+z.3f"),
                "" if each.correlation.mean is None else each.correlation.told("+z.2f"),
            ]
            for each in study.degrees
        ),
    )
    recovered = table(
        "Before → after more steps",
        ("at", "run", "removed"),
        ("steps", *tasks),
        in_sections(
            [
                each.moment,
                each.kind,
                each.removed,
                f"{each.steps:,}",
                *(f"{each.before[t].told('.3f')} → {each.after[t].told('.3f')}" for t in TASKS),
            ]
            for each in study.recovered
        ),
    )
    return [
        edits,
        table_of_tests("Edits, IC, paired by seed", study.edit_tests),
        degrees,
        table_of_tests("Accuracy per whole c (slope), paired by seed", study.degree_tests),
        recovered,
        table_of_tests("More steps, IC, paired by seed", study.recovery_tests),
    ]


def _cells(test: Difference) -> list[str]:
    """Difference, t, p, p after Holm, effect size and its interval."""
    own, size = test.tests, test.effect
    return [
        test.difference.told("+z.3f"),
        optional(own.t_paired, ".1f"),
        p_cell(own.p_paired),
        p_cell(own.p_paired_holm),
        optional(size.g_paired, ".1f"),
        "" if size.interval_paired is None else size.interval_paired.told(".1f"),
    ]


def table_of_tests(title: str, tests: Sequence[Difference]) -> Table:
    """The tests of one table, each difference with its paired test and effect size."""
    return table(
        title,
        ("at", "run", "first", "second", "task"),
        ("difference", "t", "p", "Holm", "g", "95%"),
        in_sections(
            [
                each.moment,
                each.kind,
                each.first,
                each.second,
                _AXIS_NAMES[each.task],
                *_cells(each),
            ]
            for each in tests
        ),
        "g: Hedges' g of the differences, its 95% interval exact for normal numbers; Holm: within "
        "the table (slopes: for each thing that is scaled).",
    )
