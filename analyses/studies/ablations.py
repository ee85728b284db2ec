"""Every ablation: what a link carries in place of what it would.

An ablation is one class here and one entry in ``ABLATIONS``, which the ``ablate`` command, its help
and completion, the documentation's table and the tests' sweeps read. Nothing here needs torch
before an ablation is run, so that names are known at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from resval_lens.hooks.ablate import Edit
    from resval_lens.hooks.links import Link
    from resval_lens.hooks.prompts import PromptPairs
    from resval_lens.transformer import ResValTransformer


class LinkAblation(ABC):
    """What links carry in place of what they would.

    Attributes:
        name: as it is asked for.
        meaning: what an ablated link does: "carries nothing".
        of_others: whether it takes from other prompts of the same group, where a position means the
            same, instead of from the prompts that are edited.
    """

    name: ClassVar[str]
    meaning: ClassVar[str]
    of_others: ClassVar[bool] = False

    @abstractmethod
    def edit(
        self, model: ResValTransformer, chosen: Sequence[Link], pairs: PromptPairs, max_tokens: int
    ) -> Edit:
        """The edit of some prompts' links.

        Args:
            chosen: the links.
            pairs: the prompts that are edited, row by row; with ``of_others`` the other prompts of
                one group, any number of them, for an edit that is the same for every row.
            max_tokens: rows × positions of one model call.
        """


class Zero(LinkAblation):
    """Nothing."""

    name = "zero"
    meaning = "carries nothing"

    def edit(
        self, model: ResValTransformer, chosen: Sequence[Link], pairs: PromptPairs, max_tokens: int
    ) -> Edit:
        from resval_lens.hooks.ablate import zero

        return zero()


class Mean(LinkAblation):
    """The mean at each position over other clean prompts."""

    name = "mean"
    meaning = "carries its mean at that position over other prompts"
    of_others = True

    def edit(
        self, model: ResValTransformer, chosen: Sequence[Link], pairs: PromptPairs, max_tokens: int
    ) -> Edit:
        from resval_lens.hooks.ablate import freeze, mean_link_activations

        return freeze(
            mean_link_activations(
                model, pairs.clean, chosen, mask=pairs.mask, max_tokens=max_tokens
            )
        )


class Resample(LinkAblation):
    """What the link carries on the corrupted prompt."""

    name = "resample"
    meaning = "carries its value on the corrupted prompt"

    def edit(
        self, model: ResValTransformer, chosen: Sequence[Link], pairs: PromptPairs, max_tokens: int
    ) -> Edit:
        from resval_lens.hooks.ablate import freeze, link_activations

        return freeze(link_activations(model, pairs.corrupted, chosen, pairs.mask))


ABLATIONS: dict[str, LinkAblation] = {each.name: each for each in (Zero(), Mean(), Resample())}
"""Every ablation by its name, those of your own, too: ``ABLATIONS["mine"] = Mine()``."""
