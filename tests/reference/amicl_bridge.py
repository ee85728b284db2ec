"""AMICL's recall, and what a linear map reads from mixed tokens, as NumPy loops over one trial.

Source: arXiv 2412.15113, section 2.2.
"""

import numpy as np


def recall(x: np.ndarray, a: float, temperature: float | None) -> tuple[np.ndarray, np.ndarray]:
    """(output [d], β [s]) for tokens ``x`` [s, d] of which the last is masked (zero).

    k_i = (a·x_{i−1} + x_i)/(a + 1) for i < s, index 0 wraps to s;  k_s = 0
    β = softmax(⟨k_i, q_s⟩/T), or one-hot at the largest for T = None;  output = Σ β_i x_i
    """
    s, d = x.shape
    query = (a * x[s - 2] + x[s - 1]) / (a + 1)
    scores = np.zeros(s)
    for i in range(s - 1):
        key = (a * x[i - 1] + x[i]) / (a + 1)  # x[-1] is token s
        for j in range(d):
            scores[i] += key[j] * query[j]
    if temperature is None:
        weights = np.zeros(s)
        weights[scores.argmax()] = 1
    else:
        weights = np.exp((scores - scores.max()) / temperature)
        weights /= weights.sum()
    output = np.zeros(d)
    for i in range(s):
        output += weights[i] * x[i]
    return output, weights


def value_map(trials: np.ndarray, a: float) -> np.ndarray:
    """The W of least Σ‖(x_i + a·x_{i−1}) W − x_i‖² over tokens 2..s−1 of ``trials`` [n, s, d]."""
    mixed, pure = [], []
    for x in trials:
        for i in range(1, len(x) - 1):
            mixed.append(x[i] + a * x[i - 1])
            pure.append(x[i])
    return np.linalg.lstsq(np.array(mixed), np.array(pure), rcond=None)[0]
