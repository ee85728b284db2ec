"""Text, token by token."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.utilities import sample_logits

from resval_lens.lens.unembed import wide
from resval_lens.runtime import evaluating


def stream_tokens(
    model: HookedTransformer,
    tokens: Int[Tensor, "row pos"],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Iterator[Int[Tensor, " row"]]:
    """The next token of each row, one after the other; stop asking when there are enough.

    Every token that is given counts. ``HookedTransformer.generate_stream`` takes a prompt that is
    only the end-of-text token for padding, and its model for one that has read nothing.

    Args:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k, top_p: draw among so many tokens, or those that hold so much probability; not both.

    Raises:
        ValueError: an empty prompt; tokens over the context; a setting that cannot be.
    """
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise ValueError(
            "a prompt must have at least one token, such as the end of text, as [row, pos]; got "
            f"{list(tokens.shape)}"
        )
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be 1 or more; got {max_new_tokens}")
    if tokens.shape[1] + max_new_tokens > model.cfg.n_ctx:
        raise ValueError(
            f"{tokens.shape[1]} tokens and {max_new_tokens} new ones do not fit "
            f"n_ctx={model.cfg.n_ctx}"
        )
    if temperature != 0 and not 1e-6 <= temperature < float("inf"):
        raise ValueError(
            f"temperature must be 0 or a finite number from 1e-6 up; got {temperature}"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be 1 or more; got {top_k}")
    if top_p is not None and (top_k is not None or not 0 < top_p <= 1):
        raise ValueError(f"top_p must be above 0 and at most 1, without top_k; got {top_p}")
    return _stream(model, tokens, max_new_tokens, temperature, top_k, top_p)


def _stream(
    model: HookedTransformer,
    tokens: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> Iterator[Tensor]:
    device = model.cfg.device
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, device, len(tokens))
    new = tokens.to(device)
    for _ in range(max_new_tokens):
        with torch.no_grad(), evaluating(model):
            logits = model(new, past_kv_cache=cache, attention_mask=torch.ones_like(new))
            last = wide(logits[:, -1])
            drawn = sample_logits(last, temperature=temperature, top_k=top_k, top_p=top_p)
        new = drawn[:, None]
        yield drawn.cpu()
