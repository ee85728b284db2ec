"""The model's numbers: against stock HookedTransformer, loops in NumPy, and formulas by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import functional_call
from transformer_lens import ActivationCache

from resval_lens.host import HookedTransformer
from resval_lens.mixes import MIXES, Sizes
from resval_lens.mixing import StreamMix
from resval_lens.streams import AttentionStream, StreamsLike
from resval_lens.transformer import ResValTransformer
from tests.helpers import (
    ARCHITECTURES,
    adding_hooks,
    gradients,
    randomise,
    stock_config,
    stock_model,
    tiny_config,
    tiny_model,
    tiny_tokens,
)
from tests.mixes import each_mix, each_mix_and_source, settings_of
from tests.reference.attention_loop import forward as loop_forward

each_architecture = pytest.mark.parametrize(
    "changes", [pytest.param(changes, id=name) for name, changes in ARCHITECTURES.items()]
)
each_head_count = pytest.mark.parametrize("kv_heads", [None, 2], ids=["mha", "gqa"])
each_source = pytest.mark.parametrize("source", ["previous", "first", "all"])
each_carry = pytest.mark.parametrize("carry", ["raw", "sum"])


def same_streams(of: str = "qkv", **settings: Any) -> tuple[AttentionStream, ...]:
    return tuple(AttentionStream(name, **settings) for name in of)  # type: ignore[arg-type]


# A classic model is the stock model.


@each_architecture
def test_the_same_seed_gives_the_stock_weights(changes: dict[str, Any]) -> None:
    stock = HookedTransformer(stock_config(**changes)).state_dict()
    ours = ResValTransformer(tiny_config(**changes)).state_dict()
    assert list(ours) == list(stock)
    assert all(torch.equal(ours[name], stock[name]) for name in stock)


@pytest.mark.parametrize("init_mode", ["gpt2", "xavier_uniform", "xavier_normal", "kaiming_normal"])
@each_mix
def test_streams_do_not_change_the_weights_of_a_seed(mix: str, init_mode: str) -> None:
    stock = HookedTransformer(stock_config(init_mode=init_mode)).state_dict()
    streams = same_streams(**settings_of(mix))
    ours = ResValTransformer(tiny_config(init_mode=init_mode, streams=streams)).state_dict()
    assert [name for name in ours if ".mixes." not in name] == list(stock)
    assert all(torch.equal(ours[name], stock[name]) for name in stock)


@each_architecture
def test_state_dicts_are_interchangeable_both_ways(changes: dict[str, Any]) -> None:
    stock, ours = stock_model(**changes), tiny_model(**changes)
    stock.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(stock.state_dict(), strict=True)


@each_architecture
def test_a_classic_model_computes_what_the_stock_model_does_exactly(
    changes: dict[str, Any],
) -> None:
    stock, ours = stock_model(**changes), tiny_model(**changes, use_fused=False)
    expected, expected_cache = stock.run_with_cache(tiny_tokens())
    logits, cache = ours.run_with_cache(tiny_tokens())
    assert torch.equal(logits, expected)
    assert list(cache) == list(expected_cache)
    assert all(torch.equal(cache[name], expected_cache[name]) for name in expected_cache)


@each_architecture
def test_the_fused_kernel_stays_within_1e5_of_the_stock_model(changes: dict[str, Any]) -> None:
    expected = stock_model(**changes)(tiny_tokens())
    difference = tiny_model(**changes)(tiny_tokens()) - expected
    assert difference.abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("per_token", [False, True])
def test_losses_are_the_stock_losses(per_token: bool) -> None:
    stock, ours = stock_model(), tiny_model(use_fused=False)
    options = {"loss_per_token": per_token}
    expected = stock(tiny_tokens(), return_type="both", **options)
    both = ours(tiny_tokens(), return_type="both", **options)
    assert torch.equal(both.logits, expected.logits)
    assert torch.equal(both.loss, expected.loss)
    assert torch.equal(ours(tiny_tokens(), return_type="loss", **options), expected.loss)
    assert ours(tiny_tokens(), return_type=None) is None


def test_an_unknown_return_type_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'probabilities'"):
        tiny_model()(tiny_tokens(), return_type="probabilities")


def test_a_padded_batch_computes_what_the_stock_model_does() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    expected = stock_model()(tiny_tokens(), attention_mask=mask)
    ours = tiny_model(use_fused=False)(tiny_tokens(), attention_mask=mask)
    assert torch.equal(ours, expected)


# Streams are what ordinary hooks on a stock model would do.


@each_architecture
@each_carry
@pytest.mark.parametrize("of", ["v", "qk", "qkv"])
def test_streams_equal_hooks_that_add_earlier_layers(
    of: str, carry: str, changes: dict[str, Any]
) -> None:
    hooks = [hook for name in of for hook in adding_hooks(name, carry=carry)]
    expected = stock_model(**changes).run_with_hooks(tiny_tokens(), fwd_hooks=hooks)
    ours = tiny_model(same_streams(of, carry=carry), **changes, use_fused=False)
    assert torch.equal(ours(tiny_tokens()), expected)
    assert not torch.allclose(expected, stock_model(**changes)(tiny_tokens()), atol=1e-3)


@pytest.mark.parametrize("of", ["q", "k", "v"])
@each_source
@each_carry
def test_each_source_equals_hooks_that_add_it(of: str, source: str, carry: str) -> None:
    hooks = adding_hooks(of, n_layers=4, source=source, carry=carry)
    expected = stock_model(n_layers=4).run_with_hooks(tiny_tokens(), fwd_hooks=hooks)
    streams = AttentionStream(of, source=source, carry=carry)  # type: ignore[arg-type]
    ours = tiny_model(streams, n_layers=4, use_fused=False)
    assert torch.equal(ours(tiny_tokens()), expected)


def test_what_is_passed_on_differs_from_the_third_layer_on() -> None:
    raw = tiny_model(AttentionStream("v", carry="raw")).run_with_cache(tiny_tokens())[1]
    total = tiny_model(AttentionStream("v", carry="sum")).run_with_cache(tiny_tokens())[1]
    assert torch.equal(raw["v", 1], total["v", 1])
    assert not torch.allclose(raw["v", 2], total["v", 2], atol=1e-3)


def test_the_first_layer_hands_on_the_same_raw_or_summed() -> None:
    raw = tiny_model(AttentionStream("v", source="first", carry="raw"))(tiny_tokens())
    total = tiny_model(AttentionStream("v", source="first", carry="sum"))(tiny_tokens())
    assert torch.equal(raw, total)


@pytest.mark.parametrize("detach", [False, True])
@each_carry
@pytest.mark.parametrize("of", ["v", "qk"])
def test_gradients_equal_those_through_hooks(of: str, carry: str, detach: bool) -> None:
    """With ``detach`` the hooks add detached tensors: the same logits, no gradient by the link."""
    stock, ours = stock_model(), tiny_model(same_streams(of, carry=carry, detach=detach))
    hooks = [hook for name in of for hook in adding_hooks(name, carry=carry, detach=detach)]
    with stock.hooks(fwd_hooks=hooks):
        stock(tiny_tokens(), return_type="loss").backward()
    ours(tiny_tokens(), return_type="loss").backward()
    expected, found = gradients(stock), gradients(ours)
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


@each_mix
def test_detaching_changes_gradients_and_no_logits(mix: str) -> None:
    attached = tiny_model(same_streams("v", **settings_of(mix)))
    detached = tiny_model(same_streams("v", **settings_of(mix), detach=True))
    losses = [model(tiny_tokens(), return_type="loss") for model in (attached, detached)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    name = "blocks.0.attn.W_V"
    assert not torch.allclose(gradients(attached)[name], gradients(detached)[name], atol=1e-5)


# The whole model in NumPy loops.


def assert_equals_loops(streams: list[dict[str, Any]], **changes: Any) -> None:
    model = tiny_model(streams_of(streams), n_layers=4, dtype=torch.float64, **changes)
    expected = loop_forward(
        {name: value.numpy() for name, value in model.state_dict().items()},
        tiny_tokens().numpy(),
        n_heads=model.cfg.n_heads,
        streams=streams,
        scale=model.cfg.use_attn_scale,
        act=model.cfg.act_fn,
    )
    with torch.no_grad():
        found = model(tiny_tokens())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-10, rtol=0)


def streams_of(described: list[dict[str, Any]]) -> list[AttentionStream]:
    return [
        AttentionStream(**stream, **({"mix": "pair"} if "own" in stream else {}))
        for stream in described
    ]


@each_source
@each_carry
@each_head_count
def test_values_equal_numpy_loops(source: str, carry: str, kv_heads: int | None) -> None:
    stream = {"of": "v", "source": source, "carry": carry}
    assert_equals_loops([stream], n_key_value_heads=kv_heads)


@each_source
@each_carry
@each_head_count
def test_weighted_streams_in_some_layers_equal_numpy_loops(
    source: str, carry: str, kv_heads: int | None
) -> None:
    common = {"source": source, "carry": carry}
    streams = [
        {"of": "q", "own": 0.5, "carried": -0.7, "layers": (1, 3), **common},
        {"of": "k", "carried": 0.4, **common},
        {"of": "v", "own": -0.3, "carried": 1.5, "layers": (2, 3), **common},
    ]
    assert_equals_loops(streams, n_key_value_heads=kv_heads)


@pytest.mark.parametrize(
    "changes",
    [{"attn_only": True}, {"use_attn_scale": False}, {"act_fn": "relu"}, {"act_fn": "gelu"}],
    ids=str,
)
def test_other_blocks_equal_numpy_loops(changes: dict[str, Any]) -> None:
    streams = [{"of": of, "source": "previous", "carry": "sum"} for of in "qkv"]
    assert_equals_loops(streams, **changes)


# Every mix is its formula.


def by_hand(mix: StreamMix, local: Tensor, passed: Sequence[Tensor], x: Tensor) -> Tensor:
    """a · local + b · passed, one head after the other, from the table of mixes."""
    stream, heads = mix.stream, range(local.shape[2])
    total = torch.zeros_like(local)
    for h in heads:
        own, link = stream.own, torch.zeros_like(local[:, :, h])
        for j, tensor in enumerate(passed):
            match stream.mix:
                case "add" | "pair":
                    link += stream.carried * tensor[:, :, h]
                case "scalar":
                    link += mix.carried[j] * tensor[:, :, h]
                case "learned_pair":
                    own = mix.own
                    link += mix.carried[j] * tensor[:, :, h]
                case "convex":
                    own = 1 - mix.carried[j]
                    link += mix.carried[j] * tensor[:, :, h]
                case "head":
                    link += mix.carried[j, h] * tensor[:, :, h]
                case "head_gain":
                    own = mix.own[h]
                    link += stream.carried * tensor[:, :, h]
                case "head_pair":
                    own = mix.own[h]
                    link += mix.carried[j, h] * tensor[:, :, h]
                case "next_head":
                    link += mix.carried[j, h] * tensor[:, :, (h + 1) % len(heads)]
                case "matrix":
                    for source in heads:
                        link += mix.carried[j, h, source] * tensor[:, :, source]
                case "gate":
                    gate = torch.sigmoid(x @ mix.gate_weight[h] + mix.gate_bias[h])[..., None]
                    own = 1 - gate
                    link += gate * tensor[:, :, h]
                case "added_gate":
                    gate = 2 / (1 + torch.exp(-(x @ mix.gate_weight[h] + mix.gate_bias[h])))
                    link += gate[..., None] * tensor[:, :, h]
                case _:
                    raise AssertionError(f"mix={stream.mix!r}: its formula is missing here")
        total[:, :, h] = own * local[:, :, h] + link
    return total


def own_projection(model: ResValTransformer, cache: ActivationCache, of: str, layer: int) -> Tensor:
    """x W + b, head by head, from the layer's input and its weights."""
    attn, x = model.blocks[layer].attn, model.blocks[layer].ln1(cache["resid_pre", layer])
    grouped = "_" if of in "kv" and model.cfg.n_key_value_heads else ""
    weight, bias = (getattr(attn, f"{grouped}{kind}_{of.upper()}") for kind in "Wb")
    return torch.stack([x @ w + b for w, b in zip(weight, bias, strict=True)], dim=2)


@each_mix_and_source
@each_carry
@each_head_count
@torch.no_grad()
def test_every_mix_is_its_formula(mix: str, source: str, carry: str, kv_heads: int | None) -> None:
    streams = same_streams(source=source, carry=carry, **settings_of(mix))
    model = tiny_model(streams, n_layers=4, n_key_value_heads=kv_heads, dtype=torch.float64)
    cache = model.run_with_cache(tiny_tokens())[1]
    for of in "qkv":
        local = [own_projection(model, cache, of, layer) for layer in range(4)]
        total = [] if source == "tokens" else [local[0]]
        for layer in range(len(total), 4):
            if source == "tokens":
                table = model.blocks[layer].attn.mixes[of].table
                passed = [torch.stack([table[row] for row in tiny_tokens()])]
            else:
                sources = {"previous": [layer - 1], "first": [0], "all": range(layer)}[source]
                passed = [(local if carry == "raw" else total)[j] for j in sources]
            x = model.blocks[layer].ln1(cache["resid_pre", layer])
            total.append(by_hand(model.blocks[layer].attn.mixes[of], local[layer], passed, x))
        for layer in range(4):
            torch.testing.assert_close(cache[of, layer], total[layer], atol=1e-12, rtol=1e-12)


@each_mix_and_source
@each_head_count
def test_every_mixing_parameter_gets_a_gradient(
    mix: str, source: str, kv_heads: int | None
) -> None:
    streams = same_streams(source=source, **settings_of(mix))
    model = tiny_model(streams, n_key_value_heads=kv_heads)
    model(tiny_tokens(), return_type="loss").backward()
    mixing = {name: p for name, p in model.named_parameters() if ".mixes." in name}
    assert bool(mixing) == (mix not in ("add", "pair") or source == "tokens")
    for name, parameter in mixing.items():
        assert parameter.grad is not None
        seen = parameter.grad
        if name.endswith("table"):  # of tokens that were read where there is something to choose
            seen = seen[tiny_tokens()[:, 1:-1].unique()]
        assert (seen != 0).all(), name


@each_mix_and_source
def test_gradients_of_every_mix_are_finite_differences(mix: str, source: str) -> None:
    """In every weight, every tensor passed on, the own projection and the layer's input."""
    stream = AttentionStream("v", source=source, **settings_of(mix))  # type: ignore[arg-type]
    n_sources = len(stream.sources(3))
    module = randomise(
        StreamMix(stream, Sizes(n_sources, 2, d_model=3, d_head=3, d_vocab=5), torch.float64)
    )
    weights = dict(module.named_parameters())
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 2, 2, 3)] * (1 + n_sources) + [(1, 2, 3)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    def total(*values: Tensor) -> Tensor:
        (local, *passed, x), weight_values = values[: len(shapes)], values[len(shapes) :]
        named = dict(zip(weights, weight_values, strict=True))
        return sum(functional_call(module, named, (local, tuple(passed), x)))

    variables = [value.detach().requires_grad_() for value in (*inputs, *weights.values())]
    assert gradcheck(total, variables)


@each_mix
@each_head_count
def test_shapes_of_the_mixing_parameters(mix: str, kv_heads: int | None) -> None:
    source = "all" if MIXES[mix].takes_several else "first"
    model = tiny_model(same_streams(source=source, **settings_of(mix)), n_key_value_heads=kv_heads)
    n, d_model = (2, 16) if source == "all" else (1, 16)
    for of in "qkv":
        heads = 4 if of == "q" else kv_heads or 4
        expected = {
            "add": {},
            "pair": {},
            "scalar": {"carried": (n,)},
            "learned_pair": {"carried": (n,), "own": ()},
            "convex": {"carried": (n,)},
            "head": {"carried": (n, heads)},
            "head_gain": {"own": (heads,)},
            "head_pair": {"carried": (n, heads), "own": (heads,)},
            "next_head": {"carried": (n, heads)},
            "gate": {"gate_weight": (heads, d_model), "gate_bias": (heads,)},
            "added_gate": {"gate_weight": (heads, d_model), "gate_bias": (heads,)},
            "matrix": {"carried": (n, heads, heads)},
        }[mix]
        parameters = model.blocks[2].attn.mixes[of].named_parameters()
        assert {name: tuple(p.shape) for name, p in parameters} == expected


# A head of "next_head" reads another one from the start.
@pytest.mark.parametrize("mix", [m for m in MIXES if m not in ("add", "pair", "next_head")])
@each_head_count
def test_a_learned_mix_starts_as_the_fixed_pair(mix: str, kv_heads: int | None) -> None:
    start = AttentionStream("v", **settings_of(mix))
    own, carried = start.own, start.carried

    def logits(mix: str) -> Tensor:
        fields = settings_of(mix) if mix != "pair" else {"mix": mix}
        streams = same_streams(**{**fields, "own": own, "carried": carried})
        config = tiny_config(streams=streams, n_key_value_heads=kv_heads, dtype=torch.float64)
        return ResValTransformer(config)(tiny_tokens())

    torch.testing.assert_close(logits(mix), logits("pair"), atol=1e-12, rtol=0)


@each_mix
@pytest.mark.parametrize(
    "changes",
    [{"ungroup_grouped_query_attention": True}, {"use_split_qkv_input": True}],
    ids=["ungrouped", "split-qkv"],
)
def test_grouped_heads_mix_alike_however_they_are_laid_out(
    mix: str, changes: dict[str, Any]
) -> None:
    common = {"n_key_value_heads": 2, "dtype": torch.float64}
    streams = same_streams(**settings_of(mix))
    grouped, other = tiny_model(streams, **common), tiny_model(streams, **common, **changes)
    torch.testing.assert_close(other(tiny_tokens()), grouped(tiny_tokens()), atol=1e-12, rtol=0)


@each_mix
def test_separate_head_inputs_mix_alike(mix: str) -> None:
    streams = same_streams(**settings_of(mix))
    common = tiny_model(streams, dtype=torch.float64)(tiny_tokens())
    separate = tiny_model(streams, dtype=torch.float64, use_attn_in=True)(tiny_tokens())
    torch.testing.assert_close(separate, common, atol=1e-12, rtol=0)


# The variants of the literature, each by its own formula.

Formula = Callable[[StreamMix, list[Tensor], list[Tensor], int, Tensor], Tensor]


def assert_values(streams: StreamsLike, formula: Formula, of: str = "v") -> None:
    """Layer by layer, ``formula(weights, own, total, layer, x)`` is what attention uses."""
    model = tiny_model(streams, n_layers=4, dtype=torch.float64)
    with torch.no_grad():
        cache = model.run_with_cache(tiny_tokens())[1]
        own = [own_projection(model, cache, of, layer) for layer in range(4)]
        total = [cache[of, layer] for layer in range(4)]
        torch.testing.assert_close(total[0], own[0])
        for layer in range(1, 4):
            x = model.blocks[layer].ln1(cache["resid_pre", layer])
            expected = formula(model.blocks[layer].attn.mixes[of], own, total, layer, x)
            torch.testing.assert_close(total[layer], expected)


@pytest.mark.parametrize("of", ["q", "k", "v"])
def test_residual_streams_of_the_paper(of: str) -> None:
    """arXiv 2412.15113, section 3.1: V_l plus the total of the layer before."""
    assert_values(of, lambda w, own, total, layer, x: own[layer] + total[layer - 1], of)


def test_residual_value_stream_of_the_authors_language_model() -> None:
    """Their code passes on the own values of the layer before."""
    stream = AttentionStream("v", carry="raw")
    assert_values(stream, lambda w, own, total, layer, x: own[layer] + own[layer - 1])


def test_resformer() -> None:
    """arXiv 2410.17897: ½ V_l + ½ V_0."""
    stream = AttentionStream("v", source="first", mix="pair", own=0.5, carried=0.5)
    assert_values(stream, lambda w, own, total, layer, x: (own[layer] + own[0]) / 2)


def test_svformer() -> None:
    """arXiv 2410.17897: every layer uses the first layer's values."""
    stream = AttentionStream("v", source="first", mix="pair", own=0, carried=1)
    assert_values(stream, lambda w, own, total, layer, x: own[0])


def test_modded_nanogpt_of_november_2024() -> None:
    """(1 − λ) V_l + λ V_0, λ learned in each layer, ½ at first."""
    stream = AttentionStream("v", source="first", mix="convex")
    assert_values(
        stream,
        lambda w, own, total, layer, x: (1 - w.carried[0]) * own[layer] + w.carried[0] * own[0],
    )
    fresh = ResValTransformer(tiny_config(streams=stream))
    assert [fresh.blocks[n].attn.mixes["v"].carried.tolist() for n in (1, 2)] == [[0.5], [0.5]]


def test_modded_nanogpt_of_december_2024() -> None:
    """λ₁ V_l + λ₂ V_0, both learned in each layer."""
    stream = AttentionStream("v", source="first", mix="learned_pair")
    assert_values(
        stream, lambda w, own, total, layer, x: w.own * own[layer] + w.carried[0] * own[0]
    )


def test_x_transformers() -> None:
    """lerp(V_0, V_l, sigmoid(linear(x))) for each token and head: its gate is 1 minus ours."""

    def lerp(w: StreamMix, own: list[Tensor], total: list[Tensor], layer: int, x: Tensor) -> Tensor:
        towards_own = torch.sigmoid(-x @ w.gate_weight.T - w.gate_bias)[..., None]
        return torch.lerp(own[0], own[layer], towards_own)

    assert_values(AttentionStream("v", source="first", mix="gate"), lerp)


def test_weighted_sums_over_layers_and_heads() -> None:
    """arXiv 2412.15113, section 6.1: all earlier layers and heads, weights learned."""
    stream = AttentionStream("v", source="all", carry="raw", mix="matrix")
    assert_values(
        stream,
        lambda w, own, total, layer, x: (
            own[layer] + torch.einsum("jgh,jbphd->bpgd", w.carried, torch.stack(own[:layer]))
        ),
    )
