"""What a format of others gives: settings, weights and tokenizer in TransformerLens's terms."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resval_lens.host import HookedTransformer, HookedTransformerConfig
from resval_lens.io.files import first_line

Settings = Mapping[str, float]
"""What a model's files leave open, by name."""
NO_SETTINGS: Settings = MappingProxyType({})
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
        reference_dtype: that the original computes in.
    """

    source: str
    cfg: HookedTransformerConfig
    state: Mapping[str, Tensor]
    tokenizer: Any = None
    reference: Logits | None = None
    reference_dtype: torch.dtype | None = None

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
        try:
            with torch.no_grad():
                wanted = self.reference(drawn).double().cpu()
                found = model(drawn.to(next(model.parameters()).device)).double().cpu()
        except Exception as error:  # a kernel that a dtype lacks, settings that contradict
            raise ValueError(
                f"{self.source}: it cannot be run in {self.cfg.dtype} ({first_line(error)})"
            ) from None
        wanted = wanted[..., : found.shape[-1]]
        apart = float((found - wanted).abs().max() / wanted.std())
        dtypes = (self.cfg.dtype, self.reference_dtype or self.cfg.dtype)
        if not apart <= max(MOST_RELATIVE.get(dtype, HALF) for dtype in dtypes):
            raise ValueError(
                f"{self.source}: converted by TransformerLens it computes something else: logits "
                f"differ from the original's by up to {apart:.2g} of their standard deviation"
            )


class Format(ABC):
    """A way in which others save language models.

    Attributes:
        name: what is saved, for messages and documentation.
        settings: what its files may leave open, by name: what it says.
    """

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def holds(self, path: Path) -> bool:
        """Whether ``path``, a file or a folder, is such a model, by its names alone."""

    @abstractmethod
    def read(
        self,
        path: Path,
        dtype: torch.dtype,
        device: str,
        tokenizer: Any = None,
        settings: Settings = NO_SETTINGS,
    ) -> Converted:
        """The model in TransformerLens's terms. Nothing is fetched, run or unpickled.

        Args:
            tokenizer: instead of its own.
            settings: what the files leave open; :meth:`check_settings` has seen them.

        Raises:
            ValueError: what is there cannot be read or converted; it is larger than this machine's
                memory; a setting that is needed, or that the files contradict.
        """

    def check_settings(self, path: Path, settings: Settings) -> None:
        """Raises ValueError for a setting that models of this format do not take."""
        taken = "; ".join(f"{name}: {what}" for name, what in self.settings.items())
        for name in settings:
            if name not in self.settings:
                raise ValueError(
                    f"{path} takes no setting {name!r}, as {self.name}"
                    + (f"; it takes {taken}" if taken else "")
                )


def leads_with_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer puts its beginning of text before a text by itself."""
    if tokenizer is None or tokenizer.bos_token_id is None:
        return False
    return bool(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])


def with_padding(tokenizer: Any) -> Any:
    """The tokenizer; without a padding token, a copy that pads with its end of text."""
    if tokenizer is None or tokenizer.pad_token is not None or tokenizer.eos_token is None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_vocabulary(tokenizer: Any, d_vocab: int, source: str) -> None:
    """Raises ValueError for a tokenizer of more tokens than its model has."""
    if tokenizer is not None and len(tokenizer) > d_vocab:
        raise ValueError(
            f"{source}: its tokenizer has {len(tokenizer):,} tokens, and the model {d_vocab:,}"
        )
