"""A transformer block that passes streams on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, overload

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from resval_lens.attention import (
    STATES,
    TOKENS,
    Carried,
    Delivery,
    ResValAttention,
    ResValGroupedQueryAttention,
)
from resval_lens.config import ResValConfig
from resval_lens.host import TransformerBlock
from resval_lens.io.placing import Waiting
from resval_lens.lens.mlp import without_copies
from resval_lens.lens.norm import fused
from resval_lens.residual import Residual, ResidualMix, kept_before


class ResValBlock(TransformerBlock):
    """TransformerLens's block, with an attention layer that receives and passes on streams."""

    cfg: ResValConfig
    attn: ResValAttention | ResValGroupedQueryAttention
    waiting: Waiting | None = None
    """Where its weights are while it does not run, if not on its device."""

    def __init__(self, cfg: ResValConfig, block_index: int) -> None:
        streams, cfg.streams = cfg.streams, ()
        try:  # builds a stock attention layer, which takes none
            super().__init__(cfg, block_index)
        finally:
            cfg.streams = streams
        grouped = cfg.n_key_value_heads is not None
        attention = ResValGroupedQueryAttention if grouped else ResValAttention
        self.attn = attention(cfg, self.attn.attn_type, block_index)
        for name in ("ln1", "ln1_post", "ln2", "ln2_post"):
            if hasattr(self, name):
                setattr(self, name, fused(getattr(self, name), cfg))
        if not cfg.attn_only:
            self.mlp = without_copies(self.mlp, cfg)
        self.index = block_index
        if cfg.residual_mixing:
            self.resid_mix = ResidualMix(cfg.residual_mixing, block_index, cfg.dtype)

    @property
    def hook_out_is_single_residual_stream(self) -> bool:
        """Whether what it passes on is all that the readout reads, as TransformerLens 4 asks."""
        return not self.cfg.residual_mixing

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.attn.W_O.device if self.waiting is None else self.waiting.device

    def fetched(self) -> AbstractContextManager[None]:
        """With its weights on its device, for who reads them while it does not run."""
        return nullcontext() if self.waiting is None else self.waiting.fetched()

    @overload
    def forward(
        self, resid_pre: Tensor, *args: Any, carried: None = None, **kwargs: Any
    ) -> Float[Tensor, "batch pos d_model"]: ...
    @overload
    def forward(
        self, resid_pre: Tensor, *args: Any, carried: Carried, **kwargs: Any
    ) -> tuple[Float[Tensor, "batch pos d_model"], Carried]: ...

    def forward(
        self,
        resid_pre: Tensor,
        *args: Any,
        carried: Carried | None = None,
        mixed: bool = False,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Carried]:
        """The residual stream after this block; with ``carried``, also what is passed on.

        With residual mixing ``resid_pre`` is the state before this block, and those that it and
        later readers read beside it are among ``carried``; unless it is ``mixed`` already: then
        those that later readers read, that state among them, are.

        ``carried`` comes in and goes out as an argument, so that a recomputed block
        (activation checkpointing) sees what it saw the first time. Between this method and its
        attention layer it travels on the layer, put back as it was even if a hook raises; a model
        call nested in a hook therefore meets its own streams. Two threads in one model do not.
        """
        if self.waiting is not None:
            with self.waiting.fetched():
                return self._run(resid_pre, args, carried, mixed, kwargs)
        return self._run(resid_pre, args, carried, mixed, kwargs)

    def entered(self, state: Residual, carried: Carried) -> tuple[Residual, Carried]:
        """What this block reads of the state before it and those carried, and what goes on.

        Raises:
            RuntimeError: the states that it reads have not come.
        """
        if not self.cfg.residual_mixing:
            return state, carried
        mixing, before = self.cfg.residual_mixing, carried.get(STATES, ())
        numbers = kept_before(mixing, self.index)
        if len(numbers) != len(before):
            raise RuntimeError(
                f"block {self.index} and later ones read the states {numbers} of the residual "
                f"stream, and {len(before)} arrived: run it with `carried=`, as "
                "ResValTransformer.forward does"
            )
        states = {**dict(zip(numbers, before, strict=True)), self.index: state}
        on = tuple(states[j] for j in kept_before(mixing, self.index + 1))
        return self.resid_mix(states), {**carried, STATES: on}

    def _run(
        self,
        resid_pre: Tensor,
        args: tuple[Any, ...],
        carried: Carried | None,
        mixed: bool,
        kwargs: dict[str, Any],
    ) -> Any:
        if not mixed and self.cfg.residual_mixing:
            resid_pre, carried = self.entered(resid_pre, carried or {})
        if carried is None:
            return super().forward(resid_pre, *args, **kwargs)
        outer = self.attn.delivery
        delivery = Delivery(arriving=carried)
        self.attn.delivery = delivery
        try:
            resid_post = super().forward(resid_pre, *args, **kwargs)
        finally:
            self.attn.delivery = outer
        on = {name: carried[name] for name in (TOKENS, STATES) if name in carried}
        return resid_post, delivery.leaving | on

    def apply_mlp(
        self, normalized_resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the MLP adds to the residual stream."""
        if not (self.training and self.cfg.dropout):
            return super().apply_mlp(normalized_resid)
        return self.hook_mlp_out(F.dropout(self.mlp(normalized_resid), self.cfg.dropout))
