"""Tasks by name: what each says of itself is what it draws."""

from typing import Any, get_args

import pytest
import torch

from resval_lens.analyses.circuits.study import circuit_study
from resval_lens.analyses.studies.ablation import ablation_study
from resval_lens.analyses.studies.ablations import ABLATIONS
from resval_lens.analyses.tasks import TASKS, Asked, Task
from resval_lens.analyses.tasks.problem import Problem, pose
from resval_lens.io.checkpoint import SHIPPED_MODELS
from resval_lens.load import Loaded, load_model, shipped_classifiers
from resval_lens.tasks.icl_corruptions import Exchanged
from resval_lens.tasks.ioi_corruptions import Kind
from tests.helpers import tiny_model
from tests.worded import worded

MODELS = {True: "stories-small-values", False: "values"}
"""A model that ships, by whether it reads tokens."""
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


def drawn(task: Task, **asked: Any) -> Problem:
    if task.name in ("ioi", "icl"):  # what the models that ship were trained on
        return pose(MODELS[task.reads_tokens], 6, Asked(**asked), task.name)
    return task.draw(worded(), 6, Asked(**asked))


def test_corruptions_are_those_that_prompts_have() -> None:
    assert TASKS["ioi"].corruptions == get_args(Kind)
    assert TASKS["icl"].corruptions == get_args(Exchanged)


@each_task
def test_every_corruption_is_drawn_and_none_is_the_first(task: Task) -> None:
    first = drawn(task)
    assert first.corruption == task.corruptions[0]
    seen = []
    for kind in task.corruptions:
        problem = drawn(task, corruption=kind)
        assert problem.corruption == problem.facts().corruption == kind
        assert problem.pairs.clean.equal(first.pairs.clean)
        seen.append(problem.pairs.corrupted)
    assert seen[0].equal(first.pairs.corrupted)
    assert not any(a.equal(b) for i, a in enumerate(seen) for b in seen[:i])


@each_task
def test_every_metric_is_computed_under_the_name_it_says(task: Task) -> None:
    problem = drawn(task)
    logits = torch.randn(6, problem.model.n_outputs)
    assert list(problem.metrics) == list(task.metrics.values())
    for name, called in task.metrics.items():
        chosen = problem.by(name)
        assert chosen.metric == called
        values = problem.metrics[called](logits, problem.pairs.labels)
        assert chosen.pairs.metric(logits, problem.pairs.labels).equal(values)
    assert next(iter(problem.measures.values())) == problem.pairs.metric


@each_task
def test_a_problem_on_some_prompts_is_that_of_these_prompts(task: Task) -> None:
    problem = drawn(task)
    assert tuple(problem.named_positions) == task.positions
    some = problem.rows(torch.tensor([4, 1]))
    assert some.pairs.clean.equal(problem.pairs.clean[[4, 1]])
    for name, where in some.named_positions.items():
        assert where.equal(problem.named_positions[name][[4, 1]])
    assert len(problem.tokens()) == problem.pairs.length
    example = problem.example()
    assert (example is not None) is task.reads_tokens


@each_task
def test_every_study_of_a_model_takes_it(task: Task) -> None:
    """Means over prompts need ``groups`` where lengths differ."""
    first, others = drawn(task), drawn(task)
    study = ablation_study(
        first.model, first.pairs, others.pairs, first.measures, layers=1, heads=0
    )
    assert study.edited == list(ABLATIONS)
    found = circuit_study(
        first.model, first.pairs, others.pairs, method="eap", edges=3, metrics=first.metrics
    )
    assert found.to_dict()


def test_the_task_is_the_first_that_the_model_can_read() -> None:
    assert pose(MODELS[True], 1).task is TASKS["ioi"]
    assert pose(MODELS[False], 1).task is TASKS["icl"]


def test_a_classifier_without_its_run_has_no_sequences() -> None:
    model = load_model("values").model
    with pytest.raises(ValueError, match="alone is not a classifier with its training run"):
        TASKS["icl"].draw(Loaded("alone", model), 1)


def test_a_model_without_a_tokenizer_cannot_be_asked_in_words() -> None:
    with pytest.raises(ValueError, match="tiny: this model has no tokenizer"):
        TASKS["ioi"].draw(Loaded("tiny", tiny_model()), 1)


@pytest.mark.parametrize("name", [*SHIPPED_MODELS, *shipped_classifiers()])
def test_every_model_that_ships_loads_with_other_streams(name: str) -> None:
    loaded = load_model(name, streams="qv")
    assert [stream.of for stream in loaded.model.cfg.streams] == ["q", "v"]
    assert (loaded.run is None) is loaded.model.reads_tokens
    own = load_model(name).model.state_dict()
    assert all(
        own[key].equal(value) for key, value in loaded.model.state_dict().items() if key in own
    )
