"""The in-context classification task as a NumPy loop, one sequence at a time.

Source: arXiv 2412.15113 section 3.2, Reddy 2024 arXiv 2312.03002; details are those of the public
code of arXiv 2412.15113.
"""

from typing import Any

import numpy as np


def sequence(
    rng: np.random.Generator,
    *,
    K: int,
    L: int,
    N: int,
    B: int,
    p_B: float,
    p_C: float,
    eps: float,
    D: int,
    N_max: int,
    label_shift: int,
    mu_class: np.ndarray,
    mu_label: np.ndarray,
    fresh_mu_class: np.ndarray,
    n_fresh: int = 128,
) -> dict[str, Any]:
    """N object-label pairs and a query object: 2N+1 tokens, position dims first, then content.

        object of class c   (mu_c + eps·eta)/sqrt(1 + eps²), eta ~ N(0, 1/D) anew for each instance
        label of class c    mu_label[(c + label_shift) mod L], without noise
        position of token t one-hot at shift + t of 2·N_max + 1, shift uniform in 0..2(N_max - N)

    A bursty sequence (probability p_B) has N/B classes of distinct labels, B copies each, in random
    order, and a query of one of them; otherwise the N classes and the query are i.i.d. uniform over
    the K. A fresh sequence (probability p_C, independent) takes its classes from the n_fresh of
    `fresh_mu_class`; it is always bursty and its labels are never shifted.

    Args:
        rng: source of every draw.
        K: classes; class c has label c mod L.
        L: labels; K and n_fresh are multiples of it.
        N: object-label pairs in the context.
        B: copies of each class; 0 means never bursty, which fresh sequences rule out.
        p_B: probability of a bursty sequence.
        p_C: probability of a fresh sequence.
        eps: noise of an object, relative to its class mean.
        D: content dims.
        N_max: most pairs that the position dims have room for.
        label_shift: added, mod L, to the labels of the context and to the right answer.
        mu_class: class means [K, D].
        mu_label: label vectors [L, D].
        fresh_mu_class: means of the fresh classes [n_fresh, D].
        n_fresh: fresh classes.

    Returns:
        inputs [2N+1, 2·N_max+1+D]; target (int, the right label); context_classes and
        context_labels [N]; query_class; bursty; fresh; shift.
    """
    if B == 0 and p_C > 0:
        raise ValueError(f"p_C={p_C} with B=0: fresh sequences are always bursty")
    if B > 0 and N % B:
        raise ValueError(f"N={N}: expected a multiple of B={B}")

    fresh = bool(rng.random() < p_C)
    bursty = fresh or (B > 0 and bool(rng.random() < p_B))
    n_classes, means = (n_fresh, fresh_mu_class) if fresh else (K, mu_class)
    label_shift = 0 if fresh else label_shift

    if bursty:
        distinct = rng.choice(L, size=N // B, replace=False)
        classes = [int(label + L * rng.integers(n_classes // L)) for label in distinct]
        context = rng.permutation(np.repeat(classes, B))  # [N]
        query = int(rng.choice(context))
    else:
        context = rng.integers(n_classes, size=N)  # [N]
        query = int(rng.integers(n_classes))
    labels = (context + label_shift) % L  # [N]

    n_positions = 2 * N_max + 1
    shift = int(rng.integers(2 * (N_max - N) + 1))
    inputs = np.zeros((2 * N + 1, n_positions + D))
    for token in range(2 * N + 1):
        inputs[token, shift + token] = 1.0
    for pair in range(N):
        inputs[2 * pair, n_positions:] = _instance(rng, means[context[pair]], eps)
        inputs[2 * pair + 1, n_positions:] = mu_label[labels[pair]]
    inputs[2 * N, n_positions:] = _instance(rng, means[query], eps)

    return {
        "inputs": inputs,
        "target": (query + label_shift) % L,
        "context_classes": context,
        "context_labels": labels,
        "query_class": query,
        "bursty": bursty,
        "fresh": fresh,
        "shift": shift,
    }


def _instance(rng: np.random.Generator, mean: np.ndarray, eps: float) -> np.ndarray:
    """A noisy object of the class with this mean [D]."""
    eta = rng.standard_normal(len(mean)) / np.sqrt(len(mean))
    return (mean + eps * eta) / np.sqrt(1 + eps**2)
