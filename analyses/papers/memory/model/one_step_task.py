"""Sequences in which one trigger occurs twice and its second occurrence is the last token.

    fillers  q o  fillers  q     positions 1 .. T: q at t_o − 1 and T, its output o at t_o

T is uniform over shortest..length, t_o over 2..T − 1, q over the V tokens, o and each filler over
the V − 1 others. The next token is o. This is the noiseless task in which one gradient step a
matrix writes an induction head (Bietti et al. 2023, arXiv 2306.00802, section 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from resval_lens.checks import check_whole


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
            check_whole(name, getattr(self, name), 3)
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
