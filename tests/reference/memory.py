"""The simplified transformer and what a constructed one does, in loops over single numbers.

Written from the formulas alone, in NumPy and plain Python: no torch, no matrix of scores, nothing
of the package.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray


def softmax(scores: Sequence[float]) -> list[float]:
    largest = max(scores)
    weights = [math.exp(score - largest) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def turned(x: Array, place: int) -> Array:
    """Dimensions (i, i + d/2) as one complex number, turned by place · 10000^(−2i/d)."""
    half = len(x) // 2
    out = np.empty(len(x))
    for i in range(half):
        z = complex(x[i], x[i + half]) * cmath.exp(1j * place * 10_000 ** (-2 * i / len(x)))
        out[i], out[i + half] = z.real, z.imag
    return out


def logits_of(
    weights: Mapping[str, Array],
    tokens: Sequence[Sequence[int]],
    positions: str,
    position_layers: Sequence[int],
    n_layers: int,
    slope: float,
    mixes: Mapping[str, tuple[float, float]],
) -> Array:
    """Logits [batch, pos, vocab]; ``mixes`` has (own, carried) of each stream, totals passed on."""
    return np.stack(
        [_row(weights, row, positions, position_layers, n_layers, slope, mixes) for row in tokens]
    )


def _row(
    weights: Mapping[str, Array],
    tokens: Sequence[int],
    positions: str,
    position_layers: Sequence[int],
    n_layers: int,
    slope: float,
    mixes: Mapping[str, tuple[float, float]],
) -> Array:
    d = weights["embed.W_E"].shape[1]
    x = [weights["embed.W_E"][token].copy() for token in tokens]
    if positions in ("absolute", "sinusoidal"):
        for t, vector in enumerate(x):
            vector += weights["pos_embed.W_pos"][t]
    before: dict[str, list[Array]] = {}
    for layer in range(n_layers):
        W = {name: weights[f"blocks.{layer}.attn.W_{name.upper()}"][0] for name in "qkvo"}
        total: dict[str, list[Array]] = {}
        for name in "qkv":
            total[name] = [vector @ W[name] for vector in x]
            if name in mixes and layer > 0:
                own, carried = mixes[name]
                total[name] = [
                    own * local + carried * passed
                    for local, passed in zip(total[name], before[name], strict=True)
                ]
        before = total
        acts = layer in position_layers
        after = []
        for t in range(len(tokens)):
            scores = []
            for s in range(t + 1):
                q, k = total["q"][t], total["k"][s]
                if acts and positions == "rotary":
                    q, k = turned(q, t), turned(k, s)
                if acts and positions == "relative":
                    k = k + weights[f"blocks.{layer}.attn.W_R"][t - s] @ W["k"]
                score = math.fsum(q * k) / math.sqrt(d)
                if acts and positions == "alibi":
                    score -= slope * (t - s)
                scores.append(score)
            z = np.zeros(d)
            for s, weight in enumerate(softmax(scores)):
                z += weight * total["v"][s]
            after.append(x[t] + z @ W["o"])
        x = after
    out = []
    for vector in x:
        vector = vector + vector @ weights["feed_forward.W_F"]
        out.append(vector @ weights["unembed.W_U"])
    return np.stack(out)


def predicted(
    tokens: Sequence[int],
    log_bigrams: Array,
    tau1: float,
    tau2: float,
    tau3: float,
    *,
    knows: Any = None,
    reach: int | None = None,
) -> tuple[list[list[float]], list[list[float]], Array]:
    """α, β (rows of growing length) and logits of one sequence, sums written out.

    Args:
        knows: tokens the memories know; None is all.
        reach: positions an absolute previous-token head knows; None is a relative head, which
            asks whether it knows the token instead.
    """

    def is_known(token: int) -> bool:
        return knows is None or token in knows

    d_vocab, length = len(log_bigrams), len(tokens)
    previous, induction = [], []
    logits = np.zeros((length, d_vocab))
    for t in range(length):
        active = is_known(tokens[t]) if reach is None else t < reach
        previous.append(softmax([tau1 * (active and s == t - 1) for s in range(t + 1)]))
    for t, query in enumerate(tokens):
        matches = []
        for s in range(t + 1):
            found = 0.0
            for s2 in range(s + 1):
                if tokens[s2] == query and is_known(query):
                    found += previous[s][s2]
            matches.append(tau2 * found)
        induction.append(softmax(matches))
        for v in range(d_vocab):
            logits[t, v] = log_bigrams[query, v] if is_known(query) else 0.0
        for s, weight in enumerate(induction[t]):
            if is_known(tokens[s]):
                logits[t, tokens[s]] += tau3 * weight
    return previous, induction, logits


def followers(tokens: Sequence[int]) -> dict[int, int]:
    """How often each token has followed the last one, position 0 being its own follower.

    All tokens, once for each position, where nothing has followed it.
    """
    query = tokens[-1]
    counts: dict[int, int] = {}
    for s, token in enumerate(tokens):
        before = tokens[s - 1] if s > 0 else tokens[0]
        if before == query:
            counts[token] = counts.get(token, 0) + 1
    if not counts:
        for token in tokens:
            counts[token] = counts.get(token, 0) + 1
    return counts
