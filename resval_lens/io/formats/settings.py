"""Settings of transformers' models as TransformerLens's, whatever a model is called.

TransformerLens converts the weights of more architectures than it derives settings for: those of
Gemma and OLMo stand there by the names of the models that were published. Here they follow from
the model's own configuration.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from resval_lens.host import STOCK, HookedTransformerConfig

_FROM_CONFIG = (
    "ApertusForCausalLM", "BloomForCausalLM", "GPT2LMHeadModel", "GPTJForCausalLM",
    "GPTNeoForCausalLM", "GPTNeoXForCausalLM", "GptOssForCausalLM", "LlamaForCausalLM",
    "MistralForCausalLM", "MixtralForCausalLM", "OPTForCausalLM", "Olmo3ForCausalLM",
    "OlmoeForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
)  # fmt: skip
"""TransformerLens derives the settings of these from their configuration."""
_DERIVED = (
    "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GemmaForCausalLM", "Olmo2ForCausalLM",
    "OlmoForCausalLM", "PhiForCausalLM",
)  # fmt: skip
"""TransformerLens has the settings of these by the names of published models, or asks for a field
that newer transformers have elsewhere (Phi)."""
_CENTRED = ("OlmoForCausalLM", "PhiForCausalLM")
ARCHITECTURES = tuple(sorted((*_FROM_CONFIG, *_DERIVED), key=str.lower))
"""Architectures of transformers that can be converted."""


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
        ValueError: an architecture, a rotation or a kind of layer that is not converted; a
            TransformerLens that converts none.
    """
    if not STOCK:
        raise ValueError(
            f"{source}: TransformerLens 4 converts no models of transformers; load it under "
            "transformer-lens<4, where save_pretrained writes what loads under both"
        )
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{source}: the architecture {architecture} cannot be converted; these can: "
            f"{', '.join(ARCHITECTURES)}"
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
    if architecture in _DERIVED:
        cfg = HookedTransformerConfig(**_derived(config, architecture), **settings)
    else:
        from transformer_lens.loading_from_pretrained import get_pretrained_model_config

        with tempfile.TemporaryDirectory() as folder:
            _save(config, architecture, Path(folder))
            cfg = get_pretrained_model_config(folder, **settings)
        head = getattr(config, "head_dim", None)
        if head not in (None, cfg.d_head):  # Llama's is taken to be d_model / n_heads there
            cfg = replace(cfg, d_head=head, rotary_dim=head, attn_scale=-1.0)
        n_ctx = getattr(config, "max_position_embeddings", cfg.n_ctx)
        cfg = replace(cfg, n_ctx=n_ctx)  # 2048 for some there, whatever the model has
    kinds = [_KINDS_OF_LAYERS[kind] for kind in getattr(config, "layer_types", None) or []]
    if "local" in kinds and not cfg.use_local_attn:  # Qwen's windows are left out there, too
        window = {"attn_types": kinds, "window_size": config.sliding_window}
        cfg = replace(cfg, use_local_attn=True, **window)
    cfg.model_name, cfg.tokenizer_name = architecture.removesuffix("ForCausalLM"), None
    return cfg


def _save(config: Any, architecture: str, folder: Path) -> None:
    """config.json as TransformerLens reads it."""
    config.save_pretrained(folder)
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    if "n_positions" in settings:  # GPT-2's, under its older name
        settings.setdefault("n_ctx", settings["n_positions"])
    path.write_text(json.dumps({**settings, "architectures": [architecture]}))


def _derived(config: Any, architecture: str) -> dict[str, Any]:
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    rotary = getattr(config, "rope_parameters", None) or {}
    turned = rotary.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", 1.0))
    bases = _rotary_bases(config)
    settings: dict[str, Any] = {
        "original_architecture": architecture,
        "d_model": config.hidden_size,
        "d_head": head,
        "n_heads": heads,
        "n_key_value_heads": None if groups == heads else groups,
        "d_mlp": config.intermediate_size,
        "n_layers": config.num_hidden_layers,
        "n_ctx": config.max_position_embeddings,
        "d_vocab": config.vocab_size,
        "act_fn": getattr(config, "hidden_activation", None) or config.hidden_act,
        "eps": getattr(config, "rms_norm_eps", getattr(config, "layer_norm_eps", 1e-5)),
        "normalization_type": "LN" if architecture in _CENTRED else "RMS",
        "positional_embedding_type": "rotary",
        "rotary_dim": round(turned * head),
        "rotary_base": bases[0],
        "gated_mlp": architecture != "PhiForCausalLM",
        "parallel_attn_mlp": architecture == "PhiForCausalLM",
        "init_weights": False,
    }
    if architecture == "OlmoForCausalLM":
        settings["clip_qkv"] = config.clip_qkv
    if architecture.startswith("Gemma"):
        settings["final_rms"] = True
        scale = getattr(config, "query_pre_attn_scalar", None)
        if scale is not None:  # Gemma 2 and 3
            settings |= {"attn_scale": scale**0.5, "use_normalization_before_and_after": True}
            settings |= {
                ours: soft_cap
                for ours, theirs in (
                    ("attn_scores_soft_cap", "attn_logit_softcapping"),
                    ("output_logits_soft_cap", "final_logit_softcapping"),
                )
                if (soft_cap := getattr(config, theirs, None)) is not None
            }
        if architecture == "Gemma3ForCausalLM":
            settings |= {"use_qk_norm": True, "rotary_base_local": bases[1]}
    return settings


def _rotary_bases(config: Any) -> tuple[float, float]:
    """Bases of the rotation in layers that attend everywhere, and in those with a window."""
    rotary = getattr(config, "rope_parameters", None) or {}
    wide, near = rotary.get("full_attention", rotary), rotary.get("sliding_attention", rotary)
    older = getattr(config, "rope_theta", 10_000.0)
    local = getattr(config, "rope_local_base_freq", older)
    return float(wide.get("rope_theta", older)), float(near.get("rope_theta", local))
