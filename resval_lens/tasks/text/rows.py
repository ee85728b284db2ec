"""Rows of n_ctx tokens, as language models train on them.

PackedRows   the stream of all documents, cut every n_ctx tokens
StoryRows    one document a row, cut or padded
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from resval_lens.tasks.text.token_files import TokenFiles

NO_TARGET = -100  # what torch's cross_entropy leaves out by default


class _Rows(ABC):
    def __init__(self, files: TokenFiles, n_ctx: int) -> None:
        if n_ctx < 2:
            raise ValueError(f"n_ctx must be at least 2, for one prediction; got {n_ctx}")
        self.files, self.n_ctx = files, n_ctx

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _take(
        self, indices: Int[np.ndarray, " row"]
    ) -> tuple[Int64[np.ndarray, "row pos"], Int64[np.ndarray, "row pos"]]: ...

    def batch(
        self, indices: Int[np.ndarray, " row"]
    ) -> tuple[Int64[Tensor, "row pos"], Int64[Tensor, "row pos"]]:
        """The rows with these numbers, in this order: (tokens, targets).

        ``targets[i, t]`` is the token to predict after ``tokens[i, : t + 1]``, and ``NO_TARGET``,
        which ``cross_entropy`` ignores, where there is none: always at the last position.

        Raises:
            ValueError: there is no row with such a number.
        """
        wrong = indices[(indices < 0) | (indices >= len(self))]
        if wrong.size:
            raise ValueError(f"there are rows 0 to {len(self) - 1}; got {wrong[0]}")
        tokens, targets = self._take(indices)
        return torch.from_numpy(tokens), torch.from_numpy(targets)


class PackedRows(_Rows):
    """Row i is ``tokens[i * n_ctx : (i + 1) * n_ctx]`` of the stream; an incomplete last one goes.

    Documents follow one another within a row, an end of text between them, and the first token of
    the next document is a target like any other.

    Raises:
        ValueError: ``n_ctx`` is below 2, or above the tokens there are.
    """

    def __init__(self, files: TokenFiles, n_ctx: int) -> None:
        super().__init__(files, n_ctx)
        if files.n_tokens < n_ctx:
            raise ValueError(f"{files.folder} has {files.n_tokens} tokens, no row of n_ctx={n_ctx}")
        n_rows = files.n_tokens // n_ctx
        self._rows = files.tokens[: n_rows * n_ctx].reshape(n_rows, n_ctx)

    def __len__(self) -> int:
        return len(self._rows)

    def _take(
        self, indices: Int[np.ndarray, " row"]
    ) -> tuple[Int64[np.ndarray, "row pos"], Int64[np.ndarray, "row pos"]]:
        tokens = self._rows[indices].astype(np.int64)
        targets = np.empty_like(tokens)
        targets[:, :-1] = tokens[:, 1:]
        targets[:, -1] = NO_TARGET
        return tokens, targets


class StoryRows(_Rows):
    """Row i is document i, cut to n_ctx tokens or padded with ends of text.

    The document's own end of text is a target, unless it is cut off; padding is not. These are the
    rows of arXiv 2412.15113, section 4.1, with n_ctx = 256, as its public code makes them.

    Raises:
        ValueError: ``n_ctx`` is below 2.
    """

    def __len__(self) -> int:
        return self.files.n_documents

    def _take(
        self, indices: Int[np.ndarray, " row"]
    ) -> tuple[Int64[np.ndarray, "row pos"], Int64[np.ndarray, "row pos"]]:
        starts = self.files.offsets[indices][:, None]
        lengths = self.files.offsets[indices + 1][:, None] - starts
        position = np.arange(self.n_ctx)
        # A document's last token is its end of text: whatever lies beyond reads that again.
        where = np.minimum(position, lengths - 1)
        where += starts
        tokens = self.files.tokens[where].astype(np.int64)
        targets = np.empty_like(tokens)
        targets[:, :-1] = tokens[:, 1:]
        targets[position + 1 >= np.minimum(lengths, self.n_ctx)] = NO_TARGET
        return tokens, targets
