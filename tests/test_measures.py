"""The progress measures of Reddy (2024) against slow loops, perfect induction and closed forms."""

from collections.abc import Sequence
from math import isnan
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from resval_lens.models.authors import load_authors_classifier
from resval_lens.tasks.icl import ICLBatch, ICLTask, ICLWorld
from resval_lens.training.icl_measures import attention_measures, measures_from
from tests.reference.classifier_numpy import forward, random_params

NAMES = {"ila1", "ila1_labels", "tla2", "tila2", "induction_strength", "cla"}


def sequences(labels: Sequence[Sequence[int]], targets: Sequence[int]) -> ICLBatch:
    """Sequences of which only the labels in the context and the right answers matter."""
    size, pairs = len(labels), len(labels[0])
    none = torch.zeros(size, dtype=torch.long)
    return ICLBatch(
        inputs=torch.zeros(size, 2 * pairs + 1, 150),
        targets=torch.tensor(targets),
        context=torch.tensor(labels),
        context_labels=torch.tensor(labels),
        query=none,
        bursty=none.bool(),
        fresh=none.bool(),
        shift=none,
    )


def saying(answers: Sequence[int]) -> Tensor:
    """Logits over 32 labels that are highest at ``answers``."""
    return torch.nn.functional.one_hot(torch.tensor(answers), 32).float()


def random_patterns(size: int, length: int, seed: int) -> Tensor:
    """Causal patterns [batch, query, key]."""
    scores = torch.randn(size, length, length, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)


def by_loops(first: np.ndarray, second: np.ndarray, logits: np.ndarray, batch: ICLBatch) -> dict:
    """The definitions, one sequence and one token at a time."""
    kept: dict[str, list[float]] = {name: [] for name in NAMES}
    for s in range(len(first)):
        labels, target = batch.context_labels[s].tolist(), int(batch.targets[s])
        last = len(first[s]) - 1
        for token in range(1, last + 1):
            kept["ila1"].append(first[s][token, token - 1])
            if token % 2 == 1:
                kept["ila1_labels"].append(first[s][token, token - 1])
        attended = [second[s][last, 2 * pair + 1] for pair in range(len(labels))]
        right = [a for a, label in zip(attended, labels, strict=True) if label == target]
        wrong = [a for a, label in zip(attended, labels, strict=True) if label != target]
        kept["tla2"].append(sum(attended))
        if right:
            kept["tila2"].append(sum(right))
        if right and wrong:
            kept["induction_strength"].append(np.mean(right) - np.mean(wrong))
        kept["cla"].append(int(logits[s].argmax()) in labels)
    return {name: np.mean(values) if values else np.nan for name, values in kept.items()}


MIXED = sequences(
    [[3, 3, 4, 5], [1, 2, 1, 2], [7, 8, 9, 10], [6, 6, 6, 6], [0, 1, 2, 3]], [3, 2, 11, 6, 0]
)  # right labels: two, two, none, all, one


@pytest.mark.parametrize("seed", range(5))
def test_measures_are_those_of_the_loops(seed: int) -> None:
    first, second = random_patterns(5, 9, seed), random_patterns(5, 9, seed + 100)
    logits = torch.randn(5, 12, generator=torch.Generator().manual_seed(seed))
    expected = by_loops(first.numpy(), second.numpy(), logits.numpy(), MIXED)
    assert measures_from(first, second, logits, MIXED) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("streams", ["", "v"])
@pytest.mark.parametrize("test", ["test", "ic", "ic2", "iw"])
def test_a_models_measures_are_those_of_the_numpy_loops(
    tmp_path: Path, test: str, streams: str
) -> None:
    params = random_params(np.random.default_rng(1))
    np.savez(tmp_path / "trained.npz", *params)
    model = load_authors_classifier(tmp_path / "trained.npz", streams)
    generator = torch.Generator().manual_seed(0)
    task = ICLTask()
    batch = ICLWorld(task, generator).batch(40, generator, task.tests()[test])
    run = forward(params, batch.inputs.numpy(), streams)
    expected = by_loops(run["A1"], run["A2"], run["logits"], batch)
    found = attention_measures(model, batch)
    assert found.keys() == NAMES
    assert found == pytest.approx(expected, abs=1e-5, nan_ok=True)


def induction(batch: ICLBatch) -> tuple[Tensor, Tensor]:
    """Layer 1 looks one token back; layer 2, from the query, at the right labels evenly."""
    size, pairs = batch.context_labels.shape
    first = torch.eye(2 * pairs + 1).roll(1, 0).repeat(size, 1, 1)
    first[:, 0] = torch.eye(2 * pairs + 1)[0]
    second = torch.zeros_like(first)
    right = (batch.context_labels == batch.targets[:, None]).float()
    second[:, -1, 1::2] = right / right.sum(1, keepdim=True)
    return first, second


@pytest.mark.parametrize(("labels", "strength"), [([4, 5, 6, 7], 1.0), ([4, 4, 6, 6], 0.5)])
def test_a_perfect_induction_head_measures_one(labels: list[int], strength: float) -> None:
    batch = sequences([labels, labels[::-1]], [4, 4])
    assert measures_from(*induction(batch), saying([4, 4]), batch) == {
        "ila1": 1.0, "ila1_labels": 1.0, "tla2": 1.0, "tila2": 1.0, "cla": 1.0,
        "induction_strength": strength,  # the mean over the copies, of a total of one
    }  # fmt: skip


def test_a_head_that_looks_at_wrong_labels_only_is_the_opposite() -> None:
    batch = sequences([[4, 4, 6, 6]], [4])
    first, second = induction(sequences([[4, 4, 6, 6]], [6]))
    measures = measures_from(first, second, saying([9]), batch)
    assert measures["induction_strength"] == -0.5
    assert (measures["tla2"], measures["tila2"], measures["cla"]) == (1.0, 0.0, 0.0)


def test_objects_and_the_query_itself_do_not_count_as_labels() -> None:
    batch = sequences([[4, 5, 6, 7]], [4])
    second = torch.zeros(1, 9, 9)
    second[:, -1, 0::2] = 0.2  # four objects and the query
    measures = measures_from(second, second, saying([4]), batch)
    assert (measures["tla2"], measures["tila2"], measures["induction_strength"]) == (0, 0, 0)


def test_only_the_query_of_layer_2_counts() -> None:
    batch = sequences([[4, 5, 6, 7]], [4])
    first, second = induction(batch)
    expected = measures_from(first, second, saying([4]), batch)
    second[:, :-1] = 0.7
    assert measures_from(first, second, saying([4]), batch) == expected


@pytest.mark.parametrize("pairs", [1, 2, 8])
def test_uniform_attention_has_closed_forms(pairs: int) -> None:
    length = 2 * pairs + 1
    uniform = (torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None])[None]
    batch = sequences([list(range(pairs))], [0])
    measures = measures_from(uniform, uniform, saying([0]), batch)
    back = [1 / (token + 1) for token in range(1, length)]  # token t sees itself and t before it
    assert measures["ila1"] == pytest.approx(sum(back) / len(back))
    assert measures["ila1_labels"] == pytest.approx(sum(back[::2]) / pairs)
    assert measures["tla2"] == pytest.approx(pairs / length)
    assert measures["tila2"] == pytest.approx(1 / length)
    if pairs > 1:
        assert measures["induction_strength"] == pytest.approx(0, abs=1e-7)


def test_sequences_without_a_right_label_do_not_count() -> None:
    with_answer = sequences([[4, 4, 6, 6]], [4])
    both = sequences([[4, 4, 6, 6], [4, 4, 6, 6]], [4, 9])
    patterns = [torch.cat([pattern, pattern]) for pattern in induction(with_answer)]
    measures = measures_from(patterns[0], patterns[1], saying([4, 4]), both)
    assert (measures["tila2"], measures["induction_strength"]) == (1.0, 0.5)


def test_what_no_sequence_can_tell_is_nan() -> None:
    uniform = random_patterns(2, 9, 0)
    nothing_right = sequences([[4, 4, 6, 6]] * 2, [9, 9])
    measures = measures_from(uniform, uniform, saying([4, 4]), nothing_right)
    assert isnan(measures["tila2"])
    assert isnan(measures["induction_strength"])
    nothing_wrong = sequences([[4, 4, 4, 4]] * 2, [4, 4])
    measures = measures_from(uniform, uniform, saying([4, 4]), nothing_wrong)
    assert measures["tila2"] == pytest.approx(measures["tla2"])
    assert isnan(measures["induction_strength"])


def test_cla_is_the_share_of_answers_that_stand_in_the_context() -> None:
    patterns = random_patterns(5, 9, 0)
    measures = measures_from(patterns, patterns, saying([4, 9, 7, 6, 31]), MIXED)
    assert measures["cla"] == 3 / 5


def test_measuring_keeps_no_gradients_and_leaves_no_hooks(tmp_path: Path) -> None:
    np.savez(tmp_path / "trained.npz", *random_params(np.random.default_rng(1)))
    model = load_authors_classifier(tmp_path / "trained.npz", "v")
    generator = torch.Generator().manual_seed(0)
    attention_measures(model, ICLWorld(ICLTask(), generator).batch(5, generator))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
