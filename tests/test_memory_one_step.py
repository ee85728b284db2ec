"""One gradient step a matrix: against loops of symbols, closed forms, and what it recalls."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resval_lens.analyses.papers.memory.model.config import memory_config
from resval_lens.analyses.papers.memory.model.construct import construct
from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.model.one_step import (
    answers,
    coefficients,
    leading_previous,
    one_step,
    orthonormal,
    predicted_steps,
)
from resval_lens.analyses.papers.memory.model.one_step_task import RecallBatch, RecallTask
from resval_lens.streams import AttentionStream
from tests.reference.one_step import one_step as by_hand

STREAMS = {
    "classic": ("", 1.0, 0.0),
    "values": ("v", 1.0, 1.0),
    "pair": ((AttentionStream(of="v", mix="pair", own=0.5, carried=0.75),), 0.5, 0.75),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blank(V, n_ctx, positions="absolute", streams="", d=None, **more):
    n = V + (n_ctx if positions == "absolute" else 0)
    least = max(2 * n + V, 3 * n if streams else 0, V + n_ctx)
    cfg = memory_config(
        V, positions, streams, d_model=d or least, n_ctx=n_ctx, dtype=torch.float64, **more
    )
    return MemoryTransformer(cfg, generator=seeded())


def ideal(*args, turn=None, **more):
    return orthonormal(blank(*args, **more), turn)


MOST_SEQUENCES = 1_000_000


def every(task: RecallTask) -> RecallBatch:
    """Every sequence there is, with its probability.

    Raises:
        ValueError: more than a million of them.
    """
    v = task.d_vocab
    count = sum(v * (v - 1) ** (T - 2) for T, _, _ in task.places)
    if count > MOST_SEQUENCES:
        raise ValueError(
            f"d_vocab={v} and length={task.length} make {count:,} sequences; at most "
            f"{MOST_SEQUENCES:,} are written down"
        )
    rows, queries, drawn = [], [], []
    for T, t_o, p in task.places:
        free = [s for s in range(T - 1) if s != t_o - 2]  # all but the two q
        choices = v * (v - 1) ** len(free)
        for q, *rest in product(range(v), *[range(1, v)] * len(free)):
            line = [0] * task.length
            for s, other in zip(free, rest, strict=True):
                line[s] = (q + other) % v
            rows.append((T, t_o, p / choices))
            queries.append(q)
            drawn.append(line)
    return task._laid_out(rows, torch.tensor(queries), torch.tensor(drawn))


def as_lists(batch: RecallBatch):
    rows = zip(*(x.tolist() for x in batch), strict=True)
    return [(z[: last + 1], target, weight) for z, last, target, _, weight in rows]


# The task


def test_every_sequence_is_there_once_and_is_what_the_task_says():
    task = RecallTask(4, 5, 3)
    batch = every(task)
    seen = Counter()
    for z, last, target, at, weight in zip(*(x.tolist() for x in batch), strict=True):
        T, q = last + 1, z[last]
        assert 3 <= T <= 5
        assert 1 <= at < last
        assert z[at - 1] == q
        assert z[at] == target != q
        assert z[:T].count(q) == 2
        assert z[T:] == [0] * (5 - T)
        assert weight == pytest.approx(1 / 3 / (T - 2) / (4 * 3 ** (T - 2)))
        seen[(*z[:T], at)] += 1
    assert len(batch.tokens) == 4 * (1 * 3 + 2 * 9 + 3 * 27) == len(seen)
    assert float(batch.weights.sum()) == pytest.approx(1)


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 9), st.integers(3, 9), st.integers(0, 6), st.integers(1, 4))
def test_drawn_sequences_are_what_the_task_says(V, shortest, more, each):
    task = RecallTask(V, shortest + more, shortest)
    batch = task.batch(each, seeded(V))
    place = torch.arange(task.length)
    q = batch.tokens.gather(1, batch.last[:, None])
    inside = place <= batch.last[:, None]
    assert torch.equal(
        (batch.tokens == q) & inside,
        (place == batch.output_at[:, None] - 1) | (place == batch.last[:, None]),
    )
    assert torch.equal(batch.tokens.gather(1, batch.output_at[:, None])[:, 0], batch.targets)
    found = Counter(zip((batch.last + 1).tolist(), (batch.output_at + 1).tolist(), strict=True))
    assert found == {(T, t_o): each for T, t_o, _ in task.places}
    expected = [p / each for *_, p in task.places for _ in range(each)]
    assert torch.allclose(batch.weights, torch.tensor(expected, dtype=torch.float64))
    assert float(batch.weights.sum()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RecallTask(2, 5, 3), "d_vocab must be a whole number from 3 up; got 2"),
        (lambda: RecallTask(5, 5, 2), "shortest must be a whole number from 3 up; got 2"),
        (lambda: RecallTask(5, 5, 6), "shortest=6 must be at most length=5"),
        (lambda: RecallTask(5, 5, 5).batch(0, seeded()), "each must be .* got 0"),
        (lambda: every(RecallTask(20, 9, 9)), "d_vocab=20 and length=9 make 125,142,043,460"),
    ],
)
def test_the_task_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Autograd against loops of symbols


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize("streams", list(STREAMS))
@pytest.mark.parametrize("only_memories", [False, True])
def test_gradients_are_those_of_the_loops(positions, streams, only_memories):
    V, n_ctx, rates = 4, 5, (9.0, 700.0, 50.0)
    streams, own, link = STREAMS[streams]
    model = ideal(V, n_ctx, positions, streams, turn=seeded(1))
    batch = RecallTask(V, n_ctx, 3).batch(3, seeded(2))
    known = None
    if link != 1:  # with global knowledge in W_F
        known = torch.randn(V, V, generator=seeded(3), dtype=torch.float64).log_softmax(-1)
    relative = positions == "relative"
    found = one_step(model, batch, rates, log_bigrams=known, only_memories=only_memories, chunk=7)
    expected = by_hand(
        as_lists(batch), V=V, n_ctx=n_ctx, d=model.cfg.d_model, relative=relative, rates=rates,
        own=own, link=link, log_bigrams=None if known is None else known.numpy(),
        only_memories=only_memories,
    )  # fmt: skip
    assert found.losses[:3] == pytest.approx(expected["losses"], abs=1e-10)
    matrices = {
        "W_O2": model.blocks[1].attn.W_O[0].T,
        "W_K2": model.blocks[1].attn.W_K[0],
        "W_K1": model.blocks[0].attn.W_K[0],
    }
    for name, (rows, columns) in symbols(model, own, link).items():
        whole = rows.T @ torch.from_numpy(expected[name]) @ columns
        close = {"atol": 1e-9 * float(whole.abs().max()), "rtol": 0.0}
        torch.testing.assert_close(matrices[name].detach(), whole, **close)
    n = model.embed.W_E.shape[0] + (0 if relative else n_ctx)
    parts = {
        "W_O2": expected["W_O2"][:V, :V],
        "W_K2": expected["W_K2"][n : n + V, :V],
        "W_K1": expected["W_K1"][V:] if relative else expected["W_K1"][V:, V:],
    }
    for name, part in parts.items():
        close = {"atol": 1e-9 * abs(part).max(), "rtol": 0.0}
        torch.testing.assert_close(found.coefficients[name], torch.from_numpy(part), **close)
        torch.testing.assert_close(coefficients(model, name), torch.from_numpy(part), **close)
        torch.testing.assert_close(
            coefficients(model, name, exact=True), torch.from_numpy(part), **close
        )


def symbols(model, own, link):
    """The vectors of the rows and columns of each of the reference's tables."""
    first, second = model.blocks[0].attn, model.blocks[1].attn
    W_E, W_U = model.embed.W_E, model.unembed.W_U
    absolute = model.cfg.positions == "absolute"
    stream = torch.cat([W_E, model.pos_embed.W_pos]) if absolute else W_E
    echoes = stream @ first.W_V[0] @ first.W_O[0]
    values = torch.cat(
        [own * stream @ second.W_V[0] + link * stream @ first.W_V[0], own * echoes @ second.W_V[0]]
    )
    middle = torch.cat([stream, echoes])
    keys = stream if absolute else torch.cat([W_E, first.W_R])
    return {
        "W_O2": (torch.cat([W_U.T, W_E]), values),
        "W_K2": (middle, middle),
        "W_K1": (keys, stream),
    }


# Closed forms


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize("streams", list(STREAMS))
@pytest.mark.parametrize(("V", "length", "shortest"), [(5, 5, 3), (4, 6, 5), (6, 4, 4)])
def test_small_steps_write_the_closed_form(positions, streams, V, length, shortest):
    """Every sequence enumerated, autograd through the real model; first order in η1 and η2."""
    streams, own, link = STREAMS[streams]
    model = ideal(V, length + 1, positions, streams)
    task, rates = RecallTask(V, length, shortest), (1e-10, 1.0, 3.0)
    found = one_step(model, every(task), rates, only_memories=True, chunk=2000).coefficients
    predicted = predicted_steps(
        task, model.cfg.d_model, rates, relative=positions == "relative",
        value_norm=own**2 + link**2,
    )  # fmt: skip
    for name, expected in predicted.items():
        close = {"atol": 1e-8 * float(expected.abs().max()), "rtol": 0.0}
        rows, columns = expected.shape
        torch.testing.assert_close(found[name][:rows, :columns], expected, **close)
    assert torch.equal(
        found["W_K1"][length:], torch.zeros_like(found["W_K1"][length:])
    )  # nothing is written where no sequence reaches
    if positions == "absolute":
        assert not found["W_K1"][:, length:].any()


def test_what_the_closed_form_leaves_out_is_of_first_order():
    task = RecallTask(5, 5, 3)
    batch, model = every(task), ideal(5, 5)
    errors = []
    for eta1 in (1.0, 0.1, 0.01):
        found = one_step(model, batch, (eta1, 1.0, 1.0), only_memories=True).coefficients
        expected = predicted_steps(task, model.cfg.d_model, (eta1, 1.0, 1.0))
        errors.append(
            [float((found[k] / x - 1).abs().max()) for k, x in expected.items() if k != "W_K1"]
        )
        scale = expected["W_K1"].abs().max()
        errors[-1].append(float((found["W_K1"] - expected["W_K1"]).abs().max() / scale))
    errors = np.array(errors)
    assert errors[:, 0].max() < 1e-12  # W_O² is exact at any rate
    assert 5 < errors[1, 1] / errors[2, 1] < 15
    assert 5 < errors[1, 2] / errors[2, 2] < 15


def test_relative_coefficients_sum_the_absolute_ones():
    task = RecallTask(7, 12, 12)
    absolute = predicted_steps(task, 50)["W_K1"]
    relative = predicted_steps(task, 50, relative=True)["W_K1"]
    scale = float(absolute.abs().max())
    for i in range(12):
        total = sum(float(absolute[s - i, s]) for s in range(i, 12))
        assert relative[i].tolist() == pytest.approx([total / 7] * 7, abs=1e-12 * scale)
    assert int(relative[:, 0].argmax()) == 1  # the previous token is what it attends to most
    assert absolute[:, 1:-1].argmax(0).tolist() == list(range(10))


def test_the_leading_form_of_one_length_is_p_of_the_output_times_one_over_t():
    leading = leading_previous(RecallTask(5, 9, 9))
    t = np.arange(1, 10)
    share = np.where((t >= 2) & (t <= 8), 1 / 7, 0)
    np.testing.assert_allclose(leading.numpy(), share / 9 * (1 / t) * (1 - 1 / t), rtol=1e-12)


def test_the_exact_form_goes_to_the_leading_one():
    """Relative error of W_K¹ at t ≤ T/2: of the order 1/T + 1/V."""
    worst = []
    for size in (16, 64, 256):
        task = RecallTask(size, size, size)
        predicted = predicted_steps(task, 1)
        said, kept = (float(predicted[k][0, 0]) / (1 - 1 / size) for k in ("W_O2", "W_K2"))
        exact = predicted["W_K1"].diagonal(1) / (said * kept)  # at t = 2, 3, ...
        leading = leading_previous(task)[1:]
        near = slice(0, size // 2)
        worst.append(float((exact[near] / leading[near] - 1).abs().max()))
        relative = predicted_steps(task, 1, relative=True)["W_K1"][1] / (said * kept)
        assert float(relative[0] * size / leading.sum()) == pytest.approx(1, abs=6 / size)
    assert worst[0] < 0.5
    assert 3 < worst[0] / worst[1] < 5
    assert 3 < worst[1] / worst[2] < 5


def test_a_value_stream_doubles_what_is_said_and_quadruples_the_previous_token_step():
    task, rates = RecallTask(5, 5, 3), (1e-10, 1.0, 1.0)
    batch = every(task)
    classic, values = (
        one_step(ideal(5, 5, streams=streams, d=30), batch, rates, only_memories=True).coefficients
        for streams in ("", "v")
    )
    for name, factor in {"W_O2": 1, "W_K2": 2, "W_K1": 4}.items():
        expected = factor * classic[name]
        close = {"atol": 1e-8 * float(expected.abs().max()), "rtol": 0.0}
        torch.testing.assert_close(values[name], expected, **close)


def test_sequences_of_three_tokens_write_the_opposite_into_w_k2():
    """In "q o q" the last position holds more of q's echo than the output's does."""
    by_length = [float(predicted_steps(RecallTask(8, T, T), 1)["W_K2"][0, 0]) for T in (3, 16)]
    assert by_length[0] < 0 < by_length[1]


# What is read, and in which vectors


def test_exact_coefficients_of_the_first_step_are_counts():
    """Random embeddings: c[v, v'] = Σ_b w_b (1[o = v] − p_v) · share of v' in z_1 .. z_T."""
    V, task = 5, RecallTask(5, 6, 4)
    model = blank(V, 6, d=60)
    batch = task.batch(2, seeded(4))
    for W in (model.blocks[1].attn.W_O, *(block.attn.W_K for block in model.blocks)):
        W.data.zero_()
    model.feed_forward.W_F.data.zero_()
    expected = np.zeros((V, V))
    for z, target, weight in as_lists(batch):
        p = model(torch.tensor([z]))[0, -1].softmax(-1).tolist()
        for v in range(V):
            for token in z:
                expected[v, token] += weight * ((v == target) - p[v]) / len(z)
    found = one_step(model, batch, (2.0, 0.0, 0.0), exact=True)
    np.testing.assert_allclose(found.coefficients["W_O2"].numpy(), 2 * expected, atol=1e-10)


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize("streams", ["", "v"])
def test_a_constructed_head_answers_tau(positions, streams):
    V, n_ctx = 5, 6
    model = blank(V, n_ctx, positions, streams, d=64)
    construct(model, torch.zeros(V, V, dtype=torch.float64), 3.0, 5.0, 7.0, exact=True)
    close = {"atol": 1e-8, "rtol": 0.0}
    eye = torch.eye(V, dtype=torch.float64)
    torch.testing.assert_close(answers(model, "W_O2"), 7 * eye, **close)
    torch.testing.assert_close(answers(model, "W_K2"), 5 * eye, **close)
    if positions == "absolute":
        previous = torch.diag(torch.ones(n_ctx - 1, dtype=torch.float64), 1)
    else:
        previous = torch.zeros(n_ctx, V, dtype=torch.float64)
        previous[1] = 1
    torch.testing.assert_close(answers(model, "W_K1"), 3 * previous, **close)


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize("name", ["W_O2", "W_K2", "W_K1"])
def test_exact_coefficients_undo_the_sum(positions, name):
    V, n_ctx = 4, 5
    model = blank(V, n_ctx, positions, "v", d=48)
    first, second = model.blocks[0].attn, model.blocks[1].attn
    W_E = model.embed.W_E
    spots = model.pos_embed.W_pos if positions == "absolute" else first.W_R
    values = W_E @ second.W_V[0] + W_E @ first.W_V[0]
    left, right, W = {
        "W_O2": (values, model.unembed.W_U.T, second.W_O),
        "W_K2": (W_E @ first.W_V[0] @ first.W_O[0], W_E, second.W_K),
        "W_K1": (spots, spots if positions == "absolute" else W_E, first.W_K),
    }[name]
    c = torch.randn(len(left), len(right), generator=seeded(6), dtype=torch.float64)
    with torch.no_grad():
        W[0] = sum(
            c[i, j] * torch.outer(left[i], right[j])
            for i in range(len(left))
            for j in range(len(right))
        )
    expected = c.T if name == "W_O2" else c
    torch.testing.assert_close(coefficients(model, name, exact=True), expected, atol=1e-9, rtol=0.0)
    near = coefficients(model, name)
    left, right, W = left.detach(), right.detach(), W.detach()
    own = left[1] @ W[0] @ right[2] / (left[1].square().sum() * right[2].square().sum())
    assert float(near.T[1, 2] if name == "W_O2" else near[1, 2]) == pytest.approx(float(own))


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize("streams", ["", "v"])
@pytest.mark.parametrize("turn", [False, True])
def test_orthonormal_vectors(positions, streams, turn):
    V, n_ctx = 4, 5
    model = ideal(V, n_ctx, positions, streams, turn=seeded() if turn else None)
    for rows, columns in symbols(model, 1.0, 1.0 if streams else 0.0).values():
        for vectors in (rows, columns):
            lengths = vectors.square().sum(1)
            torch.testing.assert_close(
                vectors @ vectors.T, torch.diag(lengths), atol=1e-12, rtol=0.0
            )
    torch.testing.assert_close(
        model.embed.W_E.square().sum(1), torch.ones(V, dtype=torch.float64), atol=1e-12, rtol=0.0
    )


# What the three steps recall


def recalled(model: MemoryTransformer, V: int, length: int) -> Tensor:
    """Share of three sequences whose output is the likeliest token, for each t_o from 2 on."""
    batch = RecallTask(V, length, length).batch(3, seeded(8))
    with torch.no_grad():
        said = model(batch.tokens)[:, -1].argmax(-1)
    return (said == batch.targets).view(-1, 3).double().mean(1)


def stepped(positions: str, streams: str = "", V: int = 12, length: int = 8, n_ctx: int = 32):
    """After steps that give W_O² .01, W_K² 10 and W_K¹ 50 nats on average."""
    model = ideal(V, n_ctx, positions, streams)
    task, d = RecallTask(V, length, length), model.cfg.d_model
    norm = 2.0 if streams else 1.0
    unit = predicted_steps(task, d, relative=positions == "relative", value_norm=norm)
    eta1 = 0.01 / (norm * float(unit["W_O2"][0, 0]))
    eta2 = 10 * math.sqrt(d) / (eta1 * float(unit["W_K2"][0, 0]))
    one_step(model, task.batch(80, seeded(7)), (eta1, eta2, 1.0), only_memories=True)
    previous = answers(model, "W_K1")
    known = previous.diagonal(1)[: length - 2] if positions == "absolute" else previous[1]
    model.blocks[0].attn.W_K.data.mul_(50 / known.mean())  # a step is linear in its rate
    return model


@pytest.mark.parametrize("streams", ["", "v"])
def test_three_steps_recall_at_any_length_with_relative_positions(streams):
    model = stepped("relative", streams)
    assert float(recalled(model, 12, 8).mean()) > 0.9
    assert float(recalled(model, 12, 32).mean()) > 0.9


def test_three_steps_recall_only_where_they_were_trained_with_absolute_positions():
    model = stepped("absolute")
    right = recalled(model, 12, 32)
    assert float(right[:5].mean()) > 0.9  # t_o = 2 .. 6
    assert float(right[8:].mean()) < 0.4


# Refusals


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({}, {"rates": (1.0, math.inf, 1.0)}, "rates must be three finite numbers; got"),
        ({}, {"log_bigrams": torch.full((4, 4), -math.inf)}, "log_bigrams must be finite"),
        ({}, {"exact": True, "d": 18}, "needs a dimension for each of 22 vectors; d_model=18"),
        ({"n_layers": 1}, {}, "n_layers=1"),
        ({"positions": "rotary"}, {}, "positions='rotary'"),
        ({"position_layers": (0, 1), "positions": "relative"}, {}, "position_layers"),
        ({"streams": "k"}, {}, "streams: memories are known for value streams"),
        ({"frozen": ("blocks.1.attn.W_K",)}, {}, "W_K2 is frozen"),
    ],
)
def test_one_step_refuses(change, settings, message):
    settings = {**settings}
    model = blank(4, 5, **{"d": settings.pop("d", 24), **change})
    with pytest.raises(ValueError, match=message):
        one_step(model, RecallTask(4, 5, 5).batch(1, seeded()), **settings)


def test_orthonormal_refuses_too_few_dimensions_and_positions_it_cannot_draw():
    with pytest.raises(ValueError, match="need 22 dimensions; d_model=20"):
        orthonormal(blank(4, 5, d=20), seeded())
    with pytest.raises(ValueError, match="'sinusoidal' are not drawn"):
        orthonormal(blank(4, 5, "sinusoidal", d=24), seeded())


def test_coefficients_refuse_a_matrix_that_there_is_not(unchecked_annotations):
    with pytest.raises(ValueError, match="name must be one of W_O2, W_K2, W_K1; got 'W_V1'"):
        coefficients(blank(4, 5), "W_V1")
