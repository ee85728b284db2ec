"""Circuits compared: classic beside values, on both tasks."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.running import Ablation, EdgeRuns
from resval_lens.analyses.circuits.scores import EdgeScores, score_edges
from resval_lens.analyses.circuits.study import agreement, circuit_study
from resval_lens.analyses.comparison import circuit_tables
from resval_lens.analyses.comparison.circuit_compare import (
    ComparedCircuits,
    ComparedModel,
    check_counts,
    check_models,
    classifier_circuits,
    compared_models,
    ioi_circuits,
    ioi_heads,
    ioi_matrices,
    naming,
)
from resval_lens.analyses.comparison.circuit_findings import MEASURES, over_seeds, sentences
from resval_lens.analyses.drawing import figures
from resval_lens.analyses.studies import circuit_figures
from resval_lens.analyses.studies.circuit import circuit_table, scores_table
from resval_lens.analyses.tasks.pairs import (
    ioi_metrics,
    ioi_pairs,
    name_tokens,
)
from resval_lens.hooks import PromptPairs, cut_links
from resval_lens.hooks.answers import answer_logits
from resval_lens.tasks import stories
from resval_lens.tasks.stories import ioi_prompts
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.recorded import load_runs
from resval_lens.transformer import ResValTransformer
from tests.hand_built import LINKED_CIRCUIT, linked_model, linked_pairs


@pytest.fixture(scope="module")
def compared() -> ComparedCircuits:
    runs = [
        each
        for each in load_runs(ICLRun)
        if each.has_model and each.run.name in ("classic", "values")
    ]
    models = compared_models()
    of_names = ioi_circuits(models, 8)
    circuits = classifier_circuits(runs, 32) + of_names
    matrices = ioi_matrices(models, 8, found_already=of_names)
    return ComparedCircuits(tuple(circuits), tuple(matrices), tuple(ioi_heads(models, 8)))


def test_a_circuit_without_effect_has_no_share_of_it() -> None:
    study = circuit_study(linked_model(), linked_pairs(), edges=1)  # pruned, nothing
    assert study.circuit.n_edges == 0
    assert study.links is not None
    assert study.links.share_of_circuit is None


def test_the_hand_built_models_effect_runs_through_its_link() -> None:
    study = circuit_study(linked_model(), linked_pairs(), exact=True)
    assert set(study.circuit.edges) == LINKED_CIRCUIT
    assert study.circuit.path_length == 3
    links = study.links
    assert links is not None
    assert links.in_circuit == 1
    assert links.share_of_circuit == pytest.approx(1)
    assert links.faithfulness_of_model_with_links_corrupted == pytest.approx(0)
    assert links.clean_metric_with_links_cut == pytest.approx(0)
    assert study.agreement is not None
    assert study.agreement.to_dict() == pytest.approx(
        {"rank": 1, "rank_of_size": 1, "correlation": 1}
    )


def test_a_circuit_is_scored_on_some_prompts_and_evaluated_on_others() -> None:
    model = ResValTransformer.from_pretrained("stories-small-values")
    pairs = ioi_pairs(model, ioi_prompts(24, 0, "unseen", "unseen", "unseen"))
    scored, held_out = pairs.rows(slice(0, 8)), pairs.rows(slice(8, 24))
    study = circuit_study(model, scored, held_out)
    runs = EdgeRuns(model, held_out)
    circuit = Circuit.of(runs.graph, study.circuit.edges)
    f = (runs.means(circuit.kept[None]).item() - runs.corrupted) / (runs.clean - runs.corrupted)
    assert study.circuit.faithfulness == pytest.approx(f, rel=1e-4)
    assert f >= 0.85
    without = runs.means(circuit.without_links().kept[None]).item()
    lost = 1 - (without - runs.corrupted) / (runs.clean - runs.corrupted) / f
    assert study.links is not None
    assert study.links.share_of_circuit == pytest.approx(lost, abs=1e-4)
    scores = score_edges(model, scored)
    assert study.strongest[0].edge == scores.top(1)[0][0]
    with torch.no_grad(), cut_links(model):
        cut = held_out.measure(answer_logits(model, held_out.clean, held_out.answers)).mean()
    assert study.links.clean_metric_with_links_cut == pytest.approx(cut.item(), rel=1e-4)


def test_what_cannot_be_studied_is_refused() -> None:
    model, pairs = linked_model(), linked_pairs()
    same = PromptPairs(pairs.clean, pairs.clean, pairs.metric, pairs.labels)
    with pytest.raises(ValueError, match="their gap vanishes"):
        circuit_study(model, same)
    with pytest.raises(ValueError, match=r"sequences must lie between 1 and 5000, .*; got 0"):
        classifier_circuits([run for run in load_runs(ICLRun) if run.has_model][:1], 0)


def test_agreement_is_of_ranks_and_of_numbers() -> None:
    graph = EdgeRuns(linked_model(), linked_pairs()).graph

    def scores(values: torch.Tensor) -> EdgeScores:
        return EdgeScores(graph, values, "exact", None, 1)

    generator = torch.Generator().manual_seed(0)
    values = torch.randn(len(graph), generator=generator)
    found = agreement(scores(values), scores(values**3))
    assert found.rank == found.rank_of_size == pytest.approx(1)
    assert 0.3 < found.correlation < 0.99
    assert agreement(scores(values), scores(-values)).rank == pytest.approx(-1)
    assert agreement(scores(values), scores(-values)).rank_of_size == pytest.approx(1)


def test_both_tasks_and_both_models_are_compared(compared: ComparedCircuits) -> None:
    rows = {(row.task, row.architecture) for row in compared.over_seeds}
    tasks = ("IC (labels)", "IC (objects)", "IOI (random-S2)", "IOI (ABC)")
    assert rows == {(task, kind) for task in tasks for kind in ("classic", "values")}
    for row in compared.over_seeds:
        classic = row.architecture == "classic"
        assert ("share through links" in row.measures) != classic
        assert row.measures["faithfulness"].mean >= 0.85
    assert [each.signals is None for each in compared.heads] == [True, False]
    document = json.loads(json.dumps(compared.to_dict(), allow_nan=False))
    assert document["min_faithfulness"] == 0.85
    assert ComparedCircuits.from_dict(document).to_dict() == document


def test_what_is_said_is_what_was_measured(compared: ComparedCircuits) -> None:
    said = sentences(compared.circuits, compared.heads, compared.matrices)
    assert said == compared.sentences() == compared.to_dict()["found"]
    by_task = {row.task: row.measures for row in compared.over_seeds
               if row.architecture == "values"}  # fmt: skip
    for task, measures in by_task.items():
        sentence, *_, last = [each for each in said if each.startswith(task)]
        metric = "margin" if task.startswith("IC") else "log P(IO)"
        start = f"{task}, seed 0, by {metric}: the values model's circuit has "
        assert sentence.startswith(start)
        assert f"{measures['edges'].mean:.3g} edges" in sentence
        kept = measures["model, links corrupted"].mean
        assert last.endswith(f"values model keeps {kept:.0%} of the clean − corrupted gap.")
    assert said[-4].endswith("of the subject is its token.")
    token, position = (f"by {compared.heads[1].signals.effects['all'][kind]:z.0%}"
                       for kind in ("token", "position"))  # fmt: skip
    assert token.replace("-", "−") in said[-3]
    assert position.replace("-", "−") in said[-2]
    assert said[-1].endswith("The logit difference does not say whether either is named.")
    twice = [*compared.circuits, *compared.circuits]
    assert "(by seed " in sentences(twice, compared.heads)[2]
    assert sentences(twice, [])[0].startswith(
        "IC (labels), seeds 0, 0, by margin: the values models' circuits"
    )


def test_circuits_by_each_metric_are_evaluated_by_all(compared: ComparedCircuits) -> None:
    matrix = compared.matrices[1]
    assert (matrix.architecture, matrix.corruption, matrix.seed) == ("values", "ABC", 0)
    assert [each.by for each in matrix.circuits] == [
        "logit difference", "log P(IO)", "IO − other names", "P(IO)",
    ]  # fmt: skip
    (own,) = (e for e in compared.circuits if (e.task, e.architecture) ==
              ("IOI (ABC)", "values"))  # fmt: skip
    assert matrix.circuits[1].edges == own.study.circuit.edges
    model = ResValTransformer.from_pretrained("stories-small-values")
    drawn = ioi_prompts(16, 0, "unseen", "unseen", "unseen")
    pairs = ioi_pairs(model, drawn, "ABC", 0).rows(slice(8, 16))
    assert pairs.groups is not None
    assert len(pairs.groups.unique()) == matrix.groups
    for name, metric in ioi_metrics(model).items():
        for ablation in get_args(Ablation):
            runs = EdgeRuns(model, replace(pairs, metric=metric), ablation=ablation)
            for each in matrix.circuits:
                kept = Circuit.of(runs.graph, each.edges).kept
                told = each.measured[name]
                found = told.mean if ablation == "mean" else told.resample
                assert found.circuit == pytest.approx(runs.means(kept[None]).item(), abs=1e-4)
                f = (found.circuit - found.corrupted) / (told.clean - found.corrupted)
                assert found.faithfulness == pytest.approx(f, abs=1e-4)
                if ablation == "resample" and each.by == name:
                    assert f >= 0.85
    by_difference = matrix.circuits[0].measured
    assert (by_difference["logit difference"].resample.faithfulness or 0) >= 0.85
    assert by_difference["P(IO)"].resample.circuit < 0.5 * by_difference["P(IO)"].clean
    assert circuit_tables.matrix_table(compared.matrices).row_count == 10


def test_names_are_those_of_the_stories() -> None:
    tokenizer: Any = ResValTransformer.from_pretrained("stories-small-values").tokenizer
    tokens = name_tokens(tokenizer).tolist()
    assert sorted(tokenizer.decode([t]).strip() for t in tokens) == sorted(stories.NAMES)


def test_over_seeds_takes_means_and_population_deviations(compared: ComparedCircuits) -> None:
    ours = [e for e in compared.circuits if e.architecture == "values"]
    assert "CPR" not in over_seeds(ours[:1])[0].measures  # a graph of 13 edges
    entry = ours[-1]
    n_edges = entry.study.circuit.n_edges
    larger = replace(entry.study.circuit, n_edges=n_edges + 4)
    other = replace(entry, seed=1, study=replace(entry.study, circuit=larger))
    (row,) = over_seeds([entry, other])
    assert row.seeds == (entry.seed, 1)
    assert row.measures["edges"].sd == 2
    assert row.measures["edges"].mean == n_edges + 2
    assert set(row.measures) == set(MEASURES)


def test_every_table_and_figure_draws(compared: ComparedCircuits, tmp_path: Path) -> None:
    study = compared.circuits[-1].study
    assert circuit_tables.compared_table(compared.over_seeds, 0.85).row_count == 12
    assert circuit_table(study).row_count == study.circuit.n_edges
    assert scores_table(study, 5).row_count == 5
    assert circuit_tables.roles_table(compared.heads).row_count > 3
    assert circuit_tables.signals_table(compared.heads).row_count > 4
    assert len(compared.tables()) == 4
    assert list(compared.drawn) == [
        f"{kind}: IOI ({corrupted})"
        for corrupted in ("ABC", "random-S2")
        for kind in ("classic", "values")
    ]
    drawn = [
        *compared.figures().values(),
        circuit_figures.attribution("values", {"a1.h0": 0.5, "a1.h0 from 0": -0.2, "m1": 0.1}),
    ]
    for number, figure in enumerate(drawn):
        path = figures.save(figure, tmp_path / f"{number}.png")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_runs_on_stories_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no training runs"):
        compared_models(tmp_path)


def test_a_studied_model_is_named_by_its_architecture() -> None:
    model = ResValTransformer.from_pretrained("stories-small-values")
    assert ComparedModel("mine", None, model).architecture == "values"


def test_models_that_cannot_be_compared_are_refused_at_once() -> None:
    models = compared_models()
    with pytest.raises(ValueError, match="prompts=1 are too few: kind='ABC' takes 3 new names"):
        check_models(models, 1, 0)
    other = copy.copy(models[1].model)
    other.tokenizer = Tokens({"a": 0})
    with pytest.raises(ValueError, match="mine has another tokenizer than stories-small-classic"):
        check_models([models[0], ComparedModel("mine", 0, other)], 64, 0)
    with pytest.raises(ValueError, match="prompts must be 1 or more; got 0"):
        check_counts(sequences=1, prompts=0)


def test_errors_name_the_model() -> None:
    with pytest.raises(ValueError, match="mine: no task"), naming("mine"):
        raise ValueError("no task")


class Tokens:
    """A tokenizer's vocabulary."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        self.get_vocab = lambda: vocabulary
