"""Logits at each prompt's answer."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resval_lens.transformer import ResValTransformer


def layer_device(model: ResValTransformer, layer: int) -> torch.device:
    """Where a layer is: a model may be spread over several devices, its layers in their order."""
    return model.blocks[layer].device


def right_padding(model: ResValTransformer) -> dict[str, Any]:
    """What a model call needs so that nothing that leads a row is taken for padding.

    A tokenizer that pads on the left would have TransformerLens mask it.
    """
    return {"padding_side": "right"} if model.reads_tokens else {}


def answer_logits(
    model: ResValTransformer, inputs: Tensor, answers: Int[Tensor, " row"]
) -> Float[Tensor, "row d_vocab"]:
    """Logits at each row's answer position; the others are not computed.

    Args:
        inputs: tokens, or a classifier's continuous tokens (it answers at the last position).
    """
    residual = model(inputs, stop_at_layer=model.cfg.n_layers, **right_padding(model))
    return model.read_out(residual, answers)
