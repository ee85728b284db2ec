"""The order in which rows are trained on: shuffled again each epoch, and known for every step."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64


class RowOrder:
    """An endless, shuffled order of rows, as a pure function of seed and step.

    Epoch e is a permutation of all rows, drawn by numpy's default generator from
    SeedSequence((seed, e)). Step s trains on positions [s·batch, (s + 1)·batch) of all epochs, one
    after the other: no row is dropped where an epoch ends within a batch. So training goes on from
    any step without a state to keep, and with any number of processes.

    Args:
        n_rows: rows in an epoch.
        batch: rows in a step, of all processes together.
        seed: a whole number from 0 up.

    Raises:
        ValueError: a number below these, or more rows in a batch than there are.
    """

    def __init__(self, n_rows: int, batch: int, seed: int) -> None:
        if n_rows < 1:
            raise ValueError(f"n_rows must be at least 1; got {n_rows}")
        if not 1 <= batch <= n_rows:
            raise ValueError(f"batch must lie between 1 and n_rows={n_rows}; got {batch}")
        if seed < 0:
            raise ValueError(f"seed must be a whole number from 0 up; got {seed}")
        self.n_rows, self.batch, self.seed = n_rows, batch, seed
        self._epochs: dict[int, Int64[np.ndarray, " row"]] = {}

    def rows(self, step: int, rank: int = 0, world: int = 1) -> Int64[np.ndarray, " row"]:
        """The rows of ``step`` (from 0) for process ``rank`` of ``world``.

        Process r gets the r-th of ``world`` equal parts: all of them, one after the other, are
        what a single process gets.

        Raises:
            ValueError: ``world`` does not divide the batch, or there is no such step or process.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0; got {step}")
        if world < 1 or not 0 <= rank < world:
            raise ValueError(f"rank must lie between 0 and world - 1; got {rank} of {world}")
        if self.batch % world:
            raise ValueError(f"batch={self.batch} must be divisible by {world} processes")
        size = self.batch // world
        epoch, at = divmod(step * self.batch + rank * size, self.n_rows)
        first = self._permutation(epoch)[at : at + size]
        if len(first) == size:
            return first.copy()
        return np.concatenate([first, self._permutation(epoch + 1)[: size - len(first)]])

    def _permutation(self, epoch: int) -> Int64[np.ndarray, " row"]:
        if epoch not in self._epochs:
            if len(self._epochs) == 2:  # no batch touches more
                del self._epochs[next(iter(self._epochs))]
            generator = np.random.default_rng(np.random.SeedSequence((self.seed, epoch)))
            self._epochs[epoch] = generator.permutation(self.n_rows)
        return self._epochs[epoch]
