"""Runs with links edited, resumed where links are first edited."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.hook_names import handing_point
from resval_lens.hooks.ablate import Edit, link_hooks
from resval_lens.hooks.answers import answer_logits, resumed_logits
from resval_lens.hooks.links import Link
from resval_lens.hooks.prompts import PromptPairs, ready
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
        pairs = self.pairs
        self._whole = any(is_watched(point) for point in model.hook_points())
        layers = range(model.cfg.n_layers)
        names = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
        names += [handing_point(stream, layer) for stream in model.cfg.streams for layer in layers]
        self._cache, hooks, _ = model.get_caching_hooks(names)
        with model.hooks(fwd_hooks=[] if self._whole else hooks):
            self.clean = answer_logits(model, pairs.clean, pairs.answers)

    @torch.no_grad()
    def edited(self, edit: Edit, chosen: Sequence[Link]) -> Float[Tensor, "row d_vocab"]:
        """Logits at the answers with the chosen links edited."""
        model, pairs = self.model, self.pairs
        layer = min(link.layer for link in chosen)
        with model.hooks(fwd_hooks=link_hooks(model, edit, chosen)):
            if self._whole:
                return answer_logits(model, pairs.clean, pairs.answers)
            residual = self._cache[f"blocks.{layer}.hook_resid_pre"]
            carried = model.carried_before(layer, self._cache)
            return resumed_logits(model, residual, layer, carried, pairs.answers)
