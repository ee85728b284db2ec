"""The cheap answer is the model's: logits and every gradient, or it does not claim to know it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from resval_lens.hooks import cut_links, edit_links
from resval_lens.models.answer import answer, can_answer_fast, edited_answers
from resval_lens.models.classifier import ClassifierConfig, ICLClassifier, classifier_config
from resval_lens.streams import AttentionStream
from resval_lens.tasks.icl import ICLTask, ICLWorld
from resval_lens.training.icl import evaluate
from tests.classifiers import (
    MIXES,
    in_double,
    model_of,
    tokens,
)


@pytest.mark.parametrize("spec", ["reference", "paper"])
@pytest.mark.parametrize("streams", MIXES.values(), ids=MIXES.keys())
def test_answer_gives_the_models_logits(streams: Any, spec: Any) -> None:
    model, x = model_of(streams, spec), tokens()
    assert can_answer_fast(model)
    torch.testing.assert_close(answer(model, x), model(x), rtol=1e-5, atol=1e-4)
    in_double(model)
    x = x.double()
    torch.testing.assert_close(answer(model, x), model(x), rtol=1e-10, atol=1e-11)


def gradients(
    logits_of: Callable[[ICLClassifier, Tensor], Tensor], model: ICLClassifier, x: Tensor
) -> dict[str, Tensor]:
    """Of a loss: every trained parameter's, by name, and the tokens' as "x"."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    F.cross_entropy(logits_of(model, x), torch.arange(len(x))).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {**{name: grad.clone() for name, grad in found.items()}, "x": x.grad}


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


@pytest.mark.parametrize("spec", ["reference", "paper"])
@pytest.mark.parametrize("streams", MIXES.values(), ids=MIXES.keys())
def test_answer_gives_the_models_gradients(streams: Any, spec: Any) -> None:
    model, x = in_double(model_of(streams, spec)), tokens().double()
    expected = gradients(ICLClassifier.__call__, model, x)
    found = gradients(answer, model, x)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys() == trained | {"x"}
    for name in trained:
        assert relative_error(found[name], expected[name]) < 1e-9, name


@pytest.mark.parametrize("streams", MIXES.values(), ids=MIXES.keys())
def test_answer_gives_the_models_gradients_of_the_tokens(streams: Any) -> None:
    model, x = in_double(model_of(streams)), tokens().double()
    expected = gradients(ICLClassifier.__call__, model, x)["x"]
    assert relative_error(gradients(answer, model, x)["x"], expected) < 1e-9


@pytest.mark.parametrize("length", [1, 2, 17])
def test_answer_takes_sequences_of_any_length(length: int) -> None:
    model, x = in_double(model_of("qkv")), tokens().double()[:, :length]
    torch.testing.assert_close(answer(model, x), model(x), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("spec", ["reference", "paper"])
@pytest.mark.parametrize("streams", MIXES.values(), ids=MIXES.keys())
def test_edited_answers_are_those_of_hooks_on_the_links(streams: Any, spec: Any) -> None:
    model, x = in_double(model_of(streams, spec)), tokens().double()
    factors = torch.tensor([1.0, 0.0, -0.7, 0.3], dtype=torch.float64)
    shape = len(factors), x.shape[1], model.cfg.d_head
    generator = torch.Generator().manual_seed(3)
    constants = {
        stream.of: torch.randn(shape, generator=generator, dtype=torch.float64)
        for stream in model.cfg.streams
    }
    for added in ({}, constants):
        found = edited_answers(model, x, factors, added)
        for number, factor in enumerate(factors.tolist()):

            def edit(
                link: Tensor, name: str, factor: float = factor, number: int = number
            ) -> Tensor:
                constant = added.get(name.removeprefix("blocks.1.attn.hook_")[0])  # noqa: B023
                return factor * link + (0 if constant is None else constant[number][:, None])

            if model.cfg.streams:
                with edit_links(model, edit):
                    expected = model(x)
            else:
                expected = model(x)
            torch.testing.assert_close(found[number], expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    "cfg",
    [
        classifier_config(AttentionStream("v", mix="gate")),
        classifier_config((AttentionStream("q"), AttentionStream("k", mix="gate"))),
    ],
)
def test_answer_does_not_know_gates(cfg: ClassifierConfig) -> None:
    assert not can_answer_fast(ICLClassifier(cfg))


SMALL: dict[str, Any] = {
    "d_model": 24,
    "n_ctx": 17,
    "d_vocab": 32,
    "attn_only": True,
    "normalization_type": None,
    "d_readout": 24,
    "output_projection": True,
    "device": "cpu",
}


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_layers": 3, "n_heads": 1, "d_head": 24},
        {"n_layers": 1, "n_heads": 1, "d_head": 24},
        {"n_layers": 2, "n_heads": 2, "d_head": 12},
    ],
    ids=str,
)
def test_answer_knows_two_layers_of_one_head_only(sizes: dict[str, int]) -> None:
    cfg = ClassifierConfig(**SMALL, **sizes)
    assert not can_answer_fast(ICLClassifier(cfg))


@pytest.mark.parametrize(
    "other",
    [
        {"attn_only": False, "d_mlp": 32, "act_fn": "relu"},
        {"normalization_type": "LN"},
        {"attention_dir": "bidirectional"},
        {"attn_scores_soft_cap": 2.0},
        {"use_local_attn": True, "window_size": 3, "attn_types": ["local", "local"]},
    ],
    ids=lambda other: next(iter(other)),
)
def test_answer_does_not_claim_a_model_that_it_would_answer_otherwise(
    other: dict[str, Any],
) -> None:
    cfg = ClassifierConfig(**{**SMALL, "n_layers": 2, "n_heads": 1, "d_head": 24, **other})
    assert not can_answer_fast(ICLClassifier(cfg))


def test_a_watched_model_is_evaluated_with_its_hooks() -> None:
    """The cheap answer runs no hooks: where there are some, the model itself must answer."""
    task = ICLTask()
    model = ICLClassifier(classifier_config("v"), generator=torch.Generator().manual_seed(0))
    batch = ICLWorld(task, torch.Generator().manual_seed(1)).batch(50, torch.Generator(), task)
    cut = evaluate(model.with_streams(""), {"test": batch})["test"]["loss"]
    with cut_links(model):
        assert not can_answer_fast(model)
        assert evaluate(model, {"test": batch})["test"]["loss"] == pytest.approx(cut, rel=1e-6)
    assert can_answer_fast(model)
    assert evaluate(model, {"test": batch})["test"]["loss"] != pytest.approx(cut, rel=1e-6)
