"""Groups of prompts in which a position means the same, so that a mean over them does, too."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from resval_lens.hooks.prompts import PromptPairs

Groups = Int[Tensor, " prompt"] | Literal["all"]


def alike(pairs: PromptPairs, groups: Groups | None = None) -> Int[Tensor, " prompt"]:
    """The group of each prompt.

    Args:
        groups: by default the prompts' own; "all" are one group.

    Raises:
        ValueError: no groups are known, or prompts of one group differ in length.
    """
    groups = pairs.groups if groups is None else groups
    if groups is None:
        raise ValueError(
            "a mean over prompts needs to know where a position means the same: give groups=, a "
            "number for each prompt (its template, say), or 'all' if it does in all of them"
        )
    if isinstance(groups, str):
        if groups != "all":
            raise ValueError(f"groups must be numbers or 'all'; got {groups!r}")
        groups = torch.zeros(len(pairs), dtype=torch.long)
    elif groups.shape != (len(pairs),):
        raise ValueError(
            f"groups must hold a number for each of the {len(pairs)} prompts; got "
            f"{list(groups.shape)}"
        )
    groups, ends = groups.cpu(), (pairs.answers.cpu() - pairs.first.cpu())
    for group in groups.unique():
        rows = (groups == group).nonzero()[:, 0]
        other = rows[ends[rows] != ends[rows[0]]]
        if len(other):
            raise ValueError(
                f"groups: prompts {rows[0].item()} and {other[0].item()} are of one group, and "
                f"answer at their tokens {ends[rows[0]].item()} and {ends[other[0]].item()}: a "
                "position does not mean the same in them"
            )
    return groups
