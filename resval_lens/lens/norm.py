"""Normalisation by PyTorch's fused kernels, wherever nobody looks inside."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from resval_lens.config import ResValConfig
from resval_lens.host import LayerNorm, RMSNorm


class FusedLayerNorm(LayerNorm):
    """TransformerLens's LayerNorm; ``F.layer_norm`` while its hook points are not watched."""

    cfg: ResValConfig

    def forward(self, x: Tensor) -> Tensor:
        """(x − mean(x)) / √(var(x) + eps) · w + b, over the last axis."""
        if _may_fuse(self):
            return F.layer_norm(x, (self.length,), self.w, self.b, self.eps)
        return super().forward(x)


class FusedRMSNorm(RMSNorm):
    """TransformerLens's RMSNorm; ``F.rms_norm`` while its hook points are not watched."""

    cfg: ResValConfig

    def forward(self, x: Tensor) -> Tensor:
        """x / √(mean(x²) + eps) · w, over the last axis."""
        if _may_fuse(self):
            return F.rms_norm(x, (x.shape[-1],), self.w, self.eps)
        return super().forward(x)


def fused(norm: nn.Module, cfg: ResValConfig) -> nn.Module:
    """``norm`` as one that may fuse, if it is of a kind that can be; itself otherwise."""
    if type(norm) is LayerNorm:
        return FusedLayerNorm(cfg, norm.length)
    if type(norm) is RMSNorm:
        return FusedRMSNorm(cfg, norm.length)
    return norm


def is_hooked(hook_point: HookPoint) -> bool:
    """Whether this hook point has a hook of any kind, TransformerLens's or PyTorch's."""
    return bool(
        hook_point._forward_hooks
        or hook_point._forward_pre_hooks
        or hook_point._backward_hooks
        or hook_point._backward_pre_hooks
    )


def is_watched(hook_point: HookPoint) -> bool:
    """Whether anything would see this activation or its gradient: a hook, or a wrapper.

    nnsight puts a ``forward`` of its own into each module that it wraps, and leaves it there.
    """
    wrapped = "forward" in hook_point.__dict__
    return is_hooked(hook_point) or wrapped or bool(_has_any_global_hook())


def any_watched(model: HookedRootModule) -> bool:
    """Whether anything would see an activation of ``model``, or its gradient, anywhere in it."""
    return any(is_watched(point) for point in model.hook_points())


def unshared(x: Tensor, hook_point: HookPoint) -> Tensor:
    """``x`` as ``hook_point`` may have it: a copy if it is watched.

    For a tensor that is also used elsewhere. Of the copy an edit in place stays at the hook point,
    and the gradient is what comes back through it alone.
    """
    return x.clone() if is_watched(hook_point) else x


def _may_fuse(norm: FusedLayerNorm | FusedRMSNorm) -> bool:
    return (
        norm.cfg.use_fused
        and norm.cfg.dtype in (torch.float32, torch.float64)
        and not is_watched(norm.hook_scale)
        and not is_watched(norm.hook_normalized)
    )
