"""Pairs of words: read, invented, made bigrams, and contradicted by a context."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resval_lens.analyses.papers.memory.tasks.analogies import (
    Pair,
    analogy_task,
    generated_pairs,
    pair_bigrams,
    read_pairs,
)

FILE = """\
: capitals
Athens Greece Oslo Norway
Oslo Norway Athens Greece

: empty
: money
Greece euro Italy euro
"""
PAIRS = [Pair("Athens", "Greece"), Pair("Oslo", "Norway"), Pair("Hanoi", "Vietnam")]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(FILE)
    return path


# Files


def test_a_section_is_read_as_its_distinct_pairs_in_order(path: Path) -> None:
    assert read_pairs(path, "capitals") == PAIRS[:2]
    assert read_pairs(str(path), "money") == [Pair("Greece", "euro"), Pair("Italy", "euro")]


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("capital-world", "section 'capital-world' is not there; sections: capitals, empty, money"),
        ("empty", "section 'empty' is empty; sections: capitals, empty, money"),
    ],
)
def test_a_section_without_pairs_is_refused_with_those_there_are(
    path: Path, section: str, line: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{path}: {line}")):
        read_pairs(path, section)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Athens Greece Oslo Norway\n", ", line 1: expected ': section'; got 'Athens Greece Oslo"),
        (": a\nAthens Greece Oslo\n", ", line 2: expected 4 words or ': section'; got 'Athens Gr"),
        (": a\n: b c\n", ", line 2: expected 4 words or ': section'; got ': b c'"),
        ("", ": section 'capital-world' is not there; sections: none"),
    ],
)
def test_a_file_of_something_else_is_refused_by_line(path: Path, text: str, line: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{path}{line}")):
        read_pairs(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes(b": a\n\xff")
    for name, wrong in (("words.txt", "is not a text file"), ("missing.txt", "is missing")):
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name} {wrong}")):
            read_pairs(tmp_path / name)


# Invented words


@given(st.integers(1, 300), st.integers(0, 2**64))
def test_invented_words_are_distinct_and_pronounceable(n: int, seed: int) -> None:
    pairs = generated_pairs(n, seed)
    words = [word for pair in pairs for word in pair]
    assert len(pairs) == n
    assert len(set(words)) == 2 * n
    syllables = "([bdfgklmnprstvz][aeiou]){2}"
    for pair in pairs:
        assert re.fullmatch(syllables + "[lnrs]?", pair.first.lower())
        assert re.fullmatch(syllables + "(dia|land|mark|nia|ria|stan)", pair.second.lower())
        assert pair.first.istitle()
        assert pair.second.istitle()
    assert generated_pairs(n, seed) == pairs
    assert generated_pairs(n + 5, seed)[:n] == pairs


def test_as_many_words_as_may_be_asked_for_are_found() -> None:
    pairs = generated_pairs(10_000, 1)
    assert len({word for pair in pairs for word in pair}) == 20_000
    assert pairs[:3] != generated_pairs(3, 2)


def test_a_number_of_pairs_that_cannot_be_is_refused() -> None:
    for n in (0, 10_001):
        with pytest.raises(ValueError, match=f"n must be a whole number from 1 to 10,000; got {n}"):
            generated_pairs(n, 0)


def test_what_is_no_number_is_refused(unchecked_annotations: None) -> None:
    for n in (True, 2.0, "3", None):
        with pytest.raises(
            ValueError, match=f"n must be a whole number from 1 to 10,000; got {n!r}"
        ):
            generated_pairs(n, 0)  # type: ignore[arg-type]
    for seed in (None, 1.0, True, -1):
        with pytest.raises(ValueError, match=f"seed must be a whole number from 0 up; got {seed}"):
            generated_pairs(2, seed)  # type: ignore[arg-type]


# Bigrams


@pytest.mark.parametrize("leak", [0.0, 0.25, 1.0])
def test_bigrams_go_from_a_first_word_to_its_second_to_any_first(leak: float) -> None:
    bigrams = pair_bigrams(PAIRS, leak)
    assert bigrams.tokens == ("Athens", "Oslo", "Hanoi", "Greece", "Norway", "Vietnam")
    assert bigrams.unigram.tolist() == pytest.approx([1 / 6] * 6)
    for u, pair in enumerate(PAIRS):
        for v, word in enumerate(bigrams.tokens):
            expected = 0.0 if v < 3 else 1 - leak if word == pair.second else leak / 2
            assert float(bigrams.conditional[u, v]) == pytest.approx(expected, abs=1e-15)
    third = [1 / 3] * 3 + [0.0] * 3
    assert bigrams.conditional[3:].tolist() == [pytest.approx(third)] * 3


def test_two_first_words_may_share_a_second() -> None:
    bigrams = pair_bigrams([Pair("Greece", "euro"), Pair("Italy", "euro")])
    assert bigrams.tokens == ("Greece", "Italy", "euro")
    assert bigrams.conditional.tolist() == [[0, 0, 1], [0, 0, 1], [0.5, 0.5, 0]]


@pytest.mark.parametrize(
    ("pairs", "leak", "line"),
    [
        ([], 0.0, "pairs must hold at least one pair; got none"),
        ([Pair("a", "b"), Pair("a", "c")], 0.0, "the first word 'a' is also in another place"),
        ([Pair("a", "b"), Pair("b", "c")], 0.0, "the first word 'b' is also in another place"),
        (
            [Pair(f"a{i}", f"b{i}") for i in range(5_001)],
            0.0,
            "pairs must have at most 10,000 words; got 10,002",
        ),
        (PAIRS, 1.5, "leak must be from 0 to 1; got 1.5"),
        (PAIRS[:1], 0.1, "leak must be 0 with a single second word; got 0.1"),
    ],
)
def test_pairs_that_make_no_bigrams_are_refused(pairs: list[Pair], leak: float, line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        pair_bigrams(pairs, leak)


# Contexts that contradict


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.sampled_from([0.0, 0.3]), st.integers(0, 2**32))
def test_a_context_contradicts_what_is_known(n: int, leak: float, seed: int) -> None:
    pairs = generated_pairs(n, seed)
    k = (n + 1) // 2
    task = analogy_task(pairs, n_triggers=k, length=30, leak=leak)
    tokens = task.bigrams.tokens
    known = dict(pairs)
    batch = task.batch(6, seeded(seed))
    for row, targets, triggers, outputs in zip(
        batch.inputs.tolist(),
        batch.targets.tolist(),
        batch.triggers.tolist(),
        batch.outputs.tolist(),
        strict=True,
    ):
        told = {tokens[q]: tokens[v] for q, v in zip(triggers, outputs, strict=True)}
        assert len(told) == k
        for first, second in told.items():
            assert second in known.values()
            assert second != known[first]
        for a, b in pairwise(tokens[i] for i in [*row, targets[-1]]):
            if a in told:
                assert b == told[a]
            elif a in known:
                assert b == known[a] if not leak else b in known.values()
            else:
                assert b in known


def test_every_other_second_word_contradicts() -> None:
    task = analogy_task(PAIRS, n_triggers=3)
    batch = task.batch(200, seeded(0))
    seen = set(
        zip(batch.triggers.flatten().tolist(), batch.outputs.flatten().tolist(), strict=True)
    )
    assert seen == {(q, v) for q in range(3) for v in range(3, 6) if v != q + 3}


def test_nothing_to_contradict_with_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 second words, to contradict"):
        analogy_task(PAIRS[:1], n_triggers=1)
    with pytest.raises(ValueError, match=r"leak must be below 0\.666667, .* got 0\.7"):
        analogy_task(PAIRS, n_triggers=1, leak=0.7)
    with pytest.raises(ValueError, match="n_triggers=4 must be at most 3"):
        analogy_task(PAIRS, n_triggers=4)
