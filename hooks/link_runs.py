"""Runs with links edited, resumed where links are first edited."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.hooks.ablate import Edit, link_hooks
from resval_lens.hooks.answers import answer_logits, read_out
from resval_lens.hooks.links import Link
from resval_lens.hooks.prompts import PromptPairs, ready
from resval_lens.hooks.runs import Run, resumed
from resval_lens.norm import is_watched
from resval_lens.transformer import ResValTransformer


class LinkRuns:
    """Clean prompts, ready to be run with any links edited: earlier layers are run once.

    Under hooks on the model, which may change what a layer reads, every run is a whole one.

    Attributes:
        pairs: the prompts as they are run, each beginning at position 0; so must what an edit takes
            from other runs.
        clean: logits at the answers, no link edited.
    """

    clean: Float[Tensor, "row d_vocab"]

    @torch.no_grad()
    def __init__(self, model: ResValTransformer, pairs: PromptPairs) -> None:
        """
        Raises:
            ValueError: what :func:`~resval_lens.hooks.prompts.ready` refuses.
        """
        self.model, self.pairs = model, ready(model, pairs)
        run = Run(model, self.pairs.clean)
        self.clean = run.logits(self.pairs.answers)
        is_free = not any(is_watched(point) for point in model.hook_points())
        self._run = run if is_free else None

    @torch.no_grad()
    def edited(self, edit: Edit, chosen: Sequence[Link]) -> Float[Tensor, "row d_vocab"]:
        """Logits at the answers with the chosen links edited."""
        model, pairs = self.model, self.pairs
        with model.hooks(fwd_hooks=link_hooks(model, edit, chosen)):
            if self._run is None:
                return answer_logits(model, pairs.clean, pairs.answers)
            state = self._run.states[min(link.layer for link in chosen)]
            return read_out(model, resumed(model, state), pairs.answers)
