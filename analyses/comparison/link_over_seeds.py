"""Whether the link carries in-context learning while it emerges, and after: over seeds.

From recorded studies of single runs (:mod:`~resval_lens.analyses.comparison.link_in_training`): at
each of its moments accuracies by edit, by degrees of the link, and after more steps without it,
with tests paired by seed, Holm's correction within each table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resval_lens.analyses.comparison.link_controls import (
    CUT,
    CUT_KEPT,
    DOUBLED,
    RESAMPLED,
    TRAINED,
)
from resval_lens.analyses.comparison.link_grading import GRADES
from resval_lens.analyses.comparison.link_in_training import LinkInTraining, link_in_training
from resval_lens.analyses.comparison.link_moments import MOMENTS, Moment
from resval_lens.analyses.comparison.link_over_seeds_rows import (
    GRADED_TASKS,
    LINKED,
    ByTask,
    Course,
    Degrees,
    Difference,
    Edited,
    Recovered,
)
from resval_lens.analyses.comparison.link_recovery import HALVED, KEPT
from resval_lens.analyses.results.result import Result
from resval_lens.analyses.results.seeds import (
    Spread,
    corrected,
    effect,
    spread,
    t_tests,
)
from resval_lens.io.files import read_json
from resval_lens.notes import Note
from resval_lens.tasks.icl import TASKS
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.recorded import SHIPPED, load_run
from resval_lens.training.run_folder import snapshot_paths

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

RECORDED = SHIPPED / "icl-snapshots"
"""Where the studies of single runs that ship lie, each in its run's folder."""
FILE, STUDY = "link-in-training.json", "a study of links in training"
PAIRS = ((TRAINED, CUT), (TRAINED, CUT_KEPT), (TRAINED, DOUBLED), (TRAINED, RESAMPLED),
         (CUT_KEPT, CUT))  # fmt: skip
"""Edits whose accuracies on IC are compared."""
SHOWN = (TRAINED, CUT, CUT_KEPT, RESAMPLED, DOUBLED)
"""Edits that are drawn over training."""


@dataclass(frozen=True)
class LinkOverSeeds(Result):
    """What the link does, over seeds; deviations are the population's.

    Attributes:
        seeds: by kind of run.
        sequences: of each test at each moment.
        course_sequences: the same in ``courses``.
        steps: of each moment, by kind.
        norms: of what layer 1's values consist of (own, link, total), by moment and kind, on IC.
        edit_tests: of ``LINKED`` on IC.
        degree_tests: slopes against 0, and that of IC against that of IW, of every kind; Holm for
            each kind and thing that is scaled.
        recovery_tests: on IC.
        courses: of ``LINKED``.
    """

    seeds: Mapping[str, tuple[int, ...]]
    sequences: int
    course_sequences: int
    steps: Mapping[str, Mapping[str, Spread]]
    norms: Mapping[str, Mapping[str, Mapping[str, Spread]]]
    edits: tuple[Edited, ...]
    edit_tests: tuple[Difference, ...]
    degrees: tuple[Degrees, ...]
    degree_tests: tuple[Difference, ...]
    recovered: tuple[Recovered, ...]
    recovery_tests: tuple[Difference, ...]
    courses: tuple[Course, ...]

    def accuracy(self, moment: str, edit: str, task: str = "ic", kind: str = LINKED) -> Spread:
        """Of an edit."""
        (found,) = (
            each.accuracy[task]
            for each in self.edits
            if (each.moment, each.kind, each.edit) == (moment, kind, edit)
        )
        return found

    def sentences(self) -> list[str]:
        from resval_lens.analyses.comparison.link_over_seeds_told import sentences

        return sentences(self)

    def tables(self) -> list[Table]:
        from resval_lens.analyses.comparison.link_over_seeds_told import tables

        return tables(self)

    def figures(self) -> dict[str, Figure]:
        from resval_lens.analyses.comparison.link_over_seeds_figures import figures

        return figures(self)


def link_studies(
    folders: Sequence[Path],
    seeds: Collection[int] | None = None,
    note: Note = lambda text: None,
) -> list[LinkInTraining]:
    """The studies of the runs in ``folders``: as recorded, else of kept snapshots, made now.

    Args:
        folders: whose own folders are runs, or records of runs.
        seeds: of the runs; None: all there are.
        note: called with what is being done.

    Raises:
        ValueError: there are none.
    """
    found = []
    for path in sorted(path for folder in folders for path in folder.iterdir()):
        if (path / FILE).is_file():
            found.append(LinkInTraining.from_dict(read_json(path / FILE, STUDY)))
        elif len(snapshot_paths(path)) > 1:
            found.append(link_in_training(load_run(path, ICLRun), note=note))
    chosen = [study for study in found if seeds is None or study.run.seed in seeds]
    if not chosen:
        where = ", ".join(map(str, folders))
        raise ValueError(
            f"{where} holds no studies of links ({FILE}) and no runs with kept snapshots"
            + ("" if seeds is None else f" of seeds {list(seeds)}")
        )
    return chosen


def link_over_seeds(studies: Sequence[LinkInTraining]) -> LinkOverSeeds:
    """Single runs' studies put together.

    Raises:
        ValueError: no run of ``LINKED``, a study without moments, or two of one kind and seed.
    """
    kinds: dict[str, dict[int, LinkInTraining]] = {}
    for study in studies:
        name = f"{study.run.name}, seed {study.run.seed}"
        own = kinds.setdefault(study.run.name, {})
        if study.run.seed in own:
            raise ValueError(f"{name}: there are two studies of this run")
        if not study.moments:
            raise ValueError(f"{name}: no moments were measured; run link-in-training again")
        own[study.run.seed] = study
    if LINKED not in kinds:
        raise ValueError(f"none of these runs is of {LINKED}; there are {', '.join(kinds)}")
    kinds = {LINKED: kinds.pop(LINKED), **kinds}
    linked = kinds[LINKED]
    moments = [
        (at, kind, found)
        for at in MOMENTS
        for kind, own in kinds.items()
        if (found := _moments(at, own))
    ]
    edits = [each for at in moments for each in _edited(*at)]
    degrees = [each for at in moments for each in _degrees(*at)]
    recovered = [each for at in moments for each in _recovered(*at)]
    one = next(iter(linked.values()))
    steps: dict[str, dict[str, Spread]] = {at: {} for at in MOMENTS}
    norms: dict[str, dict[str, dict[str, Spread]]] = {at: {} for at in MOMENTS}
    for at, kind, found in moments:
        steps[at][kind] = spread({seed: each.step for seed, each in found.items()})
        norms[at][kind] = {
            part: spread({seed: each.norms[part] for seed, each in found.items()})
            for part in ("own", "link", "total")
        }
    return LinkOverSeeds(
        {kind: tuple(own) for kind, own in kinds.items()},
        one.moments[-1].sequences,
        one.control_sequences,
        steps,
        norms,
        tuple(edits),
        _edit_tests(edits),
        tuple(degrees),
        _degree_tests(degrees),
        tuple(recovered),
        _recovery_tests(recovered),
        _courses(linked),
    )


def _moments(at: str, studies: Mapping[int, LinkInTraining]) -> dict[int, Moment]:
    """One moment of each seed; empty unless all have it."""
    found = {
        seed: moment for seed, study in studies.items() for moment in study.moments
        if moment.name == at
    }  # fmt: skip
    return found if len(found) == len(studies) else {}


def _by_task(by_seed: Mapping[int, Mapping[str, float]]) -> ByTask:
    return {task: spread({seed: own[task] for seed, own in by_seed.items()}) for task in TASKS}


def _edited(at: str, kind: str, found: Mapping[int, Moment]) -> Iterable[Edited]:
    for edit in next(iter(found.values())).edits:
        accuracy = _by_task({seed: each.edits[edit] for seed, each in found.items()})
        yield Edited(at, kind, edit, accuracy)


def _degrees(at: str, kind: str, found: Mapping[int, Moment]) -> Iterable[Degrees]:
    for scaled, tasks in next(iter(found.values())).grading.items():
        for task in tasks:
            curves = {seed: each.grading[scaled][task] for seed, each in found.items()}
            slopes = {seed: slope(curve) for seed, curve in curves.items()}
            r = {seed: correlation(curve) for seed, curve in curves.items()}
            every = np.array(list(curves.values()))
            mean, sd = (tuple(map(float, x)) for x in (every.mean(0), every.std(0)))
            yield Degrees(at, kind, scaled, task, mean, sd, spread(slopes), spread(r))


def slope(accuracies: Sequence[float]) -> float:
    """Σ (c − c̄)(y − ȳ) / Σ (c − c̄)²: what one whole unit of c adds, by least squares."""
    c = np.array(GRADES) - np.mean(GRADES)
    return float(c @ np.array(accuracies) / (c @ c))


def correlation(accuracies: Sequence[float]) -> float | None:
    """Pearson's r of accuracies and c; None of equal ones."""
    if not np.ptp(accuracies):
        return None
    return float(np.corrcoef(GRADES, accuracies)[0, 1])


def _recovered(at: str, kind: str, found: Mapping[int, Moment]) -> Iterable[Recovered]:
    recoveries = {seed: each.recovery for seed, each in found.items() if each.recovery is not None}
    if len(recoveries) < len(found):
        return
    first = next(iter(recoveries.values()))
    for removed in first.after:
        before = _by_task({seed: each.before(removed) for seed, each in found.items()})
        after = _by_task({seed: each.after[removed] for seed, each in recoveries.items()})
        yield Recovered(at, kind, removed, first.steps, before, after)


Compared = tuple[str, str, str, str, str, Spread, Spread]
"""Moment, kind, task, names of both, numbers of both."""


def _tested(compared: Iterable[Compared]) -> tuple[Difference, ...]:
    """The tests of one table."""
    rows = {(at, kind, task, one, two): (x, y) for at, kind, task, one, two, x, y in compared}
    tests = corrected({key: t_tests(*(x.by_seed for x in own)) for key, own in rows.items()})
    return tuple(
        Difference(*key, _difference(*rows[key]), effect(*(x.by_seed for x in rows[key])), found)
        for key, found in tests.items()
    )


def _difference(first: Spread, second: Spread) -> Spread:
    found: dict[int, float | None] = {}
    for seed, x in first.by_seed.items():
        y = second.by_seed[seed]
        found[seed] = None if x is None or y is None else x - y
    return spread(found)


def _edit_tests(edits: Sequence[Edited]) -> tuple[Difference, ...]:
    by_name = {(each.moment, each.edit): each for each in edits if each.kind == LINKED}
    return _tested(
        (at, LINKED, "ic", first, second,
         by_name[at, first].accuracy["ic"], by_name[at, second].accuracy["ic"])
        for at in MOMENTS
        for first, second in PAIRS
        if (at, first) in by_name
    )  # fmt: skip


def _degree_tests(degrees: Sequence[Degrees]) -> tuple[Difference, ...]:
    found: list[Difference] = []
    slopes = {(each.kind, each.scaled, each.moment, each.task): each.slope for each in degrees}
    for kind, scaled in dict.fromkeys((kind, scaled) for kind, scaled, *_ in slopes):
        rows: list[Compared] = []
        for at in dict.fromkeys(at for *what, at, _ in slopes if what == [kind, scaled]):
            for task in GRADED_TASKS:
                own = slopes[kind, scaled, at, task]
                none = spread(dict.fromkeys(own.by_seed, 0.0))
                rows.append((at, kind, task, scaled, "none", own, none))
            ic, iw = (slopes[kind, scaled, at, task] for task in ("ic", "iw"))
            rows.append((at, kind, "ic − iw", scaled, "", ic, iw))
        found += _tested(rows)
    return tuple(found)


def _recovery_tests(recovered: Sequence[Recovered]) -> tuple[Difference, ...]:
    by_name = {(each.moment, each.kind, each.removed): each for each in recovered}
    rows: list[Compared] = []
    for (at, kind, removed), own in by_name.items():
        kept = by_name[at, kind, KEPT]
        if removed in (CUT, DOUBLED, HALVED):
            names = f"{KEPT}, after", f"{removed}, after"
            rows.append((at, kind, "ic", *names, kept.after["ic"], own.after["ic"]))
        if removed in (CUT, HALVED):
            names = f"{removed}, after", f"{removed}, before"
            rows.append((at, kind, "ic", *names, own.after["ic"], own.before["ic"]))
    return _tested(rows)


def _courses(studies: Mapping[int, LinkInTraining]) -> tuple[Course, ...]:
    first = next(iter(studies.values()))
    steps = [each.step for each in first.snapshots]
    found = []
    for edit in SHOWN:
        for task in TASKS:
            every = np.array([
                [each.controls[edit][task] for each in study.snapshots if each.step in set(steps)]
                for study in studies.values()
            ])  # fmt: skip
            mean, sd = (tuple(map(float, x)) for x in (every.mean(0), every.std(0)))
            found.append(Course(edit, task, tuple(steps), mean, sd))
    return tuple(found)
