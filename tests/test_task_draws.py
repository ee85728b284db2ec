"""What tasks draw with tokenizers that split their texts in ways of their own."""

import copy
import pickle
import re
from itertools import combinations
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from resval_lens.analyses.tasks import TASKS, Asked
from resval_lens.analyses.tasks.sentences import Docstring, years
from resval_lens.analyses.tasks.text import Words
from resval_lens.load import Loaded
from tests.helpers import tiny_model
from tests.worded import tokenizer, worded

MERGED = (*(f"{century}00" for century in range(11, 18)), "1733", "1450", "1601")
"""Years that are one token, as " 1700" is in GPT-2."""


def ids(own: Any, text: str) -> list[int]:
    return own(text, add_special_tokens=False)["input_ids"]


def words_alone(size: int) -> PreTrainedTokenizerFast:
    """w0, w1, ... and what is unknown."""
    vocabulary = {**{f"w{i}": i for i in range(size)}, "[UNK]": size}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def model_of(own: PreTrainedTokenizerFast, d_vocab: int) -> Loaded:
    model = tiny_model(n_ctx=96, d_vocab=d_vocab, default_prepend_bos=False)
    model._use_tokenizer(own)
    return Loaded("own", model)


# Greater than


@pytest.mark.parametrize("seed", range(3))
def test_years_that_are_one_token_are_left_out(seed: int) -> None:
    own = tokenizer(*MERGED)
    assert all(len(ids(own, f" {year}")) == 1 for year in MERGED)
    problem = TASKS["greater-than"].draw(worded(*MERGED), 60, Asked(seed=seed))
    logits = torch.randn(60, worded(*MERGED).model.cfg.d_vocab)
    found = problem.pairs.metric(logits, problem.pairs.labels)
    for i, prompt in enumerate(problem.prompts):
        century, start = re.findall(r"(1\d)(\d\d)", prompt.text)[0]
        after = f"{int(start) + 1:02}"
        assert not {century + start, century + after, century + "01"} & set(MERGED)
        digits = [own.get_vocab()[x] for x in (after, start)]
        assert problem.pairs.labels[i].tolist() == digits
        chances = np.exp(logits[i].double().numpy())
        chances /= chances.sum()
        signs = {own.get_vocab()[f"{x:02}"]: 1 if x > int(start) else -1 for x in range(100)}
        expected = sum(sign * chances[token] for token, sign in signs.items())
        assert found[i].item() == pytest.approx(expected, abs=1e-6)


def test_models_that_split_years_otherwise_are_asked_the_same() -> None:
    other = Asked(tokenizers=(tokenizer(),)), Asked(tokenizers=(tokenizer(*MERGED),))
    first = TASKS["greater-than"].draw(worded(*MERGED), 30, other[0])
    second = TASKS["greater-than"].draw(worded(), 30, other[1])
    assert [prompt.text for prompt in first.prompts] == [prompt.text for prompt in second.prompts]


def test_digits_that_are_tokens_of_their_own_are_counted_in_tens() -> None:
    own = copy.deepcopy(tokenizer())
    own.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    loaded = model_of(own, worded().model.cfg.d_vocab)
    problem = TASKS["greater-than"].draw(loaded, 10)
    for labels, prompt in zip(problem.pairs.labels.tolist(), problem.prompts, strict=True):
        ten = int(re.findall(r"1\d(\d)\d", prompt.text)[0])
        assert labels == [own.get_vocab()[str(x)] for x in (ten + 1, ten - 1)]


def test_a_tokenizer_without_such_years_is_told() -> None:
    with pytest.raises(ValueError, match="neither centuries and two digits nor digits here"):
        years(words_alone(3))
    odd = tuple(f"{century}{year:02}" for century in range(11, 18) for year in range(1, 100, 2))
    with pytest.raises(ValueError, match="greater than: there is no year that is a century and"):
        TASKS["greater-than"].draw(worded(*odd), 3)


def test_its_metric_can_be_sent_to_another_process() -> None:
    problem = TASKS["greater-than"].draw(worded(), 4)
    logits = torch.randn(4, worded().model.cfg.d_vocab)
    for name in ("probability-difference", "logit-difference"):
        metric = problem.by(name).pairs.metric
        again = pickle.loads(pickle.dumps(metric))
        assert again == metric
        assert again(logits, problem.pairs.labels).equal(metric(logits, problem.pairs.labels))


# Docstrings


def test_places_in_a_docstring_are_those_of_its_names() -> None:
    words, task, rng = Words(tokenizer()), Docstring(), Random(0)
    begun = 0  # prompts where a name before another begins as that one
    for _ in range(5_000):
        prompt = task.prompt(rng, rng, "random-both", words)
        (header,) = re.finditer(r"\(self, (\w+), (\w+), (\w+), (\w+), (\w+), (\w+)\)", prompt.text)
        told = list(re.finditer(r":param (\w+):", prompt.text))
        spans = [*(header.span(n) for n in (1, 2, 3)), *(each.span(1) for each in told)]
        assert list(prompt.places.values()) == spans
        pairs = combinations(header.groups()[:3], 2)
        begun += any(before.startswith(after) for before, after in pairs)
    assert begun > 3


# Random tokens


@pytest.mark.parametrize(("d_vocab", "most"), [(64, 42), (36, 36)], ids=["padded", "cut"])
def test_random_tokens_are_those_of_text(d_vocab: int, most: int) -> None:
    own = words_alone(40)
    own.add_tokens(["w40"])  # 41, one as any other
    own.add_tokens([AddedToken("<tool>", special=True)], special_tokens=True)  # 42, without a role
    problem = TASKS["repeated-tokens"].draw(model_of(own, d_vocab), 60)
    drawn = {*problem.pairs.clean.flatten().tolist(), *problem.pairs.labels.flatten().tolist()}
    assert drawn == set(range(most)) - {40}
