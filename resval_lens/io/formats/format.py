"""What a format of others gives: settings, weights and tokenizer in TransformerLens's terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

Logits = Callable[[Int[Tensor, "batch pos"]], Float[Tensor, "batch pos d_vocab_out"]]

CHECKED_TOKENS = 16
MOST_RELATIVE = {torch.float64: 1e-3, torch.float32: 1e-3}
"""How far logits may be apart in units of their standard deviation; in half precision, ``HALF``."""
HALF = 0.25


@dataclass(frozen=True)
class Converted:
    """A model in TransformerLens's terms, its weights unprocessed.

    Attributes:
        source: what it was, for messages.
        cfg: its settings; without a name that a tokenizer would be looked up by.
        state: its parameters by HookedTransformer's names; they may be views of the original's.
        tokenizer: of transformers, or None.
        reference: the original's logits, to hold the conversion to; None if it cannot be run.
    """

    source: str
    cfg: HookedTransformerConfig
    state: Mapping[str, Tensor]
    tokenizer: Any = None
    reference: Logits | None = None

    def check(self, model: HookedTransformer) -> None:
        """Holds a model of these weights to the original's logits, on a few tokens.

        Raises:
            ValueError: they differ by more than rounding does.
        """
        if self.reference is None:
            return
        length = min(CHECKED_TOKENS, self.cfg.n_ctx)
        drawn = torch.randint(
            self.cfg.d_vocab, (1, length), generator=torch.Generator().manual_seed(0)
        )
        with torch.no_grad():
            wanted = self.reference(drawn).double().cpu()
            found = model(drawn.to(next(model.parameters()).device)).double().cpu()
        wanted = wanted[..., : found.shape[-1]]
        apart = float((found - wanted).abs().max() / wanted.std())
        if not apart <= MOST_RELATIVE.get(self.cfg.dtype, HALF):
            raise ValueError(
                f"{self.source}: converted by TransformerLens it computes something else: logits "
                f"differ from the original's by up to {apart:.2g} of their standard deviation"
            )


class Format(ABC):
    """A way in which others save language models.

    Attributes:
        name: what is saved, for messages and documentation.
    """

    name: ClassVar[str]

    @abstractmethod
    def holds(self, path: Path) -> bool:
        """Whether ``path``, a file or a folder, is such a model, by its names alone."""

    @abstractmethod
    def read(self, path: Path, dtype: torch.dtype, device: str) -> Converted:
        """The model in TransformerLens's terms. Nothing is fetched, run or unpickled.

        Raises:
            ValueError: what is there cannot be read or converted; it is larger than this machine's
                memory.
        """
