"""Gated MLPs: without copies of their weights, with biases on both sides of the gate."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resval_lens.config import ResValConfig
from resval_lens.host import CanBeUsedAsMLP, GatedMLP


class FusedGatedMLP(GatedMLP):
    """TransformerLens's GatedMLP, which copies each of its matrices at every call: in a
    training step that is one more copy of each, and one of each gradient.
    """

    cfg: ResValConfig

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """(act(x W_gate) ∘ x W_in + b_in) W_out + b_out, as TransformerLens has it"""
        if not self.cfg.use_fused or self.cfg.is_layer_norm_activation():
            return super().forward(x)
        x = x.to(self.W_gate.device)
        pre = self.hook_pre(x @ self.W_gate)  # [batch, pos, d_mlp]
        linear = self.hook_pre_linear(x @ self.W_in)
        post = self.hook_post(self.act_fn(pre) * linear + self.b_in)
        return torch.addmm(self.b_out, post.flatten(0, -2), self.W_out).view_as(x)


class BiasedGatedMLP(GatedMLP):
    """A gated MLP whose two inner layers both have a bias (``gated_mlp_biases``)."""

    cfg: ResValConfig

    def __init__(self, cfg: ResValConfig) -> None:
        super().__init__(cfg)
        self.b_gate = nn.Parameter(torch.zeros_like(self.b_in))

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """(act(x W_gate + b_gate) ∘ (x W_in + b_in)) W_out + b_out"""
        x = x.to(self.W_gate.device)
        pre = self.hook_pre(x @ self.W_gate + self.b_gate)  # [batch, pos, d_mlp]
        linear = self.hook_pre_linear(x @ self.W_in + self.b_in)
        post = self.hook_post(self.act_fn(pre) * linear)
        return torch.addmm(self.b_out, post.flatten(0, -2), self.W_out).view_as(x)


def without_copies(mlp: CanBeUsedAsMLP, cfg: ResValConfig) -> CanBeUsedAsMLP:
    """``mlp`` as one that copies no weights, if it is of the kind that does; itself otherwise."""
    if cfg.gated_mlp_biases:
        return BiasedGatedMLP(cfg)
    return FusedGatedMLP(cfg) if type(mlp) is GatedMLP else mlp
