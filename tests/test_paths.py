"""Every way through the model gives the same numbers: fused or explicit, whole or in parts."""

import copy
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from resval_lens.streams import AttentionStream, StreamsLike, parse_streams
from resval_lens.transformer import ResValTransformer
from tests.helpers import ARCHITECTURES, SETTINGS, gradients, randomise, tiny_model, tiny_tokens
from tests.skipping import GATED_TABLES, NANOCHAT

STREAMS: dict[str, StreamsLike] = {
    "classic": "",
    "v": "v",
    "qkv": "qkv",
    "raw": AttentionStream("v", carry="raw"),
    "first gate": [{"of": of, "source": "first", "mix": "gate"} for of in "qkv"],
    "all matrix": [{"of": of, "source": "all", "mix": "matrix"} for of in "qkv"],
}
MIXED = [
    AttentionStream("q", source="first", mix="gate"),
    AttentionStream("k", carry="raw", detach=True),
    AttentionStream("v", source="all", mix="matrix"),
]
each_streams = pytest.mark.parametrize("streams", STREAMS.values(), ids=STREAMS)
each_source = pytest.mark.parametrize("source", ["previous", "first", "all"])
each_carry = pytest.mark.parametrize("carry", ["raw", "sum"])


def loss_and_gradients(
    model: ResValTransformer, **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(tiny_tokens(), return_type="loss", **options)
    loss.backward()
    return loss.detach(), gradients(model)


def relative_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """|found − expected| / |expected| over all gradients together."""
    assert list(found) == list(expected)
    squares = [(found[name] - expected[name]).square().sum() for name in expected]
    norms = [gradient.square().sum() for gradient in expected.values()]
    return float((sum(squares) / sum(norms)).sqrt())


# The fused kernel.


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """One entry for each call of the fused kernel."""
    calls: list[int] = []
    kernel = F.scaled_dot_product_attention

    def count(*args: Any, **options: Any) -> Tensor:
        calls.append(1)
        return kernel(*args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", count)
    return calls


FUSED = {
    name: ARCHITECTURES[name]
    for name in (
        "mha",
        "gqa",
        "gqa-ungrouped",
        "rotary-part",
        "rotary-gqa",
        "shortformer",
        "attn-only",
        "qk-norm",
        "split-qkv",
        "parallel-mlp",
        "local",
        "bidirectional",
        "unscaled",
        "scaled-by-layer",
    )
}
EXPLICIT = {name: ARCHITECTURES[name] for name in ("alibi", "attn-result", "soft-capped")} | {
    "sinks": {"use_attention_sinks": True},
    "clipped": {"clip_qkv": 0.1},
}


@each_streams
def test_the_fused_kernel_gives_the_explicit_loss_and_gradients(
    streams: StreamsLike, fused_calls: list[int]
) -> None:
    loss, found = loss_and_gradients(tiny_model(streams))
    assert len(fused_calls) == 3
    expected_loss, expected = loss_and_gradients(tiny_model(streams, use_fused=False))
    assert len(fused_calls) == 3
    torch.testing.assert_close(loss, expected_loss, atol=1e-6, rtol=0)
    assert relative_difference(found, expected) < 1e-5


@pytest.mark.parametrize("streams", ["", "v", MIXED], ids=["classic", "v", "mixed"])
@pytest.mark.parametrize("changes", FUSED.values(), ids=FUSED)
def test_both_paths_have_the_same_gradient_for_every_parameter(
    changes: dict[str, Any], streams: StreamsLike, fused_calls: list[int]
) -> None:
    """In double precision, where rounding hides nothing."""
    changes = {**changes, "dtype": torch.float64}
    loss, found = loss_and_gradients(tiny_model(streams, **changes))
    assert len(fused_calls) == 3
    expected_loss, expected = loss_and_gradients(tiny_model(streams, **changes, use_fused=False))
    torch.testing.assert_close(loss, expected_loss, atol=1e-12, rtol=0)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("changes", EXPLICIT.values(), ids=EXPLICIT)
def test_what_the_kernel_cannot_do_takes_the_explicit_path(
    changes: dict[str, Any], fused_calls: list[int]
) -> None:
    changes = {"normalization_type": None, **changes}  # norms fuse of their own accord
    logits = tiny_model("v", **changes)(tiny_tokens())
    assert not fused_calls
    assert torch.equal(logits, tiny_model("v", **changes, use_fused=False)(tiny_tokens()))


def test_an_attention_mask_takes_the_explicit_path(fused_calls: list[int]) -> None:
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1]] * 2)
    masked = tiny_model("v")(tiny_tokens(), attention_mask=mask)
    assert not fused_calls
    assert not torch.allclose(masked, tiny_model("v")(tiny_tokens()), atol=1e-3)


def test_a_key_value_cache_takes_the_explicit_path(fused_calls: list[int]) -> None:
    model = tiny_model("v")
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", 2)
    model(tiny_tokens(), past_kv_cache=cache, attention_mask=torch.ones(2, 7, dtype=torch.long))
    assert not fused_calls


def test_a_setting_switched_on_later_counts(fused_calls: list[int]) -> None:
    model = tiny_model("v")
    model.set_use_attn_result(True)
    cache = model.run_with_cache(tiny_tokens(), names_filter="blocks.1.attn.hook_result")[1]
    assert not fused_calls
    assert cache["result", 1].shape == (2, 7, 4, 16)


@pytest.mark.parametrize("looked_at", ["hook_pattern", "hook_attn_scores"])
@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_looking_at_one_pattern_costs_that_layer_alone(
    looked_at: str, direction: str, fused_calls: list[int]
) -> None:
    model, seen = tiny_model("v"), []
    hook = (f"blocks.1.attn.{looked_at}", lambda tensor, hook: seen.append(tensor.shape))
    expected = model(tiny_tokens(), return_type="loss")
    fused_calls.clear()
    with model.hooks(**{f"{direction}_hooks": [hook]}):
        loss = model(tiny_tokens(), return_type="loss")
        loss.backward()
    assert len(fused_calls) == 2
    assert seen == [(2, 4, 7, 7)]
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    fused_calls.clear()
    model(tiny_tokens())
    assert len(fused_calls) == 3


def test_hooks_elsewhere_leave_the_kernel_on(fused_calls: list[int]) -> None:
    names = ["v_link", "v_local", "v", "q", "k", "z"]
    hooks = [(f"blocks.1.attn.hook_{name}", lambda tensor, hook: None) for name in names]
    tiny_model("v").run_with_hooks(tiny_tokens(), fwd_hooks=hooks)
    assert len(fused_calls) == 3


def test_editing_a_pattern_reaches_the_logits() -> None:
    model = tiny_model("v")
    cut = ("blocks.1.attn.hook_pattern", lambda pattern, hook: torch.zeros_like(pattern))
    assert not torch.allclose(model.run_with_hooks(tiny_tokens(), fwd_hooks=[cut]),
                              model(tiny_tokens()), atol=1e-3)  # fmt: skip


def test_second_derivatives_exist_without_the_kernel() -> None:
    model = tiny_model("v", use_fused=False)
    weight = model.blocks[1].attn.W_V
    loss = model(tiny_tokens(), return_type="loss")
    (first,) = torch.autograd.grad(loss, weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight)
    assert second.abs().max() > 0


# Parts of a run.


@each_source
@each_carry
@pytest.mark.parametrize("start", [0, 1, 2, 3, -1])
@torch.no_grad()
def test_a_run_from_a_layer_on_equals_the_whole(source: Any, carry: Any, start: int) -> None:
    streams = [AttentionStream(of, source=source, carry=carry) for of in ("q", "k", "v")]
    model = tiny_model(streams, n_layers=4, dtype=torch.float64)
    whole, cache = model.run_with_cache(tiny_tokens())
    part = model(
        cache["resid_pre", start],
        start_at_layer=start,
        carried=model.carried_before(start, cache),
    )
    torch.testing.assert_close(part, whole, atol=1e-12, rtol=0)


def test_a_run_from_a_layer_on_has_the_loss_of_its_tokens() -> None:
    model = tiny_model("v")
    whole, cache = model.run_with_cache(tiny_tokens(), return_type="loss")
    part = {"start_at_layer": 1, "carried": model.carried_before(1, cache)}
    loss = model(cache["resid_pre", 1], return_type="loss", tokens=tiny_tokens(), **part)
    torch.testing.assert_close(loss, whole)
    with pytest.raises(ValueError, match="needs `tokens`"):
        model(cache["resid_pre", 1], return_type="loss", **part)


@each_source
@each_carry
def test_what_is_passed_on_is_what_the_layers_before_computed(source: Any, carry: Any) -> None:
    model = tiny_model(AttentionStream("v", source=source, carry=carry), n_layers=4)
    cache = model.run_with_cache(tiny_tokens())[1]
    own = [cache["v", 0], cache["v_local", 1], cache["v_local", 2]]
    passed = own if carry == "raw" else [cache["v", layer] for layer in range(3)]
    expected = {"previous": passed[2:], "first": passed[:1], "all": passed}[source]
    carried = model.carried_before(3, cache)["v"]
    assert len(carried) == len(expected)
    assert all(map(torch.equal, carried, expected))
    assert model.carried_before(0, cache) == {"v": ()}


@pytest.mark.parametrize("of", ["q", "k", "v"])
@each_source
def test_skipping_a_source_needs_what_it_carries(of: Any, source: Any) -> None:
    model = tiny_model(AttentionStream(of, source=source))
    skipped = {"previous": 1, "first": 0, "all": 0}[source]
    message = f"start_at_layer=2 skips layer {skipped}, whose {of} layer 2 receives"
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(1, 3, 16), start_at_layer=2)


@pytest.mark.parametrize(("streams", "start"), [(AttentionStream("v", layers=(1,)), 2), ("", 1)])
def test_nothing_needs_carrying_where_no_layer_receives(streams: StreamsLike, start: int) -> None:
    model = tiny_model(streams, use_fused=False)
    whole, cache = model.run_with_cache(tiny_tokens())
    assert torch.equal(model(cache["resid_pre", start], start_at_layer=start), whole)


@each_streams
@pytest.mark.parametrize("stop", [0, 1, 2, 3, -1])
def test_a_run_up_to_a_layer_returns_its_residual_stream(streams: StreamsLike, stop: int) -> None:
    model = tiny_model(streams)
    cache = model.run_with_cache(tiny_tokens())[1]
    expected = cache["resid_post", 2] if stop == 3 else cache["resid_pre", stop]
    found = model(tiny_tokens(), stop_at_layer=stop)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    "change",
    [lambda x: (x, x), lambda x: (x[:1],), lambda x: (x[:, :-1],), lambda x: (x[..., :2],)],
    ids=["two", "one example", "fewer positions", "another width"],
)
def test_what_does_not_fit_the_link_is_refused(change: Any) -> None:
    model = tiny_model("v")
    cache = model.run_with_cache(tiny_tokens())[1]
    carried = {"v": change(model.carried_before(1, cache)["v"][0])}
    with pytest.raises(ValueError, match=r"carried: layer 1 receives 1 of v, each of shape"):
        model(cache["resid_pre", 1], start_at_layer=1, carried=carried)


# Generation.

POSITIONS = ["standard", "shortformer", "rotary", "alibi"]


@each_streams
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("prompt", [1, 4])
def test_cached_generation_equals_uncached(
    streams: StreamsLike, positions: str, prompt: int
) -> None:
    model = tiny_model(streams, positional_embedding_type=positions)
    cached, uncached = (
        model.generate(
            tiny_tokens(length=prompt),
            max_new_tokens=6,
            do_sample=False,
            stop_at_eos=False,
            verbose=False,
            use_past_kv_cache=use_cache,
            output_logits=True,
        )
        for use_cache in (True, False)
    )
    assert torch.equal(cached.sequences, uncached.sequences)
    for found, expected in zip(cached.logits, uncached.logits, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@each_streams
@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_generation_continues_with_the_likeliest_token(
    streams: StreamsLike, positions: str
) -> None:
    model = tiny_model(streams, positional_embedding_type=positions)
    tokens = model.generate(
        tiny_tokens(), max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False
    )
    assert torch.equal(tokens[:, 7:], model(tokens[:, :-1]).argmax(-1)[:, 6:])


@each_streams
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_prompt_in_two_parts_equals_the_whole(streams: StreamsLike, positions: str) -> None:
    model, tokens = tiny_model(streams, positional_embedding_type=positions), tiny_tokens()
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", 2)
    parts = [
        model(part, past_kv_cache=cache, attention_mask=torch.ones_like(part))
        for part in (tokens[:, :4], tokens[:, 4:6], tokens[:, 6:])
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), atol=1e-4, rtol=1e-4)


# Training's ways.


@each_streams
def test_recomputed_blocks_give_the_same_loss_and_gradients(streams: StreamsLike) -> None:
    model = tiny_model(streams)
    expected_loss, expected = loss_and_gradients(model)
    loss, found = loss_and_gradients(model, checkpoint_blocks=True)
    assert torch.equal(loss, expected_loss)
    assert relative_difference(found, expected) < 1e-6


def test_blocks_are_recomputed_when_asked() -> None:
    model, seen = tiny_model("v"), []
    with model.hooks([("blocks.1.attn.hook_v_link", lambda x, hook: seen.append(x.detach()))]):
        loss_and_gradients(model, checkpoint_blocks=True)
    assert len(seen) == 2
    assert torch.equal(*seen)


@each_streams
def test_a_copy_is_equal_and_independent(streams: StreamsLike) -> None:
    model = tiny_model(streams)
    twin = copy.deepcopy(model)
    expected = model(tiny_tokens())
    assert torch.equal(twin(tiny_tokens()), expected)
    with torch.no_grad():
        twin.blocks[0].attn.W_V.zero_()
    assert torch.equal(model(tiny_tokens()), expected)
    assert not torch.equal(twin(tiny_tokens()), expected)


@each_streams
def test_a_pickled_state_dict_carries_the_model(streams: StreamsLike, tmp_path: Path) -> None:
    model = tiny_model(streams)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    twin = ResValTransformer(model.cfg)
    twin.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(twin(tiny_tokens()), model(tiny_tokens()))


@each_streams
@pytest.mark.parametrize("kv_heads", [None, 2], ids=["mha", "gqa"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.2)], ids=str
)
@torch.no_grad()
def test_other_precisions_run_and_agree(
    streams: StreamsLike, kv_heads: int | None, dtype: torch.dtype, tolerance: float
) -> None:
    single = tiny_model(streams, n_key_value_heads=kv_heads)
    other = tiny_model(streams, n_key_value_heads=kv_heads, dtype=dtype)
    assert {parameter.dtype for parameter in other.parameters()} == {dtype}
    other.load_state_dict(single.state_dict())
    logits = other(tiny_tokens())
    assert logits.dtype == dtype
    assert (logits.double() - single(tiny_tokens())).abs().mean() < tolerance


# They fire only with an option (use_attn_result, ...).
OPTIONAL_POINTS = ("hook_result", "_input", "hook_attn_in", "hook_mlp_in")


@pytest.fixture
def plain_transformer(monkeypatch: pytest.MonkeyPatch) -> type[ResValTransformer]:
    """ResValTransformer as users import it: torch.compile cannot trace checked annotations."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "resval_lens":
            monkeypatch.delitem(sys.modules, name)
    unhooked = [finder for finder in sys.meta_path if "jaxtyping" not in type(finder).__module__]
    monkeypatch.setattr(sys, "meta_path", unhooked)
    return importlib.import_module("resval_lens.transformer").ResValTransformer


@pytest.mark.parametrize(
    ("streams", "settings"),
    [("", {}), (MIXED, {}), (GATED_TABLES, NANOCHAT)],
    ids=["classic", "mixed", "nanochat"],
)
def test_a_compiled_model_is_equal_and_leaves_the_model_analysable(
    streams: StreamsLike, settings: dict[str, Any], plain_transformer: type[ResValTransformer]
) -> None:
    described = [stream.to_dict() for stream in parse_streams(streams)]
    model = randomise(plain_transformer({**SETTINGS, **settings, "streams": described}))
    expected_loss, expected = loss_and_gradients(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    loss, found = loss_and_gradients(compiled)
    torch.testing.assert_close(loss, expected_loss, atol=1e-6, rtol=1e-6)
    found = {name.removeprefix("_orig_mod."): gradient for name, gradient in found.items()}
    assert relative_difference(found, expected) < 1e-5

    cache = model.run_with_cache(tiny_tokens())[1]
    assert set(cache) == {name for name in model.hook_dict if not name.endswith(OPTIONAL_POINTS)}
    cut = ("blocks.1.attn.hook_z", lambda z, hook: torch.zeros_like(z))
    edited = model.run_with_hooks(tiny_tokens(), fwd_hooks=[cut], return_type="loss")
    assert not torch.allclose(edited, expected_loss, atol=1e-4)
    torch._dynamo.reset()
