"""Unigrams and bigrams: counts, distributions and entropies beside loops; the shipped counts."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resval_lens.analyses.papers.memory.tasks.bigrams import Bigrams, By, tiny_shakespeare
from tests.reference import triggers as reference

TEXT = "to be, or not to be: that is the question"
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)


def small(counts: list[list[float]], unigram: list[float] | None = None) -> Bigrams:
    """Bigrams of the tokens a, b, c, ... with the given counts."""
    pairs = torch.tensor(counts)
    pairs = pairs.double() if pairs.is_floating_point() else pairs
    singles = pairs.sum(1) if unigram is None else torch.tensor(unigram, dtype=pairs.dtype)
    return Bigrams(tuple("abcdefghij"[: len(pairs)]), pairs, singles)


# Counting


@given(texts, st.sampled_from(["characters", "words"]))
def test_counts_distributions_and_entropies_are_those_of_loops(text: str, by: By) -> None:
    units = list(text) if by == "characters" else text.split()
    if not units:
        with pytest.raises(ValueError, match="1 to 10,000 different words; got 0"):
            Bigrams.count(text, by)
        return
    bigrams = Bigrams.count(text, by)
    tokens, pairs, singles = reference.count(units)
    unigram, conditional = reference.distributions(pairs, singles)
    assert bigrams.tokens == tuple(tokens)
    assert bigrams.d_vocab == len(tokens)
    assert bigrams.n_bigrams == np.count_nonzero(pairs)
    assert bigrams.counts.dtype == bigrams.unigram_counts.dtype == torch.int64
    np.testing.assert_array_equal(bigrams.counts, pairs)
    np.testing.assert_array_equal(bigrams.unigram_counts, singles)
    np.testing.assert_allclose(bigrams.unigram, unigram, rtol=1e-14)
    np.testing.assert_allclose(bigrams.conditional, conditional, rtol=1e-14)
    np.testing.assert_allclose(bigrams.conditional.sum(1), 1, rtol=1e-14)
    alone, given_before = reference.entropies(unigram, conditional)
    assert bigrams.entropy == pytest.approx(alone, abs=1e-12)
    assert bigrams.conditional_entropy == pytest.approx(given_before, abs=1e-12)


def test_words_are_what_stands_between_white_space() -> None:
    assert Bigrams.count("to be,\tor\nto  be,", "words").tokens == ("be,", "or", "to")


def test_a_last_token_that_is_there_once_is_followed_as_any_token_is() -> None:
    bigrams = Bigrams.count("aab")
    assert bigrams.conditional[1].tolist() == [2 / 3, 1 / 3]
    assert bigrams.n_bigrams == 2


def test_a_file_is_counted_as_its_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("ένα δύο\r\nτρία".encode())
    assert Bigrams.count_file(path) == Bigrams.count("ένα δύο\nτρία")
    assert Bigrams.count_file(str(path), "words") == Bigrams.count("ένα δύο τρία", "words")


def test_a_file_that_cannot_be_counted_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    with pytest.raises(ValueError, match=re.escape(f"{path} is missing; expected a text file")):
        Bigrams.count_file(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a text file in UTF-8")):
        Bigrams.count_file(path)
    path.write_text("")
    with pytest.raises(ValueError, match=re.escape(f"{path}: text must have 1 to 10,000")):
        Bigrams.count_file(path)


def test_too_many_words_and_an_unknown_unit_are_refused(unchecked_annotations: None) -> None:
    with pytest.raises(ValueError, match="1 to 10,000 different words; got 10,001"):
        Bigrams.count(" ".join(map(str, range(10_001))), "words")
    with pytest.raises(ValueError, match="by must be 'characters' or 'words'; got 'lines'"):
        Bigrams.count(TEXT, "lines")  # type: ignore[arg-type]


# Distributions


def test_entropies_of_uniform_and_of_certain_bigrams() -> None:
    uniform = small([[1] * 4] * 4)
    assert uniform.entropy == pytest.approx(math.log(4), abs=1e-14)
    assert uniform.conditional_entropy == pytest.approx(math.log(4), abs=1e-14)
    circle = small([[0, 5, 0], [0, 0, 5], [5, 0, 0]])
    assert circle.entropy == pytest.approx(math.log(3), abs=1e-14)
    assert circle.conditional_entropy == 0


def test_log_conditional_stops_at_the_floor() -> None:
    bigrams = small([[0, 1], [3, 1]])
    with_floor = bigrams.log_conditional(0.3)
    expected = [[math.log(0.3), 0], [math.log(0.75), math.log(0.3)]]
    torch.testing.assert_close(with_floor, torch.tensor(expected, dtype=torch.float64))
    assert bigrams.log_conditional(0)[0, 0] == -math.inf
    for floor in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=re.escape(f"from 0 to 1; got {floor}")):
            bigrams.log_conditional(floor)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8).filter(any))
def test_the_most_frequent_tokens_and_of_equals_the_lower_id(singles: list[int]) -> None:
    bigrams = Bigrams(
        tuple("abcdefgh"[: len(singles)]),
        torch.zeros(len(singles), len(singles), dtype=torch.int64),
        torch.tensor(singles),
    )
    order = sorted(range(len(singles)), key=lambda v: (-singles[v], v))
    for k in range(len(singles) + 1):
        assert bigrams.most_frequent(k).tolist() == order[:k]


def test_more_tokens_than_there_are_cannot_be_asked_for() -> None:
    for k in (-1, 3):
        with pytest.raises(ValueError, match=f"k must be from 0 to 2, the tokens; got {k}"):
            small([[1, 1], [1, 1]]).most_frequent(k)


def test_what_is_no_number_or_no_tensor_is_refused(unchecked_annotations: None) -> None:
    for k in (1.0, True, None):
        with pytest.raises(ValueError, match=f"k must be from 0 to 2, the tokens; got {k}"):
            small([[1, 1], [1, 1]]).most_frequent(k)  # type: ignore[arg-type]
    one = torch.ones(1)
    with pytest.raises(ValueError, match="conditional must be a tensor; got list"):
        Bigrams.from_probabilities(["a"], one, [[1.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unigram must be a tensor; got list"):
        Bigrams.from_probabilities(["a"], [1.0], one[None])  # type: ignore[arg-type]


def test_bigrams_from_probabilities_have_them() -> None:
    unigram = torch.tensor([0.2, 0.8])
    conditional = torch.tensor([[0.0, 1.0], [0.1, 0.9]])
    bigrams = Bigrams.from_probabilities(["x", "y"], unigram, conditional)
    torch.testing.assert_close(bigrams.unigram, unigram.double())
    torch.testing.assert_close(bigrams.conditional, conditional.double())
    assert bigrams.n_bigrams == 3
    with pytest.raises(ValueError, match=r"unigram must sum to 1; got 1\.1"):
        Bigrams.from_probabilities(["x", "y"], torch.tensor([0.3, 0.8]), conditional)
    with pytest.raises(ValueError, match=r"conditional of 'y' must sum to 1; got 0\.5"):
        Bigrams.from_probabilities(["x", "y"], unigram, torch.tensor([[0.0, 1.0], [0.5, 0.0]]))


# Equality, files


def test_bigrams_are_equal_if_all_of_them_is() -> None:
    bigrams = Bigrams.count(TEXT)
    same = Bigrams.count(TEXT)
    assert bigrams == same
    assert hash(bigrams) == hash(same)
    assert bigrams != Bigrams.count(TEXT + ".")
    assert bigrams != replace(bigrams, tokens=bigrams.tokens[::-1])
    assert bigrams != replace(bigrams, counts=bigrams.counts + 1)
    assert bigrams != replace(bigrams, unigram_counts=bigrams.unigram_counts + 1)
    assert bigrams != replace(bigrams, counts=bigrams.counts.double())
    assert bigrams != TEXT


@given(texts)
def test_counts_survive_json(text: str) -> None:
    bigrams = Bigrams.count(text)
    assert Bigrams.from_dict(json.loads(json.dumps(bigrams.to_dict()))) == bigrams


def test_probabilities_survive_a_file(tmp_path: Path) -> None:
    rows = torch.rand(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = rows / rows.sum(1, keepdim=True)
    bigrams = Bigrams.from_probabilities(list("abcde"), rows[0], rows)
    bigrams.save(tmp_path / "bigrams.json")
    assert Bigrams.load(str(tmp_path / "bigrams.json")) == bigrams
    assert [path.name for path in tmp_path.iterdir()] == ["bigrams.json"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"more": 1}, "must have the keys ['tokens', 'unigram_counts', 'counts']; got ['tokens'"),
        ({"tokens": "ab"}, "tokens must be a list of texts"),
        ({"tokens": ["a", 2]}, "tokens must be a list of texts"),
        ({"tokens": ["a", "b", "a"]}, "tokens must be distinct texts; 'a' is given twice"),
        (
            {"tokens": [str(i) for i in range(10_001)]},
            "tokens must be at most 10,000, as counts are dense; got 10,001",
        ),
        ({"unigram_counts": 3}, "unigram_counts must be a list; got int"),
        ({"unigram_counts": [1]}, "unigram_counts must be a tensor of shape [2]; got [1]"),
        ({"unigram_counts": [1, -1]}, "unigram_counts must be finite numbers from 0 up; got -1"),
        ({"unigram_counts": [1, 10**400]}, "not JSON (a whole number of 401 digits)"),
        ({"unigram_counts": [0, 0]}, "unigram_counts must not all be 0"),
        ({"counts": []}, "counts must be {u: {v: count}}; got list"),
        ({"counts": {"a": [1]}}, "counts of 'a' must be {v: count}; got list"),
        ({"counts": {"c": {"a": 1}}}, "counts: 'c' is not among the tokens"),
        ({"counts": {"a": {"c": 1}}}, "counts: 'c' is not among the tokens"),
        ({"counts": {"a": {"b": "1"}}}, "counts must be finite numbers from 0 up; got '1'"),
        ({"counts": {"a": {"b": True}}}, "counts must be finite numbers from 0 up; got True"),
        ({"counts": {"a": {"b": math.nan}}}, "not JSON (NaN is not a finite number)"),
    ],
)
def test_a_file_of_something_else_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], line: str
) -> None:
    path = tmp_path / "bigrams.json"
    path.write_text(json.dumps(Bigrams.count("aab").to_dict() | change))
    prefix = re.escape(f"{path} is not unigram and bigram counts: ")
    with pytest.raises(ValueError, match=prefix + ".*" + re.escape(line)):
        Bigrams.load(path)


def test_a_missing_or_broken_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "bigrams.json"
    with pytest.raises(ValueError, match=re.escape(f"{path} is missing")):
        Bigrams.load(path)
    path.write_text("[")
    with pytest.raises(ValueError, match=re.escape(f"{path} is not unigram and bigram counts")):
        Bigrams.load(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"must have the keys .*; got list"):
        Bigrams.load(path)


@pytest.mark.parametrize(
    ("tokens", "counts", "singles", "line"),
    [
        ((), torch.zeros(0, 0), torch.zeros(0), "at least one token; got none"),
        (
            tuple(map(str, range(10_001))),
            None,
            None,
            "tokens must be at most 10,000, as counts are",
        ),
        (("a", 1), torch.ones(2, 2), torch.ones(2), "distinct texts; 1 is not a text"),
        (("a",), torch.ones(2, 2), torch.ones(1), "counts must be a tensor of shape [1, 1]"),
        (("a",), [[1]], torch.ones(1), "counts must be a tensor of shape [1, 1]; got list"),
        (("a",), torch.ones(1, 1), torch.ones(1), "counts must be int64 or float64; got torch.flo"),
        (("a",), -torch.ones(1, 1).long(), torch.ones(1).long(), "counts must be finite numbers"),
        (("a",), torch.ones(1, 1).long(), torch.ones(2).long(), "unigram_counts must be a tensor"),
    ],
)
def test_impossible_bigrams_are_refused(tokens: Any, counts: Any, singles: Any, line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        Bigrams(tokens, counts, singles)


# The shipped counts


def test_tiny_shakespeare_has_its_published_statistics() -> None:
    bigrams = tiny_shakespeare()
    assert (bigrams.d_vocab, bigrams.n_bigrams) == (65, 1403)
    assert int(bigrams.unigram_counts.sum()) == 1_115_394
    assert int(bigrams.counts.sum()) == 1_115_393
    assert round(bigrams.entropy, 3) == 3.313
    assert round(bigrams.conditional_entropy, 3) == 2.453
    top = bigrams.most_frequent(5)
    assert [bigrams.tokens[i] for i in top.tolist()] == [" ", "e", "t", "o", "a"]
    assert [round(p, 3) for p in bigrams.unigram[top].tolist()] == [0.152, 0.085, 0.06, 0.059, 0.05]


def test_tiny_shakespeare_is_counts_of_one_text_in_sorted_order() -> None:
    bigrams = tiny_shakespeare()
    assert list(bigrams.tokens) == sorted(bigrams.tokens)
    left = bigrams.counts.sum(1) - bigrams.counts.sum(0)  # times followed − times following
    assert left.abs().sum() <= 2  # of the first token and the last alone
    last = bigrams.unigram_counts - bigrams.counts.sum(1)
    assert [bigrams.tokens[i] for i in last.nonzero()[:, 0].tolist()] == ["\n"]
    first = bigrams.unigram_counts - bigrams.counts.sum(0)
    assert [bigrams.tokens[i] for i in first.nonzero()[:, 0].tolist()] == ["F"]
    assert bigrams.conditional[bigrams.tokens.index("q")].argmax() == bigrams.tokens.index("u")
