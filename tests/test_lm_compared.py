"""Language models over seeds: levels of loss and of naming, savings, other variants, sizes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from resval_lens.analyses.cli.reporting import as_text
from resval_lens.analyses.comparison.lm_compared import Difference, Measured
from resval_lens.analyses.comparison.lm_emergence import LMEmergence, lm_emergence
from resval_lens.analyses.comparison.lm_scaling import Scaling, lm_scaling
from resval_lens.analyses.drawing.figures import COLOURS, colour
from resval_lens.analyses.results import intervals
from resval_lens.analyses.results.emergence import saving
from resval_lens.analyses.results.seeds import effect, holm
from resval_lens.analyses.studies.induction import induction_study
from resval_lens.models.language_models import language_model_config
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import load_runs
from tests.helpers import tiny_model
from tests.test_ioi import shown
from tests.test_recorded_lm import SMALL


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "RESAMPLES", 99)
        yield


def write(
    parent: Path,
    name: str,
    streams: str,
    seed: int,
    at: int,
    losses: list[float],
    log_p: float | None = None,
    **sizes: int,
) -> None:
    """A run evaluated every 100 steps, whose scores are .97 from step ``at``."""
    config = language_model_config("stories-small", streams, carry="raw", **SMALL | sizes)
    steps = 100 * (len(losses) - 1)
    run = LMRun(name, config.to_json(), "text", seed, steps=steps, evaluate_every=100)
    lines = []
    for step, loss in zip(range(0, steps + 1, 100), losses, strict=True):
        score = 0.97 if step >= at else 0.01
        scores = {"accuracy": score, "accuracy_top1": score, "p_io": score, "p_subject": 0.1}
        if log_p is not None:
            scores["log_p_io"] = log_p if step >= at else -4.0
        lines.append({"step": step, "valid_loss": loss, "ioi": {"seen": scores}})
    folder = parent / run.folder_name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"run": run.to_dict(), "starts": []}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))


def row(study: LMEmergence, measure: str, name: str) -> Measured:
    (found,) = (
        each for each in study.compared.rows if (each.measure, each.architecture) == (measure, name)
    )
    return found


def against_classic(study: LMEmergence, measure: str, name: str = "values") -> Difference:
    (found,) = (
        each for each in study.compared.tests if (each.measure, each.first) == (measure, name)
    )
    return found


CLASSIC = ([4.0, 2.5, 1.7, 1.3], [4.0, 2.2, 1.8, 1.4], [4.0, 2.4, 1.9, 1.3])
FIRST = ([4.0, 1.5, 1.4, 1.3], [4.0, 1.6, 1.4, 1.3], [4.0, 1.9, 1.2, 1.1])
VALUES = ([4.0, 2.0, 1.6, 1.3], [4.0, 1.8, 1.5, 1.4], [4.0, 2.1, 1.4, 1.3])


def pair(folder: Path) -> LMEmergence:
    """Classic names from step 300, 200, 300; values from 200, 100, 200. Losses: above."""
    for seed in range(3):
        at = 200 if seed == 1 else 300
        write(folder, "small-classic", "", seed, at, CLASSIC[seed], -0.5 if seed else None)
        write(folder, "small-v", "v", seed, at - 100, VALUES[seed], -0.3 if seed else None)
    return lm_emergence(load_runs(LMRun, folder))


def crossing(losses: list[float], level: float) -> float:
    """The step at which the loss, linear between evaluations, falls to ``level``."""
    return float(np.interp(-level, [-x for x in losses], [100 * i for i in range(len(losses))]))


def test_steps_to_levels_of_loss_lie_between_evaluations(tmp_path: Path) -> None:
    study = pair(tmp_path)
    for level in (3.0, 2.0, 1.5):
        measure = f"step: loss ≤ {level:g}"
        numbers = {}
        for name, every in (("classic", CLASSIC), ("values", VALUES)):
            expected = {seed: crossing(every[seed], level) for seed in range(3)}
            numbers[name] = row(study, measure, name).spread.by_seed
            assert numbers[name] == pytest.approx(expected)
        found = against_classic(study, measure)
        assert found.saving == saving(numbers["values"], numbers["classic"])
        assert found.effect == effect(numbers["values"], numbers["classic"])
        paired = stats.ttest_rel(
            list(numbers["values"].values()), list(numbers["classic"].values())
        )
        assert found.tests.p_paired == pytest.approx(paired.pvalue)
    measures = {each.measure for each in study.compared.rows}
    assert "step: loss ≤ 1.2" not in measures  # none gets there


def test_naming_by_log_p_is_of_the_runs_that_recorded_it(tmp_path: Path) -> None:
    study = pair(tmp_path)
    assert row(study, "log P(IO)", "classic").spread.by_seed == {1: -0.5, 2: -0.5}
    assert row(study, "step: log P(IO) > -1.0", "values").spread.by_seed == {1: 100, 2: 200}
    assert row(study, "step: P(IO) > 0.5", "values").spread.by_seed == {0: 200, 1: 100, 2: 200}
    assert "(2 of 3)" in shown(study.tables()[0])
    assert against_classic(study, "validation loss").saving is None


def test_savings_and_effects_have_a_table(tmp_path: Path) -> None:
    text = shown(pair(tmp_path).tables()[2])
    assert "Against classic" in text
    (line,) = (line for line in text.splitlines() if "step: P(IO) > 0.5" in line)
    assert "38" in line  # 1 − 500 / 800


def test_more_architectures_stand_below_one_another(tmp_path: Path) -> None:
    kinds = {"small-classic": "", "small-own-2": "v(mix=pair, own=2, carried=0)",
             "small-v-detached": "v(detach=True)", "small-v": "v"}  # fmt: skip
    for seed in range(3):
        for number, (name, streams) in enumerate(kinds.items()):
            write(tmp_path, name, streams, seed, 300 - 100 * (number > 1), CLASSIC[seed])
    study = lm_emergence(load_runs(LMRun, tmp_path))
    assert set(study.architectures) == {"classic", "own-2", "v-detached", "values"}
    assert study.architectures[0] == "classic"
    assert {each.second for each in study.compared.tests} == {"classic"}
    text = shown(study.tables()[0])
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert text.count("v-detached") == 1 + len({each.measure for each in study.compared.rows})
    every = [each.tests for each in study.compared.tests]
    assert [each.p_paired_holm for each in every] == holm([each.p_paired for each in every])


def test_models_with_links_are_held_against_a_control_without_directly(tmp_path: Path) -> None:
    kinds = {"small-classic": ("", CLASSIC), "small-v": ("v", VALUES),
             "small-own-2": ("v(mix=pair, own=2, carried=0)", CLASSIC)}  # fmt: skip
    for seed in range(3):
        for name, (streams, losses) in kinds.items():
            write(tmp_path, name, streams, seed, 300, losses[seed])
    study = lm_emergence(load_runs(LMRun, tmp_path))
    assert {(each.first, each.second) for each in study.direct} == {("values", "own-2")}
    (found,) = (each for each in study.direct if each.measure == "step: loss ≤ 1.5")
    own, values = ([crossing(each, 1.5) for each in every] for every in (CLASSIC, VALUES))
    assert found.saving is not None
    assert found.saving.share == pytest.approx(1 - np.mean(values) / np.mean(own))
    assert found.tests.p == pytest.approx(stats.ttest_ind(values, own).pvalue)
    every = [each.tests for each in study.direct]
    assert [each.p_holm for each in every] == holm([each.p for each in every])
    assert [each.p_paired_holm for each in every] == holm([each.p_paired for each in every])
    said = " ".join(study.sentences())
    told = f"directly against own-2: values {found.saving.share:.0%} ["
    assert f"Steps saved to loss ≤ 1.5, {told}" in said
    assert not pair(tmp_path / "two").direct
    for seed in range(3):
        write(tmp_path, "small-v-first", "v(source=first)", seed, 300, FIRST[seed])
    study = lm_emergence(load_runs(LMRun, tmp_path))
    pairs = {("values", "own-2"), ("v-first", "own-2"), ("v-first", "values")}
    assert {(each.first, each.second) for each in study.direct} == pairs
    first = [crossing(each, 1.5) for each in FIRST]
    (found,) = (each for each in study.direct
                if (each.second, each.measure) == ("values", "step: loss ≤ 1.5"))  # fmt: skip
    assert found.saving is not None
    assert found.saving.share == pytest.approx(1 - np.mean(first) / np.mean(values))
    assert found.tests.p_paired == pytest.approx(stats.ttest_rel(first, values).pvalue)


def test_the_papers_formula_and_its_code_are_both_held_against_the_others(tmp_path: Path) -> None:
    kinds = {"small-classic": "", "small-own-2": "v(mix=pair, own=2, carried=0)",
             "small-v-raw": "v", "small-v-sum": "v(carry=sum)",
             "small-v-first": "v(source=first)"}  # fmt: skip
    for seed in range(2):
        for name, streams in kinds.items():
            write(tmp_path, name, streams, seed, 300, CLASSIC[seed])
    study = lm_emergence(load_runs(LMRun, tmp_path))
    assert set(study.architectures) == {"classic", "own-2", "v-raw", "v-sum", "v-first"}
    assert {(each.first, each.second) for each in study.direct} == {
        ("v-raw", "own-2"), ("v-sum", "own-2"), ("v-first", "own-2"),
        ("v-sum", "v-raw"), ("v-first", "v-raw"), ("v-first", "v-sum"),
    }  # fmt: skip
    shades = [colour(name) for name in study.architectures]
    assert shades.count(COLOURS["values"]) == shades.count(COLOURS["classic"]) == 1


def scaled(folder: Path, depths: int = 3) -> Scaling:
    """Values are 100 steps sooner of 300 with one layer, 200 with two."""
    for layers in range(1, depths + 1):
        for seed in range(3):
            late = 700 + 100 * seed
            early = late - 100 * layers
            for name, streams, at in (("classic", "", late), ("values", "v", early)):
                losses = [3.98 - 0.3 * (i if streams == "" else i + 0.5) for i in range(10)]
                if streams:
                    losses[0] = 3.98
                write(folder, f"{layers}x16-{name}", streams, seed, at, losses, n_layers=layers)
    return lm_scaling(load_runs(LMRun, folder))


def test_savings_by_depth_against_numbers_by_hand(tmp_path: Path) -> None:
    found = scaled(tmp_path, 5)
    assert [(size.layers, size.width) for size in found.sizes] == [(i, 16) for i in range(1, 6)]
    assert found.losses == (1.3, 1.28)
    assert found.prompts == "seen"
    tests: list[Any] = []
    for size in found.sizes:
        by = {each.measure: each for each in size.compared.tests}
        share = by["step: P(IO) > 0.5"].saving
        assert share is not None
        assert share.share == pytest.approx(100 * size.layers / 800)
        loss = by["step: loss ≤ 1.3"].saving
        assert loss is not None
        assert loss.share == pytest.approx(50 / (900 - 20 / 3))
        tests += [each.tests for each in size.compared.tests]
    assert [each.p_holm for each in tests] == holm([each.p for each in tests])
    assert found.along == {"values, step: P(IO) > 0.5, depth": pytest.approx(1),
                           "values, step: P(IO) > 0.9, depth": pytest.approx(1)}  # fmt: skip
    assert not scaled(tmp_path / "few").along  # of three sizes it says nothing
    said = " ".join(found.sentences())
    told = "values models save from 12% (1 × 16) to 62% (5 × 16) of classic’s steps, 5 sizes; rank"
    assert f"To P(IO) > 0.5, {told} correlation with depth +1.00." in said
    (table,) = found.tables()
    text = shown(table)
    assert "…" not in text
    assert table.row_count == 5 * 7
    written = json.loads(as_text(found.to_dict()))
    again = json.loads(as_text(Scaling.from_dict(written).to_dict()))
    assert again == written


def test_what_only_one_of_several_sizes_has_is_left_out(tmp_path: Path) -> None:
    plain = scaled(tmp_path).to_dict()
    losses = [3.98 - 0.1 * i for i in range(10)]  # were it counted, the loss that all fall to moved
    for seed in range(3):
        write(tmp_path, "2x16-own-2", "v(mix=pair, own=2, carried=0)", seed, 300, losses,
              n_layers=2)  # fmt: skip
    assert lm_scaling(load_runs(LMRun, tmp_path)).to_dict() == plain
    alone = [each for each in load_runs(LMRun, tmp_path) if each.run.config.n_layers == 2]
    (size,) = lm_scaling(alone).sizes
    assert {each.first for each in size.compared.tests} == {"own-2", "values"}


def test_the_end_is_the_last_step_that_all_runs_have(tmp_path: Path) -> None:
    kinds = {"small-classic": ("", 5), "small-v": ("v", 3),
             "small-own-2": ("v(mix=pair, own=2, carried=0)", 5)}  # fmt: skip
    for name, (streams, count) in kinds.items():
        losses = [4 - 0.5 * i - 0.1 * bool(streams) for i in range(5)]
        write(tmp_path, name, streams, 0, 300, losses)
        folder = tmp_path / f"{name}-seed0"
        record = json.loads((folder / "run.json").read_text())
        record["run"]["until"] = 100 * (count - 1)
        (folder / "run.json").write_text(json.dumps(record))
        kept = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)[:count]
        (folder / "metrics.jsonl").write_text("".join(kept))
    found = lm_scaling(load_runs(LMRun, tmp_path))
    rows = {(each.measure, each.architecture): each for each in found.sizes[0].compared.rows}
    ends = [rows["loss at step 200", name].spread.mean for name in ("classic", "own-2", "values")]
    assert ends == pytest.approx([3, 2.9, 2.9])
    said = [each for each in found.sentences() if each.startswith("To loss ≤ ")]
    assert [each.split(", ")[1].split()[0] for each in said] == ["own-2", "values"]


def test_induction_that_is_recorded_beside_runs_counts_too(tmp_path: Path) -> None:
    scaled(tmp_path)
    without = lm_scaling(load_runs(LMRun, tmp_path))
    tokens = torch.randint(1, 6, (20, 12), generator=torch.Generator().manual_seed(0))
    scores: dict[str, dict[int, float]] = {"classic": {}, "values": {}}
    for name, streams in (("classic", ""), ("values", "v")):
        for seed in range(3):
            model = tiny_model(streams, seed=seed)
            study = induction_study(model, n=2, length=4, text=tokens)
            folder = tmp_path / f"2x16-{name}-seed{seed}"
            (folder / "induction.json").write_text(as_text(study.to_dict()))
            with torch.no_grad():
                log_p = model(tokens)[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])
            scores[name][seed] = float(log_p[:, 0].mean() - log_p[:, 10].mean())
    found = lm_scaling(load_runs(LMRun, tmp_path))
    (size,) = (each for each in found.sizes if each.layers == 2)
    rows = {(each.measure, each.architecture): each.spread for each in size.compared.rows}
    for name, by_seed in scores.items():
        assert rows["in-context score", name].by_seed == pytest.approx(by_seed, abs=1e-5)
        assert len(rows["loss of repeated tokens", name].by_seed) == 3
    said = [x.replace("−", "-") for x in found.sentences() if "in-context score" in x]
    values, classic = (np.mean(list(scores[name].values())) for name in ("values", "classic"))
    assert len(said) == 1
    assert said[0].startswith(f"2 × 16, in-context score: values {values:.3f} ± ")
    assert f"classic {classic:.3f} ± " in said[0]
    others = [len(each.compared.rows) for each in found.sizes if each.layers != 2]
    assert others == [len(each.compared.rows) for each in without.sizes if each.layers != 2]
    assert found.tables()[0].row_count == without.tables()[0].row_count + 4


def test_sizes_need_runs() -> None:
    with pytest.raises(ValueError, match="there is no finished run of a language model"):
        lm_scaling([])
