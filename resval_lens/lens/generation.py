"""Text, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.utilities import (
    USE_DEFAULT_VALUE,
    LocallyOverridenDefaults,
    get_attention_mask,
    sample_logits,
)

from resval_lens.host import HookedTransformer
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


@torch.no_grad()
def generated(
    model: HookedTransformer,
    input: str | list[str] | Int[Tensor, "row pos"] = "",
    max_new_tokens: int = 10,
    stop_at_eos: bool = True,
    eos_token_id: int | None = None,
    do_sample: bool = True,
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float = 1.0,
    freq_penalty: float = 0.0,
    use_past_kv_cache: bool = True,
    prepend_bos: Any = USE_DEFAULT_VALUE,
    padding_side: Any = USE_DEFAULT_VALUE,
    return_type: str | None = "input",
    verbose: bool = False,
) -> Any:
    """``HookedTransformer.generate`` for models that need the token ids in every call.

    There they are passed on as embeddings, of which tables cannot be looked up.

    Raises:
        ValueError: embeddings as ``input``, an unknown ``return_type``, no end of text to stop at.
    """
    tokenizer: Any = model.tokenizer
    if isinstance(input, Tensor):
        if input.ndim != 2 or input.is_floating_point():
            raise ValueError("this model reads token ids: generate from text, or ids [row, pos]")
        tokens, own = input, torch.ones_like(input)
    else:
        several = isinstance(input, list) and len(input) > 1
        side: Any = "left" if several else padding_side
        tokens = model.to_tokens(input, prepend_bos=prepend_bos, padding_side=side)
        own = torch.ones_like(tokens)
        if several:
            with LocallyOverridenDefaults(model, prepend_bos=prepend_bos, padding_side=side):
                own = get_attention_mask(tokenizer, tokens, bool(model.cfg.default_prepend_bos))
    default = "tokens" if isinstance(input, Tensor) else "str"
    kind = default if return_type == "input" else return_type
    if kind not in ("str", "tokens"):
        raise ValueError(f"return_type must be 'input', 'str' or 'tokens'; got {return_type!r}")
    if eos_token_id is None and stop_at_eos:
        eos_token_id = None if tokenizer is None else tokenizer.eos_token_id
        if eos_token_id is None:
            raise ValueError("stop_at_eos=True needs eos_token_id, or a tokenizer that has one")
    tokens, own = tokens.to(model.cfg.device), own.to(model.cfg.device)
    cache = None
    if use_past_kv_cache:
        cache = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, len(tokens))
    length, ended = tokens.shape[1], torch.zeros_like(tokens[:, 0]).bool()
    with evaluating(model):
        for _ in range(max_new_tokens):
            new = slice(None) if cache is None or tokens.shape[1] == length else slice(-1, None)
            logits = model(tokens[:, new], past_kv_cache=cache, attention_mask=own[:, new])
            last = wide(logits[:, -1])
            drawn = last.argmax(-1)
            if do_sample:
                drawn = sample_logits(
                    last, top_k, top_p, temperature, freq_penalty=freq_penalty, tokens=tokens
                )
            drawn = drawn.to(tokens.device)
            if eos_token_id is not None and stop_at_eos:
                drawn[ended] = eos_token_id
                ended = ended | (drawn == eos_token_id)
            tokens = torch.cat([tokens, drawn[:, None]], 1)
            own = torch.cat([own, torch.ones_like(drawn[:, None])], 1)
            if stop_at_eos and ended.all():
                break
    if kind == "tokens":
        return tokens
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
    return texts[0] if len(texts) == 1 else texts
