"""The runs that ship with the package, and what the README says of them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from resval_lens.analyses.comparison.gain import GAIN_ALONE, VARIANTS
from resval_lens.analyses.comparison.link_over_seeds import RECORDED, link_over_seeds, link_studies
from resval_lens.analyses.report.gain import recorded_gain
from resval_lens.analyses.report.results_page import section
from resval_lens.analyses.results.tables import p_told
from resval_lens.models.presets import FURTHER_VARIANTS, PAPER_VARIANTS
from resval_lens.tasks.icl import ICLBatch
from resval_lens.training.icl import measure
from resval_lens.training.icl_run import ICLRun, draw_world, initial_model
from resval_lens.training.recorded import load_runs

ROOT = Path(__file__).parent.parent
README = " ".join((ROOT / "README.md").read_text().split())


def test_every_variant_ships_with_its_seeds() -> None:
    seeds = {
        name: [r.run.seed for r in load_runs(ICLRun) if r.run.name == name]
        for name in (*PAPER_VARIANTS, *FURTHER_VARIANTS)
    }
    counts = {"classic": 8, "values": 8, "queries": 5, "keys": 5} | dict.fromkeys(
        FURTHER_VARIANTS, 2
    )
    assert seeds == {name: list(range(count)) for name, count in counts.items()}


def above(name: str, task: str, level: float) -> dict[int, float | None]:
    """The first snapshot above a level, by seed, from the lines of metrics."""
    found = {}
    for folder in sorted((ROOT / "resval_lens" / "data" / "icl").glob(f"{name}-seed*")):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        steps = (line["step"] for line in lines if line[task]["accuracy"] > level)
        step = next(steps, None)
        found[int(folder.name.rpartition("seed")[2])] = None if step is None else step / 500
    return found


@pytest.fixture(scope="module")
def gain_rows() -> list[list[str]]:
    """The rows of both tables of the gain section, at the published learning rate."""
    _, page, *_ = re.split(r"^Learning rate", section("gain-or-stream", ROOT / "docs"), flags=re.M)
    assert page.startswith(" 0.01.")
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| IC")
    ]


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("task", ["ic", "ic2"])
def test_the_gain_section_is_what_the_metrics_say(
    task: str, level: float, gain_rows: list[list[str]]
) -> None:
    named = {row[2]: row for row in gain_rows if row[:2] == [task.upper(), f"{level:g}"]}
    classic, values = (above(name, task, level) for name in ("classic", "values"))
    for name in VARIANTS:
        steps = above(name, task, level)
        if not steps:
            assert name not in named
            continue
        row = named[name]
        there = [step for step in steps.values() if step is not None]
        assert row[3] == str(len(steps))
        assert row[4].startswith(f"{np.mean(there):.2f} ± {np.std(there):.2f}")
        assert (len(there) < len(steps)) == (f"({len(there)} of {len(steps)})" in row[4])
        both = [seed for seed in classic if seed in steps]
        saved = sum(classic[seed] - (steps[seed] or 90) for seed in both)
        if name != "classic":
            share = f"{100 * saved / sum(classic[seed] for seed in both):.0f}".replace("-", "−")
            assert row[5].removeprefix("≤ ").split(" ")[0] == share
            assert row[5].startswith("≤") == (len(there) < len(steps))
        if name in ("own-root-2", "own-2"):
            all_three = [seed for seed in both if seed in values]
            whole = sum(classic[seed] - values[seed] for seed in all_three)
            part = sum(classic[seed] - steps[seed] for seed in all_three)
            assert row[7].split(" ")[0] == f"{100 * part / whole:.0f}"
            paired = stats.ttest_rel([steps[x] for x in both], [classic[x] for x in both])
            test = named[f"{name} − classic"]
            assert test[6] == f"{paired.statistic:.2f}".replace("-", "−")
            independent = stats.ttest_ind(list(steps.values()), list(classic.values()))
            assert test[3] == f"{independent.statistic:.2f}".replace("-", "−")


NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}


def test_the_readme_says_when_in_context_learning_emerges() -> None:
    steps = {name: above(name, "ic", 0.95) for name in ("classic", "values", *GAIN_ALONE)}

    def saved(name: str) -> float:
        both = steps["classic"].keys() & steps[name].keys()
        return 1 - sum(steps[name][x] for x in both) / sum(steps["classic"][x] for x in both)

    rate = recorded_gain().rates[0]
    stream = rate.compared("ic", 0.95, "values", "classic")
    low, high = (100 * x for x in (stream.saving.interval.low, stream.saving.interval.high))
    seeds = next(word for word, n in NUMBERS.items() if n == len(steps["values"]))
    matched = [rate.compared("ic", x, "values-norm-matched", "classic") for x in (0.95, 0.5)]
    late, early = matched
    p, share = late.tests, late.saving.share
    for words in (
        f"in {saved('values'):.0%} [{low:.0f}, {high:.0f}] fewer steps",
        f"({seeds} seeds, p = {stream.tests.p_holm:.1g}; published: 24%)",
        f"√2 save {saved('own-root-2'):.0%}, doubled ones {saved('own-2'):.0%}",
        f"saves {early.saving.share:.0%} to IC > .5 (p = {early.tests.p_holm:.1g})",
        f"the {share:.0%} that it saves to .95 do not survive correction "
        f"(p = {p.p_holm:.2g}, paired {p.p_paired_holm:.2g})",
    ):
        words = words.replace(" 0.", " .")
        assert words in README, words


@pytest.mark.parametrize(
    "recorded", load_runs(ICLRun), ids=lambda recorded: recorded.run.folder_name
)
def test_a_recorded_run_is_whole(recorded) -> None:
    run = recorded.run
    steps = [line["step"] for line in recorded.metrics]
    assert steps == list(range(0, run.steps + 1, run.snapshot_every))
    assert (run.batch, run.lr, run.decay, run.spec) == (128, 0.01, 1e-6, "reference")
    for start in recorded.starts:
        assert {"command", "git_commit", "versions", "created"} <= set(start)


@pytest.mark.parametrize("name", ["values-seed0", "queries-keys-values-seed1"])
def test_a_recorded_run_begins_as_it_would_today(name: str) -> None:
    (recorded,) = (r for r in load_runs(ICLRun) if r.run.folder_name == name)
    _, tests = draw_world(recorded.run)
    first = measure(initial_model(recorded.run), tests)
    for task in ("test", "ic", "ic2", "iw"):
        assert first[task]["loss"] == pytest.approx(recorded.metrics[0][task]["loss"], abs=2e-6)
    for quantity, value in recorded.metrics[0]["attention"].items():
        tolerance = 0.002 if quantity == "cla" else 2e-6  # a share of 1000 answers
        assert first["attention"][quantity] == pytest.approx(value, abs=tolerance)


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/start.md",
                                  "docs/limits.md"])  # fmt: skip
def test_what_was_refuted_is_said_no_more(page: str) -> None:
    text = " ".join((ROOT / page).read_text().split())
    assert not re.search(
        "scaffold|stands without it|giver rather than fetch|% of the task|in no run", text
    )


def test_the_readme_says_what_a_cut_takes_in_training() -> None:
    """At the first snapshot above .95, mean over seeds."""
    cells: dict[str, list[float]] = {}
    for path in (ROOT / "resval_lens/data/icl-snapshots").glob(
        "values-seed*/link-in-training.json"
    ):
        moments = json.loads(path.read_text())["moments"]
        edits = next(each["edits"] for each in moments if each["name"] == "IC > .95")
        for name in ("as trained", "links cut", "links cut, norm kept"):
            cells.setdefault(name, []).append(edits[name]["ic"])
    assert len(cells["as trained"]) == 4
    trained, cut, kept = (f"{np.mean(cells[name]):.3f}".lstrip("0") for name in cells)
    assert f"takes it from {trained} to {cut}; a cut that keeps the norm, to {kept}" in README


def test_a_cut_link_is_held_against_values_that_are_smaller_by_as_much() -> None:
    """The change of IC and IW at the first snapshot above .5, from the studies' documents."""
    changes: dict[str, dict[str, list[float]]] = {}
    for kind, edit in (("values", "links cut"), ("classic", "own × √½"), ("own-2", "own × √½")):
        for path in sorted(
            (ROOT / "resval_lens/data/icl-snapshots").glob(f"{kind}-seed*/link-in-training.json")
        ):
            moments = json.loads(path.read_text())["moments"]
            edits = next(each["edits"] for each in moments if each["name"] == "IC > .5")
            for task in ("ic", "iw"):
                change = edits[edit][task] - edits["as trained"][task]
                changes.setdefault(kind, {}).setdefault(task, []).append(change)
    study = link_over_seeds(link_studies([RECORDED]))
    said = next(x for x in study.sentences() if "> .5, where both lose about the same size" in x)
    ic, iw = (f"{np.mean(own):+.3f} ± {np.std(own):.3f}" for own in changes["values"].values())
    assert f"cutting the link changes IC by {ic} and IW by {iw}; " in said
    for kind in ("classic", "own-2"):
        ic, iw = (f"{np.mean(own):+.3f} ± {np.std(own):.3f}" for own in changes[kind].values())
        p = stats.ttest_rel(changes["values"]["ic"], changes[kind]["ic"]).pvalue
        assert f"{ic} and {iw} in {kind} ({p_told(p)} of IC’s difference)" in said


def test_another_kind_with_a_link_does_not_change_what_is_said_of_sizes() -> None:
    """It has no edit of own values alone."""
    studies = link_studies([RECORDED])
    others = [
        replace(each, run=replace(each.run, name="values-norm-matched"))
        for each in studies
        if each.run.name == "values"
    ]
    said, more = (
        [x for x in link_over_seeds(several).sentences() if "lose about the same size" in x]
        for several in (studies, [*studies, *others])
    )
    assert said == more
    assert len(said) == 3


def test_the_shipped_model_is_the_last_of_its_run() -> None:
    """One seed trained twice: the shipped run, and the one cut at every snapshot."""
    study = json.loads((ROOT / "docs" / "link-in-training.json").read_text())
    (recorded,) = (r for r in load_runs(ICLRun) if r.run.folder_name == "values-seed0")
    assert study["run"] == recorded.run.to_dict()
    _, tests = draw_world(recorded.run)
    with torch.no_grad():
        for task, batch in tests.items():
            part = ICLBatch(*(x[:2000] for x in batch))
            right = (recorded.model()(part.inputs).argmax(-1) == part.targets).double().mean()
            assert float(right) == pytest.approx(study["snapshots"][-1]["trained"][task], abs=0.001)
