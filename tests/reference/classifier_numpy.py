"""The two-layer in-context classifier as NumPy loops, one batch element and query at a time.

Source: arXiv 2412.15113 section 3.2, Reddy 2024 arXiv 2312.03002; sizes, initialisation and the
order of the 13 arrays are those of the public code of arXiv 2412.15113.
"""

from collections.abc import Sequence

import numpy as np

NAMES = ("q1", "k1", "v1", "q2", "k2", "v2", "w1", "b1", "w2", "b2", "w3", "b3", "readout")


def forward(params: Sequence[np.ndarray], x: np.ndarray, stream: str = "") -> dict[str, np.ndarray]:
    """Logits of the last token, with everything computed on the way.

        q1, k1, v1 = x Q1ᵀ, x K1ᵀ, x V1ᵀ                    x1 = x  + A1 v1
        q2, k2, v2 = x1 Q2ᵀ, x1 K2ᵀ, x1 V2ᵀ (+ q1, k1, v1)  x2 = x1 + A2 v2
        A[i, j] = softmax over j ≤ i of q_i · k_j           (causal, not scaled)
        m_n = relu(m_{n-1} W_nᵀ + b_n), m_0 = x2[last]      logits = m_3 readoutᵀ

    Args:
        params: arr_0..arr_12, named by `NAMES`. Matrices are [out, in]; b1, b2, b3 have shape (1,).
        x: input tokens [batch, position, d].
        stream: any combination of "q", "k" and "v"; layer 2 adds layer 1's tensor of each.

    Returns:
        logits [batch, L]; A1, A2 [batch, query, key]; x1, x2 [batch, position, d]; m1, m2, m3
        [batch, d]; q1, k1, v1, q2, k2, v2 [batch, position, d], each layer's own, before the
        stream; and q2_total, k2_total, v2_total, which layer 2 attends with.
    """
    if set(stream) - set("qkv"):
        raise ValueError(f"stream={stream!r}: expected a combination of 'q', 'k' and 'v'")
    weights = {n: np.asarray(p, dtype=np.float64) for n, p in zip(NAMES, params, strict=True)}
    sequences = [_forward_one(weights, np.asarray(s, dtype=np.float64), stream) for s in x]
    return {name: np.stack([s[name] for s in sequences]) for name in sequences[0]}


def random_params(
    rng: np.random.Generator, d: int = 150, labels: int = 32, content: int = 85
) -> list[np.ndarray]:
    """The 13 arrays at initialisation.

    Attention N(0, 1)/sqrt(content); MLP N(0, 1)·sqrt(2/d), bias N(0, 1)·sqrt(1/d), one per layer;
    readout N(0, 1)/sqrt(d).
    """
    params = [rng.standard_normal((d, d)) / np.sqrt(content) for _ in range(6)]
    for _ in range(3):
        params.append(rng.standard_normal((d, d)) * np.sqrt(2 / d))
        params.append(rng.standard_normal(1) * np.sqrt(1 / d))
    params.append(rng.standard_normal((labels, d)) / np.sqrt(d))
    return params


def _forward_one(w: dict[str, np.ndarray], x: np.ndarray, stream: str) -> dict[str, np.ndarray]:
    """`forward` for one sequence x [position, d]."""
    out: dict[str, np.ndarray] = {}

    for name in "qkv":
        out[name + "1"] = x @ w[name + "1"].T  # [position, d]
    out["A1"], added = _attend(out["q1"], out["k1"], out["v1"])
    out["x1"] = x + added

    for name in "qkv":
        own = out["x1"] @ w[name + "2"].T
        out[name + "2"] = own
        out[name + "2_total"] = own + out[name + "1"] if name in stream else own
    out["A2"], added = _attend(out["q2_total"], out["k2_total"], out["v2_total"])
    out["x2"] = out["x1"] + added

    hidden = out["x2"][-1]  # [d]
    for n in "123":
        hidden = np.maximum(hidden @ w["w" + n].T + w["b" + n], 0.0)
        out["m" + n] = hidden
    out["logits"] = hidden @ w["readout"].T  # [L]
    return out


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pattern [query, key] and output [query, d] of one causal head."""
    length = len(q)
    pattern = np.zeros((length, length))
    output = np.zeros_like(v)
    for i in range(length):
        scores = np.array([q[i] @ k[j] for j in range(i + 1)])
        exps = np.exp(scores - scores.max())
        pattern[i, : i + 1] = exps / exps.sum()
        for j in range(i + 1):
            output[i] += pattern[i, j] * v[j]
    return pattern, output
