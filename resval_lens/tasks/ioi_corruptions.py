"""Corrupted indirect-object prompts, which differ from the clean ones in the three names alone.

    When Mary and John went to the shops, John gave the bag to     the prompt: IO is Mary, S is John
         IO       S1                      S2

What tells which name *not* to say next, S2 makes known in two ways: as a token (that of John), and
as a position (that of S1: the name there came again). Corruptions take the two apart, as in Wang
et al. 2022 (arXiv 2211.00593), appendix A:

    ================= ========================= ========== ==========
    kind              names, in order           token      position
    ================= ========================= ========== ==========
    (the prompt)      Mary, John, John          kept       kept
    position          John, Mary, John          kept       inverted
    token             John, Mary, Mary          inverted   kept
    token+position    Mary, John, Mary          inverted   inverted
    random            Anna, Paul, Paul          random     kept
    random+position   Paul, Anna, Paul          random     inverted
    random-S2         Mary, John, Lucy          none       none
    ABC               Anna, Paul, Lucy          none       none
    ================= ========================= ========== ==========

``position`` is their flip IO ↔ S1, ``token+position`` their IO ← S2, ``random`` their random name
flip and ``token`` the first two together; ``ABC`` is their p_ABC. ``random-S2`` is the prompt's
``corrupted``. IO and S remain the prompt's own names, whatever a corrupted prompt says.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from resval_lens.tasks.ioi import IOIPrompt, padding_id, token_ids

Kind = Literal[
    "random-S2", "ABC", "position", "token", "token+position", "random", "random+position"
]  # fmt: skip
Signal = Literal["kept", "inverted", "random", "none"]

SIGNALS: dict[str, tuple[Signal, Signal]] = {
    "position": ("kept", "inverted"),
    "token": ("inverted", "kept"),
    "token+position": ("inverted", "inverted"),
    "random": ("random", "kept"),
    "random+position": ("random", "inverted"),
    "random-S2": ("none", "none"),
    "ABC": ("none", "none"),
}
"""What each kind makes of the (token, position) signal."""

# Who stands where the prompt has IO, S1 and S2; numbers are new names.
_ROLES: dict[str, tuple[str | int, str | int, str | int]] = {
    "position": ("S", "IO", "S"),
    "token": ("S", "IO", "IO"),
    "token+position": ("IO", "S", "IO"),
    "random": (0, 1, 1),
    "random+position": (1, 0, 1),
    "ABC": (0, 1, 2),
}


class NamePlaces(NamedTuple):
    """Where a prompt's three names stand, as (start, end) in characters."""

    io: tuple[int, int]
    s1: tuple[int, int]
    s2: tuple[int, int]


def name_places(prompt: IOIPrompt) -> NamePlaces:
    """Where IO, S1 and S2 stand in a prompt's text, as whole words.

    Raises:
        ValueError: IO does not occur once, or the subject not twice, or in another order.

    >>> prompt = IOIPrompt("Tom met Ann and Tom gave it to", "Ann", "Tom", "BABA", "", "")
    >>> name_places(prompt)
    NamePlaces(io=(8, 11), s1=(0, 3), s2=(16, 19))
    """
    io, subject = (
        [match.span() for match in re.finditer(rf"\b{re.escape(name)}\b", prompt.text)]
        for name in (prompt.io, prompt.subject)
    )
    if len(io) != 1 or len(subject) != 2:
        raise ValueError(
            f"{prompt.text!r} names {prompt.io!r} (IO) {len(io)} times and {prompt.subject!r} (S) "
            f"{len(subject)} times; expected once and twice"
        )
    places = NamePlaces(io[0], subject[0], subject[1])
    found = {"ABBA": places.io < places.s1, "BABA": places.s1 < places.io < places.s2}
    if not found[prompt.order]:
        raise ValueError(f"{prompt.text!r} does not name its people in the order {prompt.order}")
    return places


def new_names(kind: Kind) -> int:
    """How many names that the prompt does not have go into a corrupted prompt."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}; got {kind!r}")
    return len({role for role in _ROLES.get(kind, ()) if isinstance(role, int)})


def corrupted_text(prompt: IOIPrompt, kind: Kind, names: Sequence[str] = ()) -> str:
    """A prompt, corrupted; see the module.

    Args:
        names: the new ones, for ``random`` and ``random+position`` (for IO, then for S) and ``ABC``
            (for IO, S1, S2).

    Raises:
        ValueError: an unknown kind, another number of new names, one given twice or that the prompt
            has, or a prompt that does not name its people as expected.
    """
    count = new_names(kind)
    if len(names) != count or len(set(names)) != count:
        raise ValueError(f"kind={kind!r} takes {count} new names; got {list(names)}")
    for name in names:
        if _has(prompt.text, name):
            raise ValueError(f"new name {name!r} is in {prompt.text!r} already")
    if kind == "random-S2":
        return prompt.corrupted
    people: dict[str | int, str] = {"IO": prompt.io, "S": prompt.subject}
    people.update(enumerate(names))
    text = prompt.text
    placed = zip(name_places(prompt), _ROLES[kind], strict=True)
    for (start, end), role in sorted(placed, reverse=True):  # a change moves what follows it
        text = text[:start] + people[role] + text[end:]
    return text


def _has(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text) is not None


def corrupted_texts(
    prompts: Sequence[IOIPrompt], kind: Kind, seed: int, names: Sequence[str] | None = None
) -> list[str]:
    """A corrupted prompt of each prompt; the same arguments give the same.

    Args:
        names: new names are drawn among those that the prompt does not have, all equally likely;
            by default from all people of the prompts.

    Raises:
        ValueError: as :func:`corrupted_text`; too few names to draw from.
    """
    count, rng = new_names(kind), random.Random(seed)
    if names is None:
        names = list(dict.fromkeys(name for p in prompts for name in (p.io, p.subject)))
    texts = []
    for prompt in prompts:
        others = [name for name in names if not _has(prompt.text, name)] if count else []
        if len(others) < count:
            raise ValueError(
                f"kind={kind!r} takes {count} new names and names has {len(others)} that are not "
                f"in {prompt.text!r}"
            )
        texts.append(corrupted_text(prompt, kind, rng.sample(others, count)))
    return texts


def positions(
    prompts: Sequence[IOIPrompt], tokenizer: Any, prepend: int | None = None
) -> dict[str, Int[Tensor, " prompt"]]:
    """Token positions of IO, S1, S1+1 (what follows S1), S2 and end (the last token).

    They are those of the rows that :func:`~resval_lens.tasks.ioi.encode` makes, and in a corrupted
    prompt's row those of what stands in the same place.

    Args:
        tokenizer, prepend: as for ``encode``; a token put before counts.

    Raises:
        ValueError: no prompts; a prompt that does not name its people as expected, or in which a
            name is not one token.
    """
    if not prompts:
        raise ValueError("there are no prompts to find positions in")
    rows = [_positions(prompt, tokenizer, int(prepend is not None)) for prompt in prompts]
    names = ("IO", "S1", "S1+1", "S2", "end")
    return dict(zip(names, torch.tensor(rows).T.contiguous(), strict=True))


def _positions(prompt: IOIPrompt, tokenizer: Any, before: int) -> list[int]:
    ids = token_ids(tokenizer, prompt.text)
    found = []
    for start, end in name_places(prompt):
        ahead, through = (
            token_ids(tokenizer, text) for text in (prompt.text[:start].rstrip(), prompt.text[:end])
        )
        if ids[: len(through)] != through or ids[: len(ahead)] != ahead:
            raise ValueError(f"tokens of {prompt.text!r} do not begin or end where its names do")
        if len(through) != len(ahead) + 1:
            raise ValueError(
                f"name {prompt.text[start:end]!r} is {len(through) - len(ahead)} tokens in "
                f"{prompt.text!r}; expected one"
            )
        found.append(before + len(ahead))
    io, s1, s2 = found
    return [io, s1, s1 + 1, s2, before + len(ids) - 1]


def encode_corrupted(
    prompts: Sequence[IOIPrompt], texts: Sequence[str], tokenizer: Any, prepend: int | None = None
) -> Int[Tensor, "prompt pos"]:
    """The tokens of corrupted prompts, padded as :func:`~resval_lens.tasks.ioi.encode` pads their
    prompts.

    A row differs from its prompt's at the positions of IO, S1 and S2 alone.

    Args:
        texts: a corrupted prompt of each prompt, from :func:`corrupted_texts`.
        tokenizer, prepend: as for ``encode``.

    Raises:
        ValueError: another number of texts; a corrupted prompt of another length, with the same
            tokens, or that differs elsewhere; a prompt as for :func:`positions`.
    """
    if len(texts) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many corrupted ones; got {len(texts)}")
    where = positions(prompts, tokenizer)
    named = torch.stack([where[name] for name in ("IO", "S1", "S2")], 1).tolist()
    before = [] if prepend is None else [prepend]
    rows = []
    for prompt, text, places in zip(prompts, texts, named, strict=True):
        own, ids = token_ids(tokenizer, prompt.text), token_ids(tokenizer, text)
        if len(ids) != len(own) or ids == own:
            wrong = "the same tokens" if ids == own else f"{len(ids)} tokens, not {len(own)}"
            raise ValueError(f"the corrupted prompt {text!r} of {prompt.text!r} has {wrong}")
        elsewhere = [i for i, (a, b) in enumerate(zip(own, ids, strict=True)) if a != b]
        if not set(elsewhere) <= set(places):
            raise ValueError(
                f"the corrupted prompt {text!r} of {prompt.text!r} differs beyond the names"
            )
        rows.append(before + ids)
    longest, padding = max(map(len, rows)), padding_id(tokenizer)
    return torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
