"""Sequences in which one trigger occurs twice and its second occurrence is the last token.

    fillers  q o  fillers  q     positions 1 .. T: q at t_o − 1 and T, its output o at t_o

T is uniform over shortest..length, t_o over 2..T − 1, q over the V tokens, o and each filler over
the V − 1 others. The next token is o. This is the noiseless task in which one gradient step a
matrix writes an induction head (Bietti et al. 2023, arXiv 2306.00802, section 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

_MOST_SEQUENCES = 1_000_000


class RecallBatch(NamedTuple):
    """Sequences of several lengths, filled up with token 0 at the end, and their probabilities.

    Attributes:
        tokens: z_1 .. z_T, then zeros.
        last: index of z_T = q, whose next token is to be predicted: T − 1.
        targets: o.
        output_at: index of o after the first q: t_o − 1.
        weights: probabilities, 1 together.
    """

    tokens: Int[Tensor, "batch pos"]
    last: Int[Tensor, " batch"]
    targets: Int[Tensor, " batch"]
    output_at: Int[Tensor, " batch"]
    weights: Float[Tensor, " batch"]


@dataclass(frozen=True)
class RecallTask:
    """How long sequences are and how many tokens there are; see the module's docstring.

    Attributes:
        d_vocab: V.
        length: the longest T.
        shortest: the shortest T; ``length`` for sequences of one length.

    Raises:
        ValueError: fewer than three tokens or positions, a shortest T above the longest.
    """

    d_vocab: int
    length: int
    shortest: int

    def __post_init__(self) -> None:
        for name in ("d_vocab", "length", "shortest"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 3:
                raise ValueError(
                    f"{name} must be a whole number from 3 up; got {getattr(self, name)!r}"
                )
        if self.shortest > self.length:
            raise ValueError(
                f"shortest={self.shortest} must be at most length={self.length}, the longest"
            )

    @property
    def places(self) -> list[tuple[int, int, float]]:
        """Every (T, t_o), counted from 1, with its probability."""
        lengths = range(self.shortest, self.length + 1)
        return [(T, t_o, 1 / (len(lengths) * (T - 2))) for T in lengths for t_o in range(2, T)]

    def batch(self, each: int, generator: Generator) -> RecallBatch:
        """``each`` sequences of every (T, t_o), with the probability of their place divided by it.

        Raises:
            ValueError: ``each`` below 1.
        """
        if each < 1:
            raise ValueError(f"each must be a whole number from 1 up; got {each!r}")
        rows = [place for place in self.places for _ in range(each)]
        size = len(rows)
        q = torch.randint(self.d_vocab, (size,), generator=generator)
        others = torch.randint(1, self.d_vocab, (size, self.length), generator=generator)
        return self._laid_out(rows, q, (q[:, None] + others) % self.d_vocab)

    def every(self) -> RecallBatch:
        """Every sequence there is, with its probability.

        Raises:
            ValueError: more than a million of them.
        """
        v = self.d_vocab
        count = sum(v * (v - 1) ** (T - 2) for T, _, _ in self.places)
        if count > _MOST_SEQUENCES:
            raise ValueError(
                f"d_vocab={v} and length={self.length} make {count:,} sequences; at most "
                f"{_MOST_SEQUENCES:,} are written down"
            )
        rows, queries, drawn = [], [], []
        for T, t_o, p in self.places:
            free = [s for s in range(T - 1) if s != t_o - 2]  # all but the two q
            choices = v * (v - 1) ** len(free)
            for q, *rest in product(range(v), *[range(1, v)] * len(free)):
                line = [0] * self.length
                for s, other in zip(free, rest, strict=True):
                    line[s] = (q + other) % v
                rows.append((T, t_o, p / choices))
                queries.append(q)
                drawn.append(line)
        return self._laid_out(rows, torch.tensor(queries), torch.tensor(drawn))

    def _laid_out(
        self, rows: list[tuple[int, int, float]], q: Tensor, others: Tensor
    ) -> RecallBatch:
        last = torch.tensor([T - 1 for T, _, _ in rows])
        output_at = torch.tensor([t_o - 1 for _, t_o, _ in rows])
        weights = torch.tensor([p for *_, p in rows], dtype=torch.float64)
        place = torch.arange(self.length)
        is_q = (place == output_at[:, None] - 1) | (place == last[:, None])
        tokens = torch.where(is_q, q[:, None], others)
        tokens = tokens.masked_fill(place > last[:, None], 0)
        targets = tokens.gather(1, output_at[:, None])[:, 0]
        return RecallBatch(tokens, last, targets, output_at, weights / weights.sum())
