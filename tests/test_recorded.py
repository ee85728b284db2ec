"""The runs that ship with the package, and what the README says of them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from resval_lens.analyses.comparison.gain import VARIANTS, gain_or_stream
from resval_lens.analyses.comparison.icl_emergence import emergence, paper_runs
from resval_lens.analyses.report.results_page import section
from resval_lens.models.presets import FURTHER_VARIANTS, PAPER_VARIANTS
from resval_lens.tasks.icl import ICLBatch
from resval_lens.training.icl import measure
from resval_lens.training.icl_run import ICLRun, draw_world, initial_model
from resval_lens.training.recorded import SHIPPED, load_run, load_runs

ROOT = Path(__file__).parent.parent
README = " ".join((ROOT / "README.md").read_text().split())
ROWS = {
    "none (classic)": "classic",
    "queries": "queries",
    "keys": "keys",
    "values": "values",
    "values, gradient blocked in the link": "values-detached",
    "queries and values": "queries-values",
    "queries, keys and values": "queries-keys-values",
    "values, even mix (½ own + ½ carried)": "values-half",
}


def test_every_variant_ships_with_its_seeds() -> None:
    seeds = {
        name: [r.run.seed for r in load_runs(ICLRun) if r.run.name == name]
        for name in ROWS.values()
    }
    counts = {"classic": 6, "values": 6, "queries": 5, "keys": 5} | dict.fromkeys(
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
    """The rows of both tables of the gain section."""
    page = section("gain-or-stream", ROOT / "docs")
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
        steps, row = above(name, task, level), named[name]
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


def test_the_readme_says_how_much_gain_alone_saves() -> None:
    """Of the steps to .95 on IC, seeds 0 to 5, in percent."""

    def steps(name: str) -> float:
        runs = [load_run(SHIPPED / "icl" / f"{name}-seed{seed}", ICLRun) for seed in range(6)]
        return sum(
            next(x["step"] for x in run.metrics if x["ic"]["accuracy"] > 0.95) for run in runs
        )

    saved = [
        round(100 * (1 - steps(name) / steps("classic")))
        for name in ("values", "own-root-2", "own-2")
    ]
    told = " ".join((ROOT / "README.md").read_text().split())
    assert saved == [19, 14, 25]
    rate = gain_or_stream(load_runs(ICLRun)).rates[0]
    shares = [rate.share("ic", 0.95, name).ours.share for name in ("own-root-2", "own-2")]
    late = rate.compared("ic", 0.95, "values-norm-matched", "classic").tests.p_holm
    early = [
        rate.compared("ic", 0.5, *pair).tests.p_holm
        for pair in (("values-norm-matched", "classic"), ("own-root-2", "values"))
    ]
    for words in (
        "19% fewer",
        "√2 save 14%",
        "doubled ones 25%",
        "{:.0%} and {:.0%} of what the stream saves".format(*shares),
        f"(p = {late:.2f} against classic)".replace("0.", "."),
        "(p = {:.3f} and {:.3f}, corrected)".format(*early).replace("0.", "."),
    ):
        assert words in told, words


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


@pytest.mark.parametrize(("label", "variant"), ROWS.items())
def test_the_table_in_the_readme_is_what_the_records_say(label: str, variant: str) -> None:
    row = next(line for line in (ROOT / "README.md").read_text().splitlines()
               if line.startswith(f"| {label} |"))  # fmt: skip
    seeds, ours = (cell.strip() for cell in row.split("|")[2:4])
    found = emergence(load_runs(ICLRun), 0.95).row("ic", variant)
    assert int(seeds) == len(found.snapshots)
    assert ours == f"{found.first.mean:.2f} ± {found.first.sd:.2f}"
    if variant in PAPER_VARIANTS:
        (last,) = (
            r.metrics[-1] for r in load_runs(ICLRun) if r.run.folder_name == f"{variant}-seed0"
        )
        accuracies = [cell.strip() for cell in row.split("|")[5:9]]
        assert accuracies == [
            f"{last[task]['accuracy']:.3f}"[1:] for task in ("test", "ic", "ic2", "iw")
        ]


def test_the_words_in_the_readme_are_what_the_records_say() -> None:
    runs = paper_runs(load_runs(ICLRun))
    saved = {level: emergence(runs, level).saving("ic", "values") for level in (0.95, 0.9, 0.5)}
    assert (
        f"saves {saved[0.95]:.0%} of the steps to .95, {saved[0.9]:.0%} to .9 and {saved[0.5]:.0%}"
        in README
    )
    study = emergence(runs, 0.95)
    test = study.test("ic", "values", "classic")
    assert f"t = −{-test.t:.1f}, paired by seed −{-test.t_paired:.1f}; both p stay below" in README
    assert f"for the table's {len(study.t_tests)} tests, as do those at .9 and .5" in README
    for level in (0.95, 0.9, 0.5):
        tests = emergence(runs, level).test("ic", "values", "classic")
        assert max(tests.p_holm, tests.p_paired_holm) < 0.001


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/start.md",
                                  "docs/limits.md"])  # fmt: skip
def test_what_was_refuted_is_said_no_more(page: str) -> None:
    text = " ".join((ROOT / page).read_text().split())
    assert not re.search(
        "scaffold|stands without it|giver rather than fetch|% of the task|in no run", text
    )


def test_the_cut_in_training_in_the_readme_is_what_was_recorded() -> None:
    study = json.loads((ROOT / "docs" / "link-in-training.json").read_text())
    (line,) = (line for line in study["snapshots"] if line["step"] == 20_000)
    ic, iw = (
        [f"{line[cell][task]:.2f}"[1:] for cell in ("trained", "cut")] for task in ("ic", "iw")
    )
    assert f"IC from {ic[0]} to {ic[1]} (and memory, IW, rises from {iw[0]} to {iw[1]})" in README


def test_the_controls_in_training_in_the_readme_are_those_recorded() -> None:
    cells: dict[str, list[str]] = {}
    for seed in range(4):
        folder = ROOT / "resval_lens" / "data" / "icl-snapshots" / f"values-seed{seed}"
        snapshots = json.loads((folder / "link-in-training.json").read_text())["snapshots"]
        first = next(each for each in snapshots if each["trained"]["ic"] > 0.95)
        for name in ("links cut", "own × 2, links cut"):
            shown = f"{first['controls'][name]['ic']:.2f}".removeprefix("0")
            cells.setdefault(name, []).append(shown)
    for own in cells.values():
        assert "{}, {}, {} and {}".format(*own) in " ".join(README.split())


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
