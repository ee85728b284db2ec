"""Prompts as text, and one clear line for what is no prompt."""

from typing import Any

import pytest
import torch

from resval_lens.hooks import PromptPairs, logit_difference, patch, path_patch_each, probability
from resval_lens.host import HookedTransformer
from resval_lens.transformer import ResValTransformer
from tests.helpers import stock_model, tiny_model, tiny_tokens

CLEAN = [
    "Anna and Tom went to the park. Tom gave the ball to",
    "Once there was a small dog. Anna and Tom went to the park. Tom gave the ball to",
]
CORRUPTED = [text.replace("Tom gave", "Anna gave") for text in CLEAN]
ANSWERS = [(" Anna", " Tom")] * 2


@pytest.fixture(scope="module")
def model() -> ResValTransformer:
    return ResValTransformer.from_pretrained("stories-small-values")


@torch.no_grad()
def test_prompts_of_any_length_are_as_each_alone(model: ResValTransformer) -> None:
    pairs = PromptPairs.from_text(model, CLEAN, CORRUPTED, ANSWERS, name="who receives")
    found = patch(model, pairs, "v_link", by=("layer",))
    names = torch.tensor([[model.to_single_token(name) for name in (" Anna", " Tom")]])
    for i, (clean, corrupted) in enumerate(zip(CLEAN, CORRUPTED, strict=True)):
        tokens, others = model.to_tokens(clean), model.to_tokens(corrupted)
        one = PromptPairs(tokens, others, logit_difference, names)
        wanted = patch(model, one, "v_link", by=("layer",)).per_prompt[:, 0]
        torch.testing.assert_close(found.per_prompt[:, i], wanted, rtol=1e-4, atol=1e-4)
        own = pairs.clean[i, : tokens.shape[1]]
        assert own.equal(tokens[0])
        assert int(pairs.answers[i]) == tokens.shape[1] - 1
    assert pairs.name == "who receives"


def test_one_prompt_needs_no_list(model: ResValTransformer) -> None:
    one = PromptPairs.from_text(model, CLEAN[0], CORRUPTED[0], ANSWERS[0])
    several = PromptPairs.from_text(model, CLEAN[:1], CORRUPTED[:1], ANSWERS[:1])
    assert one.labels.equal(several.labels)
    assert one.clean.equal(several.clean)
    single = PromptPairs.from_text(model, CLEAN, CORRUPTED, [" Anna", " Tom"], probability)
    assert single.labels.tolist() == [[one.labels[0, 0].item()], [one.labels[0, 1].item()]]
    lone = PromptPairs.from_text(model, CLEAN[0], CORRUPTED[0], " Anna", probability)
    assert lone.labels.tolist() == [[one.labels[0, 0].item()]]


def test_what_leads_a_prompt_is_the_models_habit_or_said(model: ResValTransformer) -> None:
    led = PromptPairs.from_text(model, CLEAN[0], CORRUPTED[0], ANSWERS[0])
    bare = PromptPairs.from_text(model, CLEAN[0], CORRUPTED[0], ANSWERS[0], prepend_bos=False)
    assert int(led.clean[0, 0]) == model.tokenizer.bos_token_id  # type: ignore[union-attr]
    assert led.clean[:, 1:].equal(bare.clean)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((CLEAN, CORRUPTED[:1], ANSWERS), "2 clean prompts and 1 corrupted prompts"),
        ((CLEAN[:1], CORRUPTED[1:], ANSWERS[:1]),
         r"prompt 0 has 14 tokens and its corrupted prompt \d+; they must be alike: '<\|endoft"),
        ((CLEAN, CORRUPTED, ANSWERS[:1]), "answers must be as many for each of the 2 prompts"),
        ((CLEAN, CORRUPTED, [(" Anna", " Tom"), " Tom"]), "answers must be as many for each"),
        ((CLEAN[0], CORRUPTED[0], (" Annabella", " Tom")),
         r"' Annabella' is \d tokens after 'Anna and .* to': ' An.*'; an answer must be one"),
        ((CLEAN[0], CORRUPTED[0], ("", " Tom")), "change when '' follows"),
        (([], [], []), r"prompts must be text, one or several; got \[\]"),
        (([3], CORRUPTED, ANSWERS), r"prompts must be text, one or several; got \[3\]"),
        (("", "", ANSWERS), "a prompt is empty"),
    ],
    ids=["count", "length", "answers", "uneven", "pieces", "nothing", "none", "number", "empty"],
)  # fmt: skip
def test_text_that_makes_no_pairs_is_refused(
    model: ResValTransformer, given: Any, says: str, unchecked_annotations: None
) -> None:
    with pytest.raises(ValueError, match=says):
        PromptPairs.from_text(model, *given)


def test_a_model_without_a_tokenizer_says_so() -> None:
    with pytest.raises(ValueError, match="this model has no tokenizer; give tokens"):
        PromptPairs.from_text(tiny_model(), CLEAN, CORRUPTED, ANSWERS)


TOKENS, LABELS = tiny_tokens(3), torch.tensor([[1, 2], [3, 4], [5, 0]])
PAIRS = PromptPairs(TOKENS, TOKENS.flip(0), logit_difference, LABELS)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"clean": CLEAN}, r"clean must be a tensor; got list. Text .* PromptPairs.from_text"),
        ({"labels": [[" Anna", " Tom"]]}, "labels must be a tensor; got list"),
        ({"labels": LABELS[0]}, r"labels must be \[prompt, ...\], for 3 prompts; got \[2\]"),
        ({"last": torch.tensor([6, -1, 6])}, "last: -1 is not among 0 to 6"),
        ({"last": [6, 6, 6]}, r"last must hold a position for .* got list"),
        ({"groups": torch.rand(3)}, "groups must hold a whole number for each of the 3 prompts"),
        ({"metric": lambda logits, labels: logits[:, -1].gather(1, labels)[:, 0]},
         r"the metric takes the answers' logits and the labels, \[3, 13\] and \[3, 2\] here"),
        ({"metric": lambda logits: logits}, "the metric takes .* it raised TypeError"),
        ({"metric": lambda logits, labels: logits.mean()}, r"one number for each .* got \[\]"),
    ],
    ids=["text", "words", "flat", "negative", "list", "groups", "whole", "logits", "mean"],
)  # fmt: skip
def test_what_is_no_pairs_is_refused(
    changes: dict[str, Any], says: str, unchecked_annotations: None
) -> None:
    fields = {"clean": TOKENS, "corrupted": TOKENS.flip(0), "metric": logit_difference,
              "labels": LABELS}  # fmt: skip
    with pytest.raises(ValueError, match=says):
        patch(tiny_model(), PromptPairs(**{**fields, **changes}), "z", by=("layer",))


def test_a_stock_model_is_told_how_to_come_along(unchecked_annotations: None) -> None:
    stock: HookedTransformer = stock_model()
    says = r"got HookedTransformer .ResValTransformer.from_hooked\(model, share_weights=True\)"
    with pytest.raises(ValueError, match=says):
        patch(stock, PAIRS, "z")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=says):
        path_patch_each(stock, PAIRS, "a0.h1", "logits")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pairs must be PromptPairs; got Tensor"):
        patch(tiny_model(), TOKENS, "z")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no such hook point; near it are .*\bz\b"):
        patch(tiny_model(), PAIRS, "hook_z")
