"""nanochat's model in every version, written out from its formulas (https://github.com/karpathy/nanochat).

State dicts have nanochat's names. Nothing of the package is used.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Version:
    """The constants of nanochat's code from a day on; most are not in its checkpoints."""

    lambdas: bool = False  # x0 mixed in before each block, weights resid_lambdas, x0_lambdas
    windows: int = 0  # a short window is the context divided by this; 0: no windows
    tile: int = 1  # and rounded up to a multiple of this
    gate_channels: int = 0  # 0: no value embeddings
    gate_scale: float = 0.0
    qk_scale: float = 1.0
    softcap: float = 15.0
    base: float = 1e4
    rounded: bool = True  # cosines and sines are bfloat16
    smear: bool = False  # with backout


VERSIONS = {
    "2025-10-13": Version(),
    "2026-01-11": Version(lambdas=True, windows=2),
    "2026-01-16": Version(lambdas=True, windows=2, gate_channels=32, gate_scale=2),
    "2026-03-03": Version(lambdas=True, windows=2, gate_channels=32, gate_scale=2, softcap=20),
    "2026-03-09": Version(lambdas=True, windows=3, tile=128, gate_channels=12, gate_scale=3,
                          qk_scale=1.15, base=1e5, rounded=False),
    "2026-03-14": Version(lambdas=True, windows=4, tile=128, gate_channels=12, gate_scale=3,
                          qk_scale=1.2, base=1e5, rounded=False, smear=True),
}  # fmt: skip


def configuration(version: Version, **changes: Any) -> dict[str, Any]:
    """A small model's ``model_config``."""
    return {
        "sequence_len": 512, "vocab_size": 50, "n_layer": 5, "n_head": 4, "n_kv_head": 2,
        "n_embd": 32, **({"window_pattern": "SSSL"} if version.windows else {}), **changes,
    }  # fmt: skip


def value_embedded(config: dict[str, Any]) -> list[int]:
    """Every second layer, the last among them."""
    last = config["n_layer"] - 1
    return [layer for layer in range(last + 1) if (last - layer) % 2 == 0]


def random_state(version: Version, config: dict[str, Any], seed: int = 0) -> State:
    """Weights far from what nanochat starts from, so that every part is seen in the logits."""
    chance = torch.Generator().manual_seed(seed)

    def drawn(*shape: int, around: float = 0.0, spread: float = 0.2) -> Tensor:
        return around + spread * torch.randn(*shape, generator=chance)

    width, layers = config["n_embd"], config["n_layer"]
    head = width // config["n_head"]
    keys = config["n_kv_head"] * head
    padded = 64 * math.ceil(config["vocab_size"] / 64)
    state = {"transformer.wte.weight": drawn(padded, width, spread=1),
             "lm_head.weight": drawn(padded, width, spread=0.4)}  # fmt: skip
    for layer in range(layers):
        shapes = {"attn.c_q": (width, width), "attn.c_k": (keys, width), "attn.c_v": (keys, width),
                  "attn.c_proj": (width, width), "mlp.c_fc": (4 * width, width),
                  "mlp.c_proj": (width, 4 * width)}  # fmt: skip
        for name, shape in shapes.items():
            state[f"transformer.h.{layer}.{name}.weight"] = drawn(*shape)
    if version.lambdas:
        state["resid_lambdas"] = drawn(layers, around=1)
        state["x0_lambdas"] = drawn(layers, around=0.3)
    for layer in value_embedded(config) if version.gate_channels else ():
        gate = drawn(config["n_kv_head"], version.gate_channels, spread=0.5)
        state[f"transformer.h.{layer}.attn.ve_gate.weight"] = gate
        state[f"value_embeds.{layer}.weight"] = drawn(padded, keys, spread=1)
    if version.smear:
        state["smear_gate.weight"] = drawn(1, 24, spread=0.5)
        state["smear_lambda"] = drawn(1, around=0.7)
        state["backout_lambda"] = drawn(1, around=0.4)
    return state


def norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x²) + eps), eps the smallest step of the dtype at 1."""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + torch.finfo(x.dtype).eps)


def rotated(x: Tensor, version: Version) -> Tensor:
    """[batch, pos, head, d]: halves of a head as complex numbers, turned by −pos · base^(−2i/d)."""
    pos, half = x.shape[1], x.shape[-1] // 2
    speed = 1.0 / version.base ** (torch.arange(half, dtype=torch.float32) / half)
    angle = torch.arange(pos, dtype=torch.float32)[:, None] * speed
    real, imaginary = angle.cos(), -angle.sin()
    if version.rounded:
        real, imaginary = (each.to(torch.bfloat16) for each in (real, imaginary))
    turn = torch.complex(real.to(x.dtype), imaginary.to(x.dtype))[:, None]
    turned = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([turned.real, turned.imag], -1)


def window(version: Version, config: dict[str, Any], layer: int) -> int:
    """How many tokens before a token are seen from it."""
    context, pattern = config["sequence_len"], config.get("window_pattern", "L").upper()
    if layer == config["n_layer"] - 1 or pattern[layer % len(pattern)] == "L":
        return int(context)
    if version.tile == 1:
        return int(context) // version.windows
    return version.tile * math.ceil(math.ceil(context / version.windows) / version.tile)


def attention(
    x: Tensor, tokens: Tensor, state: State, config: dict[str, Any], version: Version, layer: int
) -> Tensor:
    """What a layer's attention adds; x is normalised."""
    name = f"transformer.h.{layer}.attn"
    queries, group = config["n_head"], config["n_head"] // config["n_kv_head"]

    def heads(projection: str, count: int) -> Tensor:
        return (x @ state[f"{name}.{projection}.weight"].T).unflatten(-1, (count, -1))

    q = norm(rotated(heads("c_q", queries), version)) * version.qk_scale
    k = norm(rotated(heads("c_k", config["n_kv_head"]), version)) * version.qk_scale
    v = heads("c_v", config["n_kv_head"])
    if f"{name}.ve_gate.weight" in state:
        weight = state[f"{name}.ve_gate.weight"]
        gate = version.gate_scale / (1 + torch.exp(-x[..., : weight.shape[1]] @ weight.T))
        table = state[f"value_embeds.{layer}.weight"]
        v = v + gate[..., None] * table[tokens].unflatten(-1, (config["n_kv_head"], -1))
    outputs = []
    back = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
    unseen = (back < 0) | (back > window(version, config, layer))
    for head in range(queries):
        one = q[:, :, head] @ k[:, :, head // group].transpose(1, 2) / q.shape[-1] ** 0.5
        pattern = one.masked_fill(unseen, -torch.inf).softmax(-1)
        outputs.append(pattern @ v[:, :, head // group])
    return torch.cat(outputs, -1) @ state[f"{name}.c_proj.weight"].T


def mlp(x: Tensor, state: State, layer: int) -> Tensor:
    """relu²; x is normalised."""
    name = f"transformer.h.{layer}.mlp"
    inner = (x @ state[f"{name}.c_fc.weight"].T).clamp(min=0) ** 2
    return inner @ state[f"{name}.c_proj.weight"].T


def logits(state: State, config: dict[str, Any], version: Version, tokens: Tensor) -> Tensor:
    """[batch, pos, vocab_size]"""
    x = norm(state["transformer.wte.weight"][tokens])
    if version.smear:
        weight = state["smear_gate.weight"]
        gate = 1 / (1 + torch.exp(-x[:, 1:, : weight.shape[1]] @ weight.T))
        smeared = x[:, 1:] + state["smear_lambda"] * gate * x[:, :-1]
        x = torch.cat([x[:, :1], smeared], 1)
    x0, middle = x, x
    for layer in range(config["n_layer"]):
        if version.lambdas:
            x = state["resid_lambdas"][layer] * x + state["x0_lambdas"][layer] * x0
        x = x + attention(norm(x), tokens, state, config, version, layer)
        x = x + mlp(norm(x), state, layer)
        if layer == config["n_layer"] // 2:
            middle = x
    if version.smear:
        x = x - state["backout_lambda"] * middle
    scores = (norm(x) @ state["lm_head.weight"].T)[..., : config["vocab_size"]]
    return version.softcap * torch.tanh(scores / version.softcap)
