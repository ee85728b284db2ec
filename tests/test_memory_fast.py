"""The fast logits are the model's: forward and every gradient, or they are not claimed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resval_lens.analyses.papers.memory.model import MemoryTransformer, can_run_fast, fast_logits
from resval_lens.analyses.papers.memory.model.fast import shifted
from resval_lens.hooks import cut_links
from resval_lens.models.presets import ENCODINGS
from resval_lens.streams import AttentionStream
from tests.test_memory_model import TOKENS, model_of

PAIR = AttentionStream("v", mix="pair", own=0.5, carried=0.7)
STREAMS = {
    "none": "",
    "v": "v",
    "scaled": AttentionStream("v", carried=0.3),
    "pair": PAIR,
    "first": AttentionStream("v", source="first"),
    "raw": AttentionStream("v", carry="raw"),
}


def gradients(
    logits_of: Callable[[MemoryTransformer, Tensor], Tensor],
    model: MemoryTransformer,
    tokens: Tensor,
) -> dict[str, Tensor]:
    """Of the loss of the next token, by parameter."""
    model.zero_grad()
    logits = logits_of(model, tokens)[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check(model: MemoryTransformer, tokens: Tensor) -> None:
    """Logits and gradients of both ways, in double precision."""
    assert can_run_fast(model)
    torch.testing.assert_close(fast_logits(model, tokens), model(tokens), rtol=1e-10, atol=1e-10)
    expected = gradients(MemoryTransformer.__call__, model, tokens)
    found = gradients(fast_logits, model, tokens)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        size = gradient.abs().max().clamp(min=1e-12)
        assert (found[name] - gradient).abs().max() <= 1e-10 * size, name


@pytest.mark.parametrize("streams", STREAMS.values(), ids=STREAMS.keys())
@pytest.mark.parametrize("kind", ENCODINGS)
def test_fast_logits_and_gradients_are_the_models(kind: str, streams: Any) -> None:
    model = model_of(kind, streams, alibi_slope=0.3)
    check(model, TOKENS)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert gradients(fast_logits, model, TOKENS).keys() == trained


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(ENCODINGS),
    d=st.sampled_from([2, 6]),
    batch=st.integers(1, 3),
    length=st.integers(2, 9),
    n_layers=st.integers(1, 2),
    everywhere=st.booleans(),
    own=st.floats(-2, 2),
    carried=st.floats(-2, 2),
    seed=st.integers(0, 1000),
)
def test_fast_logits_of_any_size(
    kind: str,
    d: int,
    batch: int,
    length: int,
    n_layers: int,
    everywhere: bool,
    own: float,
    carried: float,
    seed: int,
) -> None:
    stream = AttentionStream("v", mix="pair", own=own, carried=carried)
    layers = tuple(range(n_layers)) if everywhere else (0,)
    model = model_of(
        kind, stream, seed, d_model=d, n_layers=n_layers, position_layers=layers, embed_std=0.7
    )
    check(
        model, torch.randint(0, 7, (batch, length), generator=torch.Generator().manual_seed(seed))
    )


def test_embeddings_that_are_trained_get_their_gradient() -> None:
    """Frozen are the queries and the biases alone."""
    for kind in ENCODINGS:
        check(model_of(kind, "v", frozen=("*.W_Q", "*.b_*")), TOKENS)


def test_single_precision() -> None:
    for kind in ENCODINGS:
        model = model_of(kind, "v", dtype=torch.float32)
        logits = fast_logits(model, TOKENS)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, model(TOKENS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_shifting(length: int) -> None:
    by_distance = torch.randn(2, length, length, generator=torch.Generator().manual_seed(0))
    found = shifted(by_distance)
    for t in range(length):
        for s in range(t + 1):
            assert found[:, t, s].equal(by_distance[:, t, t - s])


@pytest.mark.parametrize(
    ("streams", "settings"),
    [
        ("q", {}),
        ("qkv", {}),
        (AttentionStream("v", mix="scalar"), {}),
        (AttentionStream("v", mix="gate"), {}),
        (AttentionStream("v", detach=True), {}),
        ("v", {"n_layers": 3}),
        ("v", {"dropout": 0.1}),
        ("", {"frozen": ("*.b_*",)}),
        ("", {"frozen": ("*.W_Q",)}),
        ("", {"frozen": ("*.W_Q", "blocks.*.attn.b_*")}),
    ],
    ids=str,
)
def test_what_it_does_not_know_it_does_not_claim(streams: Any, settings: dict[str, Any]) -> None:
    assert not can_run_fast(model_of("relative", streams, **settings))


@pytest.mark.parametrize("name", ["blocks.1.attn.W_Q", "blocks.0.attn.b_V", "unembed.b_U"])
def test_other_queries_and_biases_are_not_claimed(name: str) -> None:
    model = model_of("relative", "v")
    with torch.no_grad():
        dict(model.named_parameters())[name].add_(1.0)
    assert not can_run_fast(model)
    assert not torch.allclose(fast_logits(model, TOKENS), model(TOKENS))


def test_a_watched_model_is_not_claimed() -> None:
    model = model_of("relative", "v")
    with cut_links(model):
        assert not can_run_fast(model)
    assert can_run_fast(model)
    for name in ("feed_forward.hook_out", "blocks.0.attn.hook_position_scores"):
        with model.hooks(fwd_hooks=[(name, lambda x, hook: 0 * x)]):
            assert not can_run_fast(model)


def test_tokens_that_cannot_be_are_refused() -> None:
    model = model_of("relative")
    for tokens, message in (
        (torch.tensor([[1, -1]]), "tokens has -1"),
        (torch.zeros(1, 10).long(), "tokens has 10 positions; the model has n_ctx=9"),
    ):
        with pytest.raises(ValueError, match=message):
            fast_logits(model, tokens)
