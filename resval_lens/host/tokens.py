"""Text and tokens: a model with a tokenizer of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedRootModule
from transformer_lens.utilities import (
    USE_DEFAULT_VALUE,
    LocallyOverridenDefaults,
    get_input_with_manually_prepended_bos,
    get_tokenizer_with_bos,
    get_tokens_with_bos_removed,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from resval_lens.host.config import HookedTransformerConfig

WITHOUT_BOS = ("OlmoForCausalLM", "OlmoeForCausalLM", "Olmo2ForCausalLM")
"""Architectures whose tokenizers are not made to begin with a beginning of text."""


class Tokenized(HookedRootModule):
    """A hooked model that reads text.

    ``prepend_bos`` and ``padding_side`` stand, for one call, for ``cfg.default_prepend_bos``
    (whether a beginning of text comes first) and ``tokenizer.padding_side``.
    """

    cfg: HookedTransformerConfig
    tokenizer: Any
    W_U: Tensor
    to_single_token: Callable[[str], int]

    def named_tokenizer(self) -> Any:
        """The tokenizer that ``cfg.tokenizer_name`` names on the Hugging Face hub, or None."""
        cfg = self.cfg
        if cfg.tokenizer_name is None:
            return None
        alone = (*WITHOUT_BOS, "Qwen3ForCausalLM", "PhiForCausalLM")
        return AutoTokenizer.from_pretrained(
            cfg.tokenizer_name,
            add_bos_token=cfg.original_architecture not in alone,
            trust_remote_code=cfg.trust_remote_code,
            use_fast="phi" not in cfg.tokenizer_name.lower(),
        )

    def set_tokenizer(self, tokenizer: Any, default_padding_side: str | None = None) -> None:
        """Sets the tokenizer, made to begin texts with its beginning of text where it can.

        Without an end, padding or beginning of text it takes "<|endoftext|>", or the one for the
        other. A vocabulary that is not set is the tokenizer's.

        Raises:
            ValueError: no tokenizer of transformers; a side that is not "left" or "right".
        """
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ValueError(f"expected a tokenizer of transformers; got {type(tokenizer)}")
        if default_padding_side not in ("left", "right", None):
            raise ValueError(f"padding_side is 'left' or 'right'; got {default_padding_side!r}")
        if self.cfg.original_architecture not in WITHOUT_BOS:
            tokenizer = get_tokenizer_with_bos(tokenizer)
        self.tokenizer = tokenizer
        tokenizer.padding_side = default_padding_side or tokenizer.padding_side or "right"
        self.cfg.tokenizer_prepends_bos = len(tokenizer.encode("")) > 0
        if tokenizer.eos_token is None:
            tokenizer.eos_token = "<|endoftext|>"
        for name in ("pad_token", "bos_token"):
            if getattr(tokenizer, name) is None:
                setattr(tokenizer, name, tokenizer.eos_token)
        if self.cfg.d_vocab == -1:
            self.cfg.d_vocab = max(tokenizer.vocab.values()) + 1
        if self.cfg.d_vocab_out == -1:
            self.cfg.d_vocab_out = self.cfg.d_vocab

    def to_tokens(
        self,
        input: str | list[str],
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Any = USE_DEFAULT_VALUE,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Int[Tensor, "batch pos"]:
        """The tokens of one text or several, which are padded; at most ``n_ctx`` of each."""
        with LocallyOverridenDefaults(self, prepend_bos=prepend_bos, padding_side=padding_side):
            assert self.tokenizer is not None, "Cannot use to_tokens without a tokenizer"
            adds, wanted = self.cfg.tokenizer_prepends_bos, self.cfg.default_prepend_bos
            if wanted and not adds:
                input = get_input_with_manually_prepended_bos(self.tokenizer.bos_token, input)
            limit = self.cfg.n_ctx if truncate else None
            tokens = self.tokenizer(
                input, return_tensors="pt", padding=True, truncation=truncate, max_length=limit
            )["input_ids"]
            if adds and not wanted:
                tokens = get_tokens_with_bos_removed(self.tokenizer, tokens)
            return tokens.to(self.cfg.device) if move_to_device else tokens

    def to_string(self, tokens: Any) -> str | list[str]:
        """The text of tokens [pos], or the texts of tokens [batch, pos]."""
        assert self.tokenizer is not None, "Cannot use to_string without a tokenizer"
        tokens = torch.as_tensor(tokens)
        if tokens.ndim > 2:
            raise ValueError(f"tokens must be [pos] or [batch, pos]; got {list(tokens.shape)}")
        decode = self.tokenizer.batch_decode if tokens.ndim == 2 else self.tokenizer.decode
        return decode(tokens, clean_up_tokenization_spaces=False)

    def to_str_tokens(
        self,
        input: Any,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Any = USE_DEFAULT_VALUE,
    ) -> Any:
        """The text of each token, of a text or of tokens [pos] or [1, pos]; lists, of a list."""
        if isinstance(input, list):
            return [self.to_str_tokens(each, prepend_bos, padding_side) for each in input]
        assert self.tokenizer is not None, "Cannot use to_str_tokens without a tokenizer"
        if isinstance(input, str):
            input = self.to_tokens(input, prepend_bos=prepend_bos, padding_side=padding_side)
        tokens = np.asarray(torch.as_tensor(input).cpu())
        if tokens.ndim and tokens.size != tokens.shape[-1]:
            raise ValueError(f"tokens must be [pos] or [1, pos]; got {list(tokens.shape)}")
        each_alone = [[int(token)] for token in tokens.reshape(-1)]
        return self.tokenizer.batch_decode(each_alone, clean_up_tokenization_spaces=False)

    def to_single_str_token(self, int_token: int) -> str:
        """The text of one token."""
        return self.to_str_tokens(torch.tensor([int_token]))[0]

    def tokens_to_residual_directions(
        self, tokens: str | int | Int[Tensor, "*any"] | Sequence[int]
    ) -> Float[Tensor, "*any d_model"]:
        """Columns of W_U: the directions of the residual stream that the tokens' logits read."""
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        if isinstance(tokens, Tensor) and tokens.numel() == 1:
            tokens = int(tokens)
        return self.W_U.T[tokens]
