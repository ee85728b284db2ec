"""Rows of unequal length: which tokens are a prompt's own, and rows that all begin at position 0.

    clean    · · A B C      mask    0 0 1 1 1      aligned    A B C · ·
             A B C D E              1 1 1 1 1                 A B C D E

Aligned rows need no mask: positions count from each prompt's first token, as when it is run alone,
and causal attention never looks at what is on its right.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

Mask = Bool[Tensor, "prompt pos"] | Int[Tensor, "prompt pos"]
"""True (or 1) at a prompt's own tokens, as a tokenizer's ``attention_mask``."""


def own_tokens(mask: Any, rows: Tensor) -> Bool[Tensor, "prompt pos"]:
    """The mask of ``rows``, [prompt, pos, ...], as booleans.

    Raises:
        ValueError: a mask of another shape, of other numbers than 0 and 1, or with a row whose own
            tokens are none or not side by side.
    """
    if not isinstance(mask, Tensor) or mask.shape != rows.shape[:2] or mask.is_floating_point():
        found = (
            f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        )
        raise ValueError(
            f"mask must be booleans (or 0 and 1) {list(rows.shape[:2])}, True at a prompt's own "
            f"tokens; got {found}"
        )
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"mask must hold 0 and 1; got {mask.min().item()} to {mask.max().item()}")
    mask = mask.bool()
    padded = torch.nn.functional.pad(mask.int(), (1, 0))
    begins = (padded.diff(dim=1) == 1).sum(1)
    for row, count in enumerate(begins.tolist()):
        if count != 1:
            what = "has no token of its own" if count == 0 else "has padding between its own tokens"
            raise ValueError(f"mask: row {row} {what}")
    return mask


def first_own(mask: Bool[Tensor, "prompt pos"]) -> Int[Tensor, " prompt"]:
    """Where each row's own tokens begin."""
    return mask.int().argmax(1)


def last_own(mask: Bool[Tensor, "prompt pos"]) -> Int[Tensor, " prompt"]:
    """Where each row's own tokens end."""
    return first_own(mask) + mask.sum(1) - 1


def moved(
    rows: Shaped[Tensor, "prompt pos ..."], by: Int[Tensor, " prompt"]
) -> Shaped[Tensor, "prompt pos ..."]:
    """Each row moved to the left by so many positions; what leaves there comes in on the right."""
    length = rows.shape[1]
    by = by.to(rows.device)
    where = (torch.arange(length, device=rows.device) + by[:, None]) % length
    return rows[torch.arange(len(rows), device=rows.device)[:, None], where]


def refuse_unmasked(model: Any, tokens: Tensor, name: str, ends: bool = False) -> None:
    """Raises ValueError for rows that look padded, where nobody said which tokens are whose.

    Such rows begin with the tokenizer's padding token: more than once, or not all of them as often
    (once alone it leads a text, in many models).

    Args:
        tokens: [prompt, pos].
        name: of the tokens.
        ends: refuse rows that end with the padding token, too.
    """
    pad = None if model.tokenizer is None else model.tokenizer.pad_token_id
    if pad is None or tokens.ndim != 2:
        return
    is_pad = tokens == pad
    leading = is_pad.int().cumprod(1).sum(1)
    row, found = int(leading.argmax()), ""
    if leading[row] > 1 or leading[row] != leading.min():
        found, others = f"begins with {leading[row].item()} ×", ""
    elif ends and tokens.shape[1] > 1 and is_pad[:, -1].any():
        row, found, others = int(is_pad[:, -1].int().argmax()), "ends with", " or last="
    if found:
        raise ValueError(
            f"{name}: row {row} {found} {model.tokenizer.decode([pad])!r}, this tokenizer's "
            f"padding: say by mask={others} which tokens are the prompts' own (mask all True, if "
            "these are)"
        )


def refuse_padding_around(model: Any, mask: Bool[Tensor, "prompt pos"]) -> None:
    """Raises ValueError for a padded row if the model's attention looks at what is on the right."""
    if model.cfg.attention_dir != "causal" and not mask.all():
        row = int((~mask).any(1).int().argmax())
        raise ValueError(
            f"row {row} is padded, and this model's attention is {model.cfg.attention_dir!r}: it "
            "would look at the padding; run prompts of one length"
        )
