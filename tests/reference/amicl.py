"""AMICL and its trials as NumPy loops, one token at a time (arXiv 2412.15113, section 2).

And what a linear map reads from mixed tokens.
"""

import numpy as np


def recall(
    x: np.ndarray,
    *,
    a: float,
    similarity: str,
    separation: str,
    last_key: np.ndarray,
    sign: int = -1,
    temperature: float = 1.0,
    reach: int = 1,
    query: int | None = None,
) -> dict[str, np.ndarray]:
    """What one query recalls, and everything on the way.

        k_i = (a·x_{i−reach} + x_i)/(a+1), indices below 0 count from the end; the last is given
        q   = (a·x_{t−reach} + x_t)/(a+1) of the query's token t, by default the last

    Args:
        x: tokens [s, d].
        last_key: the last key [d].
        sign: of distances.

    Returns:
        keys [s, d], query [d], scores and pattern [s], output [d].
    """
    s, d = x.shape
    t = s - 1 if query is None else query
    keys = np.zeros((s, d))
    for i in range(s - 1):
        for j in range(d):
            keys[i, j] = (a * x[i - reach, j] + x[i, j]) / (a + 1)
    keys[s - 1] = last_key
    asked = np.zeros(d)
    for j in range(d):
        asked[j] = (a * x[t - reach, j] + x[t, j]) / (a + 1)

    scores = np.zeros(s)
    for i in range(s):
        k = keys[i]
        if similarity == "dot":
            scores[i] = sum(k[j] * asked[j] for j in range(d))
        elif similarity == "pearson":
            constant = len(set(k)) == 1 or len(set(asked)) == 1
            scores[i] = 0.0 if constant else np.corrcoef(k, asked)[0, 1]
        elif similarity == "manhattan":
            scores[i] = sign * sum(abs(k[j] - asked[j]) for j in range(d))
        elif similarity == "euclidean":
            scores[i] = sign * sum((k[j] - asked[j]) ** 2 for j in range(d)) ** 0.5

    pattern = np.zeros(s)
    if separation == "identity":
        pattern = scores.copy()
    elif separation == "softmax":
        most = max(scores)
        total = sum(np.exp((score - most) / temperature) for score in scores)
        for i in range(s):
            pattern[i] = np.exp((scores[i] - most) / temperature) / total
    elif separation == "argmax":
        best = 0
        for i in range(s):
            if scores[i] > scores[best]:
                best = i
        pattern[best] = 1.0

    output = np.zeros(d)
    for i in range(s):
        output += pattern[i] * x[i]
    return {"keys": keys, "query": asked, "scores": scores, "pattern": pattern, "output": output}


def trial(
    rng: np.random.Generator, *, d: int, length: int, classes: int, noise: float, reading: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One trial, with every class's vectors drawn, whether it occurs or not.

    Returns:
        tokens [length, d]; classes of all pairs [length/2]; label vectors of all classes
        [classes, d].
    """
    objects = rng.standard_normal((classes, d)) / np.sqrt(d)
    labels = rng.standard_normal((classes, d)) / np.sqrt(d)
    lowest = 1 if reading == "notebook" else 0
    context = rng.integers(lowest, classes, size=length // 2 - 1)
    order = np.append(context, rng.choice(context))
    tokens = np.zeros((length, d))
    scale = 1 / d if reading == "notebook" else 1 / np.sqrt(d)
    for pair, c in enumerate(order):
        eta = rng.standard_normal(d) * scale
        tokens[2 * pair] = (objects[c] + noise * eta) / np.sqrt(1 + noise**2)
        tokens[2 * pair + 1] = labels[c]
    tokens[-1] = 0.0
    return tokens, order, labels


def accuracy(
    rng: np.random.Generator,
    trials: int,
    *,
    a: float,
    similarity: str,
    reading: str,
    **task: object,
) -> float:
    """Share of trials in which argmax recalls the label vector exactly."""
    right = 0
    for _ in range(trials):
        tokens, order, labels = trial(rng, reading=reading, **task)  # type: ignore[arg-type]
        d = tokens.shape[1]
        notebook = reading == "notebook"
        last_key = rng.standard_normal(d) / np.sqrt(d) if notebook else np.zeros(d)
        mixed = (a * np.roll(tokens, 1, axis=0) + tokens) / (a + 1)
        keys, asked = np.vstack([mixed[:-1], last_key]), mixed[-1]
        if similarity == "dot":
            scores = keys @ asked
        else:
            centred = keys - keys.mean(1, keepdims=True)
            length = np.linalg.norm(centred, axis=1)
            scores = centred @ (asked - asked.mean()) / np.where(length == 0, 1, length)
        right += bool(np.all(tokens[np.argmax(scores)] == labels[order[-1]]))
    return right / trials


def value_map(trials: np.ndarray, a: float) -> np.ndarray:
    """The W of least Σ‖(x_i + a·x_{i−1}) W − x_i‖² over tokens 2..s−1 of ``trials`` [n, s, d]."""
    mixed, pure = [], []
    for x in trials:
        for i in range(1, len(x) - 1):
            mixed.append(x[i] + a * x[i - 1])
            pure.append(x[i])
    return np.linalg.lstsq(np.array(mixed), np.array(pure), rcond=None)[0]
