"""Bigrams with triggers as NumPy loops: counts, entropies, and the probability of every sequence.

Source: Bietti et al. 2023, arXiv 2306.00802, section 3, and arXiv 2412.11459.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from math import log
from typing import Any

import numpy as np


def count(units: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Sorted tokens, pair counts [V, V] and unigram counts [V], one unit at a time."""
    tokens = sorted(set(units))
    pairs = np.zeros((len(tokens), len(tokens)), dtype=np.int64)
    singles = np.zeros(len(tokens), dtype=np.int64)
    for i, unit in enumerate(units):
        singles[tokens.index(unit)] += 1
        if i + 1 < len(units):
            pairs[tokens.index(unit), tokens.index(units[i + 1])] += 1
    return tokens, pairs, singles


def distributions(pairs: np.ndarray, singles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """pi_u [V] and pi_b [V, V]; the row of a token that nothing follows is pi_u."""
    total = sum(singles)
    unigram = np.array([n / total for n in singles], dtype=np.float64)
    conditional = np.zeros(pairs.shape, dtype=np.float64)
    for u, row in enumerate(pairs):
        followed = sum(row)
        for v, n in enumerate(row):
            conditional[u, v] = n / followed if followed else unigram[v]
    return unigram, conditional


def entropies(unigram: np.ndarray, conditional: np.ndarray) -> tuple[float, float]:
    """Entropy of a token, and of a token given the one before, in nats."""
    alone = -sum(p * log(p) for p in unigram if p)
    given = 0.0
    for p, row in zip(unigram, conditional, strict=True):
        given -= p * sum(q * log(q) for q in row if q)
    return alone, given


def occurrence(sequence: Sequence[int], triggers: Sequence[int]) -> list[int]:
    """For each token: the how-manieth time it is there if it is a trigger, else 0."""
    seen: dict[int, int] = {}
    counts = []
    for token in sequence:
        if token not in triggers:
            counts.append(0)
            continue
        seen[token] = seen.get(token, 0) + 1
        counts.append(seen[token])
    return counts


def possible_outputs(
    trigger: int, outputs: Sequence[int], never: str, conditional: np.ndarray
) -> list[int]:
    """What a trigger's output is drawn from, uniformly."""
    likeliest = max(range(len(conditional)), key=lambda v: (conditional[trigger, v], -v))
    banned = {"none": None, "itself": trigger, "likeliest": likeliest}[never]
    return [v for v in outputs if v != banned]


def every_sequence(
    unigram: np.ndarray,
    conditional: np.ndarray,
    *,
    fixed: Sequence[int] | None,
    candidates: Sequence[int],
    K: int,
    outputs: Sequence[int],
    never: str,
    length: int,
) -> Iterator[tuple[dict[str, Any], float]]:
    """Each set of triggers, outputs and ``length`` tokens that is possible, and its probability.

    Args:
        fixed: the triggers of every sequence, or None: K are drawn one after the other among
            ``candidates``, each ~ pi_u over those that are left.
        outputs: tokens that a trigger's output is uniform over (see :func:`possible_outputs`).
    """
    for triggers in product(range(len(unigram)), repeat=K):
        p_triggers = 1.0
        if fixed is not None:
            p_triggers = float(triggers == tuple(fixed))
        else:
            left = list(candidates)
            for trigger in triggers:
                if trigger not in left:
                    p_triggers = 0.0
                    break
                p_triggers *= unigram[trigger] / sum(unigram[v] for v in left)
                left.remove(trigger)
        if not p_triggers:
            continue
        pools = [possible_outputs(q, outputs, never, conditional) for q in triggers]
        for given in product(*pools):
            p_outputs = p_triggers
            for pool in pools:
                p_outputs /= len(pool)
            output = dict(zip(triggers, given, strict=True))
            for tokens in product(range(len(unigram)), repeat=length):
                p = p_outputs * unigram[tokens[0]]
                for z, after in pairwise(tokens):
                    p *= float(output[z] == after) if z in output else conditional[z, after]
                if p:
                    yield {"triggers": triggers, "outputs": given, "tokens": tokens}, p
