"""The order in which training fills the memories, and the ``memory curves`` command."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from resval_lens.analyses.cli.memory import (
    curves_command,
    encodings_command,
    lengths_command,
)
from resval_lens.analyses.papers.memory.comparable import by_variant, shown
from resval_lens.analyses.papers.memory.curves import (
    CurveStudy,
    VariantCurves,
    before,
    bigram_information,
    curve_study,
    order,
)
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask
from resval_lens.analyses.results.seeds import Spread, spread
from tests.memory_runs import BIGRAMS, STEPS, TASK, made_up, tiny_run, trained

app = typer.Typer()
app.command("curves")(curves_command)
app.command("lengths")(lengths_command)
app.command("encodings")(encodings_command)

RISING = [0.0, 0.2, 0.5, 0.95, 1.0]
EARLY = [0.0, 0.91, 0.95, 1.0, 1.0]
LATE = [0.0, 0.0, 0.1, 0.5, 0.92]
LOW = [0.0, 0.1, 0.2, 0.9, 0.9]  # reaches .9, never exceeds it


# First steps


def test_order_is_by_mean_step_and_leaves_out_what_a_seed_never_saw() -> None:
    first = {
        "W_O2": {0: 30, 1: 50},
        "W_K2": {0: 10, 1: 10},
        "W_K1": {0: 10, 1: None},
        "W_F": {0: 40, 1: 40},
    }
    assert order(first) == [["W_K2"], ["W_O2", "W_F"]]


def test_over_seeds_has_the_population_sd_of_those_that_are_there() -> None:
    assert spread({0: 10, 3: 20, 4: None}) == Spread({0: 10, 3: 20, 4: None}, mean=15.0, sd=5.0)
    assert spread({0: None}).mean is None
    assert shown(spread({0: 10, 3: 20}), ".0f") == "15 ± 5"
    assert shown(spread({0: 10}), ".0f") == "10"
    assert shown(spread({0: 0.25, 1: 0.75}), ".2f", tight=True) == ".50±.25"
    assert shown(spread({0: None})) == "none"
    assert shown(spread({0: 10, 1: None}), ".0f") == "10 (1 of 2 seeds)"
    assert shown(spread({0: 10, 1: None, 2: 20}), ".0f", tight=True) == "15±5 (2/3)"


# What W_F tells


@pytest.mark.parametrize("triggers", ["fixed", "drawn"])
def test_bigram_information_in_loops(triggers: str) -> None:
    task = TriggerTask(BIGRAMS, 12, 2, triggers)  # type: ignore[arg-type]
    pi = BIGRAMS.conditional.numpy()
    gaps = []
    for u in range(len(pi)):
        if BIGRAMS.unigram_counts[u] == 0 or (triggers == "fixed" and u in task.trigger_tokens):
            continue
        # KL of π_b(·|u) from the uniform distribution, written out.
        gaps.append(sum(p * math.log(p * len(pi)) for p in pi[u] if p > 0))
    assert bigram_information(task) == pytest.approx(np.mean(gaps), rel=1e-12)


def test_w_f_is_a_share_of_the_bigrams() -> None:
    whole = bigram_information(TASK)
    kl = [2 * whole, whole, whole / 2, whole / 4, 0.0]
    study = curve_study([made_up("relative", 0, W_F_kl=kl)]).variants["relative"]
    assert study.curves["W_F"][0] == pytest.approx([-1, 0, 0.5, 0.75, 1])
    assert study.first["W_F"].by_seed == {0: 30}


# The study


@pytest.fixture
def study() -> CurveStudy:
    runs = [
        made_up("absolute", 0, W_O2=EARLY, W_K2=RISING, W_K1=LATE, W_K1_near=EARLY, W_K1_far=LOW,
                accuracy=LATE),
        made_up("absolute", 1, W_O2=RISING, W_K2=EARLY, W_K1=LOW, W_K1_near=EARLY, W_K1_far=LATE,
                accuracy=LATE),
        made_up("one-layer", 0, W_O2=RISING, accuracy=[0.1, 0.2, 0.3, 0.3, 0.5]),
    ]  # fmt: skip
    return curve_study(runs)


def test_the_study_by_hand(study: CurveStudy) -> None:
    absolute = study.variants["absolute"]
    assert absolute.first["W_O2"] == Spread({0: 10, 1: 30}, mean=20.0, sd=10.0)
    assert absolute.first["W_K1"].by_seed == {0: 40, 1: None}
    assert absolute.first["W_K1"].mean == 40
    assert absolute.order == [["W_O2", "W_K2"], ["accuracy"]]
    assert absolute.final["W_K1_far"].by_seed == {0: 0.9, 1: 0.92}
    assert absolute.steps[1] == list(STEPS)
    assert "previous" not in absolute.first  # never measured here
    assert study.variants["one-layer"].n_layers == 1
    assert study.run.task.length == study.to_dict()["run"]["task.length"] == 12


def test_what_is_said_follows_from_the_numbers(study: CurveStudy) -> None:
    said = "\n".join(study.sentences())
    assert "W_O² via W_F and W_K² (step 20 ± 10), then in-context accuracy (step 40 ± 0)" in said
    assert "not in every seed: W_K¹ (0.910 ± 0.010 at the end)" in said
    assert "W_O² before W_K² in 1 of 2 runs, W_O² via W_F before W_K² in 1 of 2 runs" in said
    assert "W_O² via W_F before W_K¹ in 2 of 2 runs" in said
    assert (
        "of the later ones (above 0.9: from step 10 ± 0 on, from step 40 (1 of 2 seeds) on)" in said
    )
    assert "one-layer, a single layer, ends at 0.500" in said


def test_runs_that_cannot_be_compared_are_named() -> None:
    one = made_up("relative", 0)
    other = replace(one, run=tiny_run("absolute", 0, steps=40, snapshot_every=10, lr=0.5))
    with pytest.raises(ValueError, match=r"has lr=0.5, .* 0.1"):
        by_variant([one, other])
    with pytest.raises(ValueError, match="the same variant and seed"):
        by_variant([one, one])
    held_out = made_up("relative-held-out", 0)  # other outputs are another variant's right
    assert list(by_variant([one, held_out])) == ["relative", "relative-held-out"]
    with pytest.raises(ValueError, match=r"level must lie between 0 and 1; got 1\.0"):
        curve_study([one], level=1.0)
    with pytest.raises(ValueError, match="known must lie between"):
        curve_study([one], known=0.0)


def test_the_figure_has_a_panel_and_a_line_for_each(study: CurveStudy) -> None:
    figure = study.figures()["memory-curves.png"]
    first, second = figure.axes[:2]
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["absolute", "one-layer"]
    dark = [line for line in second.get_lines() if line.get_linewidth() == 1.8]
    assert [list(line.get_ydata()) for line in dark] == [RISING, [0.1, 0.2, 0.3, 0.3, 0.5]]
    mean = next(line for line in first.get_lines() if line.get_linewidth() == 1.8)
    assert list(mean.get_ydata()) == pytest.approx(np.mean([EARLY, RISING], axis=0))


# The command


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("absolute", "relative", "relative-values", "one-layer")
    folder = tmp_path_factory.mktemp("runs")
    return trained(folder, *(tiny_run(name) for name in names), tiny_run("relative", 1))


def test_the_command(runs: Path, tmp_path: Path) -> None:
    arguments = ["curves", "--runs", str(runs), "--out", str(tmp_path), "--quiet"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.replace(str(tmp_path), "").splitlines())) <= 80
    report = json.loads((tmp_path / "memory-curves.json").read_text())
    assert list(report["variants"]) == ["absolute", "relative", "relative-values", "one-layer"]
    assert report["variants"]["relative"]["steps"] == {"0": [0, 2, 4], "1": [0, 2, 4]}
    assert report["provenance"]["versions"]["torch"]
    assert (tmp_path / "memory-curves.png").read_bytes().startswith(b"\x89PNG")
    printed = re.sub(r"\s+", "", result.stdout)
    for sentence in report["found"]:
        assert re.sub(r"\s+", "", sentence) in printed


def test_only_what_is_asked_for(runs: Path, tmp_path: Path) -> None:
    asked = ["curves", "--runs", str(runs), "--out", str(tmp_path), "--quiet"]
    CliRunner().invoke(
        app, [*asked, "--variants", "relative", "--seeds", "1"], catch_exceptions=False
    )
    report = json.loads((tmp_path / "memory-curves.json").read_text())
    assert report["variants"]["relative"]["steps"] == {"1": [0, 2, 4]}
    with pytest.raises(ValueError, match="there is no run of 'rotary'; there are relative"):
        CliRunner().invoke(app, [*asked, "--variants", "relative,rotary"], catch_exceptions=False)
    with pytest.raises(ValueError, match="--steps 5 is for training"):
        CliRunner().invoke(app, [*asked, "--steps", "5"], catch_exceptions=False)


def test_what_is_before_what() -> None:
    def study(a: dict[int, int | None], b: dict[int, int | None]) -> VariantCurves:
        first = {"W_O2": spread(a), "W_K2": spread(b)}
        return VariantCurves("relative", 2, True, {}, {}, first, {}, [])

    studies = [study({0: 10, 1: 20, 2: None}, {0: 20, 1: 20, 2: None}), study({0: 30}, {0: None})]
    assert before(studies, "W_O2", "W_K2") == (
        2,
        1,
        3,
    )  # first, together; the run of neither is none
    assert before(studies, "W_K2", "W_O2") == (0, 1, 3)


def test_training_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which runs --train plans; their training has tests of its own."""
    planned = []

    def train(runs: list, folder: Path, jobs: int, keep: bool, quiet: bool) -> None:
        planned.extend(runs)
        trained(folder, *(tiny_run(run.name, run.seed, steps=run.steps) for run in runs))

    monkeypatch.setattr("resval_lens.analyses.cli.training_bars.train_with_bars", train)
    arguments = ["curves", "--train", "--variants", "alibi", "--seeds", "2,5", "--steps", "2"]
    folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--quiet"]
    CliRunner().invoke(app, [*arguments, *folders], catch_exceptions=False)
    assert [(run.name, run.seed, run.steps) for run in planned] == [
        ("alibi", 2, 2),
        ("alibi", 5, 2),
    ]
    report = json.loads((tmp_path / "out" / "memory-curves.json").read_text())
    assert list(report["variants"]["alibi"]["steps"]) == ["2", "5"]
    # Without seeds it is seed 0 that is trained and reported, whatever else lies there.
    CliRunner().invoke(app, [*arguments[:4], *arguments[6:], *folders], catch_exceptions=False)
    assert (planned[-1].seed, len(planned)) == (0, 3)
    report = json.loads((tmp_path / "out" / "memory-curves.json").read_text())
    assert list(report["variants"]["alibi"]["steps"]) == ["0"]
    with pytest.raises(ValueError, match="steps must be a whole number from 1 up; got 0"):
        CliRunner().invoke(app, [*arguments[:6], "--steps", "0", *folders], catch_exceptions=False)
