"""Llama with the first layer's values: ResFormer, SVFormer, SATFormer folders.

    SVFormer    V_l = V_0                            arXiv 2410.17897; only layer 0 has a v_proj
    ResFormer   V_l = a_l · own + b_l · V_0          as in the code of arXiv 2605.03953, learned
    SATFormer   V_l = own + α_l · V_0                arXiv 2605.03953, α_l of each token and
                                                     key-value head: relu or σ of x W (+ c)

SVFormer is of https://github.com/Zcchill/Value-Residual-Learning, whose folders say that they are
of Llama. Its ResFormer, a = b = ½, has Llama's weights, too, and says nothing of the values: as any
Llama it is loaded without a stream, and with
``streams="v(source=first, mix=pair, own=0.5, carried=0.5)"`` as what it is.

The others are of https://github.com/SkyeGunasekaran/SATFormer: a ResFormer's b_l is
s · softmax(z)_l over layers 1 to n − 1. Where queries and keys are normalised, their norm adds 1e-5
to the mean square, whatever ``norm_eps`` is: here W_Q and W_K (and biases) are scaled by
(norm_eps / 1e-5)^½, which is the same.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resval_lens.checks import is_number
from resval_lens.config import ResValConfig
from resval_lens.host import HookedTransformerConfig
from resval_lens.io.files import read_json, tensor_shapes
from resval_lens.io.formats.format import (
    NO_SETTINGS,
    Converted,
    Format,
    Settings,
    check_vocabulary,
    leads_with_bos,
    with_padding,
)
from resval_lens.io.formats.hugging_face import HuggingFaceFolder, folder_tokenizer, weight_files
from resval_lens.io.formats.state import State, heads_in, heads_out, read_safetensors
from resval_lens.streams import AttentionStream, Streams

KINDS = ("ResFormer", "SATFormer")
"""``model_type`` of what the code of arXiv 2605.03953 saves."""
QK_EPS = 1e-5
GATES = {"relu": 1.0, "sigmoid": 1.0}
"""Gates that are expressed, with their scale."""
LLAMA = {
    "embed": "model.embed_tokens", "norm1": "input_layernorm", "attention": "self_attn",
    "norm2": "post_attention_layernorm",
}  # fmt: skip
FLA = {"embed": "model.embeddings", "norm1": "attn_norm", "attention": "attn", "norm2": "mlp_norm"}
"""Names of the same parts in the two kinds of folders."""


_LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")


class ResFormer(Format):
    """A folder of SVFormer, SATFormer, or of the latter's ResFormer."""

    name = "a folder of SVFormer, SATFormer or its ResFormer (config.json, *.safetensors)"

    def holds(self, path: Path) -> bool:
        if not HuggingFaceFolder().holds(path):
            return False
        kind = read_json(path / "config.json", "a model's configuration")["model_type"]
        return kind in KINDS or (kind == "llama" and _is_svformer(path))

    def read(
        self,
        path: Path,
        dtype: torch.dtype,
        device: str,
        tokenizer: Any = None,
        settings: Settings = NO_SETTINGS,
    ) -> Converted:
        content = read_json(path / "config.json", "a model's configuration")
        files = weight_files(path)
        state = State(read_safetensors(files, "weights"), str(path), dtype)
        if content["model_type"] in KINDS:
            names, cfg = FLA, _config(content, state, dtype)
        else:
            names, cfg = LLAMA, HuggingFaceFolder().config(path, dtype)
        if tokenizer is None:
            tokenizer = folder_tokenizer(path)
        cfg.device, cfg.default_prepend_bos = device, leads_with_bos(tokenizer)
        cfg.init_weights = False
        check_vocabulary(tokenizer, cfg.d_vocab, str(path))
        streams, mixing = _streams(state, content, cfg.n_layers)
        weights = _weights(state, cfg, names, content.get("tie_word_embeddings") is True) | mixing
        state.done()
        cfg = ResValConfig.from_hooked(cfg, streams)
        return Converted(str(path), cfg, weights, with_padding(tokenizer))


def _is_svformer(path: Path) -> bool:
    """Whether the first layer alone has a projection to values, of several layers."""
    try:
        shapes = [name for file in weight_files(path) for name in tensor_shapes(file, "weights")]
    except ValueError:  # what is wrong with it says whoever reads it
        return False
    values = [name for name in shapes if name.endswith("self_attn.v_proj.weight")]
    keys = [name for name in shapes if name.endswith("self_attn.k_proj.weight")]
    return values == ["model.layers.0.self_attn.v_proj.weight"] and len(keys) > 1


def _config(content: dict[str, Any], state: State, dtype: torch.dtype) -> HookedTransformerConfig:
    source = state.source

    def whole(name: str, default: int | None = None) -> int:
        value = content.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{source}: {name} must be a whole number from 1 up; got {value!r}")
        return value

    def number(name: str, default: float) -> float:
        value = content.get(name, default)
        if not is_number(value) or not 0 < value < float("inf"):
            raise ValueError(f"{source}: {name} must be a finite number above 0; got {value!r}")
        return float(value)

    if content.get("hidden_act", "swish") not in ("swish", "silu"):
        raise ValueError(f"{source}: hidden_act={content['hidden_act']!r} cannot be converted")
    width, heads = whole("hidden_size"), whole("num_heads")
    groups = whole("num_kv_heads", heads)
    if width % heads or heads % groups or width // heads % 2:
        raise ValueError(
            f"{source}: num_heads={heads} must divide hidden_size={width} into heads of even size, "
            f"and num_kv_heads={groups} must divide num_heads"
        )
    n_layers, window = whole("num_hidden_layers"), content.get("window_size")
    stored = {int(found[1]) for name in state if (found := _LAYER.match(name))}
    if n_layers != len(stored) or max(stored) >= n_layers:
        raise ValueError(
            f"{source}: num_hidden_layers={n_layers}, but its weights are of {len(stored)} layers"
        )
    local: dict[str, Any] = {}
    if window is not None:
        local = {"use_local_attn": True, "attn_types": ["local"] * n_layers}
        local["window_size"] = whole("window_size")
    return HookedTransformerConfig(
        n_layers=n_layers,
        n_heads=heads,
        n_key_value_heads=None if groups == heads else groups,
        d_model=width,
        d_head=width // heads,
        d_mlp=state.matrix("model.layers.0.mlp.down_proj.weight")[1],
        n_ctx=whole("max_position_embeddings"),
        d_vocab=whole("vocab_size"),
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        eps=number("norm_eps", 1e-6),
        positional_embedding_type="rotary",
        rotary_dim=width // heads,
        rotary_base=number("rope_theta", 10_000.0),
        rotary_adjacent_pairs=False,
        use_qk_norm=bool(content.get("qk_norm", False)),
        init_weights=False,
        dtype=dtype,
        original_architecture=content["model_type"],
        **local,
    )


def _streams(
    state: State, content: dict[str, Any], n_layers: int
) -> tuple[Streams, dict[str, Tensor]]:
    """The value stream that the weights are of, and its learned numbers by their names here."""
    if content["model_type"] not in KINDS:  # SVFormer
        return (AttentionStream("v", source="first", mix="pair", own=0, carried=1),), {}
    mixing = "attn.value_residual_mixing"
    scale, logits = "model.lambda_manager.lambda_scale", "model.lambda_manager.lambda_logits"
    shares = None
    if scale in state:
        shares = state.take(scale) * state.take(logits, n_layers - 1).softmax(0)
    found = [_LAYER.match(name) for name in state if f".{mixing}." in name]
    receiving = sorted({int(each[1]) for each in found if each})
    if not receiving:
        return (), {}
    layers = None if receiving == list(range(1, n_layers)) else tuple(receiving)
    weights = {}
    if content["model_type"] == "ResFormer":
        if shares is None:
            raise ValueError(f"{state.source}: its weights lack {scale}")
        for layer in receiving:
            ours = f"blocks.{layer}.attn.mixes.v"
            weights[f"{ours}.own"] = state.take(f"model.layers.{layer}.{mixing}.lambda2")
            weights[f"{ours}.carried"] = shares[layer - 1][None]
        return (AttentionStream("v", source="first", mix="learned_pair", layers=layers),), weights
    gate = content.get("value_residual_gate", "relu")
    if gate not in GATES:
        raise ValueError(
            f"{state.source}: value_residual_gate={gate!r} has no counterpart here; "
            f"{' and '.join(GATES)} have"
        )
    bias = f"model.layers.{receiving[0]}.{mixing}.alpha_proj.bias" in state
    for layer in receiving:
        ours, theirs = f"blocks.{layer}.attn.mixes.v", f"model.layers.{layer}.{mixing}.alpha_proj"
        shape = state.matrix(f"{theirs}.weight")
        weights[f"{ours}.gate_weight"] = state.take(f"{theirs}.weight", *shape)
        if bias:
            weights[f"{ours}.gate_bias"] = state.take(f"{theirs}.bias", *shape[:1])
    stream = AttentionStream(
        "v", source="first", mix="added_gate", act=gate, scale=GATES[gate], bias=bias,
        layers=layers,
    )  # fmt: skip
    return (stream,), weights


def _weights(
    state: State, cfg: HookedTransformerConfig, names: dict[str, str], tied: bool
) -> dict[str, Tensor]:
    width, heads, d_head, inner = cfg.d_model, cfg.n_heads, cfg.d_head, cfg.d_mlp or 0
    groups = cfg.n_key_value_heads or heads
    under = "_" if cfg.n_key_value_heads is not None else ""
    embedding = state.take(f"{names['embed']}.weight", cfg.d_vocab, width)
    out = embedding
    if not (tied and "lm_head.weight" not in state):
        out = state.take("lm_head.weight", cfg.d_vocab, width)
    weights = {
        "embed.W_E": embedding,
        "unembed.W_U": out.T,
        "ln_final.w": state.take("model.norm.weight", width),
    }
    scale = (cfg.eps / QK_EPS) ** 0.5 if cfg.use_qk_norm else 1.0
    for layer in range(cfg.n_layers):
        theirs, ours = f"model.layers.{layer}", f"blocks.{layer}"
        attention = f"{theirs}.{names['attention']}"
        weights |= {
            f"{ours}.ln1.w": state.take(f"{theirs}.{names['norm1']}.weight", width),
            f"{ours}.ln2.w": state.take(f"{theirs}.{names['norm2']}.weight", width),
            f"{ours}.attn.W_O": heads_out(
                state.take(f"{attention}.o_proj.weight", width, heads * d_head), heads
            ),
            f"{ours}.mlp.W_gate": state.take(f"{theirs}.mlp.gate_proj.weight", inner, width).T,
            f"{ours}.mlp.W_in": state.take(f"{theirs}.mlp.up_proj.weight", inner, width).T,
            f"{ours}.mlp.W_out": state.take(f"{theirs}.mlp.down_proj.weight", width, inner).T,
        }
        for each, number in (("q", heads), ("k", groups), ("v", groups)):
            name = f"{attention}.{each}_proj"
            prefix = f"{ours}.attn.{'' if each == 'q' else under}"
            sized = scale if each != "v" else 1.0
            if f"{name}.weight" in state or each != "v" or layer == 0 or names is FLA:
                weight = state.take(f"{name}.weight", number * d_head, width)
            else:  # SVFormer
                weight = torch.zeros(number * d_head, width, dtype=cfg.dtype)
            weights[f"{prefix}W_{each.upper()}"] = heads_in(weight, number) * sized
            if names is FLA and f"{name}.bias" in state:
                bias = state.take(f"{name}.bias", number * d_head).unflatten(0, (number, d_head))
                weights[f"{prefix}b_{each.upper()}"] = bias * sized
        if cfg.use_qk_norm:
            for each in "qk":
                gain = state.take(f"{attention}.{each}_norm.weight", d_head)
                weights[f"{ours}.attn.{each}_norm.w"] = gain
    return weights
