"""Three gradient steps on an induction head, by hand, in a world of orthonormal symbols.

No embeddings and no autograd: a residual vector is a list of amounts of symbols, a matrix a table
of how much of each pair of symbols it holds, and every derivative is written out in loops.

Symbols: tokens 0..V−1, then (absolute positions) places; the first layer's echo of each of these n
symbols has the same number plus n. Key-side relative positions are counted on from n.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def one_step(
    sequences: Sequence[tuple[Sequence[int], int, float]],
    *,
    V: int,
    n_ctx: int,
    d: int,
    relative: bool,
    rates: tuple[float, float, float],
    own: float = 1.0,
    link: float = 0.0,
    log_bigrams: np.ndarray | None = None,
    only_memories: bool = False,
) -> dict[str, Any]:
    """What is written, −η ∂L/∂W, as full tables, and the loss before each step.

    Args:
        sequences: (tokens up to the last, target, weight).
        own, link: weights of layer 1's own values and of layer 0's.

    Returns:
        W_O2 [written: w_U then w_E, read: 2n symbols], W_K2 [2n key symbols, 2n query symbols],
        W_K1 [n (+ n_ctx relative) key symbols, n query symbols], and ``losses``.
    """
    n = V if relative else V + n_ctx
    known = np.zeros((V, V)) if log_bigrams is None else log_bigrams
    norms = np.array([own**2 + link**2] * n + [own**2] * n)  # |v(symbol)|²
    tables = {
        "W_O2": np.zeros((2 * V, 2 * n)),
        "W_K2": np.zeros((2 * n, 2 * n)),
        "W_K1": np.zeros((n + (n_ctx if relative else 0), n)),
    }
    losses = []
    for name, rate in zip(tables, rates, strict=True):
        written = np.zeros_like(tables[name])
        loss = 0.0
        for tokens, target, weight in sequences:
            step, cost = descent(name, tokens, target, tables, V, n_ctx, d, relative, norms, known)
            written += rate * weight * step
            loss += weight * cost
        losses.append(loss)
        tables[name] = written
        if only_memories:
            keep = np.zeros(written.shape, dtype=bool)
            if name == "W_O2":
                keep[:V, :V] = True
            elif name == "W_K2":
                keep[n : n + V, :V] = True
            elif relative:
                keep[V:] = True
            else:
                keep[V:, V:] = True
            tables[name] = np.where(keep, written, 0)
    return {**tables, "losses": losses}


def descent(
    name: str,
    tokens: Sequence[int],
    target: int,
    tables: dict[str, np.ndarray],
    V: int,
    n_ctx: int,
    d: int,
    relative: bool,
    norms: np.ndarray,
    known: np.ndarray,
) -> tuple[np.ndarray, float]:
    """−∂(−log p(target))/∂(table ``name``) of one sequence, and −log p(target).

    Layer 0's attention is uniform: its W_K is zero whenever this is called.
    """
    n = norms.size // 2
    T, root = len(tokens), math.sqrt(d)
    x = np.zeros((T, 2 * n))
    for s in range(T):
        x[s, tokens[s]] = 1
        if not relative:
            x[s, V + s] = 1
    stream = x.copy()
    for s in range(T):
        for r in range(s + 1):
            x[s, n:] += stream[r, :n] / (s + 1)
    query = x[T - 1]

    def said(symbols: np.ndarray) -> np.ndarray:
        """The logits that a value gives by W_O2, and what W_F answers to what W_O2 wrote."""
        out = tables["W_O2"] @ (norms * symbols)
        logits = out[:V].copy()
        for v in range(V):
            logits[v] += sum(out[V + w] * known[w, v] for w in range(V))
        return logits

    scores = np.array([x[s] @ tables["W_K2"] @ query / root for s in range(T)])
    beta = softmax(scores)
    u = np.array([said(x[s]) for s in range(T)])
    p = softmax(known[tokens[-1]] + sum(beta[s] * u[s] for s in range(T)))
    up = -p  # −∂loss/∂logits
    up[target] += 1
    cost = -math.log(p[target])

    if name == "W_O2":
        mixed = sum(beta[s] * x[s] for s in range(T))
        by_w_f = [sum(up[v] * known[w, v] for v in range(V)) for w in range(V)]
        return np.outer(np.concatenate([up, by_w_f]), mixed), cost

    mean = sum(beta[s] * (up @ u[s]) for s in range(T))
    gain = np.array([beta[s] * (up @ u[s] - mean) for s in range(T)])  # by layer 1's scores
    if name == "W_K2":
        return sum(gain[s] * np.outer(x[s], query) for s in range(T)) / root, cost

    step = np.zeros_like(tables["W_K1"])
    for s in range(T):
        use = np.zeros(s + 1)  # by layer 0's attention from s to r
        for r in range(s + 1):
            echo = np.concatenate([np.zeros(n), stream[r, :n]])
            use[r] += gain[s] * (echo @ tables["W_K2"] @ query) / root  # as part of key s
            use[r] += beta[s] * (up @ said(echo))  # as part of value s
            if s == T - 1:  # as part of the query
                use[r] += sum(gain[j] * (x[j] @ tables["W_K2"] @ echo) / root for j in range(T))
        for r in range(s + 1):
            by_score = (use[r] - use.mean()) / (s + 1)
            key = np.zeros(len(step))
            key[:n] = stream[r, :n]
            if relative:
                key[n + s - r] = 1
            step += by_score * np.outer(key, stream[s, :n]) / root
    return step, cost
