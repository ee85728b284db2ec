"""A constructed induction head computes what the closed forms say; the closed forms, by loops."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor

from resval_lens.analyses.papers.memory.model import (
    MemoryTransformer,
    construct,
    fast_logits,
    memory_config,
    predict,
    previous_token_attention,
)
from resval_lens.streams import AttentionStream
from tests.reference.memory import followers, predicted

V, LENGTH = 5, 8
PAIR = AttentionStream("v", mix="pair", own=0.5, carried=0.7)
KINDS = ("relative", "absolute", "sinusoidal")
STREAMS = {"none": "", "v": "v", "pair": PAIR}


def hard_logits(
    tokens: Int[Tensor, "batch pos"],
    log_bigrams: Float[Tensor, "d_vocab d_vocab"],
    tau3: float = 10.0,
) -> Float[Tensor, "batch d_vocab"]:
    """ξ_v = log π_b(v|q) + τ3 f(v)/Σf at the last position: the limit of τ1, then τ2 → ∞.

    f(v) is how often v has followed q = z_T. Position 0, which attends to itself, counts as its
    own follower; a q that nothing matches has its attention spread over all positions. So for
    ", A B1, A B1, A B2, A" the context speaks for B1 by τ3/3 more than for B2: global knowledge
    wins exactly where its log-bigram gap is larger. (Without the first comma it is τ3/4.)

    Raises:
        ValueError: tokens that ``log_bigrams`` does not have.
    """
    for token in tokens.flatten().tolist():
        if not 0 <= token < len(log_bigrams):
            raise ValueError(
                f"tokens has {token}; log_bigrams has tokens 0 to {len(log_bigrams) - 1}"
            )
    query = tokens[:, -1:]
    before = torch.cat([tokens[:, :1], tokens[:, :-1]], dim=1)  # what each position looks back to
    follows = (before == query).double()
    follows = torch.where(follows.sum(1, keepdim=True) > 0, follows, torch.ones_like(follows))
    counts = torch.zeros(len(tokens), len(log_bigrams), dtype=torch.float64, device=tokens.device)
    counts.scatter_add_(1, tokens, follows)
    shares = counts / counts.sum(1, keepdim=True)
    return log_bigrams.double()[query[:, 0]] + tau3 * shares


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(batch: int, length: int = LENGTH, seed: int = 0, d_vocab: int = V) -> Tensor:
    return torch.randint(0, d_vocab, (batch, length), generator=generator(seed))


def log_bigrams(d_vocab: int = V, seed: int = 0) -> Tensor:
    logits = 2 * torch.randn(d_vocab, d_vocab, generator=generator(seed), dtype=torch.float64)
    return logits.log_softmax(-1)


def blank(
    kind: Any, streams: Any = "", d_vocab: int = V, n_ctx: int = LENGTH, seed: int = 0, **sizes: Any
) -> MemoryTransformer:
    """A model before construction, with a dimension for every vector that can be in the stream."""
    places = 0 if kind == "relative" else n_ctx
    d = max(3 * d_vocab + 2 * places, d_vocab + n_ctx) + 3
    sizes = {"d_model": d, "dtype": torch.float64, "n_ctx": n_ctx, **sizes}
    return MemoryTransformer(
        memory_config(d_vocab, kind, streams, **sizes), generator=generator(seed)
    )


def patterns(model: MemoryTransformer, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, and the attention of both layers."""
    logits, cache = model.run_with_cache(tokens)
    return logits, cache["pattern", 0][:, 0], cache["pattern", 1][:, 0]


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# The closed forms, by loops


TAUS = st.floats(0, 8)


@settings(max_examples=60, deadline=None)
@given(
    tau1=TAUS, tau2=TAUS, tau3=st.floats(-5, 8), length=st.integers(1, 9),
    seed=st.integers(0, 10_000), known=st.none() | st.lists(st.integers(0, V - 1), max_size=4),
    reach=st.none() | st.integers(0, 10),
)  # fmt: skip
def test_predictions_are_the_loops(
    tau1: float,
    tau2: float,
    tau3: float,
    length: int,
    seed: int,
    known: list[int] | None,
    reach: int | None,
) -> None:
    tokens, bigrams = draw(2, length, seed), log_bigrams(seed=seed)
    found = predict(
        tokens, bigrams, tau1, tau2, tau3,
        trained_length=reach, known=known, relative=reach is None,
    )  # fmt: skip
    for row, sequence in enumerate(tokens.tolist()):
        previous, induction, logits = predicted(
            sequence, bigrams.numpy(), tau1, tau2, tau3,
            knows=None if known is None else set(known), reach=reach,
        )  # fmt: skip
        same(found.logits[row], torch.from_numpy(logits), 1e-12)
        for attention, expected in ((found.previous, previous), (found.induction, induction)):
            for t, weights in enumerate(expected):
                ahead = [0.0] * (length - t - 1)
                same(attention[row, t], torch.tensor(weights + ahead, dtype=torch.float64), 1e-12)


def test_absolute_predictions_reach_every_position_by_default() -> None:
    tokens, bigrams = draw(3), log_bigrams()
    whole = predict(tokens, bigrams, 3.0, 2.0, relative=False)
    assert whole.logits.equal(predict(tokens, bigrams, 3.0, 2.0).logits)


@pytest.mark.parametrize("tau1", [0.0, 1.5, 10.0, 60.0])
def test_attention_of_the_previous_token_head(tau1: float) -> None:
    found = predict(draw(1, 30), log_bigrams(), tau1).previous[0]
    for t in range(2, 31):  # positions counted from 1
        expected = math.exp(tau1) / (math.exp(tau1) + t - 1)
        assert previous_token_attention(t, tau1) == pytest.approx(expected, rel=1e-14)
        assert found[t - 1, t - 2].item() == pytest.approx(expected, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, V - 1), min_size=1, max_size=12), st.floats(0.1, 20))
def test_hard_logits_count(tokens: list[int], tau3: float) -> None:
    bigrams = log_bigrams()
    found = hard_logits(torch.tensor([tokens]), bigrams, tau3)[0]
    counts = followers(tokens)
    for v in range(V):
        share = counts.get(v, 0) / sum(counts.values())
        expected = bigrams[tokens[-1], v].item() + tau3 * share
        assert found[v].item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_hard_logits_are_the_limit() -> None:
    tokens, bigrams = draw(40, 10, seed=3), log_bigrams()
    soft = predict(tokens, bigrams, 60.0, 300.0, 4.0)
    same(soft.logits[:, -1], hard_logits(tokens, bigrams, 4.0), 1e-9)
    near = predict(tokens, bigrams, 5.0, 8.0, 4.0)
    assert (near.logits[:, -1] - hard_logits(tokens, bigrams, 4.0)).abs().max() > 1e-4


def test_hand_counted_followers() -> None:
    """2 after 1 twice and 3 after 1 once, in 1 2, 1 2, 1 3, 1; position 0 follows itself."""
    bigrams = torch.zeros(V, V, dtype=torch.float64)
    shares = hard_logits(torch.tensor([[0, 1, 2, 1, 2, 1, 3, 1]]), bigrams, 3.0)[0]
    same(shares, torch.tensor([0.0, 0.0, 2.0, 1.0, 0.0], dtype=torch.float64), 1e-12)
    shares = hard_logits(torch.tensor([[1, 2, 1, 2, 1, 3, 1]]), bigrams, 4.0)[0]
    same(shares, torch.tensor([0.0, 1.0, 2.0, 1.0, 0.0], dtype=torch.float64), 1e-12)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tokens": torch.tensor([[0, 5]])}, "tokens has 5; log_bigrams has tokens 0 to 4"),
        ({"tokens": torch.tensor([[-1, 0]])}, "tokens has -1; log_bigrams has tokens 0 to 4"),
        ({"known": [0, 7]}, "known has 7; log_bigrams has tokens 0 to 4"),
    ],
    ids=["beyond", "negative", "known"],
)
def test_predictions_of_tokens_that_are_not_there(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict(**{"tokens": draw(1), "log_bigrams": log_bigrams(), **kwargs})
    if "known" not in kwargs:
        with pytest.raises(ValueError, match=message):
            hard_logits(kwargs["tokens"], log_bigrams())


# Exact construction


@pytest.mark.parametrize("streams", STREAMS.values(), ids=STREAMS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_an_exact_construction_is_the_prediction(kind: str, streams: Any) -> None:
    # Sinusoids of near positions are nearly parallel, and their duals long: few, and rounded more.
    length, tolerance = (6, 1e-7) if kind == "sinusoidal" else (LENGTH, 1e-10)
    tokens, bigrams = draw(6, length), log_bigrams()
    model = construct(blank(kind, streams, n_ctx=length), bigrams, 2.0, 3.0, 4.0, exact=True)
    expected = predict(tokens, bigrams, 2.0, 3.0, 4.0, relative=kind == "relative")
    logits, first, second = patterns(model, tokens)
    same(first, expected.previous, tolerance)
    same(second, expected.induction, tolerance)
    same(logits, expected.logits, tolerance)
    same(fast_logits(model, tokens), expected.logits, tolerance)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS[:2]), streams=st.sampled_from(sorted(STREAMS)),
    tau1=st.floats(0, 12),
    tau2=st.floats(0, 12), tau3=st.floats(-6, 6), d_vocab=st.integers(2, 6),
    length=st.integers(2, 9), seed=st.integers(0, 10_000), data=st.data(),
)  # fmt: skip
def test_exact_constructions_of_any_strength_and_size(
    kind: Any,
    streams: str,
    tau1: float,
    tau2: float,
    tau3: float,
    d_vocab: int,
    length: int,
    seed: int,
    data: Any,
) -> None:
    known = data.draw(st.none() | st.lists(st.integers(0, d_vocab - 1), min_size=1, unique=True))
    trained = data.draw(st.none() | st.integers(2, length))
    tokens, bigrams = draw(2, length, seed, d_vocab), log_bigrams(d_vocab, seed)
    model = blank(kind, STREAMS[streams], d_vocab, length, seed)
    construct(model, bigrams, tau1, tau2, tau3, trained_length=trained, known=known, exact=True)
    expected = predict(
        tokens, bigrams, tau1, tau2, tau3,
        trained_length=trained, known=known, relative=kind == "relative",
    )  # fmt: skip
    logits, first, second = patterns(model, tokens)
    same(first, expected.previous, 1e-9)
    same(second, expected.induction, 1e-9)
    same(logits, expected.logits, 1e-9)


def test_absolute_positions_end_with_training_and_relative_ones_do_not() -> None:
    length, trained, tau1 = 20, 8, 6.0
    tokens, bigrams = draw(2, length), log_bigrams()
    for kind, stays in (("absolute", False), ("relative", True)):
        model = construct(
            blank(kind, n_ctx=length), bigrams, tau1, trained_length=trained, exact=True
        )
        _, first, _ = patterns(model, tokens)
        for t in range(2, length + 1):  # counted from 1
            on = stays or t <= trained
            expected = math.exp(tau1) / (math.exp(tau1) + t - 1) if on else 1 / t
            same(first[:, t - 1, t - 2], torch.full((2,), expected, dtype=torch.float64))
            if not on:
                same(first[:, t - 1, :t], torch.full((2, t), 1 / t, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_position_1_is_a_spurious_match_if_it_is_the_query(kind: str) -> None:
    """It attends to itself: z_1 = q matches without having followed q."""
    bigrams = log_bigrams()
    model = construct(blank(kind), bigrams, 40.0, 60.0, 3.0, exact=True)
    logits, _, second = patterns(model, torch.tensor([[1, 2, 0, 3, 1], [0, 2, 0, 3, 1]]))
    # Position 2 followed q = 1, and position 1 is q itself.
    half = [0.5, 0.5, 0.0, 0.0, 0.0]
    same(second[0, -1], torch.tensor(half, dtype=torch.float64), 1e-9)
    expected = bigrams[1].clone()
    expected[1] += 1.5
    expected[2] += 1.5
    same(logits[0, -1], expected, 1e-9)
    # In the other row nothing has followed q: uniform.
    same(second[1, -1], torch.full((5,), 0.2, dtype=torch.float64), 1e-9)


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_an_unknown_query_activates_nothing(kind: str) -> None:
    """Uniform attention; relative positions tell it nothing, absolute ones still do in layer 1."""
    bigrams, length = log_bigrams(), 6
    model = construct(blank(kind), bigrams, 9.0, 9.0, 6.0, known=range(4), exact=True)
    tokens = torch.tensor([[4, 0, 1, 4, 2, 4]])
    logits, first, second = patterns(model, tokens)
    for t in (0, 3, 5):
        uniform = torch.full((t + 1,), 1 / (t + 1), dtype=torch.float64)
        same(second[0, t, : t + 1], uniform)
        if kind == "relative":
            same(first[0, t, : t + 1], uniform)
        else:
            on = previous_token_attention(t + 1, 9.0)
            assert first[0, t, max(t - 1, 0)].item() == pytest.approx(on, rel=1e-9)
    # No knowledge of it, and of the known tokens in context an even share each: 0, 1, 2.
    share = 6.0 / length
    expected = torch.tensor([share, share, share, 0.0, 0.0], dtype=torch.float64)
    same(logits[0, -1], expected)
    assert first[0, 1, 0].item() == pytest.approx(previous_token_attention(2, 9.0), rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["absolute", "relative"]))
def test_strong_constructions_count(seed: int, kind: Any) -> None:
    bigrams = log_bigrams(seed=seed)
    model = construct(blank(kind, "v", seed=seed), bigrams, 40.0, 200.0, 5.0, exact=True)
    tokens = draw(4, seed=seed)
    same(model(tokens)[:, -1], hard_logits(tokens, bigrams, 5.0), 1e-7)
    for sequence, logits in zip(tokens.tolist(), model(tokens)[:, -1], strict=True):
        counts = followers(sequence)
        shares = [counts.get(v, 0) / sum(counts.values()) for v in range(V)]
        same(logits, bigrams[sequence[-1]] + 5.0 * torch.tensor(shares).double(), 1e-6)


@pytest.mark.parametrize("streams", ["", "v"])
@pytest.mark.parametrize("kind", ["absolute", "relative"])
@pytest.mark.parametrize("tau3", [3.0, 7.5])
def test_global_knowledge_wins_where_its_gap_exceeds_a_third(
    kind: str, streams: str, tau3: float
) -> None:
    """In "A B1, A B1, A B2, A" context prefers B1 by τ3/3: log π(B2|A) − log π(B1|A) decides."""
    a, b1, b2, comma = 0, 1, 2, 3
    tokens = torch.tensor([[comma, a, b1, comma, a, b1, comma, a, b2, comma, a]])
    for offset in (-0.5, -0.01, -1e-4, 1e-4, 0.01, 0.5):
        bigrams = torch.zeros(V, V, dtype=torch.float64)
        bigrams[a, b2] = tau3 / 3 + offset
        bigrams = bigrams.log_softmax(-1)
        model = construct(blank(kind, streams, n_ctx=11), bigrams, 40.0, 200.0, tau3, exact=True)
        logits = model(tokens)[0, -1]
        assert (logits[b1] - logits[b2]).item() == pytest.approx(-offset, abs=1e-6)
        assert logits.argmax() == (b2 if offset > 0 else b1)


# With crosstalk


def crosstalk(d: int, kind: Any, streams: Any = "", seeds: int = 3) -> dict[str, float]:
    """Root mean square errors of unit vectors' memories, of short sequences."""
    squares: dict[str, list[float]] = {"previous": [], "induction": [], "logits": []}
    bigrams = log_bigrams().clamp(min=-4)
    for seed in range(seeds):
        model = blank(kind, streams, d_model=d, seed=seed, embed_std=d**-0.5, dtype=torch.float32)
        construct(model, bigrams, 1.0, 1.0, 1.0)
        tokens = draw(4, seed=seed)
        expected = predict(tokens, bigrams, 1.0, 1.0, 1.0, relative=kind == "relative")
        with torch.no_grad():
            logits, first, second = patterns(model, tokens)
        for name, found, exact in (
            ("previous", first, expected.previous),
            ("induction", second, expected.induction),
            ("logits", logits, expected.logits),
        ):
            squares[name].append((found.double() - exact).square().mean().item())
    return {name: float(np.sqrt(np.mean(each))) for name, each in squares.items()}


@pytest.mark.parametrize(
    ("kind", "streams"), [("relative", ""), ("absolute", ""), ("relative", "v")]
)
def test_crosstalk_falls_with_the_root_of_the_dimension(kind: str, streams: str) -> None:
    sizes = (64, 256, 1024)
    errors = [crosstalk(d, kind, streams) for d in sizes]
    bound = {"previous": 1.0, "induction": 1.0, "logits": 30.0}
    for name in bound:
        for d, error in zip(sizes, errors, strict=True):
            assert error[name] < bound[name] / d**0.5, (name, d)
        assert errors[0][name] / errors[2][name] == pytest.approx(4, rel=0.5), name


@pytest.mark.parametrize("kind", KINDS)
def test_strengths_of_the_memories(kind: str) -> None:
    """v · W u of every pair that a memory holds is its strength, up to crosstalk."""
    d = 1024
    model = blank(kind, d_model=d, embed_std=d**-0.5, dtype=torch.float32)
    bigrams = log_bigrams().clamp(min=-4)
    construct(model, bigrams, 2.0, 3.0, 4.0)
    first, second = model.blocks[0].attn, model.blocks[1].attn
    w, u = model.embed.W_E, model.unembed.W_U
    echo = w @ first.W_V[0] @ first.W_O[0]
    with torch.no_grad():
        recalled = {
            3.0: ((echo @ second.W_K[0]) * w).sum(1) / d**0.5,
            4.0: ((w @ second.W_V[0] @ second.W_O[0]) @ u).diagonal(),
        }
        knowledge = w @ model.feed_forward.W_F @ u
    for strength, found in recalled.items():
        assert (found - strength).abs().max() < 0.35 * strength
    assert (knowledge - bigrams.float()).abs().mean() < 0.6


# What cannot be


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ({"n_layers": 1}, {}, "an induction head is written into two layers; n_layers=1"),
        ({"kind": "rotary", "d_model": 20}, {}, "positions='rotary': a previous-token memory"),
        ({"kind": "alibi"}, {}, "positions='alibi': a previous-token memory"),
        ({"position_layers": (0, 1)}, {}, r"position_layers=\(0, 1\): only layer 0's head"),
        ({"streams": "q"}, {}, "streams: memories are known for value streams of fixed weights"),
        ({"streams": AttentionStream("v", mix="gate")}, {}, "known for value streams of fixed"),
        ({}, {"log_bigrams": torch.zeros(V, V - 1)}, r"must have shape \[5, 5\].* got \[5, 4\]"),
        ({}, {"log_bigrams": torch.full((V, V), -torch.inf)}, "log_bigrams must be finite"),
        ({}, {"trained_length": 1}, "trained_length must be .* from 2 to 8; got 1"),
        ({}, {"trained_length": 9}, "trained_length must be .* from 2 to 8; got 9"),
        ({}, {"known": []}, r"known must be tokens from 0 to 4; got \[\]"),
        ({}, {"known": [1, 5]}, r"known must be tokens from 0 to 4; got \[1, 5\]"),
        ({}, {"tau2": float("inf")}, "tau2 must be a finite number; got inf"),
        ({"kind": "sinusoidal", "n_ctx": 24}, {"exact": True}, "too nearly dependent"),
        ({"d_model": 14}, {"exact": True}, "needs a dimension for each of 15 vectors; d_model=14"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_constructions_that_cannot_be(
    model: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    made = blank(**{"kind": "relative", **model})
    before = {name: p.clone() for name, p in made.named_parameters()}
    with pytest.raises(ValueError, match=message):
        construct(made, **{"log_bigrams": log_bigrams(), **arguments})
    if "exact" not in arguments:
        assert all(p.equal(before[name]) for name, p in made.named_parameters())


def test_a_construction_needs_queries_that_are_inputs() -> None:
    model = blank("relative")
    with torch.no_grad():
        model.blocks[1].attn.W_Q.mul_(2)
    with pytest.raises(ValueError, match="W_Q must be the identity"):
        construct(model, log_bigrams())


def test_what_is_frozen_is_not_written() -> None:
    model = blank("absolute", "v")
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert construct(model, log_bigrams()) is model
    for name, parameter in model.named_parameters():
        assert parameter.equal(before[name]) != parameter.requires_grad, name
