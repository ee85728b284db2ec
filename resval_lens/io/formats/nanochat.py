"""Checkpoints of nanochat (https://github.com/karpathy/nanochat): model_000123.pt and its meta.

    x₀ = RMS(W_E[token])                      and smeared: x₀ₜ + s·σ(w·x₀ₜ[:24])·x₀ₜ₋₁
    x  = rₗ·x + aₗ·x₀                         before layer l
    v  = x̂ W_V + g·σ(W x̂[:c])·Tableₗ[token]    in every second layer; x̂ = RMS(x)
    q  = κ·RMS(R₋θ x̂ W_Q), k as q              R₋θ the rotation by −θ

What changed over time without a trace in the files, the constants g, κ, θ, windows, follows from
which weights there are: ``_VERSIONS``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from resval_lens.config import ResValConfig
from resval_lens.io.files import read_json
from resval_lens.io.formats.format import NO_SETTINGS, Converted, Format, Settings, with_padding
from resval_lens.io.formats.nanochat_tokenizer import find_tokenizer
from resval_lens.io.formats.state import State, heads_in, heads_out, read_torch
from resval_lens.streams import AttentionStream

_SIZES = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
_PATTERN = "window_pattern"
_WHAT = "a checkpoint of nanochat"
_SMEARED = 24
_FILE = re.compile(r"model_(\d+)\.pt")


@dataclass(frozen=True)
class _Version:
    """Constants of nanochat's code while checkpoints had the same weights.

    Attributes:
        softcaps: of the logits; several where only the day of training tells.
        base: of the rotation.
        rotary_dtype: that its cosines and sines are rounded to.
        gate_scale: of the gate of value tables.
        qk_scale: of q and of k, behind their norms.
        short: a window is the context divided by this,
        tile: and rounded up to a multiple of this.
    """

    softcaps: tuple[int, ...] = (15,)
    base: float = 1e4
    rotary_dtype: torch.dtype | None = torch.bfloat16
    gate_scale: float = 2.0
    qk_scale: float = 1.0
    short: int = 2
    tile: int = 1

    def window(self, context: int) -> int:
        """How many tokens before itself a token sees in a layer with a window."""
        if self.tile == 1:
            return context // self.short
        return self.tile * -(-context // self.short // self.tile)


_MARCH: dict[str, Any] = {"base": 1e5, "rotary_dtype": None, "gate_scale": 3.0, "tile": 128}
_VERSIONS: dict[tuple[int, bool], _Version] = {
    (0, False): _Version(),  # from 2025-10-13; windows and x₀ mixed in from 2026-01-11
    (32, False): _Version(softcaps=(15, 20)),  # from 2026-01-16; 20 from 2026-03-03
    (12, False): _Version(**_MARCH, qk_scale=1.15, short=3),  # from 2026-03-09
    (12, True): _Version(**_MARCH, qk_scale=1.2, short=4),  # from 2026-03-14
}
"""By the channels that gates of value tables read (0: no tables), and whether there is a smear."""


@dataclass(frozen=True)
class _Parts:
    """What there is in a checkpoint.

    Attributes:
        tables: layers with a value table.
        channels: that the tables' gates read.
        lambdas: whether x₀ is mixed in before each layer.
        smeared: whether embeddings are smeared, and the middle layer's state taken out at the end.
    """

    version: _Version
    tables: tuple[int, ...]
    channels: int
    lambdas: bool
    smeared: bool

    def mixing(self, layers: int) -> tuple[tuple[int, ...], ...]:
        """The states that each reader reads: j is what comes out of layer j − 1, the last n."""
        if not self.lambdas:
            return ()
        middle = {layers // 2 + 1} if self.smeared else set()
        readers = [{0, layer} for layer in range(layers)]
        return tuple(tuple(sorted(states)) for states in (*readers, {layers} | middle))


class Nanochat(Format):
    """A folder of nanochat's checkpoints, of which the last step is taken, or one of them."""

    name = "a nanochat checkpoint (model_000123.pt, meta_000123.json)"
    settings: ClassVar[Mapping[str, str]] = {
        "softcap": "of the logits, 15, or 20 for models trained from 2026-03-03 to 2026-03-08",
        "step": "of training, the last by default",
    }

    def holds(self, path: Path) -> bool:
        return bool(_steps(path))

    def read(
        self,
        path: Path,
        dtype: torch.dtype,
        device: str,
        tokenizer: Any = None,
        settings: Settings = NO_SETTINGS,
    ) -> Converted:
        steps = _steps(path)
        step = settings.get("step", max(steps))
        if step not in steps:
            there = ", ".join(map(str, sorted(steps)))
            raise ValueError(f"{path} holds no step {step:.15g}; it holds {there}")
        file = steps[int(step)]
        sizes = _sizes(file.with_name(f"meta_{file.stem.removeprefix('model_')}.json"))
        state = State(read_torch(file, _WHAT), str(file), dtype)
        parts = _parts(state)
        softcap = _softcap(state.source, parts.version, settings)
        weights = _weights(state, sizes, parts)
        state.done()
        if tokenizer is None:
            tokenizer = find_tokenizer(file.parent, sizes["vocab_size"])
        cfg = _config(sizes, parts, softcap, dtype, device)
        cfg.default_prepend_bos = tokenizer is not None and tokenizer.bos_token_id is not None
        return Converted(str(file), cfg, weights, with_padding(tokenizer))


def _steps(path: Path) -> dict[int, Path]:
    """Checkpoints by their steps."""
    candidates = path.iterdir() if path.is_dir() else [path] if path.is_file() else []
    return {int(m[1]): each for each in candidates if (m := _FILE.fullmatch(each.name))}


def _sizes(meta: Path) -> dict[str, Any]:
    """``model_config`` of a meta_000123.json, checked."""
    content = read_json(meta, f"what {_WHAT} says of itself")
    config = content.get("model_config") if isinstance(content, dict) else None
    if not isinstance(config, dict):
        raise ValueError(f"{meta}: expected model_config with {', '.join(_SIZES)}")
    for name in config:
        if name not in (*_SIZES, _PATTERN):
            raise ValueError(f"{meta}: model_config has {name!r}, which nanochat does not know")
    for name in _SIZES:
        if type(config.get(name)) is not int or not 0 < config[name] < 2**31:
            raise ValueError(f"{meta}: {name} must be a number from 1 up; got {config.get(name)!r}")
    heads, groups, width = (config[name] for name in ("n_head", "n_kv_head", "n_embd"))
    if width % heads or width // heads % 2 or heads % groups:
        raise ValueError(
            f"{meta}: n_embd={width}, n_head={heads}, n_kv_head={groups} make no heads of an even "
            "width in equal groups"
        )
    pattern = config.get(_PATTERN, "L")
    if not isinstance(pattern, str) or not re.fullmatch("[SLsl]+", pattern):
        raise ValueError(f"{meta}: {_PATTERN} must be letters of S and L; got {pattern!r}")
    return {**config, _PATTERN: pattern.upper()}


def _parts(state: State) -> _Parts:
    tables = [m for name in state if (m := re.fullmatch(r"value_embeds\.(\d{1,9})\.weight", name))]
    layers = tuple(sorted(int(match[1]) for match in tables))
    gate = f"transformer.h.{layers[0]}.attn.ve_gate.weight" if layers else ""
    channels = state.matrix(gate)[1] if layers else 0
    smeared = "smear_gate.weight" in state
    if (channels, smeared) not in _VERSIONS:
        told = f"gates of {channels} channels and {'a' if smeared else 'no'} smear"
        raise ValueError(f"{state.source}: no version of nanochat is known that has {told}")
    lambdas = bool(layers) or "resid_lambdas" in state
    return _Parts(_VERSIONS[channels, smeared], layers, channels, lambdas, smeared)


def _softcap(source: str, version: _Version, settings: Settings) -> float:
    known = version.softcaps
    if "softcap" not in settings and len(known) > 1:
        raise ValueError(
            f"{source} does not say its soft cap of the logits: 15, or 20 if it was trained from "
            "2026-03-03 to 2026-03-08; pass settings={'softcap': 15} or {'softcap': 20} "
            "(--setting softcap=15)"
        )
    softcap = settings.get("softcap", known[0])
    if softcap not in known:
        wanted = " or ".join(map(str, known))
        raise ValueError(f"{source}: softcap must be {wanted}, by its weights; got {softcap:g}")
    return float(softcap)


def _config(
    sizes: Mapping[str, Any], parts: _Parts, softcap: float, dtype: torch.dtype, device: str
) -> ResValConfig:
    layers, context = sizes["n_layer"], sizes["sequence_len"]
    heads, groups = sizes["n_head"], sizes["n_kv_head"]
    head, version = sizes["n_embd"] // heads, parts.version
    window, pattern = version.window(context), sizes[_PATTERN]
    local = [pattern[layer % len(pattern)] == "S" for layer in range(layers - 1)] + [False]
    windowed = any(local) and window < context
    stream = AttentionStream(
        "v", source="tokens", mix="added_gate", act="sigmoid", scale=version.gate_scale,
        channels=parts.channels, layers=parts.tables,
    ) if parts.tables else None  # fmt: skip
    return ResValConfig(
        n_layers=layers,
        n_heads=heads,
        n_key_value_heads=None if groups == heads else groups,
        d_model=sizes["n_embd"],
        d_head=head,
        d_mlp=4 * sizes["n_embd"],
        d_vocab=sizes["vocab_size"],
        n_ctx=context,
        act_fn="relu2",
        normalization_type="RMSPre",
        # torch's rms_norm takes the epsilon of the dtype that it computes in
        eps=torch.finfo(torch.promote_types(dtype, torch.float32)).eps,
        embedding_norm=True,
        positional_embedding_type="rotary",
        rotary_dim=head,
        rotary_base=version.base,
        rotary_dtype=version.rotary_dtype,
        use_qk_norm=True,
        qk_norm_after_rotation=True,
        attn_scale=head**0.5 / version.qk_scale**2,
        use_local_attn=windowed,
        attn_types=["local" if each else "global" for each in local] if windowed else None,
        window_size=window + 1 if windowed else None,  # the token itself counts
        output_logits_soft_cap=softcap,
        streams=(stream,) if stream else (),
        residual_mixing=parts.mixing(layers),
        smear_channels=_SMEARED if parts.smeared else None,
        init_weights=False,
        original_architecture="nanochat",
        dtype=dtype,
        device=device,
    )


def _weights(state: State, sizes: Mapping[str, Any], parts: _Parts) -> dict[str, Tensor]:
    """The weights by TransformerLens's names, views where they can be."""
    width, heads, groups = (sizes[name] for name in ("n_embd", "n_head", "n_kv_head"))
    vocabulary, layers, head = sizes["vocab_size"], sizes["n_layer"], width // heads
    keys, mark = groups * head, "" if groups == heads else "_"
    rows = max(vocabulary, state.matrix("transformer.wte.weight")[0])  # padded to a multiple

    def turned(weight: Tensor) -> Tensor:
        """For a rotation by θ where the original turns by −θ: halves of each head swapped."""
        return weight.roll(head // 2, -1)

    found = {
        "embed.W_E": state.take("transformer.wte.weight", rows, width)[:vocabulary],
        "unembed.W_U": state.take("lm_head.weight", rows, width)[:vocabulary].T,
    }
    for layer in range(layers):
        attn, mlp = (f"transformer.h.{layer}.{part}" for part in ("attn", "mlp"))
        q = heads_in(state.take(f"{attn}.c_q.weight", width, width), heads)
        k, v = (
            heads_in(state.take(f"{attn}.{name}.weight", keys, width), groups)
            for name in ("c_k", "c_v")
        )
        ours = {
            "attn.W_Q": turned(q),
            f"attn.{mark}W_K": turned(k),
            f"attn.{mark}W_V": v,
            "attn.W_O": heads_out(state.take(f"{attn}.c_proj.weight", width, width), heads),
            "attn.q_norm.w": torch.ones(head),
            "attn.k_norm.w": torch.ones(head),
            "mlp.W_in": state.take(f"{mlp}.c_fc.weight", 4 * width, width).T,
            "mlp.W_out": state.take(f"{mlp}.c_proj.weight", width, 4 * width).T,
        }
        if layer in parts.tables:
            table = state.take(f"value_embeds.{layer}.weight", rows, keys)[:vocabulary]
            gate = state.take(f"{attn}.ve_gate.weight", groups, parts.channels)
            ours |= {
                "attn.mixes.v.table": table.unflatten(1, (groups, head)),
                "attn.mixes.v.gate_weight": gate,
            }
        found |= {f"blocks.{layer}.{name}": x for name, x in ours.items()}
    if parts.smeared:
        found["smear.weight"] = state.take("smear_gate.weight", 1, _SMEARED)[0]
        found["smear.scale"] = state.take("smear_lambda", 1)[0]
    return found | _mixing(state, layers, parts)


def _mixing(state: State, layers: int, parts: _Parts) -> dict[str, Tensor]:
    """The weight of each state that a reader reads."""
    if not parts.lambdas:
        return {}
    own, first = state.take("resid_lambdas", layers), state.take("x0_lambdas", layers)
    readers = [{0: own[0] + first[0]}]
    readers += [{0: first[layer], layer: own[layer]} for layer in range(1, layers)]
    last = {layers: own.new_ones(())}
    if parts.smeared:
        middle = layers // 2 + 1
        last[middle] = last.get(middle, 0) - state.take("backout_lambda", 1)[0]
    places = [f"blocks.{layer}." for layer in range(layers)] + [""]
    return {
        f"{place}resid_mix.weights": torch.stack([weights[j] for j in states])
        for place, weights, states in zip(
            places, [*readers, last], parts.mixing(layers), strict=True
        )
    }
