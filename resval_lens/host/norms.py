"""Layer norms, with a hook point on the scale and on what it scales."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from resval_lens.host.config import HookedTransformerConfig

X = Float[Tensor, "*any length"]


class Norm(nn.Module):
    """x over its scale, over the last axis, in float32 at least; behind that a gain, in some.

    None is derived from another: what asks for a layer norm must not be given an RMS norm.
    """

    centres: ClassVar[bool]

    def __init__(self, cfg: HookedTransformerConfig, length: int | None = None) -> None:
        super().__init__()
        self.cfg, self.eps = cfg, cfg.eps
        self.length = cfg.d_model if length is None else length
        self.hook_scale = HookPoint()  # [batch, pos, 1]
        self.hook_normalized = HookPoint()  # [batch, pos, length]

    def forward(self, x: X) -> X:
        if self.cfg.dtype not in (torch.float32, torch.float64):
            x = x.to(torch.float32)
        if self.centres:
            x = x - x.mean(-1, keepdim=True)
        scale = self.hook_scale((x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        return self.hook_normalized(x / scale).to(self.cfg.dtype)


class LayerNormPre(Norm):
    """(x − mean(x)) / √(var(x) + eps)"""

    centres = True


class LayerNorm(Norm):
    """(x − mean(x)) / √(var(x) + eps) · w + b"""

    centres = True

    def __init__(self, cfg: HookedTransformerConfig, length: int | None = None) -> None:
        super().__init__(cfg, length)
        self.w = nn.Parameter(torch.ones(self.length, dtype=cfg.dtype))
        self.b = nn.Parameter(torch.zeros(self.length, dtype=cfg.dtype))

    def forward(self, x: X) -> X:
        return super().forward(x) * self.w + self.b


class RMSNormPre(Norm):
    """x / √(mean(x²) + eps)"""

    centres = False


class RMSNorm(Norm):
    """x / √(mean(x²) + eps) · w"""

    centres = False

    def __init__(self, cfg: HookedTransformerConfig, length: int | None = None) -> None:
        super().__init__(cfg, length)
        self.w = nn.Parameter(torch.ones(self.length, dtype=cfg.dtype))

    def forward(self, x: X) -> X:
        return super().forward(x) * self.w


PLAIN: dict[str, type[Norm]] = {
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
