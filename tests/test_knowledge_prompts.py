"""Prompts of knowledge against context: what each is made of, how often, and what is refused."""

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from resval_lens.analyses.papers.memory.tasks.bigrams import tiny_shakespeare
from resval_lens.analyses.papers.memory.tasks.knowledge_prompts import (
    Answers,
    KnowledgePrompts,
    knowledge_prompts,
)
from tests.test_bigrams import small

SHAKESPEARE = tiny_shakespeare()
COMMA = SHAKESPEARE.tokens.index(",")
RARE = 1e-4
# b is followed by three others, d by two, e by itself, a and c; a and c by one other only.
FEW = small(
    [[3, 1, 0, 0, 0], [1, 2, 1, 1, 0], [0, 0, 0, 0, 4], [1, 0, 2, 0, 0], [2, 0, 1, 0, 1]],
    [50, 10, 20, 5, 15],
)


def draw(n_first: int = 2, n_second: int = 1, n: int = 50, **how: Any) -> KnowledgePrompts:
    generator = torch.Generator().manual_seed(how.pop("seed", 0))
    bigrams = how.pop("bigrams", SHAKESPEARE)
    return knowledge_prompts(bigrams, n_first, n_second, n, generator, **how)


def test_prompts_are_filler_query_and_answer_again_and_again() -> None:
    prompts = draw(2, 1, 4, filler=COMMA)
    for tokens, a, b1, b2 in zip(
        prompts.tokens.tolist(),
        prompts.query.tolist(),
        prompts.first.tolist(),
        prompts.second.tolist(),
        strict=True,
    ):
        assert tokens == [COMMA, a, b1, COMMA, a, b1, COMMA, a, b2, COMMA, a]
    assert (prompts.n_first, prompts.n_second) == (2, 1)
    assert prompts.filler.tolist() == [COMMA] * 4


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(any),
    st.booleans(),
    st.sampled_from(["following", "any"]),
    st.none() | st.just(COMMA),
    st.lists(st.integers(0, 64).filter(lambda v: v != COMMA), max_size=61),
    st.integers(0, 2**32),
)
def test_every_prompt_is_what_it_says(
    counts: tuple[int, int],
    shuffled: bool,
    answers: Answers,
    filler: int | None,
    triggers: list[int],
    seed: int,
) -> None:
    n_first, n_second = counts
    how: dict[str, Any] = {"filler": filler, "triggers": triggers, "answers": answers}
    prompts = draw(n_first, n_second, 7, shuffled=shuffled, seed=seed, **how)
    assert prompts.tokens.shape == (7, 3 * (n_first + n_second) + 2)
    for tokens, a, b1, b2, f in zip(
        prompts.tokens.tolist(),
        prompts.query.tolist(),
        prompts.first.tolist(),
        prompts.second.tolist(),
        prompts.filler.tolist(),
        strict=True,
    ):
        assert len({a, b1, b2, f}) == 4
        assert f not in triggers
        assert filler is None or f == filler
        assert tokens[0::3] == [f] * (n_first + n_second + 1)
        assert tokens[1::3] == [a] * (n_first + n_second + 1)
        told = tokens[2::3]
        assert sorted(told) == sorted([b1] * n_first + [b2] * n_second)
        assert shuffled or told == [b1] * n_first + [b2] * n_second
        if answers == "following":
            assert SHAKESPEARE.counts[a, b1] > 0
            assert SHAKESPEARE.counts[a, b2] > 0


def test_queries_follow_the_unigram_over_those_with_two_followers() -> None:
    prompts = draw(1, 1, 6000, bigrams=FEW)
    counts = torch.bincount(prompts.query, minlength=5)
    assert counts[[0, 2]].tolist() == [0, 0]
    expected = torch.tensor([10, 5, 15]) * 6000 / 30
    assert stats.chisquare(counts[[1, 3, 4]].numpy(), expected.numpy()).pvalue > RARE


def test_answers_are_uniform_over_the_pairs_of_followers() -> None:
    prompts = draw(1, 1, 6000, bigrams=FEW, queries=[1])
    pairs = torch.bincount(prompts.first * 5 + prompts.second, minlength=25).view(5, 5)
    can = [0, 2, 3]
    seen = [int(pairs[i, j]) for i in can for j in can if i != j]
    assert sum(seen) == 6000
    assert stats.chisquare(seen).pvalue > RARE
    fillers = torch.stack([prompts.first, prompts.second, prompts.filler], 1)
    others = [sorted(set(range(5)) - {1, *row[:2]}) for row in fillers.tolist()]
    lower = sum(row[2] == left[0] for row, left in zip(fillers.tolist(), others, strict=True))
    assert stats.binomtest(lower, 6000, 0.5).pvalue > RARE


def test_any_token_may_be_an_answer() -> None:
    prompts = draw(1, 1, 2000, bigrams=FEW, answers="any")
    seen = set(zip(prompts.query.tolist(), prompts.first.tolist(), strict=True))
    assert seen == {(a, b) for a in range(5) for b in range(5) if a != b}


def test_a_given_filler_is_no_follower() -> None:
    """Without d, only b and e are left with two."""
    prompts = draw(1, 1, 300, bigrams=FEW, filler=3)
    assert set(prompts.query.tolist()) == {1, 4}
    assert set(prompts.first[prompts.query == 1].tolist()) == {0, 2}
    assert set(draw(1, 1, 300, bigrams=FEW, filler=1).query.tolist()) == {3, 4}


def test_every_order_is_equally_likely_when_shuffled() -> None:
    prompts = draw(2, 2, 3000, shuffled=True)
    is_first = (prompts.tokens[:, 2::3] == prompts.first[:, None]).long()
    orders = torch.bincount(is_first @ torch.tensor([8, 4, 2, 1]), minlength=16)
    possible = [i for i in range(16) if i.bit_count() == 2]
    assert int(orders[possible].sum()) == 3000
    assert stats.chisquare(orders[possible].numpy()).pvalue > RARE


def test_equal_generators_draw_equal_prompts() -> None:
    torch.manual_seed(1)
    one = draw(3, 2, seed=4, shuffled=True)
    torch.manual_seed(2)
    assert draw(3, 2, seed=4, shuffled=True).tokens.equal(one.tokens)
    assert not draw(3, 2, seed=5, shuffled=True).tokens.equal(one.tokens)


def test_margins_of_the_context_and_of_what_is_known() -> None:
    assert draw(2, 1).context_margin == pytest.approx(1 / 3)
    assert draw(1, 3).context_margin == -0.5
    prompts = draw(1, 1, 40, bigrams=FEW, answers="any")
    got = prompts.global_margin(FEW).tolist()
    rows = zip(
        got, prompts.query.tolist(), prompts.first.tolist(), prompts.second.tolist(), strict=True
    )
    kinds = set()
    for margin, a, b1, b2 in rows:
        first, second = int(FEW.counts[a, b1]), int(FEW.counts[a, b2])
        kinds.add((first > 0, second > 0))
        if first and second:
            assert margin == pytest.approx(math.log(first / second), abs=1e-12)
        elif first or second:
            assert margin == (math.inf if first else -math.inf)
        else:
            assert math.isnan(margin)
    assert len(kinds) == 4


def test_a_floor_is_the_probability_of_what_is_rarer() -> None:
    prompts = draw(1, 1, 40, bigrams=FEW, answers="any")
    got = prompts.global_margin(FEW, 0.3).tolist()
    asked = zip(
        got, prompts.query.tolist(), prompts.first.tolist(), prompts.second.tolist(), strict=True
    )
    for margin, a, b1, b2 in asked:
        total = float(FEW.counts[a].sum())
        p1, p2 = (max(float(FEW.counts[a, b]) / total, 0.3) for b in (b1, b2))
        assert margin == pytest.approx(math.log(p1 / p2), abs=1e-12)
    with pytest.raises(ValueError, match="floor must be a probability, from 0 to 1; got 2"):
        prompts.global_margin(FEW, 2.0)


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({"n_first": -1}, "n_first must be a whole number from 0 up; got -1"),
        ({"n_second": -1}, "n_second must be a whole number from 0 up; got -1"),
        ({"n": 0}, "n must be a whole number from 1 up; got 0"),
        ({"n_first": 0, "n_second": 0}, "n_first and n_second must not both be 0"),
        ({"queries": [65]}, "token ids must be from 0 to below 65; got 65"),
        ({"triggers": [-1]}, "token ids must be from 0 to below 65; got -1"),
        ({"filler": 99}, "token ids must be from 0 to below 65; got 99"),
        ({"filler": 3, "triggers": [3]}, "filler=3 must not be one of the triggers"),
        ({"triggers": list(range(62))}, "at least 4 of 65 tokens that are not triggers; got 3"),
        ({"bigrams": small([[1] * 3] * 3)}, "at least 4 of 3 tokens that are not triggers; got 3"),
        (
            {"bigrams": FEW, "queries": [0, 2]},
            "no query ever occurs and has two tokens that can follow it, with queries=[0, 2] and",
        ),
        ({"queries": []}, "no query ever occurs and has two tokens that can follow it"),
    ],
)
def test_impossible_prompts_are_refused(how: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        draw(**how)


def test_another_kind_of_answers_is_refused(unchecked_annotations: None) -> None:
    with pytest.raises(ValueError, match="answers must be 'following' or 'any'; got 'likely'"):
        draw(answers="likely")
