"""Unembeddings: one that copies no weights, one that shares them with the embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import apply_softcap

from resval_lens.config import ResValConfig
from resval_lens.host import Embed, Unembed
from resval_lens.lens.norm import is_watched


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


NO_TARGET = -100
PART = 2**24
"""Logits, or weights in float32, held at once; more take longer to fetch than to compute."""


def wide(x: Tensor) -> Tensor:
    """In float32 at least: what is added up over many numbers must not be rounded to fewer bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def wide_logits(
    unembed: FusedUnembed | TiedUnembed, x: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_vocab"]:
    """``unembed(x)`` in float32 at least.

    In bfloat16 a logit of 20 is a multiple of an eighth, and so is what a metric can say. Weights
    are widened ``PART`` at a time, and again in the backward pass: no wide copy of them is kept.
    """
    if wide(x).dtype == x.dtype:
        return unembed(x)
    x = wide(unembed.hook_in(x))
    found = [
        checkpoint(_wide_product, x, some, use_reentrant=False, preserve_rng_state=False)
        for some in unembed.W_U.T.split(max(1, PART // x.shape[-1]))
    ]
    return unembed.hook_out(torch.cat(found, -1) + unembed.b_U)


def _wide_product(x: Tensor, weights: Float[Tensor, "some d_model"]) -> Tensor:
    return F.linear(x, weights.to(x.dtype))


def loss_sum(
    unembed: FusedUnembed | TiedUnembed,
    x: Float[Tensor, "batch pos d_model"],
    targets: Int[Tensor, "batch pos"],
) -> Float[Tensor, ""]:
    """Σ cross-entropy of logits(x) against ``targets`` in nats, where they are not −100.

    Of large vocabularies the logits are not held whole (``F.linear_cross_entropy``) in eager
    32-bit runs in which nobody looks at them. That loss has no second derivative; with
    ``use_fused=False`` they are always held.
    """
    wanted = targets.flatten().to(x.device)
    if not _in_parts(unembed, x):
        logits = apply_softcap(unembed(x), unembed.cfg.output_logits_soft_cap)
        return F.cross_entropy(
            wide(logits.flatten(0, 1)), wanted, ignore_index=NO_TARGET, reduction="sum"
        )
    tied = isinstance(unembed, TiedUnembed)
    rows = 2 ** max(6, (PART // unembed.W_U.shape[1]).bit_length() - 1)
    return F.linear_cross_entropy(
        unembed.hook_in(x).flatten(0, 1),
        unembed.W_U.T,
        wanted,
        linear_bias=None if tied else unembed.b_U,
        reduction="sum",
        ignore_index=NO_TARGET,
        options=nn.LinearCrossEntropyOptions(
            batch_chunk_size=rows, chunking_method=None, acc_policy="compact"
        ),
    )


def _in_parts(unembed: FusedUnembed | TiedUnembed, x: Tensor) -> bool:
    cfg = unembed.cfg
    return (
        cfg.use_fused
        and x.dtype == torch.float32
        and x[..., 0].numel() * cfg.d_vocab_out > PART
        and cfg.output_logits_soft_cap <= 0
        and not is_watched(unembed.hook_out)
        and not torch.is_autocast_enabled(x.device.type)
        and not torch.compiler.is_compiling()
        and hasattr(F, "linear_cross_entropy")  # PyTorch 2.13
    )
