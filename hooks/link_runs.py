"""Runs with links edited, resumed where links are first edited."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.hooks.ablate import Edit, link_hooks
from resval_lens.hooks.links import Link
from resval_lens.hooks.prompts import PromptPairs, ready
from resval_lens.hooks.runs import Run, resumed
from resval_lens.lens.norm import any_watched
from resval_lens.transformer import ResValTransformer


class LinkRuns:
    """Clean prompts, ready to be run with any links edited: earlier layers are run once.

    Under hooks on the model, which may change what a layer reads, every layer is run again.

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
        self._run = Run(model, self.pairs.clean)
        self._is_hooked = any_watched(model)
        self.clean = self._run.logits(self.pairs.answers)

    @torch.no_grad()
    def edited(self, edit: Edit, chosen: Sequence[Link]) -> Float[Tensor, "row d_vocab"]:
        """Logits at the answers with the chosen links edited."""
        first = 0 if self._is_hooked else min(link.layer for link in chosen)
        with self.model.hooks(fwd_hooks=link_hooks(self.model, edit, chosen)):
            last = resumed(self.model, self._run.states[first])
            return self.model.read_out(last.residual, self.pairs.answers)
