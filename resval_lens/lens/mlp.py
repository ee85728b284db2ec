"""A gated MLP that copies no weights."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformer_lens.components import GatedMLP
from transformer_lens.components.mlps.can_be_used_as_mlp import CanBeUsedAsMLP

from resval_lens.config import ResValConfig


class FusedGatedMLP(GatedMLP):
    """TransformerLens's GatedMLP without its copies of the three matrices at every call."""

    cfg: ResValConfig

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """(act(x W_gate) · x W_in + b_in) W_out + b_out"""
        if not self.cfg.use_fused or self.cfg.is_layer_norm_activation():
            return super().forward(x)
        x = x.to(self.W_gate.device)
        gate = self.act_fn(self.hook_pre(F.linear(x, self.W_gate.T)))
        linear = self.hook_pre_linear(F.linear(x, self.W_in.T))
        return F.linear(self.hook_post(gate * linear + self.b_in), self.W_out.T, self.b_out)


def without_copies(mlp: CanBeUsedAsMLP, cfg: ResValConfig) -> CanBeUsedAsMLP:
    """``mlp`` as one that copies no weights, if it is TransformerLens's gated one; else itself."""
    return FusedGatedMLP(cfg) if type(mlp) is GatedMLP else mlp
