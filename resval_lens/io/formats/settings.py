"""Settings of transformers' models as TransformerLens's, whatever a model is called.

All of them follow from the model's own configuration, and none from the name it was published by.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from transformer_lens.utilities import SUPPORTED_ACTIVATIONS

from resval_lens.host import HookedTransformerConfig

_FAMILIES = (
    "Apertus", "Bloom", "Gemma2", "Gemma3", "Gemma", "GPTJ", "GPTNeo", "GPTNeoX", "GptOss", "Llama",
    "Mistral", "Mixtral", "Olmo2", "Olmo3", "Olmoe", "Olmo", "OPT", "Phi3", "Phi", "Qwen2", "Qwen3",
)  # fmt: skip
ARCHITECTURES = (*(f"{family}ForCausalLM" for family in _FAMILIES), "GPT2LMHeadModel")
"""Architectures of transformers that can be converted."""
_CENTRED = (
    "BloomForCausalLM", "GPT2LMHeadModel", "GPTJForCausalLM", "GPTNeoForCausalLM",
    "GPTNeoXForCausalLM", "OPTForCausalLM", "OlmoForCausalLM", "PhiForCausalLM",
)  # fmt: skip
"""LayerNorm; the others' norms are RMS. Without OLMo: MLPs without a gate."""
_UNGATED = (*(name for name in _CENTRED if name != "OlmoForCausalLM"), "ApertusForCausalLM")
_WITH_POSITIONS = ("GPT2LMHeadModel", "GPTNeoForCausalLM", "OPTForCausalLM")
_NORMED_HEADS = ("ApertusForCausalLM", "Gemma3ForCausalLM", "Qwen3ForCausalLM")
_ROTATIONS = {
    "llama3": ("ApertusForCausalLM", "LlamaForCausalLM"),
    "yarn": ("GptOssForCausalLM", "Olmo3ForCausalLM"),
}
"""Scaled rotations that are converted, and of which architectures. What others do would show only
at positions beyond those that a conversion is checked on."""
_KINDS_OF_LAYERS = {"full_attention": "global", "sliding_attention": "local"}


def check_architecture(config: Any, architecture: str, source: str) -> None:
    """Refuses what conversions would get wrong.

    Raises:
        ValueError: an architecture, a rotation or a kind of layer that is not converted.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{source}: the architecture {architecture} cannot be converted; these can: "
            f"{', '.join(sorted(ARCHITECTURES, key=str.lower))}"
        )
    rotary = getattr(config, "rope_parameters", None) or {}
    nested = [each for each in rotary.values() if isinstance(each, dict)]
    for each in nested or [rotary]:
        scaled = each.get("rope_type", "default")
        if scaled != "default" and architecture not in _ROTATIONS.get(scaled, ()):
            raise ValueError(
                f"{source}: a rotation scaled by {scaled!r} cannot be converted for {architecture}"
            )
    for kind in getattr(config, "layer_types", None) or []:
        if kind not in _KINDS_OF_LAYERS:
            raise ValueError(f"{source}: layers of {kind!r} cannot be converted")


def hooked_config(config: Any, architecture: str, **settings: Any) -> HookedTransformerConfig:
    """A configuration of transformers that :func:`check_architecture` took, as TransformerLens's.

    Args:
        settings: device, dtype, default_prepend_bos.
    """
    heads = config.num_attention_heads
    head = _first(config, "head_dim") or config.hidden_size // heads
    groups = _first(config, "num_key_value_heads")
    rms = architecture not in _CENTRED
    return HookedTransformerConfig(
        model_name=architecture.removesuffix("ForCausalLM"),
        original_architecture=architecture,
        d_model=config.hidden_size,
        d_head=head,
        n_heads=heads,
        n_key_value_heads=None if groups == heads else groups,
        d_mlp=_first(config, "intermediate_size", "ffn_dim", "n_inner") or 4 * config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_ctx=_first(config, "max_position_embeddings") or 2048,  # ALiBi has no end
        d_vocab=config.vocab_size,
        act_fn=_activation(config, architecture),
        eps=_first(config, "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon") or 1e-5,
        normalization_type="RMS" if rms else "LN",
        final_rms=rms,
        gated_mlp=architecture not in _UNGATED,
        parallel_attn_mlp=architecture in ("GPTJForCausalLM", "PhiForCausalLM")
        or bool(_first(config, "use_parallel_residual")),
        use_qk_norm=architecture in _NORMED_HEADS,
        init_weights=False,
        **_positions(config, architecture, head),
        **_scores(config, architecture),
        **_windows(config),
        **_particulars(config, architecture),
        **settings,
    )


def native_config(config: Any, **settings: Any) -> HookedTransformerConfig:
    """The settings of a TransformerBridge's own architecture: the same fields, by the same names.

    Args:
        config: the bridge's.
        settings: device, dtype, default_prepend_bos.

    Raises:
        ValueError: a scaled rotation.
    """
    scaled = getattr(config, "rope_scaling", None)
    if scaled:
        raise ValueError(f"its rotation is scaled: rope_scaling={scaled!r}")
    known = {each.name for each in fields(HookedTransformerConfig) if each.init}
    given = {name: value for name, value in vars(config).items() if name in known}
    plain = {"init_weights": False, "seed": None, "tokenizer_name": None}
    plain["rotary_adjacent_pairs"] = True  # as it rotates, whatever is written there
    return HookedTransformerConfig(**given | plain | settings)


def _first(config: Any, *names: str) -> Any:
    """The first of these settings that a configuration has."""
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if value is not None), None)


def _activation(config: Any, architecture: str) -> str:
    if architecture == "BloomForCausalLM":  # its own, which has no name there
        return "gelu_fast"
    found: str = _first(config, "hidden_activation", "hidden_act", "activation_function")
    if found not in SUPPORTED_ACTIVATIONS:
        raise ValueError(f"it has no activation {found!r}; {', '.join(SUPPORTED_ACTIVATIONS)}")
    return found


def _positions(config: Any, architecture: str, head: int) -> dict[str, Any]:
    if architecture in _WITH_POSITIONS:
        return {"positional_embedding_type": "standard"}
    if architecture == "BloomForCausalLM":
        return {"positional_embedding_type": "alibi"}
    rotary = _first(config, "rope_parameters") or {}
    wide, near = rotary.get("full_attention", rotary), rotary.get("sliding_attention", rotary)
    older = _first(config, "rope_theta") or 10_000.0
    local = float(near.get("rope_theta", _first(config, "rope_local_base_freq") or older))
    share = wide.get("partial_rotary_factor") or _first(
        config, "partial_rotary_factor", "rotary_pct"
    )
    settings = {
        "positional_embedding_type": "rotary",
        "rotary_dim": round((share or 1.0) * head),
        "rotary_base": float(wide.get("rope_theta", older)),
        **_scaled(wide, nested=wide is not rotary),
    }
    if architecture == "GPTJForCausalLM":
        settings |= {"rotary_dim": config.rotary_dim, "rotary_adjacent_pairs": True}
    if local != settings["rotary_base"]:
        settings["rotary_base_local"] = local
    return settings


def _scaled(rotary: dict[str, Any], nested: bool) -> dict[str, Any]:
    """Settings of a scaled rotation; ``nested``: only layers that attend everywhere have it."""
    kind, factor = rotary.get("rope_type", "default"), float(rotary.get("factor") or 1.0)
    if kind == "llama3":
        return {
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": factor,
            "NTK_by_parts_low_freq_factor": rotary["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rotary["high_freq_factor"],
            "NTK_original_ctx_len": rotary["original_max_position_embeddings"],
        }
    if kind == "yarn":
        share = rotary.get("attention_factor") or 0.1 * math.log(max(factor, 1.0)) + 1.0
        return {
            "use_yarn_rope": True,
            "yarn_global_attn_only": nested,
            "yarn_factor": factor,
            "yarn_attention_factor": float(share),
            "yarn_beta_fast": float(rotary.get("beta_fast") or 32.0),
            "yarn_beta_slow": float(rotary.get("beta_slow") or 1.0),
            "yarn_original_max_position_embeddings": rotary["original_max_position_embeddings"],
            "yarn_truncate": rotary.get("truncate", True),
        }
    return {}


def _scores(config: Any, architecture: str) -> dict[str, Any]:
    """How attention scores are scaled, capped and shared."""
    scale = _first(config, "query_pre_attn_scalar")
    settings = {
        "use_attn_scale": architecture != "GPTNeoForCausalLM"
        and getattr(config, "scale_attn_weights", True),
        "scale_attn_by_inverse_layer_idx": bool(_first(config, "scale_attn_by_inverse_layer_idx")),
        "attn_scale": -1.0 if scale is None else scale**0.5,
        "attn_scores_soft_cap": _first(config, "attn_logit_softcapping") or -1.0,
        "output_logits_soft_cap": _first(config, "final_logit_softcapping") or -1.0,
        "clip_qkv": _first(config, "clip_qkv"),
    }
    if architecture == "GptOssForCausalLM":
        settings["use_attention_sinks"] = True
    return settings


def _windows(config: Any) -> dict[str, Any]:
    """Which layers attend within a window; in older configurations all of them, if there is one."""
    window = _first(config, "sliding_window", "window_size")
    kinds = [_KINDS_OF_LAYERS[kind] for kind in _first(config, "layer_types") or []]
    kinds = kinds or _first(config, "attention_layers") or ["local"] * config.num_hidden_layers
    if window is None or "local" not in kinds:
        return {}
    return {"use_local_attn": True, "window_size": window, "attn_types": list(kinds)}


def _particulars(config: Any, architecture: str) -> dict[str, Any]:
    """Experts; norms on both sides of a layer or behind the embeddings."""
    if architecture == "BloomForCausalLM":
        return {"post_embedding_ln": True}
    if architecture in ("Gemma2ForCausalLM", "Gemma3ForCausalLM"):
        return {"use_normalization_before_and_after": True}
    experts = _first(config, "num_local_experts", "num_experts")
    if experts is None:
        return {}
    return {
        "num_experts": experts,
        "experts_per_token": config.num_experts_per_tok,
        "norm_topk_prob": getattr(config, "norm_topk_prob", architecture == "MixtralForCausalLM"),
    }
