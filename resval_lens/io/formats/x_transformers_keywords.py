"""What keywords of x-transformers mean here: expressed, without effect, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from resval_lens.checks import is_number

WRAPPER: dict[str, Any] = {
    "num_tokens": None, "max_seq_len": None, "attn_layers": None, "emb_dim": None,
    "use_abs_pos_emb": True, "tie_embedding": False, "tie_embedding_scale": None,
    "logits_dim": None,
}  # fmt: skip
"""Keywords of TransformerWrapper that are expressed here, with their defaults."""
LAYERS: dict[str, Any] = {
    "dim": None, "depth": None, "heads": 8, "attn_dim_head": 64, "attn_value_dim_head": None,
    "attn_kv_heads": None, "attn_one_kv_head": False, "only_attn": False,
    "use_rmsnorm": False, "use_simple_rmsnorm": False, "use_scalenorm": False,
    "norm_add_unit_offset": True,
    "rotary_pos_emb": False, "rotary_emb_dim": None, "rotary_base_rescale_factor": 1.0,
    "disable_abs_pos_emb": None,
    "add_value_residual": False, "learned_value_residual_mix": None,
    "attn_qk_norm": False, "attn_qk_norm_scale": 10, "attn_qk_norm_dim_scale": False,
    "attn_qk_rmsnorm": False,
    "ff_mult": 4, "ff_glu": False, "ff_swish": False, "ff_relu_squared": False, "ff_no_bias": False,
}  # fmt: skip
"""Keywords of Decoder that are expressed here, with their defaults; None: the rest says it."""
WITHOUT_EFFECT = (
    # on training, on memory between segments, on how weights start, on speed
    "emb_dropout", "emb_frac_gradient", "attn_z_loss_weight", "max_mem_len", "shift_mem_down",
    "input_not_include_cache", "verbose", "layer_dropout", "zero_init_branch_output",
    "attn_dropout", "attn_sublayer_dropout", "attn_flash", "attn_zero_init_output",
    "attn_onnxable", "attn_attend_sdp_kwargs", "ff_dropout", "ff_sublayer_dropout",
    "ff_zero_init_output",
    # on parts that are refused themselves
    "train_max_recycle_steps", "max_looped_steps", "num_cls_tokens", "num_pooled_tokens",
    "attn_pool_depth", "dim_pooled_tokens", "mixture_of_softmax_k", "dynamic_tanh_init_alpha",
    "dim_condition", "adaptive_condition_mlp", "adaptive_condition_mlp_expansion",
    "alibi_num_heads", "rel_pos_num_buckets", "rel_pos_max_distance", "rel_pos_kwargs",
    "dynamic_pos_bias_log_distance", "dynamic_pos_bias_mlp_depth", "dynamic_pos_bias_norm",
    "rotary_xpos_scale_base", "polar_bias_uniform_init", "softclamp_output_value",
    "layerscale_init_value", "layer_integrate_use_softmax", "hyper_conn_sinkhorn_iters",
    "attn_aggregated_residual_kwargs", "cross_attn_tokens_dropout",
)  # fmt: skip
"""Keywords that change nothing of what a trained model of the parts below computes."""
REFUSED: dict[str, Any] = {
    **dict.fromkeys((
        # TransformerWrapper
        "embed_num_tokens", "post_emb_norm", "num_memory_tokens",
        "memory_tokens_interspersed_every", "return_only_embed", "scaled_sinu_pos_emb",
        "l2norm_embed", "recycling", "looped", "average_pool_embed", "use_cls_token", "attn_pool",
        "squeeze_out_last_dim", "token_emb", "mixture_of_softmax", "sigsoftmax_logits",
        "ff_deep_embed", "to_logits", "add_continuous_pred_head",
        # Decoder: blocks
        "cross_attend", "only_cross", "weight_tie_layers", "custom_layers", "layers_execute_order",
        "sandwich_coef", "par_ratio", "macaron", "integrate_layers", "qkv_receive_diff_residuals",
        "reinject_input", "learned_reinject_input_gate", "unet_skips", "shift_tokens",
        # norms
        "use_dynamic_tanh", "use_derf", "use_adaptive_layernorm", "use_adaptive_rmsnorm",
        "sandwich_norm", "pre_and_post_norm", "softclamp_output",
        # positions
        "alibi_pos_bias", "rel_pos_bias", "dynamic_pos_bias", "rotary_xpos", "polar_pos_emb",
        "rotate_num_heads",
        # the residual stream
        "attn_aggregated_residuals", "gate_residual", "orthog_residual", "mv_split_residual",
        "gated_multi_residual", "scale_residual", "depth_scale_residual", "use_layerscale",
        "use_adaptive_layerscale", "residual_attn", "cross_residual_attn",
        # attention
        "attn_pre_talking_heads", "attn_post_talking_heads", "attn_pre_scale_post_talking_heads",
        "attn_head_scale", "attn_sparse_topk", "attn_num_mem_kv", "attn_on_attn",
        "attn_gate_value_heads", "attn_swiglu_values", "attn_gate_values", "attn_output_gate",
        "attn_hard", "attn_max_attend_past", "attn_k_rmsnorm", "attn_value_rmsnorm",
        "attn_l2_distance", "attn_sigmoid", "attn_gumbel_softmax", "attn_selective",
        "attn_cog_signed", "attn_custom_attn_fn", "attn_hybrid_module", "attn_add_zero_kv",
        "attn_head_learned_sink", "attn_data_dependent_alibi", "attn_use_rel_proj_pos_bias",
        "attn_use_cope", "attn_softclamp_logits", "attn_orthog_projected_values",
        "attn_orthog_projected_values_per_head", "attn_laser", "attn_use_latent_q",
        "attn_use_latent_kv", "attn_inverted_attention", "attn_flash_pack_seq",
        # feed-forward
        "ff_glu_mult_bias", "ff_solu", "ff_custom_activation", "ff_post_act_ln",
        "ff_softclamp_value", "ff_glu_softclamp",
    )),
    "pre_norm": True, "pre_norm_has_final_norm": True, "num_output_heads": 1,
    "num_residual_streams": 1, "scale_residual_constant": 1, "rotary_interpolation_factor": 1,
    "attn_qk_norm_groups": 1, "residual_fn_kwargs": {},
}  # fmt: skip
"""Keywords with no counterpart here, with the one value that is none; None: any that is off."""
BASE = 10_000.0
"""Of the rotation, before ``rotary_base_rescale_factor``."""
NORMS = {
    "use_rmsnorm": "RMSNorm",
    "use_simple_rmsnorm": "SimpleRMSNorm",
    "use_scalenorm": "ScaleNorm",
}
MODULES = {
    "TransformerWrapper", "TokenEmbedding", "Embedding", "AbsolutePositionalEmbedding", "Dropout",
    "Identity", "Decoder", "ModuleList", "LayerNorm", "Attention", "Attend", "Linear", "Residual",
    "FeedForward", "Sequential", "GLU", "GELU", "SiLU", "ReluSquared", "RotaryEmbedding",
    "Rearrange", "Sigmoid", "MultiheadRMSNorm", *NORMS.values(),
}  # fmt: skip
"""Classes that a wrapper may be made of."""
ATTRIBUTES: dict[str, Any] = {
    **dict.fromkeys((
        "cross_attend", "residual_attn", "sandwich_norm", "pre_and_post_norm", "softclamp_output",
        "unet_skips", "reinject_input", "recycling", "looped", "average_pool_embed",
        "has_multiple_heads", "sigsoftmax_logits", "l2norm_embed", "output_is_log_prob",
        "num_memory_tokens", "max_attend_past", "num_mem_kv", "sparse_topk", "laser",
        "head_scale", "attn_on_attn", "orthog_projected_values", "add_zero_kv",
        "orthog_projected_values_per_head", "softclamp_logits", "head_learned_sink", "selective",
        "cog_signed", "l2_distance", "inverted_attention", "use_latent_q", "use_latent_kv",
        "up_softclamp_value", "rel_pos", "polar_pos_emb", "cls_token", "attn_pool", "embeds",
        "qkv_receive_diff_residuals",
    )),
    "causal": True, "pre_norm": True, "num_residual_streams": 1, "scale_residual_constant": 1,
    "interpolation_factor": 1, "qk_norm_groups": 1,
}  # fmt: skip
"""What the parts of a wrapper must have, as ``REFUSED``: not all would show in a few logits."""


def settled(keywords: Any, source: str) -> dict[str, Any]:
    """Every keyword in full; what follows from several has a name of its own.

    Raises:
        ValueError: a keyword that is unknown, of another type, or has no counterpart here.
    """
    if not isinstance(keywords, Mapping) or not isinstance(keywords.get("attn_layers"), Mapping):
        raise ValueError(
            f"{source}: expected the keywords of a TransformerWrapper, under 'attn_layers' those "
            "of its Decoder"
        )
    made = _checked(keywords, WRAPPER, "TransformerWrapper", source)
    layers = _checked(keywords["attn_layers"], LAYERS, "Decoder", source)
    for given, names in (
        (made, ("num_tokens", "max_seq_len")),
        (layers, ("dim", "depth", "heads", "attn_dim_head")),
    ):
        for name in names:
            _whole(name, given[name], source)
    heads, d_head = layers["heads"], layers["attn_dim_head"]
    groups = 1 if layers["attn_one_kv_head"] else layers["attn_kv_heads"] or heads
    layers["attn_kv_heads"] = _whole("attn_kv_heads", groups, source)
    if heads % groups:
        raise ValueError(f"{source}: attn_kv_heads={groups} must divide heads={heads}")
    made["logits_dim"] = _whole("logits_dim", made["logits_dim"] or made["num_tokens"], source)
    for name, only in (("emb_dim", layers["dim"]), ("attn_value_dim_head", d_head)):
        value = (made | layers)[name]
        if value not in (None, only):
            raise _refusal(name, value, source)
    named = [name for name in NORMS if layers[name]]
    if len(named) > 1:
        raise ValueError(f"{source}: {named[0]} contradicts {named[1]}")
    layers["norm"] = NORMS[named[0]] if named else "LayerNorm"
    layers["activation"] = (
        "relu2" if layers["ff_relu_squared"] else "silu" if layers["ff_swish"] else "gelu"
    )
    _settle_positions(made, layers, source)
    if made["tie_embedding"]:
        if made["tie_embedding_scale"] is None:
            raise ValueError(
                f"{source}: tie_embedding=True needs tie_embedding_scale, which is dim ** -0.5 in "
                "newer versions of x-transformers and 1 in older ones"
            )
        _number("tie_embedding_scale", made["tie_embedding_scale"], source)
    _number("attn_qk_norm_scale", layers["attn_qk_norm_scale"], source)
    if layers["attn_qk_norm"] and layers["attn_qk_rmsnorm"]:
        raise ValueError(f"{source}: attn_qk_norm contradicts attn_qk_rmsnorm")
    return made | {"attn_layers": layers}


def _settle_positions(made: dict[str, Any], layers: dict[str, Any], source: str) -> None:
    d_head, factor = layers["attn_dim_head"], layers["rotary_base_rescale_factor"]
    rotary = layers["rotary_emb_dim"] or d_head // 2
    if not layers["rotary_pos_emb"]:
        rotary = 0
    elif not isinstance(rotary, int) or rotary % 2 or not 0 < rotary <= d_head:
        raise ValueError(
            f"{source}: rotary_emb_dim must be an even number up to attn_dim_head={d_head}; "
            f"got {rotary!r}"
        )
    layers["rotary_emb_dim"], layers["rotary_base"] = rotary, BASE
    if rotary and factor != 1:
        factor = _number("rotary_base_rescale_factor", factor, source)
        if rotary == 2:
            raise ValueError(f"{source}: rotary_base_rescale_factor={factor} of two dimensions")
        layers["rotary_base"] *= factor ** (rotary / (rotary - 2))
    disabled = layers["disable_abs_pos_emb"]
    disabled = layers["rotary_pos_emb"] if disabled is None else disabled
    made["positions"] = made["use_abs_pos_emb"] and not disabled
    if made["positions"] and rotary:
        raise ValueError(
            f"{source}: disable_abs_pos_emb=False with rotary_pos_emb=True has no counterpart "
            "here: positions are added or rotated, not both"
        )


def _checked(
    given: Mapping[str, Any], read: Mapping[str, Any], of: str, source: str
) -> dict[str, Any]:
    for name, value in given.items():
        if name in read:
            if isinstance(read[name], bool) and not isinstance(value, bool):
                raise ValueError(f"{source}: {name} must be true or false; got {value!r}")
        elif name in REFUSED:
            off = not value if REFUSED[name] is None else value == REFUSED[name]
            if not off:
                raise _refusal(name, value, source)
        elif name not in WITHOUT_EFFECT:
            raise ValueError(f"{source}: the keyword {name!r} of {of} is unknown here")
    return {**read, **{name: value for name, value in given.items() if name in read}}


def _refusal(name: str, value: Any, source: str) -> ValueError:
    shown = value if isinstance(value, bool | int | float | str) else type(value).__name__
    return ValueError(f"{source}: {name}={shown} of x-transformers has no counterpart here")


def _whole(name: str, value: Any, source: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise ValueError(f"{source}: {name} must be a whole number from 1 up; got {value!r}")
    return value


def _number(name: str, value: Any, source: str) -> float:
    if not is_number(value) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{source}: {name} must be a finite number above 0; got {value!r}")
    return float(value)


def keywords_of(wrapper: Any) -> dict[str, Any]:
    """The keywords that a TransformerWrapper was made with, as far as they count here.

    Raises:
        ValueError: it has a part, or a setting, with no counterpart here.
    """
    source, layers = type(wrapper).__name__, wrapper.attn_layers
    for module in wrapper.modules():
        kind = type(module).__name__
        if kind not in MODULES:
            raise ValueError(f"{source}: a {kind} of x-transformers has no counterpart here")
        for name, only in ATTRIBUTES.items():
            value = getattr(module, name, only)
            if bool(value) if only is None else value != only:
                raise _refusal(name, value, source)
    kinds = [type(block).__name__ for _, block, _ in layers.layers]
    only_attn = "FeedForward" not in kinds
    order = ["Attention"] if only_attn else ["Attention", "FeedForward"]
    depth = len(kinds) // len(order)
    if kinds != order * depth or tuple(
        getattr(layers, "layers_execute_order", range(len(kinds)))
    ) != tuple(range(len(kinds))):
        raise ValueError(f"{source}: layers in another order than a, f, a, f have no counterpart")
    attention, norm = layers.layers[0][1], layers.final_norm
    if type(norm).__name__ == "Identity":
        raise _refusal("pre_norm_has_final_norm", False, source)
    if wrapper.to_logits is None:
        raise _refusal("return_only_embed", True, source)
    found: dict[str, Any] = {
        "dim": layers.dim,
        "depth": depth,
        "heads": attention.heads,
        "attn_dim_head": attention.to_k.weight.shape[0] // attention.kv_heads,
        "attn_kv_heads": attention.kv_heads,
        "only_attn": only_attn,
        "norm_add_unit_offset": getattr(norm, "unit_offset", True),
        "add_value_residual": getattr(layers, "add_value_residual", False),
        "disable_abs_pos_emb": layers.disable_abs_pos_emb,
        "attn_qk_norm": attention.qk_norm,
        "attn_qk_norm_scale": attention.qk_norm_scale,
        "attn_qk_norm_dim_scale": attention.qk_norm_dim_scale,
        "attn_qk_rmsnorm": getattr(attention, "q_rmsnorm", None) is not None,
    }
    found |= {name: True for name, kind in NORMS.items() if type(norm).__name__ == kind}
    if not only_attn:
        found |= _feed_forward(layers.layers[1][1].ff)
    rotary = layers.rotary_pos_emb
    if rotary is not None:
        found |= _rotation(rotary.inv_freq)
    tied = not hasattr(wrapper.to_logits, "weight")  # a function of the embedding
    return {
        "num_tokens": wrapper.token_emb.emb.num_embeddings,
        "max_seq_len": wrapper.max_seq_len,
        "use_abs_pos_emb": type(wrapper.pos_emb).__name__ == "AbsolutePositionalEmbedding",
        "tie_embedding": tied,
        "tie_embedding_scale": getattr(wrapper, "tie_embedding_scale", 1),
        "logits_dim": None if tied else wrapper.to_logits.weight.shape[0],
        "attn_layers": found,
    }


def _feed_forward(layer: Any) -> dict[str, Any]:
    gated = type(layer[0]).__name__ == "GLU"
    activation = layer[0].act if gated else layer[0][1]
    kind = type(activation).__name__
    if kind not in ("GELU", "SiLU", "ReluSquared"):
        raise _refusal("ff_custom_activation", kind, "TransformerWrapper")
    return {
        "ff_glu": gated,
        "ff_swish": kind == "SiLU",
        "ff_relu_squared": kind == "ReluSquared",
        "ff_no_bias": layer[2].bias is None,
    }


def _rotation(frequencies: Any) -> dict[str, Any]:
    """Keywords of a rotation by its angles per position, base^(−2i/n) for i < n/2."""
    dims, factor = 2 * len(frequencies), 1.0
    if dims > 2:
        base = float(frequencies[1]) ** (-dims / 2)
        factor = round((base / BASE) ** ((dims - 2) / dims), 4)
    return {"rotary_pos_emb": True, "rotary_emb_dim": dims, "rotary_base_rescale_factor": factor}
