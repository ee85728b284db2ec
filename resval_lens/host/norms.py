"""Layer norms, with a hook point on the scale and on what it scales."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from resval_lens.host.config import HookedTransformerConfig

X = Float[Tensor, "*any length"]


class LayerNormPre(nn.Module):
    """(x − mean(x)) / √(var(x) + eps), over the last axis; computed in float32 at least."""

    centres: ClassVar[bool] = True

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        self.cfg, self.eps = cfg, cfg.eps
        self.hook_scale = HookPoint()  # [batch, pos, 1]
        self.hook_normalized = HookPoint()  # [batch, pos, length]

    def forward(self, x: X) -> X:
        if self.cfg.dtype not in (torch.float32, torch.float64):
            x = x.to(torch.float32)
        if self.centres:
            x = x - x.mean(-1, keepdim=True)
        scale = self.hook_scale((x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        return self.hook_normalized(x / scale).to(self.cfg.dtype)


class LayerNorm(LayerNormPre):
    """LayerNormPre · w + b; of ``length`` channels, by default d_model."""

    def __init__(self, cfg: HookedTransformerConfig, length: int | None = None) -> None:
        super().__init__(cfg)
        self.length = cfg.d_model if length is None else length
        self.w = nn.Parameter(torch.ones(self.length, dtype=cfg.dtype))
        self.b = nn.Parameter(torch.zeros(self.length, dtype=cfg.dtype))

    def forward(self, x: X) -> X:
        return super().forward(x) * self.w + self.b


class RMSNormPre(LayerNormPre):
    """x / √(mean(x²) + eps), over the last axis."""

    centres = False


class RMSNorm(RMSNormPre):
    """RMSNormPre · w; of ``length`` channels, by default d_model."""

    def __init__(self, cfg: HookedTransformerConfig, length: int | None = None) -> None:
        super().__init__(cfg)
        self.length = cfg.d_model if length is None else length
        self.w = nn.Parameter(torch.ones(self.length, dtype=cfg.dtype))

    def forward(self, x: X) -> X:
        return super().forward(x) * self.w


PLAIN: dict[str | None, type[nn.Module]] = {
    "LN": LayerNorm, "LNPre": LayerNormPre, "RMS": RMSNorm, "RMSPre": RMSNormPre,
}  # fmt: skip
"""The norm before a layer, by ``normalization_type``."""


def norm_of(cfg: HookedTransformerConfig) -> nn.Module:
    """The norm before a layer; the identity if there is none."""
    kind = cfg.normalization_type
    return nn.Identity() if kind is None else PLAIN[kind](cfg)


def norm_after(cfg: HookedTransformerConfig) -> nn.Module:
    """The norm behind a layer (``use_normalization_before_and_after``), which is never folded."""
    kind = cfg.normalization_type
    if kind is None:
        return nn.Identity()
    return RMSNorm(cfg) if kind.startswith("RMS") else LayerNorm(cfg)


def final_norm(cfg: HookedTransformerConfig) -> nn.Module:
    """The norm before the unembedding, which may be an RMS norm on its own (``final_rms``)."""
    kind = cfg.normalization_type
    assert kind is not None
    return PLAIN[kind.replace("LN", "RMS") if cfg.final_rms else kind](cfg)
