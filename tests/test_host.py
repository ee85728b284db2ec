"""The host for TransformerLens 4 is TransformerLens 3.9's HookedTransformer, to the last bit."""

from dataclasses import MISSING, fields
from typing import Any

import pytest
import torch

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


@pytest.mark.parametrize(
    "mode", ["gpt2", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "muP"]
)
def test_a_seed_draws_the_same_weights(mode: str) -> None:
    settings = {**SETTINGS, "init_mode": mode}
    own = HookedTransformer(HookedTransformerConfig(**settings)).state_dict()
    stock = type(stock_model())(stock_config(init_mode=mode)).state_dict()
    assert all(torch.equal(own[name], stock[name]) for name in stock)
