"""The token that stands before a prompt, as it stood before texts in training.

A model that never saw a token there reads what follows it worse, so the model and its tokenizer
decide, unless they are overruled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resval_lens.host import HookedTransformer

AUTO = "auto"


def leading_token(model: HookedTransformer, prepend: str = AUTO) -> int | None:
    """The token before each prompt, or None.

    Args:
        prepend: ``auto``: none where ``cfg.default_prepend_bos`` is False, else the tokenizer's
            beginning of text if it has one; ``none``; ``bos`` or ``eos``, the tokenizer's beginning
            or end of text; or a token by its name, like ``<|endoftext|>``.

    Raises:
        ValueError: no tokenizer, or one without such a token; a token beyond the vocabulary.
    """
    tokenizer: Any = model.tokenizer
    if prepend == "none" or (prepend == AUTO and model.cfg.default_prepend_bos is False):
        return None
    if tokenizer is None:
        raise ValueError("this model has no tokenizer; it says no token to put before a prompt")
    if prepend in (AUTO, "bos", "eos"):
        kind = "eos" if prepend == "eos" else "bos"
        found = getattr(tokenizer, f"{kind}_token_id")
        if found is None and prepend != AUTO:
            what = {"bos": "beginning", "eos": "end"}[kind]
            raise ValueError(f"prepend={prepend!r}: this tokenizer has no {what} of text")
    else:
        found = tokenizer.get_vocab().get(prepend)
        if found is None:
            raise ValueError(
                f"prepend={prepend!r}: this tokenizer has no such token; expected auto, none, bos, "
                "eos, or a token by its name"
            )
    if found is not None and found >= model.cfg.d_vocab:
        raise ValueError(
            f"prepend={prepend!r}: token {found} is outside this model's vocabulary of "
            f"{model.cfg.d_vocab}"
        )
    return None if found is None else int(found)


@dataclass(frozen=True)
class NamedToken:
    """A token's number and its name in a vocabulary."""

    id: int
    token: str


def named_token(model: HookedTransformer, token: int | None) -> NamedToken | None:
    """The leading token as reports have it; None without one."""
    tokenizer: Any = model.tokenizer
    return None if token is None else NamedToken(token, tokenizer.convert_ids_to_tokens(token))
