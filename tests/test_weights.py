"""Processing, converting and sharing weights: the function computed stays what it was."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.weight_processing import ProcessWeights

from resval_lens.lens.weights import fold_value_biases_through_streams
from resval_lens.streams import AttentionStream, StreamsLike
from resval_lens.transformer import ResValTransformer
from tests.helpers import randomise, stock_model, tiny_config, tiny_model, tiny_tokens
from tests.mixes import UNGATED, sources_of, stream_of

each_head_count = pytest.mark.parametrize("kv_heads", [None, 2], ids=["mha", "gqa"])

FOLDABLE_STREAMS = [
    stream_of(mix, source=source, carry=carry)
    for mix in UNGATED
    for source in sources_of(mix)
    for carry in (("sum",) if source == "tokens" else ("raw", "sum"))
]


def name_of(stream: AttentionStream) -> str:
    return f"{stream.mix}-{stream.source}-{stream.carry}"


def log_probs(model: ResValTransformer) -> Tensor:
    with torch.no_grad():
        return model(tiny_tokens()).log_softmax(-1)


def value_bias(model: ResValTransformer, layer: int) -> Tensor:
    attn = model.blocks[layer].attn
    return attn.b_V if model.cfg.n_key_value_heads is None else attn._b_V


def assert_same_function(model: ResValTransformer, before: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(log_probs(model), before, atol=tolerance, rtol=0)


# Processing.


@pytest.mark.parametrize("stream", FOLDABLE_STREAMS, ids=name_of)
@each_head_count
def test_processing_keeps_what_a_value_stream_computes(
    stream: AttentionStream, kv_heads: int | None
) -> None:
    model = tiny_model(stream, n_layers=4, n_key_value_heads=kv_heads)
    before = log_probs(model)
    assert all(value_bias(model, layer).abs().min() > 0 for layer in range(4))
    model.process_weights_()
    assert_same_function(model, before, 1e-4)
    assert all(not value_bias(model, layer).any() for layer in range(4))
    assert model.cfg.normalization_type == "LNPre"


@pytest.mark.parametrize(
    "stream", [s for s in FOLDABLE_STREAMS if s.source != "tokens"][:6], ids=name_of
)
@each_head_count
def test_the_stock_fold_is_wrong_once_values_flow(
    stream: AttentionStream, kv_heads: int | None
) -> None:
    """If this fails, the tests above could not: the biases they fold would not matter."""
    model = tiny_model(stream, n_layers=4, n_key_value_heads=kv_heads)
    before = log_probs(model)
    model.load_state_dict(ProcessWeights.fold_value_biases(model.state_dict(), model.cfg))
    assert (log_probs(model) - before).abs().max() > 0.01


@pytest.mark.parametrize("stream", FOLDABLE_STREAMS, ids=name_of)
@each_head_count
def test_folding_value_biases_is_exact(stream: AttentionStream, kv_heads: int | None) -> None:
    """In double precision, which the stock steps around it would round."""
    model = tiny_model(stream, n_layers=4, n_key_value_heads=kv_heads, dtype=torch.float64)
    before = log_probs(model)
    fold_value_biases_through_streams(model.cfg.streams, [block.attn for block in model.blocks])
    assert_same_function(model, before, 1e-12)
    assert all(not value_bias(model, layer).any() for layer in range(4))


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_only": True},
        {"normalization_type": "RMS"},
        {"positional_embedding_type": "rotary"},
        {"ungroup_grouped_query_attention": True, "n_key_value_heads": 2},
        {"use_split_qkv_input": True, "n_key_value_heads": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("streams", ["", "v", "qkv"])
def test_processing_keeps_what_other_models_compute(
    streams: StreamsLike, changes: dict[str, Any]
) -> None:
    model = tiny_model(streams, **changes)
    before = log_probs(model)
    model.process_weights_()
    assert_same_function(model, before, 1e-4)


@pytest.mark.parametrize("layers", [(1,), (2,), (1, 3)], ids=str)
def test_processing_knows_which_layers_receive(layers: tuple[int, ...]) -> None:
    model = tiny_model(AttentionStream("v", layers=layers), n_layers=4)
    before = log_probs(model)
    model.process_weights_()
    assert_same_function(model, before, 1e-4)


@pytest.mark.parametrize("normalization_type", ["LN", "RMS"])
@pytest.mark.parametrize(
    ("streams", "fold_value_biases"),
    [
        ("q(mix=gate)", True),
        ("v(mix=gate)", False),
        ("v(mix=added_gate, bias=True, channels=5)", False),
        ("k(mix=added_gate, act=relu, bias=True)", True),
        ("v(source=tokens, mix=added_gate, bias=True, layers=(0,2))", True),
    ],
)
@each_head_count
def test_gates_take_over_the_norms_that_they_read(
    streams: str, fold_value_biases: bool, normalization_type: str, kv_heads: int | None
) -> None:
    model = tiny_model(
        streams, n_layers=4, normalization_type=normalization_type, n_key_value_heads=kv_heads,
        dtype=torch.float64,
    )  # fmt: skip
    before = log_probs(model)
    model.process_weights_(fold_value_biases=fold_value_biases)
    assert model.cfg.normalization_type == f"{normalization_type}Pre"
    assert_same_function(model, before, 1e-5)


def test_a_classic_model_is_processed_as_the_stock_model_is() -> None:
    stock, ours = stock_model(), tiny_model()
    stock.process_weights_()
    ours.process_weights_()
    expected, found = stock.state_dict(), ours.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("streams", "options", "reason"),
    [
        ("v", {"refactor_factored_attn_matrices": True}, "each head's own basis"),
        ("q", {"refactor_factored_attn_matrices": True}, "each head's own basis"),
        (AttentionStream("v", mix="gate"), {}, "arriving value bias depends on the token"),
        (AttentionStream("v", mix="added_gate", bias=True), {}, "value bias depends on the token"),
        ("q(mix=added_gate)", {}, "the gate of the q stream has no bias, which would take over"),
    ],
)
def test_a_step_that_streams_do_not_survive_is_refused(
    streams: StreamsLike, options: dict[str, Any], reason: str
) -> None:
    model = tiny_model(streams)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=reason):
        model.load_and_process_state_dict(model.state_dict(), **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("streams", ["", "v"])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_attention_sinks": True}, "use_attention_sinks=True"),
        ({"clip_qkv": 0.5}, "clip_qkv=0.5"),
    ],
)
def test_biases_that_are_not_constants_of_the_output_are_not_folded(
    streams: str, changes: dict[str, Any], named: str
) -> None:
    model = tiny_model(streams, **changes)
    before = log_probs(model)
    with pytest.raises(ValueError, match=f"under {named} a value bias is not a constant"):
        model.process_weights_()
    model.process_weights_(fold_value_biases=False)
    torch.testing.assert_close(log_probs(model), before, atol=1e-4, rtol=1e-4)


def test_a_link_whose_biases_are_folded_is_neither_removed_nor_changed() -> None:
    model = tiny_model("v")
    without = log_probs(model.with_streams(""))
    kept = tiny_model("v")
    kept.process_weights_(fold_value_biases=False)
    torch.testing.assert_close(log_probs(kept.with_streams("")), without, atol=1e-4, rtol=1e-4)
    model.process_weights_()
    for streams in ("", AttentionStream("v", carried=0.5)):
        with pytest.raises(ValueError, match="value biases are folded into its output"):
            model.with_streams(streams)
    again = model.with_streams("qv")  # the value stream stays as it is
    assert again.cfg.folded_value_biases


@pytest.mark.parametrize("of", ["q", "k", "v"])
def test_a_gate_survives_the_other_steps(of: Any) -> None:
    model = tiny_model(AttentionStream(of, mix="gate"))
    before = log_probs(model)
    model.load_and_process_state_dict(
        model.state_dict(), fold_ln=False, fold_value_biases=of != "v"
    )
    assert_same_function(model, before, 1e-4)


def test_refactoring_is_for_classic_models() -> None:
    model = tiny_model()
    before = log_probs(model)
    model.process_weights_(refactor_factored_attn_matrices=True)
    assert_same_function(model, before, 1e-3)


# Converting.

GRAFTS: dict[str, StreamsLike] = {
    "v": "v",
    "qk": "qk",
    "learned": [{"of": of, "mix": "matrix"} for of in "qkv"],
}


@pytest.mark.parametrize("changes", [{}, {"n_key_value_heads": 2}], ids=["mha", "gqa"])
def test_a_stock_model_converts_exactly(changes: dict[str, Any]) -> None:
    stock = stock_model(**changes)
    ours = ResValTransformer.from_hooked(stock)
    ours.cfg.use_fused = False
    assert torch.equal(ours(tiny_tokens()), stock(tiny_tokens()))
    stock.load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize("streams", GRAFTS.values(), ids=GRAFTS)
def test_grafting_a_stream_is_building_with_it(streams: StreamsLike) -> None:
    """Mixing weights start at their initial values, all other weights are the stock model's."""
    grafted = ResValTransformer.from_hooked(stock_model(), streams)
    built = ResValTransformer(tiny_config(streams=streams))
    built.load_state_dict(stock_model().state_dict(), strict=False)
    assert torch.equal(grafted(tiny_tokens()), built(tiny_tokens()))
    assert grafted.cfg == built.cfg


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("streams", GRAFTS.values(), ids=GRAFTS)
def test_grafting_and_cutting_come_back_bit_for_bit(streams: StreamsLike, share: bool) -> None:
    classic = tiny_model()
    grafted = classic.with_streams(streams, share_weights=share)
    cut = grafted.with_streams("", share_weights=share)
    assert torch.equal(cut(tiny_tokens()), classic(tiny_tokens()))
    assert not torch.allclose(grafted(tiny_tokens()), classic(tiny_tokens()), atol=1e-3)
    assert list(cut.state_dict()) == list(classic.state_dict())


@pytest.mark.parametrize("make", ["from_hooked", "with_streams"])
def test_shared_weights_are_the_same_storage(make: str) -> None:
    model = tiny_model(positional_embedding_type="rotary")
    shared, copied = (
        ResValTransformer.from_hooked(model, "v", share_weights=share)
        if make == "from_hooked"
        else model.with_streams("v", share_weights=share)
        for share in (True, False)
    )
    mine = dict(model.named_parameters())
    for name, parameter in shared.named_parameters():
        assert parameter is mine[name]
    for name, parameter in copied.named_parameters():
        assert parameter.data_ptr() != mine[name].data_ptr()
    with torch.no_grad():
        model.blocks[0].attn.W_V += 1
    assert torch.equal(shared.blocks[0].attn.W_V, model.blocks[0].attn.W_V)
    assert not torch.equal(copied.blocks[0].attn.W_V, model.blocks[0].attn.W_V)


def test_training_a_model_with_shared_weights_trains_both() -> None:
    model = tiny_model()
    grafted = model.with_streams("v", share_weights=True)
    grafted(tiny_tokens(), return_type="loss").backward()
    assert model.blocks[0].attn.W_V.grad is grafted.blocks[0].attn.W_V.grad is not None


LEARNED = AttentionStream("v", mix="matrix")


def mixing(model: ResValTransformer, of: str = "v") -> list[Tensor]:
    return [block.attn.mixes[of].carried for block in model.blocks if of in block.attn.mixes]


@pytest.mark.parametrize("share", [False, True])
def test_learned_mixing_values_stay_with_their_stream(share: bool) -> None:
    model = tiny_model(LEARNED)
    kept = model.with_streams([LEARNED, AttentionStream("q")], share_weights=share)
    assert len(mixing(kept)) == 2
    assert all(map(torch.equal, mixing(kept), mixing(model)))
    again = ResValTransformer.from_hooked(model, LEARNED, share_weights=share)
    assert torch.equal(again(tiny_tokens()), model(tiny_tokens()))


@pytest.mark.parametrize("changes", [{"detach": True}, {"layers": (2,)}], ids=str)
def test_learned_mixing_values_outlive_a_cut_of_gradients_or_layers(
    changes: dict[str, Any],
) -> None:
    model = tiny_model(LEARNED)
    changed = model.with_streams(replace(LEARNED, **changes))
    assert torch.equal(mixing(changed)[-1], mixing(model)[-1])


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{"mix": "head"}, {"mix": "scalar"}, {"mix": "gate"}, {"source": "first"}, {"source": "all"}],
    ids=str,
)
def test_another_mix_or_source_starts_at_its_initial_values(
    changes: dict[str, Any], share: bool
) -> None:
    """What was learned for one means nothing for the other, even where the shapes agree."""
    other = AttentionStream(**{"of": "v", "mix": "matrix", **changes})
    changed = tiny_model(LEARNED).with_streams(other, share_weights=share)
    initial = ResValTransformer(tiny_config(streams=other))
    for found, expected in zip(changed.blocks, initial.blocks, strict=True):
        for name, parameter in found.attn.mixes.named_parameters():
            assert torch.equal(parameter, expected.attn.mixes.get_parameter(name))


def test_weights_that_do_not_fit_are_refused() -> None:
    stock = stock_model()
    stock.cfg.attn_only = True
    with pytest.raises(ValueError, match=r"do not fit: .* unexpected .*blocks\.0\.mlp\.W_in"):
        ResValTransformer.from_hooked(stock)


def test_converting_leaves_the_original_and_the_generators_alone() -> None:
    model = tiny_model("v")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    config, before = model.cfg.to_json(), torch.get_rng_state()
    changed = randomise(model.with_streams("qk"))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.cfg.to_json() == config
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert changed.cfg.init_weights
