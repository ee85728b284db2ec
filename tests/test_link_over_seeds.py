"""What the link does, over seeds: from studies of single runs that are written by hand here."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resval_lens.analyses.comparison.link_controls import CONTROLS, OWN_FACTORS
from resval_lens.analyses.comparison.link_grading import GRADED, GRADES
from resval_lens.analyses.comparison.link_in_training import (
    LinkInTraining,
    LinkSnapshot,
    link_in_training,
)
from resval_lens.analyses.comparison.link_moments import LAST, Moment
from resval_lens.analyses.comparison.link_over_seeds import (
    LinkOverSeeds,
    correlation,
    link_over_seeds,
    link_studies,
    slope,
)
from resval_lens.analyses.comparison.link_recovery import Recovery
from resval_lens.analyses.report.link_over_seeds import link_over_seeds_section
from resval_lens.analyses.results.tables import p_told
from resval_lens.training import train_icl
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.recorded import load_run
from tests.runs import RUN

TASKS = ("test", "ic", "ic2", "iw")
COSTS = (0.10, 0.12, 0.11, 0.15)
"""What cutting the link takes from IC in each seed; the norm kept takes half, others nothing."""


def moment(name: str, seed: int, linked: bool) -> Moment:
    cost = COSTS[seed] if linked else 0.0
    taken = {"links cut": cost, "links cut, norm kept": cost / 2 + 0.001 * seed}
    edits = {
        edit: {task: 0.9 - (taken.get(edit, 0.0) if task == "ic" else 0.0) for task in TASKS}
        for edit in (CONTROLS if linked else OWN_FACTORS)
    }
    ic = tuple(0.9 - cost * (1 - c) for c in GRADES)
    flat = (0.4,) * len(GRADES)
    grading = {
        what: {task: ic if task == "ic" else flat for task in TASKS}
        for what in (GRADED if linked else GRADED[-1:])
    }
    arms = ["as it was", *(["links cut", "own × 2, links cut"] if linked else ["own × ½"])]
    after = {
        arm: dict.fromkeys(TASKS, 0.91 + 0.01 * seed - cost * (arm == "links cut")) for arm in arms
    }
    norms = {"own": 2.0 + seed, "link": 2.0 * linked, "total": 3.0}
    return Moment(name, 100 * (seed + 1), 50, norms, edits, grading, Recovery(200, after))


def study(kind: str, seed: int, names: tuple[str, ...] = ("IC > .5", LAST)) -> LinkInTraining:
    linked = kind == "values"
    controls = CONTROLS if linked else OWN_FACTORS
    accuracies = dict.fromkeys(TASKS, 0.5 + 0.1 * seed)
    lines = tuple(
        LinkSnapshot(step, accuracies, accuracies, dict.fromkeys(controls, accuracies))
        for step in (0, 500)
    )
    run = ICLRun(kind, "v" if linked else "", seed=seed)
    return LinkInTraining(run, [], 60, 20, lines, tuple(moment(n, seed, linked) for n in names))


@pytest.fixture(scope="module")
def found() -> LinkOverSeeds:
    kinds = ("classic", "values")
    return link_over_seeds([study(kind, seed) for kind in kinds for seed in range(4)])


def test_accuracies_are_means_over_seeds(found: LinkOverSeeds) -> None:
    assert found.seeds == {"values": (0, 1, 2, 3), "classic": (0, 1, 2, 3)}
    cut = found.accuracy("IC > .5", "links cut")
    assert cut.mean == pytest.approx(0.9 - 0.12)
    # deviations of .10, .12, .11, .15 from .12: squares 4, 0, 1, 9 (1e-4); sd = √(14/4) %
    assert cut.sd == pytest.approx(math.sqrt(14 / 4) / 100)
    assert found.steps["IC > .5"]["values"].mean == 250
    assert found.steps["IC > .95"] == {}
    assert found.norms[LAST]["values"]["own"].mean == 3.5
    (course,) = (x for x in found.courses if (x.edit, x.task) == ("links cut", "iw"))
    assert course.mean == pytest.approx([0.65, 0.65])
    assert course.sd == pytest.approx([0.1 * math.sqrt(1.25)] * 2)


def test_edits_are_tested_paired_and_corrected_within_their_table(found: LinkOverSeeds) -> None:
    by_pair = {(x.moment, x.first, x.second): x for x in found.edit_tests}
    assert len(by_pair) == 2 * 5
    test = by_pair[LAST, "as trained", "links cut"]
    assert test.difference.mean == pytest.approx(0.12)
    # t = mean / (s / √4), s² = 14e-4 / 3; p by the t-distribution of 3 degrees of freedom,
    # whose two-sided tail is 1 − (2/π)(atan(t/√3) + (t/√3)/(1 + t²/3)).
    t = 0.12 / (math.sqrt(14e-4 / 3) / 2)
    x = t / math.sqrt(3)
    p = 1 - 2 / math.pi * (math.atan(x) + x / (1 + x * x))
    assert test.tests.t_paired == pytest.approx(t)
    assert test.tests.p_paired == pytest.approx(p)
    assert by_pair[LAST, "as trained", "link resampled"].tests.p_paired is None  # nothing differs
    there = sorted(x.tests.p_paired for x in found.edit_tests if x.tests.p_paired is not None)
    assert len(there) == 6  # cut, norm kept, and one from the other, at two moments
    rank = there.index(pytest.approx(p))
    expected = max(min(1.0, (len(there) - i) * there[i]) for i in range(rank + 1))
    assert test.tests.p_paired_holm == pytest.approx(expected)


def test_slopes_and_correlations() -> None:
    assert slope([1 - 0.3 * (1 - c) for c in GRADES]) == pytest.approx(0.3)
    assert correlation(list(GRADES)) == pytest.approx(1)
    assert correlation([0.5] * len(GRADES)) is None
    bent = [c * c for c in GRADES]  # least squares of c² on c over −½…½ around ½: slope 1
    assert slope(bent) == pytest.approx(1)
    # r² = explained / all; c² = ¼ + d + d², d = c − ½: var(d) against var(d) + var(d²)
    d = [c - 0.5 for c in GRADES]
    one = sum(x**2 for x in d)
    two = sum(x**4 for x in d) - sum(x**2 for x in d) ** 2 / len(d)
    assert correlation(bent) == pytest.approx(math.sqrt(one / (one + two)))


def test_degrees_are_tested_for_each_thing_that_is_scaled(found: LinkOverSeeds) -> None:
    tests = [x for x in found.degree_tests if (x.kind, x.first) == ("values", "link")]
    assert [(x.moment, x.task) for x in tests] == [
        (at, task) for at in ("IC > .5", LAST) for task in ("ic", "ic2", "iw", "ic − iw")
    ]
    assert tests[0].difference.mean == pytest.approx(0.12)
    assert tests[2].tests.p_paired is None
    p = tests[0].tests.p_paired
    assert p is not None
    assert tests[0].tests.p_paired_holm == pytest.approx(4 * p)  # four tests, of equal numbers
    said = " ".join(found.sentences())
    assert "it is not shown that IC and IC2 both fall with it; no change of IW is shown" in said
    kinds = {x.kind for x in found.degree_tests if x.first == "own"}
    assert kinds == set(found.seeds)  # beside models without a link


def test_recovery_is_tested_beside_as_many_steps_with_the_link(found: LinkOverSeeds) -> None:
    by_names = {(x.moment, x.kind, x.first, x.second): x for x in found.recovery_tests}
    after = by_names[LAST, "values", "as it was, after", "links cut, after"]
    assert after.difference.mean == pytest.approx(0.12)
    gained = by_names[LAST, "values", "links cut, after", "links cut, before"]
    assert gained.difference.mean == pytest.approx(0.025)
    assert (LAST, "classic", "own × ½, after", "own × ½, before") in by_names


def test_the_verdict_follows_the_tests(found: LinkOverSeeds) -> None:
    said = [text for text in found.sentences() if "restores" in text]
    assert all(
        "it is not shown that the link carries more than gain" in text for text in said
    )  # × 2 costs nothing
    costly = [study("values", seed) for seed in range(4)]
    changed = []
    for one in costly:
        document = json.loads(json.dumps(one.to_dict()))
        for at in document["moments"]:
            at["edits"]["own × 2, links cut"]["ic"] = 0.82 + 0.0001 * one.run.seed
            at["edits"]["links cut, norm kept"]["ic"] = 0.83 - 0.0001 * one.run.seed
            at["edits"]["links cut"]["ic"] = 0.7 + 0.0001 * one.run.seed
        changed.append(LinkInTraining.from_dict(document))
    said = [text for text in link_over_seeds(changed).sentences() if "restores" in text]
    assert len(said) == 2
    whole = link_over_seeds(changed)
    every = [*whole.edit_tests, *whole.degree_tests, *whole.recovery_tests]
    p = sorted(x.tests.p_paired for x in every if x.tests.p_paired is not None)
    (own,) = (x.tests.p_paired for x in whole.edit_tests
              if (x.moment, x.second) == (LAST, "links cut, norm kept"))  # fmt: skip
    rank = p.index(own)
    expected = max(min(1.0, (len(p) - i) * p[i]) for i in range(rank + 1))
    (sentence,) = (text for text in whole.sentences() if text.startswith("Corrected for all"))
    assert f"all {len(p)} tests" in sentence
    assert f"{p_told(expected)} at the last snapshot" in sentence
    assert all(text.endswith(": the link carries more than these gains.") for text in said)


def test_it_is_json_tables_figures_and_a_section(found: LinkOverSeeds, tmp_path: Path) -> None:
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["edit_tests"][0]["p_paired"] == found.edit_tests[0].tests.p_paired
    assert [len(table.rows) > 3 for table in found.tables()] == [True] * 6
    figures = found.figures()
    assert set(figures) == {"link-over-seeds.png", "link-by-degrees.png"}
    assert len(figures["link-by-degrees.png"].axes) == 2
    for kind in ("classic", "values"):
        for seed in range(4):
            folder = tmp_path / f"{kind}-seed{seed}"
            folder.mkdir()
            (folder / "link-in-training.json").write_text(json.dumps(study(kind, seed).to_dict()))
    assert link_over_seeds(link_studies([tmp_path])).to_dict() == found.to_dict() | {
        "seeds": {"values": [0, 1, 2, 3], "classic": [0, 1, 2, 3]}
    }
    section = link_over_seeds_section(tmp_path)
    assert "| values | links cut | 0.780 ± 0.019 |" in section
    assert "IC > " not in section


@pytest.mark.parametrize(
    ("studies", "said"),
    [
        ([("classic", 0)], "none of these runs is of values; there are classic"),
        ([("values", 0), ("values", 0)], "values, seed 0: there are two studies of this run"),
    ],
)
def test_what_cannot_be_put_together_is_refused(studies: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        link_over_seeds([study(*each) for each in studies])


def test_older_studies_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no moments were measured"):
        link_over_seeds([study("values", 0, ())])
    with pytest.raises(ValueError, match="holds no studies of links"):
        link_studies([tmp_path])


def test_kept_snapshots_are_studied_where_no_study_is_recorded(tmp_path: Path) -> None:
    run = replace(RUN, seed=4, steps=10)
    train_icl(run, tmp_path / "runs" / run.folder_name, keep_snapshots=True)
    recorded = tmp_path / "records" / "values-seed0"
    recorded.mkdir(parents=True)
    (recorded / "link-in-training.json").write_text(json.dumps(study("values", 0).to_dict()))
    folders = [tmp_path / "records", tmp_path / "runs"]
    found = link_studies(folders)
    assert found == [study("values", 0), link_in_training(load_run(
        tmp_path / "runs" / run.folder_name, ICLRun))]  # fmt: skip
    assert link_studies(folders, [0]) == [study("values", 0)]
    with pytest.raises(ValueError, match=r"no runs with kept snapshots of seeds \[7\]"):
        link_studies(folders, [7])
