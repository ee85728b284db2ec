"""Prompts with a metric: what fits a model, and what a metric may give."""

from typing import Any

import numpy as np
import pytest
import torch

from resval_lens.hooks.answers import answer_logits
from resval_lens.hooks.prompts import (
    PromptPairs,
    against,
    log_probability,
    logit_difference,
    margin,
    negative_kl,
    probability,
    ready,
    vanishes,
)
from resval_lens.models.classifier import ICLClassifier, classifier_config
from tests.helpers import tiny_model, tiny_tokens

TOKENS = tiny_tokens(3)
LABELS = torch.tensor([[1, 2], [3, 4], [5, 0]])
LOGITS = torch.randn(3, 13, generator=torch.Generator().manual_seed(0))


def pairs_of(**changes: Any) -> PromptPairs:
    fields = {"clean": TOKENS, "corrupted": TOKENS, "metric": logit_difference, "labels": LABELS}
    return PromptPairs(**{**fields, **changes})


def test_metrics_are_what_they_say() -> None:
    labels = torch.tensor([[1, 2, 7], [3, 4, 8], [5, 0, 9]])
    for row in range(3):
        first, second, third = (LOGITS[row, i].item() for i in labels[row])
        assert logit_difference(LOGITS, LABELS)[row].item() == pytest.approx(first - second)
        wanted = first - max(second, third)
        assert margin(LOGITS, labels)[row].item() == pytest.approx(wanted)
        total = sum(x.exp().item() for x in LOGITS[row])
        p = LOGITS[row, labels[row, 0]].exp().item() / total
        assert probability(LOGITS, labels)[row].item() == pytest.approx(p)
    other = LOGITS.flip(0)
    p, q = (x.softmax(-1).double() for x in (other, LOGITS))
    kl = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(negative_kl(LOGITS, other).double(), -kl, rtol=1e-5, atol=1e-6)
    assert negative_kl(LOGITS, LOGITS).abs().max() < 1e-6


@pytest.mark.parametrize("others", [[1, 3, 5, 7, 9], [2, 4], [12]], ids=str)
def test_metrics_that_ask_for_the_name_are_numpys(others: list[int]) -> None:
    logits = LOGITS.double().numpy()
    for row, (first, _) in enumerate(LABELS.tolist()):
        p = np.exp(logits[row]) / np.exp(logits[row]).sum()
        assert log_probability(LOGITS, LABELS)[row].item() == pytest.approx(np.log(p[first]))
        mean = np.mean([logits[row, token] for token in others if token != first])
        found = against(torch.tensor(others))(LOGITS, LABELS)[row].item()
        assert found == pytest.approx(logits[row, first] - mean, rel=1e-5)


def test_a_difference_of_two_names_does_not_see_whether_either_is_said() -> None:
    """Both names' logits raised together: IO − S stays, and what asks for the name rises."""
    raised = LOGITS.scatter_add(1, LABELS, torch.full((3, 2), 5.0))
    others = against(torch.arange(6, 13))
    torch.testing.assert_close(logit_difference(raised, LABELS), logit_difference(LOGITS, LABELS))
    assert (log_probability(raised, LABELS) > log_probability(LOGITS, LABELS) + 1).all()
    torch.testing.assert_close(others(raised, LABELS), others(LOGITS, LABELS) + 5)


@pytest.mark.parametrize(
    ("others", "says"),
    [
        (torch.tensor([]).long(), r"others must be tokens \[other\]; got torch.int64 \[0\]"),
        (torch.tensor([1.0]), r"others must be tokens \[other\]; got torch.float32"),
        (torch.tensor([3]), r"others holds only the first label of a prompt: \[3\]"),
        (torch.tensor([1, 13]), "13 is not among 0 to 12"),
    ],
    ids=["none", "float", "itself", "beyond"],
)
def test_names_that_cannot_be_compared_with_are_refused(
    others: torch.Tensor, says: str, unchecked_annotations: None
) -> None:
    with pytest.raises(ValueError, match=says):
        against(others)(LOGITS, LABELS)


def test_answers_are_those_of_the_whole_run() -> None:
    model = tiny_model("v")
    last = torch.tensor([6, 2, 4])
    with torch.no_grad():
        whole = model(TOKENS)
        found = answer_logits(model, TOKENS, last)
    torch.testing.assert_close(found, whole[torch.arange(3), last])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"clean": [[1, 2], [3]]}, "clean must be a tensor; got list. Text becomes tokens by"),
        ({"clean": TOKENS[:, :0]}, r"clean must be tokens .*; got \[3, 0\]"),
        ({"corrupted": TOKENS[:, :5]}, r"clean is \[3, 7\] and corrupted \[3, 5\]"),
        ({"labels": LABELS[:2]}, r"labels must be .*, for 3 prompts; got .2, 2."),
        ({"last": torch.tensor([6, 7, 6])}, "last: 7 is not among 0 to 6"),
        ({"last": torch.tensor([6, 6])}, "last must hold a position for each of the 3 prompts"),
    ],
    ids=["list", "empty", "lengths", "labels", "beyond", "count"],
)
def test_prompts_that_do_not_fit_together_are_refused(
    changes: dict[str, Any], says: str, unchecked_annotations: None
) -> None:
    with pytest.raises(ValueError, match=says):
        pairs_of(**changes)


@pytest.mark.parametrize(
    ("clean", "says"),
    [
        (torch.full((3, 7), 13), "clean: token 13 is not among 0 to 12"),
        (torch.full((3, 7), -1), "clean: token -1 is not among 0 to 12"),
        (torch.zeros(3, 7), "clean must be tokens .*; got torch.float32"),
        (torch.zeros(3, 7, 4), "clean must be tokens .*; got torch.float32"),
        (torch.zeros(3, 13).long(), "prompts of 13 tokens do not fit n_ctx=12"),
    ],
    ids=["above", "below", "float", "vectors", "long"],
)
def test_prompts_that_a_model_cannot_read_are_refused(clean: torch.Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ready(tiny_model(), pairs_of(clean=clean, corrupted=clean))


def test_a_classifier_answers_at_the_last_position() -> None:
    model = ICLClassifier(classifier_config("v"))
    x = torch.zeros(3, 5, 150)
    with pytest.raises(ValueError, match="a classifier answers at the last position"):
        ready(model, pairs_of(clean=x, corrupted=x, last=torch.tensor([4, 4, 4])))


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        (lambda logits, labels: logits, r"one number for each of the 3 prompts, .*; got \[3, 13\]"),
        (lambda logits, labels: 1.0, "one number for each of the 3 prompts, .*; got float"),
        (lambda logits, labels: logits[:, 0] * float("nan"), "the metric gives nan for prompt 0"),
        (lambda logits, labels: logits[:, 0] / 0, "the metric gives -?inf for prompt 0"),
    ],
    ids=["shape", "type", "NaN", "infinity"],
)
def test_a_metric_that_gives_something_else_is_refused(metric: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pairs_of(metric=metric).measure(LOGITS)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (torch.tensor([1, 2, 3]), r"this metric takes labels \[prompt, 2\]; got \[3\]"),
        (torch.ones(3, 3).long(), r"this metric takes labels \[prompt, 2\]; got \[3, 3\]"),
        (torch.full((3, 2), 13), "labels: 13 is not among 0 to 12"),
        (torch.ones(3, 2), "labels must be whole numbers; got torch.float32"),
    ],
    ids=["one", "three", "beyond", "float"],
)
def test_labels_that_do_not_fit_are_refused(
    labels: torch.Tensor, says: str, unchecked_annotations: None
) -> None:
    with pytest.raises(ValueError, match=says):
        pairs_of(labels=labels).measure(LOGITS)


def test_a_metric_that_counts_is_measured_in_numbers() -> None:
    def is_right(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits.argmax(-1) == labels[:, 0]

    assert pairs_of(metric=is_right).measure(LOGITS).dtype == torch.float32


def test_a_gap_vanishes_when_it_is_rounding() -> None:
    assert vanishes(1.0, 1.000001)
    assert vanishes(0.0, 0.0)
    assert not vanishes(1.0, 1.001)
    assert not vanishes(0.0, 1e-9)
