"""A transformer block that passes streams on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, overload

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformer_lens.components import TransformerBlock

from resval_lens.attention import (
    Carried,
    Delivery,
    ResValAttention,
    ResValGroupedQueryAttention,
)
from resval_lens.config import ResValConfig
from resval_lens.io.placing import Waiting
from resval_lens.lens.mlp import without_copies
from resval_lens.lens.norm import fused


class ResValBlock(TransformerBlock):
    """TransformerLens's block, with an attention layer that receives and hands on streams."""

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
        self, resid_pre: Tensor, *args: Any, carried: Carried | None = None, **kwargs: Any
    ) -> Tensor | tuple[Tensor, Carried]:
        """The residual stream after this block; with ``carried``, also what is handed on.

        ``carried`` comes in and goes out as an argument, so that a recomputed block
        (activation checkpointing) sees what it saw the first time. Between this method and its
        attention layer it travels on the layer, put back as it was even if a hook raises; a model
        call nested in a hook therefore meets its own streams. Two threads in one model do not.
        """
        if self.waiting is not None:
            with self.waiting.fetched():
                return self._run(resid_pre, args, carried, kwargs)
        return self._run(resid_pre, args, carried, kwargs)

    def _run(
        self,
        resid_pre: Tensor,
        args: tuple[Any, ...],
        carried: Carried | None,
        kwargs: dict[str, Any],
    ) -> Any:
        if carried is None:
            return super().forward(resid_pre, *args, **kwargs)
        outer = self.attn.delivery
        delivery = Delivery(arriving=carried)
        self.attn.delivery = delivery
        try:
            resid_post = super().forward(resid_pre, *args, **kwargs)
        finally:
            self.attn.delivery = outer
        return resid_post, delivery.leaving

    def apply_mlp(
        self, normalized_resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the MLP adds to the residual stream."""
        if not (self.training and self.cfg.dropout):
            return super().apply_mlp(normalized_resid)
        return self.hook_mlp_out(F.dropout(self.mlp(normalized_resid), self.cfg.dropout))
