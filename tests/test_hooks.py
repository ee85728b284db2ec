"""The streams' hook points: there, complete, editable, and addressed as in TransformerLens."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformer_lens import patching
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import get_act_name

from resval_lens.lens.hook_names import full_hook_name
from resval_lens.streams import AttentionStream, StreamsLike
from tests.helpers import tiny_model, tiny_tokens

VARIANTS: dict[str, StreamsLike] = {
    "add": "qkv",
    "all raw": [{"of": of, "source": "all", "carry": "raw"} for of in "qkv"],
    "gate": [{"of": of, "mix": "gate"} for of in "qkv"],
    "matrix": [{"of": of, "mix": "matrix", "own": 0.5} for of in "qkv"],
}
each_variant = pytest.mark.parametrize("streams", VARIANTS.values(), ids=VARIANTS)
each_stream = pytest.mark.parametrize("of", ["q", "k", "v"])
each_part = pytest.mark.parametrize("part", ["local", "link"])
each_layer = pytest.mark.parametrize("layer", [1, 2])


def point(of: str, part: str, layer: int) -> str:
    return f"blocks.{layer}.attn.hook_{of}_{part}"


STREAM_POINTS = [
    point(of, part, layer) for of in "qkv" for part in ("local", "link") for layer in (1, 2)
]


def scale_by(factor: float) -> Callable[[Tensor, HookPoint], Tensor]:
    return lambda tensor, hook: factor * tensor


@each_variant
def test_every_point_of_every_receiving_layer_fires_once(streams: StreamsLike) -> None:
    fired: Counter[str] = Counter()

    def count(tensor: Tensor, hook: HookPoint) -> None:
        fired[str(hook.name)] += 1

    anywhere = [(lambda name: name.endswith(("_local", "_link")), count)]
    tiny_model(streams).run_with_hooks(tiny_tokens(), fwd_hooks=anywhere)
    assert fired == dict.fromkeys(STREAM_POINTS, 1)


@each_variant
@pytest.mark.parametrize("kv_heads", [None, 2], ids=["mha", "gqa"])
def test_every_point_is_cached_on_its_own_heads(streams: StreamsLike, kv_heads: int | None) -> None:
    cache = tiny_model(streams, n_key_value_heads=kv_heads).run_with_cache(tiny_tokens())[1]
    for name in STREAM_POINTS:
        heads = 4 if "hook_q" in name else kv_heads or 4
        assert cache[name].shape == (2, 7, heads, 4)


@pytest.mark.parametrize("listed", [False, True])
def test_a_filter_knows_short_names(listed: bool) -> None:
    short = get_act_name("v_link", 2)
    kept = tiny_model("v").run_with_cache(
        tiny_tokens(), names_filter=[short, "hook_embed"] if listed else short
    )[1]
    assert set(kept) == {point("v", "link", 2), *(["hook_embed"] if listed else [])}


def test_some_examples_of_a_cache_know_short_names() -> None:
    cache = tiny_model("v").run_with_cache(tiny_tokens())[1]
    some = cache.apply_slice_to_batch_dim(0)
    assert torch.equal(some["v_link", 2], cache["v_link", 2][0])


@pytest.mark.parametrize("streams", ["qkv", VARIANTS["all raw"]], ids=["add", "all raw"])
def test_local_and_link_add_to_the_total(streams: StreamsLike) -> None:
    cache = tiny_model(streams).run_with_cache(tiny_tokens())[1]
    for of in "qkv":
        for layer in (1, 2):
            total = cache[point(of, "local", layer)] + cache[point(of, "link", layer)]
            assert torch.equal(cache[of, layer], total)


@each_variant
@pytest.mark.parametrize("name", STREAM_POINTS)
@torch.no_grad()
def test_an_edit_reaches_the_logits(streams: StreamsLike, name: str) -> None:
    model = tiny_model(streams)
    edited = model.run_with_hooks(tiny_tokens(), fwd_hooks=[(name, scale_by(2))])
    assert (edited - model(tiny_tokens())).abs().max() > 1e-4


@each_variant
def test_gradients_arrive_at_every_point(streams: StreamsLike) -> None:
    arrived: dict[str, Tensor] = {}

    def keep(gradient: Tensor, hook: HookPoint) -> None:
        arrived[str(hook.name)] = gradient

    model = tiny_model(streams)
    with model.hooks(bwd_hooks=[(name, keep) for name in STREAM_POINTS]):
        model(tiny_tokens(), return_type="loss").backward()
    assert set(arrived) == set(STREAM_POINTS)
    for name, gradient in arrived.items():
        assert gradient.shape == (2, 7, 4, 4), name
        assert gradient.abs().max() > 0, name


@each_stream
def test_doubling_a_link_is_doubling_what_the_layer_before_hands_on(of: str) -> None:
    """An edit at the link changes the receiving layer only; its source layer keeps its own."""
    model = tiny_model(of, use_fused=False)
    cache = model.run_with_cache(tiny_tokens())[1]
    twice = cache[of, 1] + cache[of, 0]
    replace = [(f"blocks.1.attn.hook_{of}", lambda tensor, hook: twice)]
    expected = model.run_with_hooks(tiny_tokens(), fwd_hooks=replace)
    edited = model.run_with_hooks(tiny_tokens(), fwd_hooks=[(point(of, "link", 1), scale_by(2))])
    torch.testing.assert_close(edited, expected)


def test_an_edit_of_local_values_is_passed_on_raw() -> None:
    model = tiny_model(AttentionStream("v", carry="raw"))
    before = model.run_with_cache(tiny_tokens())[1]
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_v_local", scale_by(2))]):
        after = model.run_with_cache(tiny_tokens())[1]
    torch.testing.assert_close(after["v_link", 2], 2 * before["v_local", 1])


@pytest.mark.parametrize(
    ("streams", "expected"),
    [
        ("", []),
        ("v", [point("v", part, layer) for layer in (1, 2) for part in ("local", "link")]),
        (AttentionStream("k", layers=(2,)), [point("k", "local", 2), point("k", "link", 2)]),
        (AttentionStream("q", layers=(1,)), [point("q", "local", 1), point("q", "link", 1)]),
    ],
)
def test_only_receiving_layers_have_the_points(streams: StreamsLike, expected: list[str]) -> None:
    model = tiny_model(streams)
    ours = [name for name in model.hook_dict if name.endswith(("_local", "_link"))]
    assert sorted(ours) == sorted(expected)
    with pytest.raises(KeyError, match=r"hook_v_link: this model has (no v|v links)"):
        model.run_with_cache(tiny_tokens())[1]["v_link", 0]


def test_a_layer_left_out_uses_its_own_and_still_hands_on() -> None:
    model = tiny_model(AttentionStream("v", layers=(2,)))
    edited = model.run_with_cache(tiny_tokens())[1]
    classic = tiny_model().run_with_cache(tiny_tokens())[1]
    assert torch.equal(edited["resid_post", 1], classic["resid_post", 1])
    assert torch.equal(edited["v_link", 2], classic["v", 1])


# Names.


@each_stream
@each_part
def test_short_names_find_the_full_ones(of: str, part: str) -> None:
    cache = tiny_model("qkv").run_with_cache(tiny_tokens())[1]
    for layer in (1, 2):
        full = cache.cache_dict[point(of, part, layer)]
        assert cache[f"{of}_{part}", layer] is full
        assert cache[f"{of}_{part}", layer - 3] is full
        assert cache[f"blocks.{layer}.hook_{of}_{part}"] is full
    assert full_hook_name(f"{of}_{part}", 2) == point(of, part, 2)


@pytest.mark.parametrize("key", [("v", 1), ("resid_pre", -1), ("scale", 2, "ln1"), "embed"])
def test_stock_short_names_still_work(key: Any) -> None:
    ours = tiny_model("v").run_with_cache(tiny_tokens())[1]
    stock = {("v", 1): "blocks.1.attn.hook_v", ("resid_pre", -1): "blocks.2.hook_resid_pre"}
    stock |= {("scale", 2, "ln1"): "blocks.2.ln1.hook_scale", "embed": "hook_embed"}
    assert ours[key] is ours.cache_dict[stock[key]]


@each_part
@each_layer
def test_short_names_take_hooks(part: str, layer: int) -> None:
    model = tiny_model("v")
    logits = [
        model.run_with_hooks(tiny_tokens(), fwd_hooks=[(name, scale_by(0))])
        for name in (f"blocks.{layer}.hook_v_{part}", point("v", part, layer))
    ]
    assert torch.equal(*logits)
    assert not torch.equal(logits[0], model(tiny_tokens()))


@each_part
def test_generic_activation_patching_equals_patching_by_hand(part: str) -> None:
    model = tiny_model("v").eval()
    corrupted, clean = tiny_tokens(), model.run_with_cache(tiny_tokens(seed=3))[1]
    index = pd.DataFrame({"layer": [1, 1, 2, 2], "pos": [0, 6, 0, 6]})

    def metric(logits: Tensor) -> Tensor:
        return logits[:, -1, 0].sum()

    found = patching.generic_activation_patch(
        model,
        corrupted,
        clean,
        metric,
        patching.layer_pos_patch_setter,
        f"v_{part}",
        index_df=index,
    )
    for row, (layer, pos) in enumerate(index.to_numpy()):

        def patch(tensor: Tensor, hook: HookPoint, pos: int = pos) -> Tensor:
            where = (torch.arange(7) == pos)[:, None, None]
            return torch.where(where, clean[str(hook.name)], tensor)

        patched = model.run_with_hooks(corrupted, fwd_hooks=[(point("v", part, layer), patch)])
        assert found[row] == metric(patched)
    assert len(set(found.tolist())) == 4


# Caching.

POSITION_CASES: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa": {"n_key_value_heads": 2},
    "rotary": {"positional_embedding_type": "rotary"},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "attn-result": {"use_attn_result": True},
    "split-qkv": {"use_split_qkv_input": True},
    "attn-in": {"use_attn_in": True},
    "mlp-in": {"use_hook_mlp_in": True},
    "tokens": {"use_hook_tokens": True},
    "qk-norm": {"use_qk_norm": True},
}


@pytest.mark.parametrize("changes", POSITION_CASES.values(), ids=POSITION_CASES)
@pytest.mark.parametrize("pos_slice", [1, -1, (2, 5), [0, 3]], ids=str)
@pytest.mark.parametrize("remove_batch_dim", [False, True])
def test_positions_are_sliced_along_positions(
    changes: dict[str, Any], pos_slice: Any, remove_batch_dim: bool
) -> None:
    """The axis of positions is the first of length 7; in patterns it is the query's."""
    model, tokens = tiny_model("qkv", **changes), tiny_tokens(batch=1)
    whole = model.run_with_cache(tokens)[1]
    sliced = model.run_with_cache(tokens, pos_slice=pos_slice, remove_batch_dim=remove_batch_dim)[1]
    assert list(sliced) == list(whole)
    where = slice(*pos_slice) if isinstance(pos_slice, tuple) else pos_slice
    where = [where] if isinstance(where, int) else where  # the axis stays
    for name, tensor in whole.items():
        if "k_norm" in name or "q_norm" in name:
            continue  # batch, positions and heads are one axis there
        axis = tensor.shape.index(7)
        expected = tensor[(slice(None),) * axis + (where,)]
        expected = expected[0] if remove_batch_dim else expected
        assert torch.equal(sliced[name], expected), name


def test_gradients_are_sliced_along_positions() -> None:
    model = tiny_model("qkv")
    whole, sliced = (
        model.run_with_cache(tiny_tokens(), return_type="loss", incl_bwd=True, pos_slice=where)[1]
        for where in (None, (2, 5))
    )
    for name in STREAM_POINTS:
        assert torch.equal(sliced[f"{name}_grad"], whole[f"{name}_grad"][:, 2:5])


def test_backward_caching_keeps_the_gradient_of_every_point() -> None:
    model = tiny_model("qkv")
    loss, cache = model.run_with_cache(tiny_tokens(), return_type="loss", incl_bwd=True)
    assert loss.ndim == 0
    for name in STREAM_POINTS:
        assert cache[f"{name}_grad"].shape == cache[name].shape
        assert cache[f"{name}_grad"].abs().max() > 0


def test_remove_batch_dim_removes_it() -> None:
    model, tokens = tiny_model("qkv"), tiny_tokens(batch=1)
    whole = model.run_with_cache(tokens)[1]
    single = model.run_with_cache(tokens, remove_batch_dim=True)[1]
    assert all(torch.equal(single[name], whole[name][0]) for name in STREAM_POINTS)
    assert not single.has_batch_dim


@pytest.mark.parametrize(
    "names_filter",
    [
        "blocks.1.attn.hook_v_link",
        ["blocks.1.attn.hook_v_link"],
        lambda name: name == "blocks.1.attn.hook_v_link",
    ],
    ids=["name", "list", "function"],
)
def test_a_names_filter_keeps_those_names_only(names_filter: Any) -> None:
    cache = tiny_model("qkv").run_with_cache(tiny_tokens(), names_filter=names_filter)[1]
    assert list(cache) == ["blocks.1.attn.hook_v_link"]


def test_a_plain_dictionary_comes_back_on_request() -> None:
    cache = tiny_model("v").run_with_cache(tiny_tokens(), return_cache_object=False)[1]
    assert type(cache) is dict
    assert "blocks.2.attn.hook_v_link" in cache


# What a hook may do.


@each_variant
@pytest.mark.parametrize("point", ["0.attn.hook_v", "1.attn.hook_k_local", "2.attn.hook_q_link"])
def test_a_model_call_inside_a_hook_leaves_the_outer_run_alone(
    streams: StreamsLike, point: str
) -> None:
    model = tiny_model(streams)
    outer, inner = model(tiny_tokens()), model(tiny_tokens(seed=3))
    nested: list[Tensor | None] = []

    def call_model(tensor: Tensor, hook: HookPoint) -> None:
        if not nested:  # the nested call meets this hook, too
            nested.append(None)
            nested.append(model(tiny_tokens(seed=3)))

    logits = model.run_with_hooks(tiny_tokens(), fwd_hooks=[(f"blocks.{point}", call_model)])
    assert torch.equal(logits, outer)
    assert torch.equal(nested[1], inner)


@pytest.mark.parametrize("name", ["blocks.1.attn.hook_v_link", "blocks.1.hook_mlp_out"])
def test_a_hook_that_raises_leaves_no_state_behind(name: str) -> None:
    model = tiny_model("qkv")
    expected = model(tiny_tokens())

    def fail(tensor: Tensor, hook: HookPoint) -> None:
        raise ArithmeticError("a hook fails")

    with pytest.raises(ArithmeticError):
        model.run_with_hooks(tiny_tokens(), fwd_hooks=[(name, fail)])
    assert [block.attn.delivery for block in model.blocks] == [None] * 3
    assert torch.equal(model(tiny_tokens()), expected)


def test_nothing_carried_stays_on_the_layers_after_a_run() -> None:
    model = tiny_model("qkv")
    model(tiny_tokens())
    assert [block.attn.delivery for block in model.blocks] == [None] * 3


@each_stream
@pytest.mark.parametrize("carried", [None, {}])
def test_a_receiving_block_run_alone_needs_what_is_carried(of: str, carried: Any) -> None:
    """A silent skip would be a classic block under a stream's name."""
    model = tiny_model(of)
    message = f"layer 1 receives a residual {of} stream, and nothing arrived"
    with pytest.raises(RuntimeError, match=message):
        model.blocks[1](torch.zeros(1, 3, 16), carried=carried)


def test_a_block_without_streams_to_receive_runs_alone() -> None:
    model, resid = tiny_model("v"), torch.ones(1, 3, 16)
    alone = model.blocks[0](resid)
    beside, passed = model.blocks[0](resid, carried={})
    assert torch.equal(alone, beside)
    assert [tensor.shape for tensor in passed["v"]] == [(1, 3, 4, 4)]
