"""The comparison study, on the models that ship with the package."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from resval_lens import AttentionStream
from resval_lens.analyses.comparison.icl import (
    accuracies,
    attention_study,
    four_cells,
    link_study,
    trained_classifiers,
)
from resval_lens.analyses.comparison.icl_compare import GRAFTED, compare
from resval_lens.analyses.comparison.icl_curves import icl_curves
from resval_lens.analyses.comparison.icl_emergence import emergence, paper_runs
from resval_lens.analyses.drawing import figures
from resval_lens.hooks import cut_links
from resval_lens.models.classifier import ICLClassifier
from resval_lens.tasks.icl import ICLBatch
from resval_lens.training.icl import evaluate
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.recorded import SHIPPED, export_run, load_run, load_runs, write_record

PAPER = ["classic", "queries", "keys", "values"]


@torch.no_grad()
def accuracy(model: ICLClassifier, batch: ICLBatch) -> float:
    """Share of right answers of the hooked model."""
    return float((model(batch.inputs).argmax(-1) == batch.targets).double().mean())


@pytest.fixture(scope="module")
def shipped() -> dict:
    return {each.name: each for each in trained_classifiers(paper_runs(load_runs(ICLRun)), 400)}


def test_four_models_ship_and_answer_in_context(shipped):
    assert list(shipped) == PAPER
    for trained in shipped.values():
        assert accuracy(trained.model, trained.tests["ic"]) > 0.95


def test_shipped_models_reach_their_recorded_accuracy():
    """The recorded run's test sets, drawn fresh, give the recorded number."""
    (trained,) = trained_classifiers(
        [run for run in load_runs(ICLRun) if run.run.name == "values"], 10_000
    )
    recorded = json.loads(
        (SHIPPED / "icl" / "values-seed0" / "model" / "provenance.json").read_text()
    )["metrics"]
    ours = evaluate(trained.model, {"ic": trained.tests["ic"]})["ic"]
    assert ours["accuracy"] == pytest.approx(recorded["ic"]["accuracy"], abs=2e-4)
    assert ours["loss"] == pytest.approx(recorded["ic"]["loss"], abs=1e-4)


def test_accuracies_count_argmax_hits(shipped):
    trained = shipped["keys"]
    batch = ICLBatch(*(x[:50] for x in trained.tests["iw"]))
    with torch.no_grad():
        hits = [int(trained.model(x[None]).argmax()) == int(y)
                for x, y in zip(batch.inputs, batch.targets, strict=True)]  # fmt: skip
    assert accuracies(trained.model, {"iw": batch}) == {"iw": np.mean(hits)}


@pytest.mark.parametrize("name", ["queries", "keys", "values"])
def test_scaling_the_link_is_changing_the_carried_weight(shipped, name):
    trained = shipped[name]
    study = link_study(trained, 150)
    of = trained.model.cfg.streams[0].of
    for c in (-1.0, 0.5, 2.0):
        other = trained.model.with_streams(AttentionStream(of=of, carried=c))
        expected = {
            task: accuracy(other, ICLBatch(*(x[:150] for x in batch)))
            for task, batch in trained.tests.items()
        }
        assert study.scale[c] == pytest.approx(expected, abs=1e-9)
    some = ICLBatch(*(x[:150] for x in trained.tests["ic"]))
    assert study.scale[0.0]["ic"] == accuracy(trained.model.with_streams(""), some)
    assert study.sequences == study.to_dict()["sequences"] == 150
    assert study.to_dict()["scale"]["0.0"] == study.scale[0.0]
    for results, streams in (
        (study.cut, ""),
        (study.without, ""),
        (study.whole, trained.model.cfg.streams),
    ):
        expected = evaluate(trained.model.with_streams(streams), trained.tests)
        for task, numbers in results.items():
            assert numbers == pytest.approx(expected[task], abs=1e-5)


@pytest.mark.parametrize("name", ["queries", "keys", "values"])
def test_a_mean_link_is_a_hook_that_puts_the_mean_in_its_place(shipped, name):
    trained = shipped[name]
    study = link_study(trained, 150)
    of = trained.model.cfg.streams[0].of
    generator = torch.Generator().manual_seed(trained.seed)
    for task, settings in trained.world.task.tests().items():
        others = trained.world.batch(1000, generator, settings).inputs
        _, cache = trained.model.run_with_cache(others)
        put = cache[f"blocks.1.attn.hook_{of}_link"].mean(0)

        def replace(link, hook, put=put):
            return put.expand_as(link)

        with trained.model.hooks(fwd_hooks=[(f"blocks.1.attn.hook_{of}_link", replace)]):
            some = ICLBatch(*(x[:150] for x in trained.tests[task]))
            assert study.mean[task] == accuracy(trained.model, some)


@pytest.mark.parametrize("mix", ["gate", "convex", "pair"])
def test_an_own_weight_that_is_not_one_stays_when_the_link_is_cut(shipped, mix):
    """A cut link is not a model without the stream where the own weight is less than 1."""
    own = {"own": 0.5, "carried": 0.5} if mix == "pair" else {}
    stream = AttentionStream("v", mix=mix, **own)
    classic = shipped["classic"]
    tests = {task: ICLBatch(*(x[:100] for x in batch)) for task, batch in classic.tests.items()}
    trained = replace(classic, tests=tests, model=classic.model.with_streams(stream))
    study = link_study(trained, 60)
    with cut_links(trained.model):
        cut = {task: accuracy(trained.model, batch) for task, batch in tests.items()}
    assert study.accuracies_cut == study.to_dict()["cut"] == pytest.approx(cut)
    without = {task: accuracy(classic.model, batch) for task, batch in tests.items()}
    assert {task: of["accuracy"] for task, of in study.without.items()} == pytest.approx(without)
    assert cut != without


def test_four_cells_are_the_same_weights_run_both_ways(shipped):
    classic, values = shipped["classic"], shipped["values"]
    streams = values.model.cfg.streams
    grafted = link_study(classic, 40, classic.model.with_streams(streams))
    cells = four_cells(grafted, link_study(values, 40)).to_dict()["cells"]
    models = {
        "trained classic, run without": classic.model,
        "trained classic, run with": classic.model.with_streams("v"),
        "trained values, run without": values.model.with_streams(""),
        "trained values, run with": values.model,
    }
    assert cells == {
        cell: {task: accuracy(model, batch) for task, batch in classic.tests.items()}
        for cell, model in models.items()
    }


def test_a_grafted_link_is_scaled_beside_the_trained_ones(shipped):
    classic, values = shipped["classic"], shipped["values"]
    result = compare([r for r in load_runs(ICLRun) if r.has_model], 60, 40)
    study = result.links[GRAFTED]
    for c in (0.0, 0.5, 1.0):
        streams = AttentionStream("v", carried=c) if c else ""
        some = ICLBatch(*(x[:40] for x in classic.tests["ic"]))
        expected = accuracy(classic.model.with_streams(streams), some)
        assert study.scale[c]["ic"] == pytest.approx(expected)
    assert set(result.links) == {"queries", "keys", "values", GRAFTED}
    assert values.model.cfg.streams[0].of == "v"
    own = {task: ICLBatch(*(x[:60] for x in batch)) for task, batch in classic.tests.items()}
    for task, numbers in evaluate(classic.model, own).items():
        assert result.models["classic"].tasks[task] == pytest.approx(numbers, abs=1e-5)


def test_attention_patterns_are_distributions(shipped):
    study = attention_study(shipped["values"])
    for pattern in study.mean_pattern:
        rows = np.array(pattern)
        assert rows.sum(1) == pytest.approx(np.ones(17), abs=1e-3)
        assert np.triu(rows, 1).max() == 0
    assert study.measures["ila1_labels"] > 0.5  # a label looks at its object
    assert study.measures["tila2"] > 0.5  # the query looks at the right labels


def test_the_study_is_json_and_every_figure_draws(tmp_path):
    runs = paper_runs(load_runs(ICLRun))
    result = compare(runs, sequences=60, link_sequences=40)
    by_seed = emergence(runs, 0.95)
    text = json.dumps({**result.to_dict(), "emergence": by_seed.to_dict()}, allow_nan=False)
    assert set(json.loads(text)["models"]) == set(PAPER)
    ours = result.figures()
    assert list(ours) == ["accuracy.png", "link_edits.png", "attention.png"]
    drawn = [*ours.values(), icl_curves(runs).figure()]
    for number, figure in enumerate(drawn):
        path = figures.save(figure, tmp_path / f"{number}.png")
        assert path.read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == len(drawn)
    assert result.accuracy_table().row_count == 4 + 3 + 4 * 6 + 4
    assert any("Cutting the link v1" in line for line in result.sentences())
    saved = f"{by_seed.saving('ic', 'values'):.0%}"
    assert by_seed.sentences()[0].startswith(
        f"The values stream reaches 0.95 on IC with {saved} fewer"
    )


def test_no_models_is_said():
    with pytest.raises(ValueError, match="none of these runs has a trained model"):
        trained_classifiers([run for run in load_runs(ICLRun) if not run.has_model], 10)


def test_sequences_below_one_are_refused():
    with pytest.raises(ValueError, match="sequences must be 1 or more; got 0"):
        trained_classifiers(load_runs(ICLRun), 0)


def test_export_keeps_metrics_and_chosen_models_and_refuses_unfinished_runs(tmp_path):
    source, target = tmp_path / "runs", tmp_path / "package"
    (source / "classic-seed0").mkdir(parents=True)
    for name in ("run.json", "metrics.jsonl"):
        content = (SHIPPED / "icl" / "classic-seed0" / name).read_bytes()
        (source / "classic-seed0" / name).write_bytes(content)
    made = export_run(load_run(source / "classic-seed0", ICLRun), target)
    assert made == target / "classic-seed0"
    whole = load_run(source / "classic-seed0", ICLRun)
    assert load_run(made, ICLRun) == replace(whole, folder=made)
    write_record(whole.folder, whole.run.to_dict(), whole.starts, whole.metrics[:-1])
    with pytest.raises(ValueError, match="has not reached step"):
        export_run(load_run(whole.folder, ICLRun), target)


def test_unreadable_records_are_named(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no training runs"):  # it has only begun
        load_runs(ICLRun, tmp_path)
    (tmp_path / "x" / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(ValueError, match=r"run\.json is not the record of a training run"):
        load_runs(ICLRun, tmp_path)
    with pytest.raises(ValueError, match="holds no training runs"):
        load_runs(ICLRun, tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no evaluations"),
        ('{"step": 0}\n', "step 0 lacks the accuracy or loss of 'test'"),
    ],
)
def test_metrics_that_are_not_there_are_named(tmp_path, content, said):
    record = json.loads((SHIPPED / "icl" / "classic-seed0" / "run.json").read_text())
    record = {name: record[name] for name in ("run", "starts")}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(ValueError, match=rf"metrics\.jsonl.* {said}"):
        load_run(tmp_path, ICLRun)


def test_recorded_curves_start_at_chance():
    for recorded in load_runs(ICLRun):
        first = recorded.metrics[0]
        assert first["step"] == 0
        assert first["ic"]["accuracy"] == pytest.approx(1 / 32, abs=0.02)
        assert first["ic"]["loss"] == pytest.approx(math.log(32), abs=0.1)
