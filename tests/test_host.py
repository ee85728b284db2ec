"""The host for TransformerLens 4 is TransformerLens 3.9's HookedTransformer, to the last bit."""

from dataclasses import MISSING, fields
from typing import Any

import pytest
import torch
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from resval_lens import host
from resval_lens.host import attention, components, norms
from resval_lens.host.config import HookedTransformerConfig
from resval_lens.host.model import HookedTransformer
from tests.helpers import (
    ARCHITECTURES,
    SETTINGS,
    needs_stock,
    randomise,
    stock_config,
    stock_model,
    tiny_tokens,
)
from tests.test_harness import tokenizer

pytestmark = needs_stock

ROTARY: dict[str, Any] = {"positional_embedding_type": "rotary"}
MORE: dict[str, dict[str, Any]] = {
    **ARCHITECTURES,
    "adjacent": {**ROTARY, "rotary_adjacent_pairs": True, "rotary_scaling_factor": 4.0},
    "local-base": {**ROTARY, "rotary_base_local": 100.0, **ARCHITECTURES["local"]},
    "ntk": {**ROTARY, "use_NTK_by_parts_rope": True, "NTK_original_ctx_len": 8},
    "yarn": {**ROTARY, "use_yarn_rope": True, "yarn_factor": 4.0, "yarn_attention_factor": 1.1,
             "yarn_original_max_position_embeddings": 8},
    "yarn-fraction": {**ROTARY, "use_yarn_rope": True, "yarn_factor": 2.0, "yarn_truncate": False,
                      "yarn_global_attn_only": True, **ARCHITECTURES["local"]},
    "sinks": {"use_attention_sinks": True},
    "clipped": {"clip_qkv": 0.1},
    "olmo-2": {"original_architecture": "Olmo2ForCausalLM", "normalization_type": "RMS"},
    "olmo-3": {"original_architecture": "Olmo3ForCausalLM", "n_key_value_heads": 2},
    "gemma-2": {"normalization_type": "RMS", "use_normalization_before_and_after": True,
                "gated_mlp": True},
    "solu": {"act_fn": "solu_ln"},
    "solu-pre": {"act_fn": "solu_ln", "normalization_type": "LNPre"},
    "gated-solu": {"act_fn": "solu_ln", "gated_mlp": True},
    "xielu": {"act_fn": "xielu"},
    "bloom": {"post_embedding_ln": True, "positional_embedding_type": "alibi"},
    "mlp-in": {"use_hook_mlp_in": True},
    "final-rms": {"final_rms": True},
    "half": {"dtype": torch.bfloat16},
    "double": {"dtype": torch.float64, **ROTARY},
    "tokens": {"use_hook_tokens": True},
}  # fmt: skip


def host_model(**changes: Any) -> HookedTransformer:
    """The host's model of the settings of ``stock_model``."""
    return randomise(HookedTransformer(HookedTransformerConfig(**{**SETTINGS, **changes})))


def test_fields_are_those_of_transformer_lens_with_its_defaults() -> None:
    stock = fields(type(stock_config()))
    own = fields(HookedTransformerConfig)
    assert {f.name: f.default for f in own} == {f.name: f.default for f in stock}
    assert all(f.default_factory is MISSING for f in stock)


@pytest.mark.parametrize("name", MORE)
def test_settings_that_follow_from_others_are_the_same(name: str) -> None:
    given = {**SETTINGS, **MORE[name]}
    assert HookedTransformerConfig(**given).to_dict() == stock_config(**MORE[name]).to_dict()


@pytest.mark.parametrize("name", MORE)
def test_activations_and_gradients_are_the_same(name: str) -> None:
    stock, own = stock_model(**MORE[name]), host_model(**MORE[name])
    assert list(own.state_dict()) == list(stock.state_dict())
    assert list(own.hook_dict) == list(stock.hook_dict)
    stock.eval(), own.eval()
    wanted, there = stock.run_with_cache(tiny_tokens(), return_type="both")
    found, cache = own.run_with_cache(tiny_tokens(), return_type="both")
    for each, other in zip(found, wanted, strict=True):
        assert torch.equal(each, other)
    assert list(cache) == list(there)
    for point in there:
        torch.testing.assert_close(cache[point], there[point], rtol=0, atol=0, equal_nan=True)
    wanted[1].backward()
    found[1].backward()
    gradients = {n: p.grad for n, p in own.named_parameters()}
    for n, parameter in stock.named_parameters():
        torch.testing.assert_close(gradients[n], parameter.grad, rtol=0, atol=0, equal_nan=True)


def test_classes_are_of_one_another_as_in_transformer_lens() -> None:
    """What asks whether a norm centres, or keys are grouped, asks by class."""
    pairs = [
        (getattr(module, name), getattr(host, name))
        for module in (attention, components, norms)
        for name in host.__all__
        if getattr(getattr(module, name, None), "__module__", None) == module.__name__
    ]
    assert len(pairs) == 12
    for own, stock in pairs:
        for other, stock_other in pairs:
            assert issubclass(own, other) == issubclass(stock, stock_other), (own, other)


@pytest.mark.parametrize(
    "mode", ["gpt2", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "muP"]
)
def test_a_seed_draws_the_same_weights(mode: str) -> None:
    settings = {**SETTINGS, "init_mode": mode}
    own = HookedTransformer(HookedTransformerConfig(**settings)).state_dict()
    stock = type(stock_model())(stock_config(init_mode=mode)).state_dict()
    assert all(torch.equal(own[name], stock[name]) for name in stock)


STEPS = (
    {},
    {"fold_ln": False, "center_unembed": False},
    {"refactor_factored_attn_matrices": True},
    {"center_writing_weights": False},
)


@pytest.mark.parametrize("steps", STEPS, ids=str)
@pytest.mark.parametrize("name", ["mha", "gqa", "rms", "attn-only", "gated-mlp", "solu", "no-norm"])
def test_weights_are_processed_alike(name: str, steps: dict[str, bool]) -> None:
    if name == "gqa" and steps == STEPS[2]:
        pytest.skip("neither refactors grouped heads")
    stock, own = stock_model(**MORE[name]), host_model(**MORE[name])
    stock.process_weights_(**steps)
    own.process_weights_(**steps)
    wanted, found = stock.state_dict(), own.state_dict()
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert own.cfg.normalization_type == stock.cfg.normalization_type
    assert torch.equal(own(tiny_tokens()), stock(tiny_tokens()))


@pytest.mark.parametrize("name", ["mha", "rotary-gqa", "alibi", "shortformer"])
def test_padding_caches_and_parts_of_the_layers_are_alike(name: str) -> None:
    stock, own = stock_model(**MORE[name]), host_model(**MORE[name])
    tokens, mask = tiny_tokens(), torch.ones(2, 7, dtype=torch.long)
    mask[0, :2] = 0
    results = []
    for model in (stock, own):
        padded = model(tokens, attention_mask=mask)
        cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", 2)
        first = model(tokens[:, :4], past_kv_cache=cache, attention_mask=mask[:, :4])
        rest = model(tokens[:, 4:], past_kv_cache=cache, attention_mask=mask[:, 4:])
        before = model(tokens, stop_at_layer=2)
        positions = model.pos_embed(tokens) if name == "shortformer" else None
        loss = model(
            before, return_type="loss", start_at_layer=2, tokens=tokens, loss_per_token=True,
            shortformer_pos_embed=positions,
        )  # fmt: skip
        results.append((padded, first, rest, before, loss))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_text_is_read_and_written_alike() -> None:
    settings = {**SETTINGS, "d_vocab": -1}
    stock = type(stock_model())(stock_config(d_vocab=-1), tokenizer())
    own = HookedTransformer(HookedTransformerConfig(**settings), tokenizer())
    texts = ["Tom and Amy", "Once upon a time"]
    assert own.cfg.d_vocab == stock.cfg.d_vocab
    for options in ({}, {"prepend_bos": False}, {"padding_side": "left"}):
        tokens = stock.to_tokens(texts, **options)
        assert torch.equal(own.to_tokens(texts, **options), tokens)
        assert own.to_str_tokens(texts, **options) == stock.to_str_tokens(texts, **options)
        assert own.to_string(tokens) == stock.to_string(tokens)
        assert torch.equal(own(texts, **options).isnan(), stock(texts, **options).isnan())
    assert torch.equal(
        own.tokens_to_residual_directions(tokens), stock.W_U[:, tokens].movedim(0, -1)
    )
    assert own.to_single_str_token(5) == stock.to_single_str_token(5)


def test_stacked_weights_are_alike() -> None:
    stock, own = stock_model(gated_mlp=True), host_model(gated_mlp=True)
    names = [
        f"W_{of}" for of in ("Q", "K", "V", "O", "in", "out", "gate", "E", "U", "pos", "E_pos")
    ]
    for name in [*names, *(f"b_{of}" for of in ("Q", "K", "V", "O", "in", "out", "U"))]:
        assert torch.equal(getattr(own, name), getattr(stock, name)), name
    for mode in "QKV":
        scores = own.all_composition_scores(mode)
        assert torch.equal(scores, stock.all_composition_scores(mode))
    for options in ({}, {"mlp_input": True}, {"include_mlp_biases": False}):
        bias = own.accumulated_bias(1, **options)
        assert torch.equal(bias, stock.accumulated_bias(1, **options))
    assert own.n_params_total == stock.n_params_total


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_experts": 2}, "experts_per_token must be set if num_experts is set"),
        ({"num_experts": 2, "experts_per_token": 1}, "num_experts=2 is not run on .* install"),
        ({"use_local_attn": True}, "window_size must be specified"),
        ({"act_fn": "tanhh"}, "act_fn='tanhh' must be one of"),
        ({"d_head": 3, "n_heads": -1}, r"d_model \(16\) must be divisible by d_head \(3\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HookedTransformerConfig(**{**SETTINGS, **settings})
