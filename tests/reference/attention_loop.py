"""A decoder transformer with residual attention streams as NumPy loops.

Sequence by sequence, layer by layer, head by head, position by position: slow and obvious.
Source of the streams: arXiv 2412.15113 section 3.1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def forward(
    params: Mapping[str, Any],
    tokens: np.ndarray,
    *,
    n_heads: int,
    streams: Sequence[Mapping[str, Any]] = (),
    eps: float = 1e-5,
    scale: bool = True,
    act: str = "gelu_new",
) -> np.ndarray:
    """Logits [batch, position, vocab] in float64.

        x = W_E[token] + W_pos[position]
        x = x + attn(ln1(x)); x = x + mlp(ln2(x))    for every layer
        logits = ln_final(x) W_U + b_U

    A stream of kind "q", "k" or "v" replaces, in the layers that receive it, the layer's own
    tensor local_l = ln1(x) W + b (before scaling by 1/sqrt(d_head)) with

        total_l = own · local_l + sum_j carried_j · passed_j

    head by head. Layers that do not receive it have total_l = local_l.

    Args:
        params: TransformerLens state dict (LayerNorm with weights, learned positions added). Keys
            and values are grouped when stored as `_W_K`, `_b_K`, `_W_V`, `_b_V` with fewer heads:
            of r query heads a key-value head, head g serves query heads g·r..g·r+r-1, and the k
            and v streams live on key-value heads. Without `mlp.W_in` a layer is attention only.
        tokens: integers [batch, position].
        n_heads: query heads.
        streams: at most one dict of each kind, with
            of: "q", "k" or "v";
            source: which layers pass on to l: "previous" j = l-1, "first" j = 0, "all" j = 0..l-1;
            carry: what j passes on: "raw" local_j, "sum" total_j;
            own: float, 1.0 if absent;
            carried: float, 1.0 if absent, or with source "all" a list indexed by source layer j;
            layers: those that receive, None or absent for every layer but 0.
        eps: added to the variance in LayerNorm.
        scale: divide scores by sqrt(d_head).
        act: "gelu_new", "gelu" (exact) or "relu".
    """
    weights = {name: np.asarray(value, dtype=np.float64) for name, value in params.items()}
    if len(weights["blocks.0.attn.W_Q"]) != n_heads:
        raise ValueError(f"n_heads={n_heads}: W_Q has {len(weights['blocks.0.attn.W_Q'])}")
    by_kind = {stream["of"]: stream for stream in streams}
    if len(by_kind) < len(streams):
        raise ValueError(f"streams={list(streams)!r}: expected at most one of each kind")
    for stream in streams:
        if 0 in (stream.get("layers") or []):
            raise ValueError(f"layers={stream['layers']!r}: layer 0 has nothing to receive")

    logits = []
    for sequence in np.asarray(tokens):
        x = weights["embed.W_E"][sequence] + weights["pos_embed.W_pos"][: len(sequence)]
        local: dict[str, list[np.ndarray]] = {"q": [], "k": [], "v": []}  # a tensor for each layer,
        total: dict[str, list[np.ndarray]] = {"q": [], "k": [], "v": []}  # [head, position, d_head]
        for layer in range(sum(name.endswith(".attn.W_Q") for name in weights)):
            block = _under(weights, f"blocks.{layer}.")
            normed = _layer_norm(x, block["ln1.w"], block["ln1.b"], eps)
            for kind in "qkv":
                local[kind].append(_project(normed, block, kind))
                total[kind].append(_total(layer, local[kind], total[kind], by_kind.get(kind)))
            q, k, v = (total[kind][layer] for kind in "qkv")
            x = x + _attention(q, k, v, block["attn.W_O"], scale) + block["attn.b_O"]
            if "mlp.W_in" in block:
                normed = _layer_norm(x, block["ln2.w"], block["ln2.b"], eps)
                hidden = ACTIVATIONS[act](normed @ block["mlp.W_in"] + block["mlp.b_in"])
                x = x + hidden @ block["mlp.W_out"] + block["mlp.b_out"]
        normed = _layer_norm(x, weights["ln_final.w"], weights["ln_final.b"], eps)
        logits.append(normed @ weights["unembed.W_U"] + weights["unembed.b_U"])
    return np.stack(logits)


def _total(
    layer: int,
    local: list[np.ndarray],
    total: list[np.ndarray],
    stream: Mapping[str, Any] | None,
) -> np.ndarray:
    """total_l of one kind, given local_0..local_l and total_0..total_{l-1}."""
    if stream is None or layer == 0:
        return local[layer]
    layers = stream.get("layers")
    if layers is not None and layer not in layers:
        return local[layer]

    sources = {"previous": [layer - 1], "first": [0], "all": list(range(layer))}[stream["source"]]
    passed = {"raw": local, "sum": total}[stream["carry"]]
    carried = stream.get("carried", 1.0)
    result = stream.get("own", 1.0) * local[layer]
    for j in sources:
        result = result + (carried if np.isscalar(carried) else carried[j]) * passed[j]
    return result


def _project(normed: np.ndarray, block: Mapping[str, np.ndarray], kind: str) -> np.ndarray:
    """A layer's own queries, keys or values [head, position, d_head], of normed [position, d]."""
    grouped = "_" if f"attn._W_{kind.upper()}" in block else ""
    weight = block[f"attn.{grouped}W_{kind.upper()}"]  # [head, d, d_head]
    bias = block[f"attn.{grouped}b_{kind.upper()}"]  # [head, d_head]
    return np.stack([normed @ weight[head] + bias[head] for head in range(len(weight))])


def _attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, W_O: np.ndarray, scale: bool
) -> np.ndarray:
    """Sum over heads of causal attention [position, d]; q, k, v are [head, position, d_head]."""
    n_heads, length, d_head = q.shape
    output = np.zeros((length, W_O.shape[-1]))
    for head in range(n_heads):
        group = head // (n_heads // len(k))
        for i in range(length):
            scores = np.array([q[head, i] @ k[group, j] for j in range(i + 1)])
            if scale:
                scores = scores / math.sqrt(d_head)
            exps = np.exp(scores - scores.max())
            pattern = exps / exps.sum()  # [i + 1]
            z = sum(pattern[j] * v[group, j] for j in range(i + 1))  # [d_head]
            output[i] += z @ W_O[head]
    return output


def _layer_norm(x: np.ndarray, w: np.ndarray, b: np.ndarray, eps: float) -> np.ndarray:
    """(row - mean)/sqrt(variance + eps) · w + b, for every row of x [position, d]."""
    rows = [(row - row.mean()) / math.sqrt(row.var() + eps) * w + b for row in x]
    return np.stack(rows)


def _under(weights: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The weights whose names start with prefix, named by what follows it."""
    return {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}


def _gelu_new(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0)


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu_new": _gelu_new,
    "gelu": _gelu,
    "relu": _relu,
}
