"""Recorded runs of language models: read, exported, compared over seeds."""

import json
import shutil
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy import stats

from resval_lens import ResValTransformer
from resval_lens.analyses.cli.options import pairs_by_seed
from resval_lens.analyses.comparison.cells import Cells
from resval_lens.analyses.comparison.figures import training
from resval_lens.analyses.comparison.ioi_cells import (
    FourCells,
    cells_sentences,
    cells_table,
    four_cells,
)
from resval_lens.analyses.comparison.lm_emergence import at_loss, lm_emergence, model_names
from resval_lens.analyses.comparison.lm_progress import ioi_sets
from resval_lens.analyses.results.result import plain
from resval_lens.analyses.results.seeds import TTests, holm
from resval_lens.analyses.results.tables import p_told
from resval_lens.analyses.studies.ioi import IOIScores, ioi_scores
from resval_lens.analyses.studies.story_loss import story_rows
from resval_lens.io.checkpoint import SHIPPED_MODELS
from resval_lens.io.provenance import provenance
from resval_lens.models.language_models import language_model_config
from resval_lens.streams import AttentionStream, architecture, parse_streams
from resval_lens.tasks import stories
from resval_lens.tasks.ioi import encode
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import export_run, load_run, load_runs
from tests.helpers import reached
from tests.test_ioi import shown

README = " ".join((Path(__file__).parents[1] / "README.md").read_text().split())
SMALL = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 32, "n_ctx": 12}


def line(step: int, accuracy: float, p_io: float, loss: float = 1.0) -> dict[str, Any]:
    scores = {"accuracy": accuracy, "accuracy_top1": accuracy, "p_io": p_io, "p_subject": 0.1}
    return {"step": step, "valid_loss": loss, "ioi": {"unseen": scores}, "sample": "Once …"}


def folder_of(
    parent: Path, streams: str, seed: int, at: int | None, loss: float = 1.0, **changes: Any
) -> Path:
    """A run of 500 steps whose scores rise from 0 to .97 at step ``at``."""
    config = language_model_config("stories-small", streams, carry="raw", **SMALL)
    settings = {"steps": 500, "evaluate_every": 100, **changes}
    run = LMRun(f"small-{streams or 'classic'}", config.to_json(), "text", seed, **settings)
    folder = parent / run.folder_name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"run": run.to_dict(), "starts": [provenance()]}))
    lines: list[dict[str, Any]] = [{"step": 20, "train_loss": 1 / 3}]
    for step in range(0, changes.get("until", 500) + 1, 100):
        score = 0.97 if at is not None and step >= at else 0.0
        lines.append(line(step, score, score, loss))
    lines.sort(key=lambda each: int(each["step"]))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    return folder


def test_architectures_are_named_as_in_the_paper() -> None:
    raw = (AttentionStream("v", carry="raw"),)
    assert [architecture(parse_streams(s)) for s in ("", "q", "k", "v")] == [
        "classic", "queries", "keys", "values",
    ]  # fmt: skip
    assert architecture(raw) == "values"
    assert architecture((AttentionStream("v", detach=True),)) == "v(detach=True)"
    assert architecture(parse_streams("qv")) == "qv"


def test_runs_come_classic_first_then_by_seed(tmp_path: Path) -> None:
    for streams, seed in (("v", 1), ("v", 0), ("", 1), ("", 0)):
        folder_of(tmp_path, streams, seed, 300)
    found = load_runs(LMRun, tmp_path)
    assert [(r.architecture, r.run.seed) for r in found] == [
        ("classic", 0), ("classic", 1), ("values", 0), ("values", 1),
    ]  # fmt: skip
    assert [each["step"] for each in found[0].evaluations] == list(range(0, 501, 100))


def test_steps_means_and_tests_equal_scipys(tmp_path: Path) -> None:
    at = {"": [300, 400, 500], "v": [200, 200, 400]}
    losses = {"": [1.0, 1.2, 1.1], "v": [0.9, 1.1, 1.05]}
    for streams, steps in at.items():
        for seed, step in enumerate(steps):
            folder_of(tmp_path, streams, seed, step, losses[streams][seed])
    study = lm_emergence(load_runs(LMRun, tmp_path))
    rows = {(row.measure, row.architecture): row.spread for row in study.compared.rows}
    tests = {test.measure: test for test in study.compared.tests}
    for measure, numbers in (
        ("step: accuracy > 0.95", at),
        ("step: P(IO) > 0.5", at),
        ("validation loss", losses),
    ):
        for name, streams in (("classic", ""), ("values", "v")):
            row = rows[measure, name]
            assert list(row.by_seed.values()) == numbers[streams]
            assert row.mean == pytest.approx(np.mean(numbers[streams]))
            assert row.sd == pytest.approx(np.std(numbers[streams]))
        test, found = tests[measure], tests[measure].tests
        assert (test.first, test.second) == ("values", "classic")
        independent = stats.ttest_ind(numbers["v"], numbers[""])
        paired = stats.ttest_rel(numbers["v"], numbers[""])
        assert (found.t, found.p) == pytest.approx(tuple(independent))
        assert (found.t_paired, found.p_paired) == pytest.approx(tuple(paired))


def test_tests_are_corrected_for_being_many_each_table_on_its_own() -> None:
    study = lm_emergence(load_runs(LMRun))
    for table, many in ((study.compared, 231), (study.matched.compared, 217)):
        tests = [test.tests for test in table.tests]
        assert len(tests) == many
        assert [t.p_holm for t in tests] == holm([t.p for t in tests])
        assert [t.p_paired_holm for t in tests] == holm([t.p_paired for t in tests])
    kept = {
        (test.first, test.measure)
        for test in study.compared.tests
        for p in (test.tests.p_holm, test.tests.p_paired_holm)
        if p is not None and p < 0.05
    }
    assert kept == {  # the text: of P(IO) and the likeliest token only the formula's
        ("own-2", "step: loss ≤ 2"),
        ("own-2", "step: loss ≤ 1.5"),
        ("v-first", "step: loss ≤ 1.5"),
        ("v-first", "step: loss ≤ 1.2"),
        ("v-first-norm-matched", "step: loss ≤ 2"),
        ("v-first-norm-matched", "step: loss ≤ 1.5"),
        ("v-first-norm-matched", "step: loss ≤ 1.2"),
        ("v-norm-matched", "step: loss ≤ 1.2"),
        ("v-sum", "step: loss ≤ 1.5"),
        ("v-sum", "step: loss ≤ 1.2"),
        ("v-sum", "step: accuracy > 0.95"),
        ("v-sum", "step: P(IO) > 0.9"),
    }


def test_at_equal_loss_a_score_lies_between_two_evaluations() -> None:
    lines = [{"valid_loss": loss, "x": x} for loss, x in ((3, 0.0), (2, 0.2), (1, 0.8), (2, 0.9))]
    for loss, expected in ((4, 0), (3, 0), (2.5, 0.1), (2, 0.2), (1.25, 0.65), (1, 0.8)):
        assert at_loss(lines, loss, lambda line: line["x"]) == pytest.approx(expected)
    assert at_loss(lines, 0.9, lambda line: line["x"]) is None


def test_the_matched_loss_is_where_the_last_prompts_are_answered() -> None:
    """Recorded: the kinds of model pass .95 at about the same loss, values in fewer steps."""
    runs = load_runs(LMRun)
    study, firsts = lm_emergence(runs), dict[str, list[float]]()
    for name, recorded in zip(model_names(runs), runs, strict=True):
        lines = recorded.evaluations
        first = next(line for line in lines if line["ioi"]["unseen"]["accuracy"] > 0.95)
        firsts.setdefault(name, []).append(first["valid_loss"])
    rows = {(r.prompts, r.measure, r.architecture): r for r in study.matched.compared.rows}
    for name, losses in firsts.items():
        row = rows["unseen", "loss: accuracy > 0.95", name]
        assert list(row.spread.by_seed.values()) == losses
    assert study.matched.loss == pytest.approx(np.mean([x for own in firsts.values() for x in own]))
    assert study.tables()[1].row_count == 252


def test_what_never_emerges_is_said_and_not_tested(tmp_path: Path) -> None:
    for seed, step in enumerate((200, None)):
        folder_of(tmp_path, "v", seed, step)
        folder_of(tmp_path, "", seed, 300)
    study = lm_emergence(load_runs(LMRun, tmp_path))
    row = next(
        row.spread for row in study.compared.rows
        if (row.measure, row.architecture) == ("step: P(IO) > 0.9", "values")
    )  # fmt: skip
    assert row.by_seed == {0: 200, 1: None}
    assert (row.mean, row.sd) == (200, 0)
    test = next(test for test in study.compared.tests if test.measure == "step: P(IO) > 0.9")
    assert test.tests == TTests()  # all None
    assert "(1 of 2)" in shown(study.tables()[0])


def test_one_architecture_alone_has_no_tests(tmp_path: Path) -> None:
    folder_of(tmp_path, "v", 0, 200)
    study = lm_emergence(load_runs(LMRun, tmp_path))
    assert study.compared.tests == ()
    text = shown(study.tables()[0])
    assert " 200 " in text
    assert "±" not in text.partition("(mean")[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 400}, "has steps=400, .* 500"),
        ({"steps": 1000}, "has steps=1000, .* 500"),
        ({"evaluate_every": 50}, "has evaluate_every=50, .* 100"),
        ({"lr": 0.5}, "has lr=0.5, .* 0.001"),
        ({"rows": "story"}, "has rows='story', .* 'packed'"),
    ],
)
def test_runs_that_differ_are_not_compared(tmp_path: Path, changes: Any, message: str) -> None:
    folder_of(tmp_path, "", 0, 300)
    folder_of(tmp_path, "v", 0, 300, **changes)
    with pytest.raises(ValueError, match=message):
        lm_emergence(load_runs(LMRun, tmp_path))


def test_models_that_differ_are_not_compared(tmp_path: Path) -> None:
    folder_of(tmp_path, "", 0, 300)
    path = folder_of(tmp_path, "v", 0, 300) / "run.json"
    path.write_text(path.read_text().replace('\\"d_mlp\\": 32', '\\"d_mlp\\": 48'))
    with pytest.raises(ValueError, match=r"has d_mlp=48, .* 32"):
        lm_emergence(load_runs(LMRun, tmp_path))


def test_two_runs_of_one_seed_are_not_mixed_and_two_carries_not_pooled(tmp_path: Path) -> None:
    for carry, at in (("raw", 100), ("sum", 300)):
        for seed in (0, 1):
            folder = folder_of(tmp_path, "v", seed, at)
            text = (folder / "run.json").read_text().replace("raw", carry)
            (folder / "run.json").write_text(text)
            folder.rename(tmp_path / f"{carry}{seed}")
    study = lm_emergence(load_runs(LMRun, tmp_path))
    means = {
        row.architecture: row.spread.mean
        for row in study.compared.rows
        if "step: P(IO) > 0.5" in row.measure
    }
    assert means == {"v(carry=raw)": 100, "v": 300}
    shutil.copytree(tmp_path / "raw0", tmp_path / "again")
    with pytest.raises(ValueError, match="have the same streams and seed"):
        lm_emergence(load_runs(LMRun, tmp_path))


@pytest.mark.parametrize("sets", [{}, {"paper": line(0, 1.0, 0.5)["ioi"]["unseen"]}])
def test_runs_without_generated_prompts_are_drawn_too(tmp_path: Path, sets: dict) -> None:
    folder = folder_of(tmp_path, "v", 0, 200)
    lines = [{"step": step, "valid_loss": 1.0, "ioi": sets} for step in (0, 250, 500)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    runs = load_runs(LMRun, tmp_path)
    assert lm_emergence(runs).tables()[0].row_count == 2 + 9 * len(sets)  # groups have a heading
    assert len(training(runs).axes) == (3 if sets else 1)
    plt.close("all")


def test_runs_that_end_early_count_where_they_went(tmp_path: Path) -> None:
    """Classic at 200, 300 and (ended at 400) 300; values at 200, 200 and (ended at 400) never."""
    for streams, at in (("", (200, 300, 300)), ("v", (200, 200, None))):
        for seed, step in enumerate(at):
            early = {"until": 400} if seed == 2 else {}
            folder_of(tmp_path, streams, seed, step, loss=1.0 + seed, **early)
    runs = load_runs(LMRun, tmp_path)
    assert [each.done for each in runs] == [True] * 6
    found = lm_emergence(runs)
    by = {(row.prompts, row.measure, row.architecture): row for row in found.compared.rows}
    loss = by["", "validation loss", "classic"]
    assert set(loss.spread.by_seed) == {0, 1}
    assert loss.spread.mean == 1.5
    assert loss.told(3).endswith("(2 of 3)")
    steps = by["unseen", "step: accuracy > 0.95", "values"]
    assert steps.spread.by_seed == {0: 200, 1: 200, 2: None}
    assert by["unseen", "step: accuracy > 0.95", "classic"].spread.mean == np.mean([200, 300, 300])
    assert found.seeds == {"classic": 3, "values": 3}
    short = "v(mix=pair, own=2, carried=0)"
    folder_of(tmp_path, short, 0, 200, until=400)
    said = [
        each for each in lm_emergence(load_runs(LMRun, tmp_path)).sentences() if "At the" in each
    ]
    assert len(said) == 1  # its runs have no end
    assert said[0].startswith("At the end, validation loss: values 1.500")


def test_of_several_the_savings_are_said_together(tmp_path: Path) -> None:
    other = "v(mix=pair, own=2, carried=0)"
    for streams, at in (("", (200, 400)), ("v", (100, 200)), (other, (200, 300))):
        for seed, step in enumerate(at):
            folder_of(tmp_path, streams, seed, step)
    of_pair = [each for each in load_runs(LMRun, tmp_path) if "own" not in each.run.name]
    assert not any("Steps saved" in each for each in lm_emergence(of_pair).sentences())
    study = lm_emergence(load_runs(LMRun, tmp_path))
    (said,) = (each for each in study.sentences() if "Steps saved" in each)
    assert said == (
        "Steps saved to P(IO) > 0.5 on unseen prompts, against classic: values 50%, "
        f"{other} 17%."  # 500 of 600
    )


def test_kinds_without_a_colour_of_their_own_have_different_ones(tmp_path: Path) -> None:
    kinds = ("", *(f"v(mix=pair, own={own}, carried=0)" for own in (2, 3, 5)))
    for streams in kinds:
        folder_of(tmp_path, streams, 0, 200)
    for axes in training(load_runs(LMRun, tmp_path)).axes:
        means = [line for line in axes.lines if line.get_linewidth() == 2]
        assert len({line.get_color() for line in means}) == len(means) == len(kinds)
    plt.close("all")


def test_the_readme_says_what_language_models_save() -> None:
    """As recomputed from the recorded losses: where each first falls to 1.1, by seed."""
    runs, steps = load_runs(LMRun), dict[str, dict[int, float]]()
    for name, recorded in zip(model_names(runs), runs, strict=True):
        steps.setdefault(name, {})[recorded.run.seed] = reached(recorded.evaluations, 1.1)
    study = lm_emergence(runs)
    tests = study.compared.tests
    saving = {test.first: test.saving for test in tests if test.measure == "step: loss ≤ 1.1"}
    classic, said = steps["classic"], []
    for name in ("v-raw", "v-norm-matched", "own-root-2", "own-2"):
        both = classic.keys() & steps[name].keys()
        share = 1 - sum(steps[name][x] for x in both) / sum(classic[x] for x in both)
        found = saving[name]
        assert found is not None
        assert found.interval is not None
        ends = (f"{100 * x:.0f}" for x in (found.interval.low, found.interval.high))
        said.append(f"{share:.0%} [{', '.join(ends)}]".replace("-", "−"))
    stream, matched, root, own = said
    words = f"stream of the paper's code saves {stream}, at constant norm {matched}; without a link"
    assert f"of 1.1 the {words}, values times √2 save {root}, doubled ones {own}" in README
    both = steps["v-raw"].keys() & steps["own-root-2"].keys()
    share = 1 - sum(steps["v-raw"][x] for x in both) / sum(steps["own-root-2"][x] for x in both)
    (directly,) = (
        each
        for each in study.direct
        if (each.first, each.second, each.measure) == ("v-raw", "own-root-2", "step: loss ≤ 1.1")
    )
    assert directly.saving is not None
    interval = directly.saving.interval
    assert interval is not None
    ends = (f"{100 * x:.0f}" for x in (interval.low, interval.high))
    told = f"{share:.0%} [{', '.join(ends)}], {p_told(directly.tests.p_holm)})"
    assert f"values times √2 directly, the stream's to 1.1 ({told}, as independent" in README
    (early,) = (
        test
        for test in tests
        if (test.first, test.measure) == ("v-norm-matched", "step: loss ≤ 1.2")
    )
    assert early.saving is not None
    for weak in (early.tests, directly.tests):
        assert weak.p_paired_holm is not None
        assert weak.p_paired_holm > 0.05
    assert (
        f"to a loss of 1.2 ({early.saving.share:.0%}, {p_told(early.tests.p_holm)}) and" in README
    )
    shown = {
        (test.first, test.measure)
        for test in tests
        if test.measure in ("step: loss ≤ 1.2", "step: loss ≤ 1.1")
        if test.tests.p_holm is not None and test.tests.p_holm < 0.05
    }
    assert {name for name, _ in shown} == {
        "v-first",
        "v-first-norm-matched",
        "v-norm-matched",
        "v-sum",
    }
    assert {measure for _, measure in shown} == {"step: loss ≤ 1.2"}


def test_an_unfinished_run_is_neither_compared_nor_exported(tmp_path: Path) -> None:
    folder_of(tmp_path / "runs", "", 0, 300, steps=700)
    with pytest.raises(ValueError, match="has not reached step 700"):
        lm_emergence(load_runs(LMRun, tmp_path / "runs"))
    with pytest.raises(ValueError, match="has not reached step 700"):
        export_run(load_runs(LMRun, tmp_path / "runs")[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{}", "it has no 'run'"),
        ("run.json", '{"run": {"name": "x"}, "starts": []}', "no run of a language model"),
        ("metrics.jsonl", '{"step": 20, "train_loss": 1.0}\n', "holds no evaluations"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    folder = folder_of(tmp_path, "", 0, 300)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_run(folder, LMRun)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no training runs"):
        load_runs(LMRun, tmp_path)


def test_exported_runs_read_as_they_were_with_weights_in_16_bits(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "runs", "v", 0, 300)
    model = ResValTransformer(load_run(folder, LMRun).run.config)
    model.save_pretrained(folder / "model")
    export_run(load_run(folder, LMRun), tmp_path / "out", with_model=True)
    (found,) = load_runs(LMRun, tmp_path / "out")
    (source,) = load_runs(LMRun, tmp_path / "runs")
    assert found.run == source.run
    assert found.starts == source.starts
    assert found.evaluations == source.evaluations
    assert found.metrics[1]["train_loss"] == 0.333333
    loaded = dict(found.model().named_parameters())
    for name, parameter in model.named_parameters():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], parameter.half().float())
    sizes = [(x / "model" / "model.safetensors").stat().st_size for x in (found.folder, folder)]
    assert sizes[0] < 0.6 * sizes[1]


def test_a_model_to_export_must_be_there(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "runs", "v", 0, 300)
    with pytest.raises(ValueError, match="model is missing"):
        export_run(load_run(folder, LMRun), tmp_path / "out", with_model=True)
    assert not (tmp_path / "out").exists()


def test_weights_too_large_for_16_bits_are_refused(tmp_path: Path) -> None:
    model = ResValTransformer(language_model_config("stories-small", **SMALL))
    with torch.no_grad():
        model.blocks[0].mlp.b_in[0] = 1e6
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.b_in has weights too large"):
        model.save_pretrained(tmp_path / "model", dtype=torch.float16)
    assert not (tmp_path / "model").exists()


# The four cells, over pairs


@pytest.mark.parametrize(
    ("seeds", "others", "pairs"),
    [
        ((0, 1, 2), (2, 0), [(0, 1), (2, 0)]),
        ((None, None), (None, None), [(0, 0), (1, 1)]),
        ((0,), (5,), [(0, 0)]),
        ((0, 1), (None,), None),
    ],
)
def test_pairs_have_one_seed(tmp_path: Path, seeds: Any, others: Any, pairs: Any) -> None:
    kinds = []
    for kind, of in (("classic", seeds), ("values", others)):
        folders = [tmp_path / f"{kind}{i}" for i in range(len(of))]
        for folder, seed in zip(folders, of, strict=True):
            folder.mkdir()
            if seed is not None:
                (folder / "provenance.json").write_text(json.dumps({"run": {"seed": seed}}))
        kinds.append(folders)
    if pairs is None:
        with pytest.raises(ValueError, match="2 models of one kind and 1 of the other"):
            pairs_by_seed(*kinds)
        return
    assert pairs_by_seed(*kinds) == [(kinds[0][i], kinds[1][j]) for i, j in pairs]


FOUR = (0.9, 0.84, 0.05, 0.95)


def cells(*p_io: float) -> FourCells:
    return FourCells((), 1, Cells(*(IOIScores(0.0, p, 0.0, 0.0, 0.0, 0.0) for p in p_io)))


def test_cells_of_several_pairs_are_averaged() -> None:
    text = shown(cells_table([cells(*FOUR), cells(0.7, 0.5, 0.25, 0.75)]))
    assert "2 pairs" in text
    for expected in ("0.800 ± 0.100", "0.670 ± 0.170", "0.150 ± 0.100", "0.850 ± 0.100"):
        assert expected in text


def test_sentences_say_what_the_cells_hold() -> None:
    own, grafted, removed = cells_sentences([cells(*FOUR)])
    assert "0.900 classic, 0.950 with the stream" in own
    assert "P(IO) 0.900 → 0.840" in grafted
    assert "P(IO) 0.950 → 0.050" in removed


# What ships


def test_the_shipped_pair_is_small_and_says_where_it_comes_from() -> None:
    assert sum((x / "model.safetensors").stat().st_size for x in SHIPPED_MODELS.values()) < 6e6
    for name, folder in SHIPPED_MODELS.items():
        model = ResValTransformer.from_pretrained(name)
        assert bool(model.cfg.streams) == ("values" in name)
        assert model.tokenizer is not None
        record = json.loads((folder / "provenance.json").read_text())
        assert {"command", "versions", "run", "metrics"} <= set(record)
        assert record["git_commit"]
        assert record["run"]["eps"] == 1e-8


@pytest.mark.parametrize("name", list(SHIPPED_MODELS))
def test_rounding_the_shipped_weights_did_not_change_what_they_do(name: str) -> None:
    model = ResValTransformer.from_pretrained(name)
    words = stories.load_tokenizer()
    recorded = load_run(SHIPPED_MODELS[name].parent, LMRun).evaluations[-1]["ioi"]
    for prompts, batch in ioi_sets(words, "packed", True)[0].items():
        found = plain(ioi_scores(model, batch))
        for score in ("accuracy", "p_io", "p_subject"):
            assert found[score] == pytest.approx(recorded[prompts][score], abs=0.005)


@torch.no_grad()
def test_how_much_larger_the_link_makes_values() -> None:
    """In layers 1 to 3 of the shipped model, from its weights and normalised inputs."""
    model = ResValTransformer.from_pretrained(list(SHIPPED_MODELS)[1])
    _, cache = model.run_with_cache(story_rows(model))

    def own(layer: int) -> torch.Tensor:
        block = model.blocks[layer]
        read = cache["normalized", layer, "ln1"] * block.ln1.w + block.ln1.b
        return torch.einsum("bpd,hde->bphe", read, model.W_V[layer]) + model.b_V[layer]

    told = [
        f"{float((own(at) + own(at - 1)).norm(dim=-1).mean() / own(at).norm(dim=-1).mean()):.2f}"
        for at in (1, 2, 3)
    ]
    page = " ".join((Path(__file__).parents[1] / "docs" / "findings.md").read_text().split())
    assert f"values {told[0]}, {told[1]} and {told[2]} times as large (layers 1 to 3" in page


def test_the_shipped_values_model_needs_its_links_and_the_classic_none() -> None:
    """The finding of the four cells, in a hundred prompts."""
    models = [ResValTransformer.from_pretrained(name) for name in SHIPPED_MODELS]
    prompts = stories.ioi_prompts(100, 1, "unseen", "unseen", "unseen")
    cells = four_cells(*models, encode(prompts, stories.load_tokenizer(), 0)).cells
    assert cells.classic.accuracy == cells.grafted.accuracy == cells.stream.accuracy == 1
    assert cells.removed.accuracy < 0.75
