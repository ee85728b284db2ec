"""The hooked transformer that ResValTransformer is built on.

TransformerLens 3.9 has one, and it is taken from there. TransformerLens 4 has none; the modules of
this package are one on what 4 keeps (hook points, caches, utilities, weight processing), with 3.9's
names and numbers. Everything else imports it from here and cannot tell which it got.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

STOCK = find_spec("transformer_lens.HookedTransformer") is not None
"""Whether TransformerLens brings its own HookedTransformer."""

if TYPE_CHECKING or STOCK:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.components import (
        AbstractAttention,
        Attention,
        Embed,
        GatedMLP,
        GroupedQueryAttention,
        LayerNorm,
        LayerNormPre,
        RMSNorm,
        RMSNormPre,
        TransformerBlock,
        Unembed,
    )
    from transformer_lens.components.mlps.can_be_used_as_mlp import CanBeUsedAsMLP
    from transformer_lens.HookedTransformer import Output
else:
    from resval_lens.host.attention import AbstractAttention, Attention, GroupedQueryAttention
    from resval_lens.host.components import (
        CanBeUsedAsMLP,
        Embed,
        GatedMLP,
        TransformerBlock,
        Unembed,
    )
    from resval_lens.host.config import HookedTransformerConfig
    from resval_lens.host.model import HookedTransformer, Output
    from resval_lens.host.norms import LayerNorm, LayerNormPre, RMSNorm, RMSNormPre

__all__ = [
    "STOCK",
    "AbstractAttention",
    "Attention",
    "CanBeUsedAsMLP",
    "Embed",
    "GatedMLP",
    "GroupedQueryAttention",
    "HookedTransformer",
    "HookedTransformerConfig",
    "LayerNorm",
    "LayerNormPre",
    "Output",
    "RMSNorm",
    "RMSNormPre",
    "TransformerBlock",
    "Unembed",
]
