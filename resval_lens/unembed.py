"""Unembeddings: one that copies no weights, one that shares them with the embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.components import Embed, Unembed
from transformer_lens.hook_points import HookPoint

from resval_lens.config import ResValConfig


class FusedUnembed(Unembed):
    """TransformerLens's Unembed without its copy of W_U at every call."""

    cfg: ResValConfig

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """logits = x W_U + b_U"""
        if not self.cfg.use_fused:
            return super().forward(x)
        return self.hook_out(F.linear(self.hook_in(x), self.W_U.T, self.b_U))


class TiedUnembed(nn.Module):
    """logits = x W_Eᵀ, hooks as in TransformerLens's Unembed; no parameter of its own, no bias."""

    b_U: Tensor

    def __init__(self, cfg: ResValConfig, embed: Embed) -> None:
        super().__init__()
        self.cfg = cfg
        self._embed = (embed,)  # in a tuple, so that W_E stays the embedding's alone
        self.register_buffer("b_U", torch.zeros(cfg.d_vocab, dtype=cfg.dtype), persistent=False)
        self.hook_in = HookPoint()  # [batch, pos, d_model]
        self.hook_out = HookPoint()  # [batch, pos, d_vocab]

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """W_E transposed: a view, not a parameter."""
        return self._embed[0].W_E.T

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        return self.hook_out(F.linear(self.hook_in(x), self._embed[0].W_E))

    def untied(self) -> FusedUnembed:
        """One of its own with the same weights."""
        unembed = FusedUnembed(self.cfg)
        unembed.W_U = nn.Parameter(self.W_U.detach().clone())
        return unembed.to(self.W_U.device)
