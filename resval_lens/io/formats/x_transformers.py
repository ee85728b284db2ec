"""Causal decoders of x-transformers (https://github.com/lucidrains/x-transformers), 1.42 and later.

Neither its classes nor their weights say all that they were made with, so a folder holds both:

    x_transformers.json   the keywords of TransformerWrapper, under "attn_layers" those of Decoder
    model.safetensors     the wrapper's state_dict (or model.pt, by torch.save)
    tokenizer.json        if it has a tokenizer

With ``add_value_residual`` layer l > 0 attends with g_l · own + (1 − g_l) · V_0: g_l weighs its
*own* values. It is ½, or σ(x W + b) for each token and head; here the gate weighs what is carried,
so W and b change their signs.

What is written differently there: gains are stored minus 1; positions are scaled by d^−½; queries
and keys may be normalised to length 1, times a learned scale for each head; with grouped queries
query head i reads key-value head i mod kv, so that heads change places here: query head
``g · heads/kv + r`` is their ``r · kv + g``. Normalised queries and keys do not depend on the size
of W_Q and W_K, which are scaled by 2^10 where norms would add 1e-5 to their squares.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resval_lens.config import ResValConfig
from resval_lens.io.checkpoint import read_tokenizer
from resval_lens.io.files import check_room, read_json
from resval_lens.io.formats.format import (
    NO_SETTINGS,
    Converted,
    Format,
    Logits,
    Settings,
    check_vocabulary,
    leads_with_bos,
    with_padding,
)
from resval_lens.io.formats.state import (
    State,
    heads_in,
    heads_out,
    read_safetensors,
    read_torch,
)
from resval_lens.io.formats.x_transformers_keywords import keywords_of, settled
from resval_lens.streams import AttentionStream

KEYWORDS = "x_transformers.json"
NO_EPS = 1e-30
"""x-transformers divides by the length of a vector itself."""
LAYER_NORM_EPS = 1e-5


def converted_from_x_transformers(
    model: Any,
    keywords: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
) -> Converted:
    """A TransformerWrapper, or the state_dict of one with its keywords, in TransformerLens's terms.

    Args:
        model: a TransformerWrapper or an AutoregressiveWrapper of one, whose logits the result is
            held to; or a state_dict.
        keywords: with a state_dict, those of TransformerWrapper; under ``attn_layers`` those of
            Decoder.
        tokenizer: of transformers.
        dtype: to compute in; by default that of the weights.
        device: to compute on; by default that of a wrapper, and the CPU.

    Raises:
        ValueError: neither; a keyword or part that cannot be expressed here, by its name.
    """
    if isinstance(model, Mapping):
        if keywords is None:
            raise ValueError("a state_dict of x-transformers needs the keywords of its wrapper")
        found = next((x.dtype for x in model.values() if isinstance(x, Tensor)), torch.float32)
        state = {name.removeprefix("net."): x for name, x in model.items()}
        return _converted(
            "x-transformers", state, keywords, tokenizer, dtype or found, device or "cpu"
        )
    if keywords is not None:
        raise ValueError("keywords= is for a state_dict; a wrapper says itself how it was made")
    wrapper = getattr(model, "net", model)
    if not hasattr(wrapper, "attn_layers") or not hasattr(wrapper, "token_emb"):
        raise ValueError(f"expected a TransformerWrapper of x-transformers; got {_kind(model)}")
    parameter = next(wrapper.parameters())

    def reference(tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab_out"]:
        was = wrapper.training
        try:
            logits: Tensor = wrapper.eval()(tokens.to(parameter.device))
        finally:
            wrapper.train(was)
        return logits

    return _converted(
        _kind(wrapper), wrapper.state_dict(), keywords_of(wrapper), tokenizer,
        dtype or parameter.dtype, device or str(parameter.device), reference, parameter.dtype,
    )  # fmt: skip


def _kind(model: Any) -> str:
    return type(model).__name__


class XTransformers(Format):
    """A folder with the state_dict and the keywords of a TransformerWrapper."""

    name = f"a folder of x-transformers ({KEYWORDS}, model.safetensors or model.pt)"

    def holds(self, path: Path) -> bool:
        return (path / KEYWORDS).is_file()

    def read(
        self,
        path: Path,
        dtype: torch.dtype,
        device: str,
        tokenizer: Any = None,
        settings: Settings = NO_SETTINGS,
    ) -> Converted:
        keywords = read_json(path / KEYWORDS, "the keywords of a TransformerWrapper")
        expected = "the state_dict of a TransformerWrapper"
        if (path / "model.safetensors").exists() or not (path / "model.pt").exists():
            state: Any = read_safetensors([path / "model.safetensors"], expected)
        else:
            state = read_torch(path / "model.pt", expected)
        if isinstance(state, Mapping):
            state = {str(name).removeprefix("net."): x for name, x in state.items()}
        tokenizer = read_tokenizer(path) if tokenizer is None else tokenizer
        return _converted(str(path), state, keywords, tokenizer, dtype, device)


def _converted(
    source: str,
    tensors: Any,
    keywords: Any,
    tokenizer: Any,
    dtype: torch.dtype,
    device: str,
    reference: Logits | None = None,
    reference_dtype: torch.dtype | None = None,
) -> Converted:
    made = settled(keywords, source)
    layers = made["attn_layers"]
    state = State(tensors, source, dtype)
    width, heads, groups = layers["dim"], layers["heads"], layers["attn_kv_heads"]
    d_head, rotary = layers["attn_dim_head"], layers["rotary_emb_dim"]
    root = layers["norm"] != "LayerNorm"
    learned = layers["add_value_residual"] and any("value_residual_mix" in name for name in state)
    gated, attn_only = layers["ff_glu"], layers["only_attn"]
    d_mlp = None if attn_only else _width_of_mlp(state, gated)
    settings: dict[str, Any] = {
        "n_layers": layers["depth"],
        "n_heads": heads,
        "n_key_value_heads": None if groups == heads else groups,
        "d_model": width,
        "d_head": d_head,
        "d_mlp": d_mlp,
        "attn_only": attn_only,
        "n_ctx": made["max_seq_len"],
        "d_vocab": made["num_tokens"],
        "d_vocab_out": made["logits_dim"],
        "act_fn": layers["activation"],
        "gated_mlp": gated,
        "normalization_type": "RMS" if root else "LN",
        "eps": NO_EPS if root else LAYER_NORM_EPS,
        "use_qk_norm": layers["attn_qk_norm"] or layers["attn_qk_rmsnorm"],
        "streams": _streams(layers, learned, source),
        "init_weights": False,
        "dtype": dtype,
        "device": device,
        "default_prepend_bos": leads_with_bos(tokenizer),
        "original_architecture": "x-transformers",
    }
    if gated:
        settings["gated_mlp_biases"] = True
    if layers["attn_qk_norm"]:
        scale = d_head**-0.5 if layers["attn_qk_norm_dim_scale"] else layers["attn_qk_norm_scale"]
        settings["attn_scale"] = 1 / scale
    if layers["attn_qk_rmsnorm"] or (layers["attn_qk_norm"] and layers["attn_qk_norm_dim_scale"]):
        settings["qk_norm_per_head"] = True
    if rotary:
        settings |= {
            "positional_embedding_type": "rotary",
            "rotary_dim": rotary,
            "rotary_adjacent_pairs": True,
            "rotary_base": layers["rotary_base"],
        }
        _check_frequencies(state, rotary, layers["rotary_base"])
    check_vocabulary(tokenizer, made["num_tokens"], source)
    cfg = ResValConfig(**settings)
    weights = _weights(state, made, cfg, learned)
    state.done()
    return Converted(source, cfg, weights, with_padding(tokenizer), reference, reference_dtype)


def _streams(layers: Mapping[str, Any], learned: bool, source: str) -> tuple[AttentionStream, ...]:
    if not layers["add_value_residual"]:
        return ()
    if layers["learned_value_residual_mix"] not in (None, learned) and layers["depth"] > 1:
        raise ValueError(
            f"{source}: learned_value_residual_mix={layers['learned_value_residual_mix']}, but its "
            f"weights have {'a' if learned else 'no'} to_value_residual_mix"
        )
    if learned and layers["attn_kv_heads"] != layers["heads"]:
        raise ValueError(
            f"{source}: learned_value_residual_mix=True with attn_kv_heads="
            f"{layers['attn_kv_heads']} of {layers['heads']} heads, which x-transformers itself "
            "cannot run"
        )
    if learned:
        return (AttentionStream("v", source="first", mix="gate"),)
    return (AttentionStream("v", source="first", mix="pair", own=0.5, carried=0.5),)


def _check_frequencies(state: State, rotary: int, base: float) -> None:
    """The rotation's frequencies, where they are stored, are those of the keywords."""
    name = "attn_layers.rotary_pos_emb.inv_freq"
    if name not in state:
        return
    wanted = base ** -(torch.arange(0, rotary, 2) / rotary)
    found = state.take(name, rotary // 2).float().cpu()
    if not torch.allclose(found, wanted, rtol=1e-2):
        raise ValueError(f"{state.source}: {name} is not of rotary_emb_dim={rotary}, base {base:g}")


def _width_of_mlp(state: State, gated: bool) -> int:
    name = f"attn_layers.layers.1.1.ff.0.{'proj' if gated else '0'}.weight"
    return state.matrix(name)[0] // (2 if gated else 1)


def _weights(
    state: State, made: Mapping[str, Any], cfg: ResValConfig, learned: bool
) -> dict[str, Tensor]:
    layers, width = made["attn_layers"], cfg.d_model
    embedding = state.take("token_emb.emb.weight", cfg.d_vocab, width)
    weights = {"embed.W_E": embedding}
    if cfg.positional_embedding_type == "standard":
        if made["positions"]:
            positions = state.take("pos_emb.emb.weight", cfg.n_ctx, width) * width**-0.5
        else:
            check_room(cfg.n_ctx * width * 8, f"{state.source}: max_seq_len={cfg.n_ctx}")
            positions = torch.zeros(cfg.n_ctx, width, dtype=cfg.dtype)
        weights["pos_embed.W_pos"] = positions
    if made["tie_embedding"]:
        weights["unembed.W_U"] = embedding.T * made["tie_embedding_scale"]
    else:
        weights["unembed.W_U"] = state.take("to_logits.weight", cfg.d_vocab_out, width).T
    weights["ln_final.w"] = _gain(state, "attn_layers.final_norm", layers, width)
    step = 1 if cfg.attn_only else 2
    for layer in range(cfg.n_layers):
        attention = f"attn_layers.layers.{step * layer}"
        ours = f"blocks.{layer}"
        weights[f"{ours}.ln1.w"] = _gain(state, f"{attention}.0.0", layers, width)
        of_layer = _attention(state, f"{attention}.1", layers, cfg)
        if learned and layer > 0:
            mix = f"{attention}.1.to_value_residual_mix.0"
            of_layer["mixes.v.gate_weight"] = -state.take(f"{mix}.weight", cfg.n_heads, width)
            of_layer["mixes.v.gate_bias"] = -state.take(f"{mix}.bias", cfg.n_heads)
        weights |= {f"{ours}.attn.{name}": x for name, x in of_layer.items()}
        if not cfg.attn_only:
            behind = f"attn_layers.layers.{step * layer + 1}"
            weights[f"{ours}.ln2.w"] = _gain(state, f"{behind}.0.0", layers, width)
            of_layer = _mlp(state, f"{behind}.1.ff", layers, cfg)
            weights |= {f"{ours}.mlp.{name}": x for name, x in of_layer.items()}
    return weights


def _gain(state: State, name: str, layers: Mapping[str, Any], width: int) -> Tensor:
    kind, offset = layers["norm"], float(layers["norm_add_unit_offset"])
    if kind == "SimpleRMSNorm":
        return torch.ones(width, dtype=state.dtype)
    if kind == "ScaleNorm":
        return (state.take(f"{name}.g", 1) + offset).expand(width)
    return state.take(f"{name}.{'gamma' if kind == 'LayerNorm' else 'g'}", width) + offset


def _attention(
    state: State, name: str, layers: Mapping[str, Any], cfg: ResValConfig
) -> dict[str, Tensor]:
    heads, d_head, width = cfg.n_heads, cfg.d_head, cfg.d_model
    groups = cfg.n_key_value_heads or heads
    places = torch.arange(heads).view(-1, groups).T.flatten()  # [head here] their head
    under = "_" if cfg.n_key_value_heads is not None else ""
    projected = {
        "W_Q": heads_in(state.take(f"{name}.to_q.weight", heads * d_head, width), heads)[places],
        f"{under}W_K": heads_in(state.take(f"{name}.to_k.weight", groups * d_head, width), groups),
        f"{under}W_V": heads_in(state.take(f"{name}.to_v.weight", groups * d_head, width), groups),
    }
    if heads == 1 and f"{name}.to_out.weight" not in state and d_head == width:
        projected["W_O"] = torch.eye(width, dtype=cfg.dtype)[None]  # it projects none there
    else:
        out = state.take(f"{name}.to_out.weight", width, heads * d_head)
        projected["W_O"] = heads_out(out, heads)[places]
    if not cfg.use_qk_norm:
        return projected
    for side, number in (("q", heads), ("k", groups)):
        if layers["attn_qk_rmsnorm"]:
            gain = state.take(f"{name}.{side}_rmsnorm.gamma", number, 1, d_head)[:, 0] + 1
        elif layers["attn_qk_norm_dim_scale"]:
            gain = state.take(f"{name}.qk_norm_{side}_scale", number, 1, d_head)[:, 0]
            gain = gain * d_head**-0.5  # of vectors of length 1, here of length d_head^½
        else:
            gain = torch.full((d_head,), d_head**-0.5, dtype=cfg.dtype)
        projected[f"{side}_norm.w"] = gain[places] if side == "q" and gain.dim() > 1 else gain
    if cfg.eps > NO_EPS:
        projected["W_Q"] = projected["W_Q"] * 2**10
        projected[f"{under}W_K"] = projected[f"{under}W_K"] * 2**10
    return projected


def _mlp(
    state: State, name: str, layers: Mapping[str, Any], cfg: ResValConfig
) -> dict[str, Tensor]:
    inner, width = cast("int", cfg.d_mlp), cfg.d_model
    weights = {"W_out": state.take(f"{name}.2.weight", width, inner).T}
    if not layers["ff_no_bias"]:
        weights["b_out"] = state.take(f"{name}.2.bias", width)
    if cfg.gated_mlp:
        up, gate = state.take(f"{name}.0.proj.weight", 2 * inner, width).chunk(2)
        b_up, b_gate = state.take(f"{name}.0.proj.bias", 2 * inner).chunk(2)
        return weights | {"W_in": up.T, "W_gate": gate.T, "b_in": b_up, "b_gate": b_gate}
    weights["W_in"] = state.take(f"{name}.0.0.weight", inner, width).T
    if not layers["ff_no_bias"]:
        weights["b_in"] = state.take(f"{name}.0.0.bias", inner)
    return weights
