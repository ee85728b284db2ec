"""Sequences with triggers: each beside the rules, all beside their exact probabilities."""

import json
import math
import re
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Generator

from resval_lens.analyses.papers.memory.tasks.bigrams import MOST_TOKENS, Bigrams, tiny_shakespeare
from resval_lens.analyses.papers.memory.tasks.triggers import (
    _BELOW_ONE,
    TriggerBatch,
    TriggerTask,
    occurrences,
    optimal_loss,
)
from tests.reference import triggers as reference
from tests.test_bigrams import small

RARE = 1e-4  # a statistic this improbable is a mistake, not chance; the seeds are fixed
SHAKESPEARE = tiny_shakespeare()


def seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def draw(task: TriggerTask, size: int = 400, seed: int = 0, **how: Any) -> TriggerBatch:
    return task.batch(size, seeded(seed), **how)


def sequences(batch: TriggerBatch) -> list[list[int]]:
    """All T + 1 tokens of each."""
    return torch.cat([batch.inputs, batch.targets[:, -1:]], 1).tolist()


def assert_follows(counts: torch.Tensor, p: torch.Tensor) -> None:
    """Counts of a distribution: none where it is 0, and chi-square with rare ones put together."""
    assert not counts[p == 0].any()
    expected = p * counts.sum()
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]]).double()
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    if expected[-1] < 5:  # too rare even together: into the last that is not
        observed[-2] += observed[-1]
        expected[-2] += expected[-1]
        observed, expected = observed[:-1], expected[:-1]
    if len(expected) > 1:
        assert stats.chisquare(observed.numpy(), expected.numpy()).pvalue > RARE


@st.composite
def settings_of_tasks(draw: st.DrawFn) -> dict[str, Any]:
    """For :func:`made`: the package's annotations are not checked inside a strategy."""
    v = draw(st.integers(2, 7))
    numbers = st.lists(st.integers(0, 3), min_size=v, max_size=v)
    unigram = draw(numbers.filter(any))
    candidates = draw(
        st.none() | st.lists(st.integers(0, v - 1), min_size=1, unique=True).map(tuple)
    )
    triggers = draw(st.sampled_from(["fixed", "drawn"]))
    every = range(v) if candidates is None else candidates
    able = [q for q in every if triggers == "fixed" or unigram[q]]
    first = draw(st.integers(0, v - 2))
    return {
        "counts": draw(st.lists(numbers, min_size=v, max_size=v)),
        "unigram": unigram,
        "length": draw(st.integers(1, 12)),
        "n_triggers": draw(st.integers(0, len(able))),
        "triggers": triggers,
        "candidates": candidates,
        "output_range": (first / v, draw(st.integers(first + 2, v)) / v),
        "never_output": draw(st.sampled_from(["none", "itself", "likeliest"])),
    }


def made(settings: dict[str, Any]) -> TriggerTask:
    rest = {name: x for name, x in settings.items() if name not in ("counts", "unigram")}
    return TriggerTask(small(settings["counts"], settings["unigram"]), **rest)


def base_of(task: TriggerTask) -> tuple[np.ndarray, np.ndarray]:
    """π_u and π_b by loops."""
    counts, unigram_counts = task.bigrams.counts, task.bigrams.unigram_counts
    return reference.distributions(counts.numpy(), unigram_counts.numpy())


# Every sequence obeys the rules


@settings(max_examples=60, deadline=None)
@given(settings_of_tasks(), st.integers(1, 40), st.integers(0, 2**32))
def test_every_batch_obeys_the_rules(drawn: dict[str, Any], size: int, seed: int) -> None:
    task = made(drawn)
    batch = draw(task, size, seed)
    k, v = task.n_triggers, task.bigrams.d_vocab
    assert batch.inputs.shape == batch.targets.shape == (size, task.length)
    assert batch.triggers.shape == batch.outputs.shape == (size, k)
    assert all(x.dtype == torch.int64 for x in batch)
    assert batch.inputs[:, 1:].equal(batch.targets[:, :-1])
    unigram, conditional = base_of(task)
    lo, hi = task.output_range
    outputs = range(round(lo * v), round(hi * v))
    assert task.output_tokens == outputs
    rows = zip(
        sequences(batch),
        batch.occurrence.tolist(),
        batch.triggers.tolist(),
        batch.outputs.tolist(),
        strict=True,
    )
    for tokens, counts, triggers, given_outputs in rows:
        assert len(set(triggers)) == k
        assert set(triggers) <= set(task.trigger_tokens)
        output = dict(zip(triggers, given_outputs, strict=True))
        for trigger, after in output.items():
            assert after in reference.possible_outputs(
                trigger, outputs, task.never_output, conditional
            )
        assert unigram[tokens[0]] > 0
        for z, after in pairwise(tokens):
            assert after == output[z] if z in output else conditional[z, after] > 0
        assert counts == reference.occurrence(tokens[:-1], triggers)
    assert batch.in_context.equal(batch.occurrence > 1)


def test_inputs_and_targets_do_not_share_memory() -> None:
    batch = draw(TriggerTask(SHAKESPEARE), 4)
    before = batch.targets.clone()
    batch.inputs.zero_()
    assert batch.targets.equal(before)


@given(st.lists(st.lists(st.integers(0, 4), min_size=9, max_size=9), min_size=1, max_size=4))
def test_occurrences_count_as_a_loop_does(rows: list[list[int]]) -> None:
    triggers = [[1, 3]] * len(rows)
    counts = occurrences(torch.tensor(rows), torch.tensor(triggers))
    assert counts.tolist() == [reference.occurrence(row, [1, 3]) for row in rows]


# Sequences are as probable as they should be

UNEVEN = small([[1, 2, 0], [4, 1, 1], [1, 0, 3]], [5, 3, 2])
SILENT = small([[0, 3, 1], [0, 0, 0], [2, 2, 0]], [2, 1, 1])  # nothing follows b
DISTRIBUTIONS: dict[str, TriggerTask] = {
    "no triggers": TriggerTask(UNEVEN, 3, n_triggers=0),
    "one fixed": TriggerTask(UNEVEN, 3, n_triggers=1),
    "two fixed": TriggerTask(UNEVEN, 2, n_triggers=2),
    "one drawn": TriggerTask(UNEVEN, 2, n_triggers=1, triggers="drawn"),
    "two drawn": TriggerTask(UNEVEN, 2, n_triggers=2, triggers="drawn"),
    "drawn of two": TriggerTask(UNEVEN, 3, n_triggers=1, triggers="drawn", candidates=(2, 0)),
    "fixed of two": TriggerTask(UNEVEN, 3, n_triggers=1, candidates=(2, 1)),
    "outputs of a range": TriggerTask(UNEVEN, 3, n_triggers=1, output_range=(1 / 3, 1)),
    "never itself": TriggerTask(UNEVEN, 3, n_triggers=2, never_output="itself"),
    "never the likeliest": TriggerTask(
        UNEVEN, 2, 2, triggers="drawn", output_range=(0, 2 / 3), never_output="likeliest"
    ),
    "never followed": TriggerTask(SILENT, 3, n_triggers=1, triggers="drawn"),
}
FIXED = {
    "no triggers": (),
    "one fixed": (0,),
    "two fixed": (0, 1),
    "fixed of two": (1,),
    "outputs of a range": (0,),
    "never itself": (0, 1),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_triggers_outputs_and_tokens_have_their_exact_joint_distribution(name: str) -> None:
    task = DISTRIBUTIONS[name]
    unigram, conditional = base_of(task)
    possible = {
        (x["triggers"], x["outputs"], x["tokens"]): p
        for x, p in reference.every_sequence(
            unigram,
            conditional,
            fixed=FIXED.get(name),
            candidates=task.candidates or range(3),
            K=task.n_triggers,
            outputs=[v for v in range(3) if v in task.output_tokens],
            never=task.never_output,
            length=task.length + 1,
        )
    }
    assert sum(possible.values()) == pytest.approx(1, abs=1e-12)
    batch = draw(task, 20_000, seed=3)
    drawn = Counter(
        (tuple(a), tuple(b), tuple(c))
        for a, b, c in zip(
            batch.triggers.tolist(), batch.outputs.tolist(), sequences(batch), strict=True
        )
    )
    assert drawn.keys() <= possible.keys()
    counts = torch.tensor([drawn[key] for key in possible])
    assert_follows(counts, torch.tensor(list(possible.values()), dtype=torch.float64))


@pytest.fixture(scope="module")
def batch() -> TriggerBatch:
    """The paper's sequences."""
    return draw(TriggerTask(SHAKESPEARE), 3000, seed=1)


def test_shakespeare_transitions_have_their_probabilities(batch: TriggerBatch) -> None:
    conditional = SHAKESPEARE.conditional
    plain = batch.occurrence == 0
    pairs = torch.bincount(batch.inputs[plain] * 65 + batch.targets[plain], minlength=65 * 65).view(
        65, 65
    )
    for u in pairs.any(1).nonzero()[:, 0].tolist():
        assert_follows(pairs[u], conditional[u])
    unseen = (~pairs.any(1)).nonzero()[:, 0].tolist()
    assert set(unseen) >= set(SHAKESPEARE.most_frequent(5).tolist())


def test_shakespeare_begins_with_the_unigram(batch: TriggerBatch) -> None:
    assert_follows(torch.bincount(batch.inputs[:, 0], minlength=65), SHAKESPEARE.unigram)


def test_fixed_triggers_are_the_most_frequent_and_their_outputs_uniform(
    batch: TriggerBatch,
) -> None:
    task = TriggerTask(SHAKESPEARE)
    assert "".join(SHAKESPEARE.tokens[i] for i in task.trigger_tokens) == " etoa"
    assert (batch.triggers == SHAKESPEARE.most_frequent(5)).all()
    for column in batch.outputs.T:
        assert_follows(torch.bincount(column, minlength=65), torch.full((65,), 1 / 65).double())


def test_drawn_triggers_follow_the_unigram_one_after_the_other() -> None:
    batch = draw(TriggerTask(SHAKESPEARE, length=1, triggers="drawn"), 20_000)
    pi = SHAKESPEARE.unigram
    assert_follows(torch.bincount(batch.triggers[:, 0], minlength=65), pi)
    second = (pi[:, None] * pi / (1 - pi[:, None])).fill_diagonal_(0).sum(0)
    assert_follows(torch.bincount(batch.triggers[:, 1], minlength=65), second)


def test_outputs_held_out_of_training_are_those_of_the_test() -> None:
    train = TriggerTask(SHAKESPEARE, output_range=(0.0, 0.75))
    test = TriggerTask(SHAKESPEARE, output_range=(0.75, 1.0))
    assert (train.output_tokens, test.output_tokens) == (range(48), range(48, 65))
    assert set(draw(train).outputs.flatten().tolist()) == set(range(48))
    assert set(draw(test).outputs.flatten().tolist()) == set(range(48, 65))


def test_a_range_ends_where_its_decimals_say() -> None:
    hundred = Bigrams.from_probabilities(
        [str(i) for i in range(100)], torch.full((100,), 0.01), torch.full((100, 100), 0.01)
    )
    for percent in range(1, 101):
        task = TriggerTask(hundred, output_range=(0.0, percent / 100))
        assert task.output_tokens == range(percent)


def test_sequences_of_another_length_than_the_task_s() -> None:
    task = TriggerTask(SHAKESPEARE, length=8)
    long = draw(task, 3, length=300)
    assert long.inputs.shape == (3, 300)
    assert long.occurrence.max() > 8


def test_a_token_without_probability_is_never_drawn_at_the_ends_of_the_uniform_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    middle = small([[0, 2, 1, 0]] * 4, [0, 2, 1, 0])
    task = TriggerTask(middle, length=6, n_triggers=0)
    rand = torch.rand
    for uniform, token in ((0.0, 1), (math.nextafter(1, 0), 2)):
        monkeypatch.setattr(torch, "rand", lambda *a, u=uniform, **b: rand(*a, **b).fill_(u))
        assert sequences(task.batch(2, seeded(0))) == [[token] * 7] * 2


def test_a_uniform_number_stays_below_the_next_row_in_the_largest_vocabulary() -> None:
    rows = torch.arange(MOST_TOKENS, dtype=torch.float64)
    assert (rows + _BELOW_ONE < rows + 1).all()
    last = torch.arange(2**15 - 3, 2**15, dtype=torch.float64)
    assert (last + _BELOW_ONE < last + 1).all()  # as far as the comment says
    assert 2.0**15 + _BELOW_ONE == 2.0**15 + 1


def test_what_most_often_follows_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    conditional = Bigrams.conditional.fget  # type: ignore[attr-defined]
    counted = property(lambda self: built.append(1) or conditional(self))
    monkeypatch.setattr(Bigrams, "conditional", counted)
    task = TriggerTask(small([[0, 2, 1], [3, 0, 1], [1, 1, 5]]), 6, 2, never_output="likeliest")
    first = draw(task, 4)
    before = len(built)
    again = draw(task, 4)
    assert len(built) == before
    assert again.outputs.equal(first.outputs)
    likeliest = torch.tensor([1, 0, 2])
    assert (again.outputs != likeliest[again.triggers]).all()


# Chance


@pytest.mark.parametrize("triggers", ["fixed", "drawn"])
def test_equal_generators_draw_equal_batches(triggers: Any) -> None:
    task = TriggerTask(SHAKESPEARE, length=20, triggers=triggers)
    torch.manual_seed(1)
    one = draw(task, 8, seed=5)
    torch.manual_seed(2)
    other = draw(task, 8, seed=5)
    assert all(a.equal(b) for a, b in zip(one, other, strict=True))
    assert not draw(task, 8, seed=6).inputs.equal(one.inputs)
    generator = seeded(5)
    first, second = task.batch(8, generator), task.batch(8, generator)
    assert first.inputs.equal(one.inputs)
    assert not second.inputs.equal(one.inputs)


# The best loss that there can be


@settings(max_examples=40, deadline=None)
@given(settings_of_tasks(), st.integers(0, 2**32))
def test_the_optimal_loss_is_that_of_a_loop(drawn: dict[str, Any], seed: int) -> None:
    task = made(drawn)
    batch = draw(task, 5, seed)
    _, conditional = base_of(task)
    loss = optimal_loss(task, batch)
    assert loss.dtype == torch.float64
    for row, tokens, triggers in zip(
        loss.tolist(), sequences(batch), batch.triggers.tolist(), strict=True
    ):
        seen: set[int] = set()
        for got, (z, after) in zip(row, pairwise(tokens), strict=True):
            expected = -math.log(conditional[z, after]) if z not in triggers else 0.0
            if z in triggers and z not in seen:
                pool = reference.possible_outputs(
                    z, task.output_tokens, task.never_output, conditional
                )
                expected = math.log(len(pool))
            seen.add(z)
            assert got == pytest.approx(expected, abs=1e-12)


def test_the_optimal_loss_is_the_entropy_of_the_sequences() -> None:
    """Of all tokens but the first, given the triggers: exact sum over every sequence."""
    task = TriggerTask(UNEVEN, length=4, n_triggers=2)
    unigram, conditional = reference.distributions(UNEVEN.counts.numpy(), np.array([5, 3, 2]))
    p: Counter[tuple[int, ...]] = Counter()
    for x, q in reference.every_sequence(
        unigram,
        conditional,
        fixed=(0, 1),
        candidates=range(3),
        K=2,
        outputs=range(3),
        never="none",
        length=5,
    ):
        p[x["tokens"]] += q  # outputs that a sequence never shows are summed out
    entropy = -sum(q * math.log(q) for q in p.values()) + sum(q * math.log(q) for q in unigram)
    tokens = torch.tensor(list(p))
    inputs, triggers = tokens[:, :-1], torch.tensor([[0, 1]] * len(p))
    every = TriggerBatch(
        inputs, tokens[:, 1:], occurrences(inputs, triggers), triggers, torch.zeros_like(triggers)
    )
    expected = optimal_loss(task, every).sum(1) @ torch.tensor(list(p.values()))
    assert float(expected) == pytest.approx(entropy, abs=1e-12)


# Records and errors


@settings(max_examples=30, deadline=None)
@given(settings_of_tasks())
def test_a_task_survives_json(drawn: dict[str, Any]) -> None:
    task = made(drawn)
    again = TriggerTask.from_dict(json.loads(json.dumps(task.to_dict())))
    assert again == task
    assert hash(again) == hash(task)
    assert draw(again, 3).inputs.equal(draw(task, 3).inputs)


def test_the_shipped_bigrams_are_recorded_by_name() -> None:
    record = TriggerTask(SHAKESPEARE).to_dict()
    assert record["bigrams"] == "tiny-shakespeare"
    assert TriggerTask.from_dict({"bigrams": "tiny-shakespeare"}) == TriggerTask(SHAKESPEARE)
    with pytest.raises(ValueError, match=r"bigrams must be 'tiny-shakespeare' or .*; got 'dante'"):
        TriggerTask.from_dict({"bigrams": "dante"})
    with pytest.raises(ValueError, match="'k' is not a setting; expected bigrams, length, "):
        TriggerTask.from_dict(record | {"k": 5})
    with pytest.raises(ValueError, match="unigram and bigram counts must have the keys"):
        TriggerTask.from_dict({"length": 3})


def test_a_record_that_is_no_dictionary_is_refused(unchecked_annotations: None) -> None:
    with pytest.raises(ValueError, match="settings must be a dict; got list"):
        TriggerTask.from_dict([1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"bigrams": "tiny-shakespeare"}, "bigrams must be Bigrams; got str"),
        ({"length": 0}, "length must be a whole number from 1 up; got 0"),
        ({"length": 2.0}, "length must be a whole number from 1 up; got 2.0"),
        ({"n_triggers": -1}, "n_triggers must be a whole number from 0 up; got -1"),
        ({"n_triggers": True}, "n_triggers must be a whole number from 0 up; got True"),
        ({"n_triggers": 5}, "n_triggers=5 must be at most 4, the candidates"),
        ({"n_triggers": 3, "candidates": (0, 1)}, "n_triggers=3 must be at most 2, the candidates"),
        (
            {"n_triggers": 4, "triggers": "drawn"},
            "n_triggers=4 must be at most 3, the candidates that ever occur",
        ),
        ({"triggers": "random"}, "triggers must be one of 'fixed', 'drawn'; got 'random'"),
        ({"never_output": "a"}, "never_output must be one of 'none', 'itself', 'likeliest'; got"),
        ({"candidates": (0, 4)}, "candidates: token id 4 must be below 4, the tokens"),
        ({"candidates": (-1,)}, "candidates: a token id must be a whole number from 0 up; got -1"),
        ({"candidates": (1, 1)}, "candidates must be distinct; got (1, 1)"),
        ({"output_range": (0.5, 0.5)}, "output_range must be (lo, hi) with 0 <= lo < hi <= 1; got"),
        ({"output_range": (0.5,)}, "output_range must be (lo, hi) with 0 <= lo < hi <= 1; got"),
        ({"candidates": torch.tensor([0, 1])}, "candidates must be token ids in a tuple, or None;"),
        ({"candidates": 3}, "candidates must be token ids in a tuple, or None; got int"),
        ({"candidates": "ab"}, "candidates must be token ids in a tuple, or None; got str"),
        ({"output_range": None}, "output_range must be (lo, hi) with 0 <= lo < hi <= 1; got None"),
        ({"output_range": ("a", "b")}, "output_range must be (lo, hi) with 0 <= lo < hi <= 1; got"),
        ({"output_range": 0.5}, "output_range must be (lo, hi) with 0 <= lo < hi <= 1; got 0.5"),
        ({"output_range": (False, True)}, "output_range must be (lo, hi) with 0 <= lo < hi <= 1;"),
        ({"output_range": (0, 2)}, "output_range must be (lo, hi) with 0 <= lo < hi <= 1; got"),
        (
            {"output_range": (0, 0.2)},
            "output_range=(0, 0.2) holds 0 of 4 tokens; expected at least 1",
        ),
        (
            {"output_range": (0, 0.25), "never_output": "itself"},
            "holds 1 of 4 tokens; expected at least 2 with never_output='itself'",
        ),
    ],
)
def test_impossible_tasks_are_refused(change: dict[str, Any], line: str) -> None:
    base = {"bigrams": small([[1] * 4] * 4, [1, 1, 1, 0]), "n_triggers": 1}
    with pytest.raises(ValueError, match=re.escape(line)):
        TriggerTask(**base | change)


def test_impossible_batches_are_refused() -> None:
    task = TriggerTask(SHAKESPEARE)
    with pytest.raises(ValueError, match="size must be a whole number from 1 up; got 0"):
        task.batch(0, seeded(0))
    with pytest.raises(ValueError, match="length must be a whole number from 1 up; got 0"):
        task.batch(1, seeded(0), length=0)
