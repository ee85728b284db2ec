"""GPT-2 small on indirect objects: the published circuit, where its weights can be had.

Wang et al. 2022 (arXiv 2211.00593), on prompts of their templates, without a token before them:
logit difference 3.56; name movers 9.9, 10.0, 9.6; negative name movers 10.7, 11.10.
"""

from typing import Any

import pytest
import torch

from resval_lens import ResValTransformer
from resval_lens.analyses.attribution.logits import attribute
from resval_lens.hooks.answers import answer_logits
from resval_lens.hooks.prompts import logit_difference
from resval_lens.tasks.ioi import IOIBatch, encode, generate_prompts

TEMPLATES = (
    "Then, {first} and {second} went to the {place}. {subject} gave a {object} to",
    "Then, {first} and {second} had a lot of fun at the {place}. {subject} gave a {object} to",
    "Then, {first} and {second} were working at the {place}. {subject} decided to give a "
    "{object} to",
    "Then, {first} and {second} were thinking about going to the {place}. {subject} wanted to give "
    "a {object} to",
    "Then, {first} and {second} had a long argument, and afterwards {subject} said to",
    "After {first} and {second} went to the {place}, {subject} gave a {object} to",
    "When {first} and {second} got a {object} at the {place}, {subject} decided to give it to",
    "While {first} and {second} were working at the {place}, {subject} gave a {object} to",
    "While {first} and {second} were commuting to the {place}, {subject} gave a {object} to",
    "After the lunch, {first} and {second} went to the {place}. {subject} gave a {object} to",
    "Afterwards, {first} and {second} went to the {place}. {subject} gave a {object} to",
    "Then, {first} and {second} had a long argument. Afterwards {subject} said to",
    "The {place} {first} and {second} went to had a {object}. {subject} gave it to",
    "Friends {first} and {second} found a {object} at the {place}. {subject} gave it to",
)
PLACES = (
    "store", "garden", "restaurant", "school", "hospital", "office", "house", "station",
)  # fmt: skip
OBJECTS = (
    "ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack",
)  # fmt: skip

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def gpt2() -> ResValTransformer:
    return ResValTransformer.from_pretrained("gpt2", device="cpu")


@pytest.fixture(scope="module")
def batch(gpt2: ResValTransformer) -> IOIBatch:
    prompts = generate_prompts(500, 0, templates=TEMPLATES, places=PLACES, objects=OBJECTS)
    return encode(prompts, gpt2.tokenizer)


def test_the_logit_difference_is_the_published_one(gpt2: ResValTransformer, batch: Any) -> None:
    labels = torch.stack([batch.io, batch.subject], 1)
    found = []
    with torch.no_grad():
        for part in torch.arange(len(labels)).split(50):
            logits = answer_logits(gpt2, batch.tokens[part], batch.last[part])
            found.append(logit_difference(logits, labels[part]))
    difference = torch.cat(found)
    assert difference.mean().item() == pytest.approx(3.56, abs=0.05)
    assert (difference > 0).double().mean() > 0.98


def test_the_name_movers_are_on_top(gpt2: ResValTransformer, batch: Any) -> None:
    labels = torch.stack([batch.io, batch.subject], 1)
    means = attribute(gpt2, batch.tokens, labels, batch.last, max_tokens=1024).means()
    heads = {name: share for name, share in means.items() if name.startswith("a")}
    by_share = sorted(heads, key=lambda name: -heads[name])
    assert set(by_share[:3]) == {"a9.h9", "a10.h0", "a9.h6"}
    assert set(by_share[-2:]) == {"a10.h7", "a11.h10"}
