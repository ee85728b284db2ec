"""Small models, and what a stream is when written as ordinary hooks on a stock model."""

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

import pytest
import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from resval_lens.config import ResValConfig
from resval_lens.host import STOCK, HookedTransformer, HookedTransformerConfig
from resval_lens.io.files import digest, write_sealed
from resval_lens.streams import StreamsLike
from resval_lens.transformer import ResValTransformer

Model = TypeVar("Model", bound=nn.Module)

needs_stock = pytest.mark.skipif(not STOCK, reason="TransformerLens 4 has no HookedTransformer")
"""For tests in which TransformerLens's own model is what is tested against."""

SETTINGS: dict[str, Any] = {
    "n_layers": 3,
    "d_model": 16,
    "n_heads": 4,
    "d_head": 4,
    "n_ctx": 12,
    "d_vocab": 13,
    "act_fn": "gelu_new",
    "seed": 0,
    "device": "cpu",
}

# The settings of HookedTransformer that change what attention or a block computes.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa": {"n_key_value_heads": 2},
    "gqa-ungrouped": {"n_key_value_heads": 2, "ungroup_grouped_query_attention": True},
    "rotary": {"positional_embedding_type": "rotary"},
    "rotary-part": {"positional_embedding_type": "rotary", "rotary_dim": 2},
    "rotary-gqa": {"positional_embedding_type": "rotary", "n_key_value_heads": 2},
    "alibi": {"positional_embedding_type": "alibi"},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "attn-only": {"attn_only": True},
    "qk-norm": {"use_qk_norm": True},
    "split-qkv": {"use_split_qkv_input": True},
    "split-qkv-gqa": {"use_split_qkv_input": True, "n_key_value_heads": 2},
    "attn-in": {"use_attn_in": True},
    "attn-result": {"use_attn_result": True},
    "parallel-mlp": {"parallel_attn_mlp": True},
    "gated-mlp": {"gated_mlp": True},
    "local": {"use_local_attn": True, "window_size": 3, "attn_types": ["global", "local", "local"]},
    "bidirectional": {"attention_dir": "bidirectional"},
    "rms": {"normalization_type": "RMS"},
    "ln-pre": {"normalization_type": "LNPre"},
    "no-norm": {"normalization_type": None},
    "unscaled": {"use_attn_scale": False},
    "scaled-by-layer": {"scale_attn_by_inverse_layer_idx": True},
    "soft-capped": {"attn_scores_soft_cap": 2.0, "output_logits_soft_cap": 2.0},
}


def tiny_config(**changes: Any) -> ResValConfig:
    return ResValConfig(**{**SETTINGS, **changes})


def tiny_model(streams: StreamsLike = "", **changes: Any) -> ResValTransformer:
    return randomise(ResValTransformer(tiny_config(streams=streams, **changes)))


def stock_config(**changes: Any) -> HookedTransformerConfig:
    return HookedTransformerConfig(**{**SETTINGS, **changes})


def stock_model(**changes: Any) -> HookedTransformer:
    """A HookedTransformer with the sizes, seed and parameters of :func:`tiny_model`."""
    return randomise(HookedTransformer(stock_config(**changes)))


def randomise(model: Model) -> Model:
    """Moves every parameter off its initial value: a zero bias or unit norm can hide a mistake.

    The noise depends on a parameter's name alone, so that equal names stay equal across models.
    """
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(crc32(name.encode()))
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += 0.3 * noise.to(parameter.dtype)
    return model


def tiny_tokens(batch: int = 2, length: int = 7, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SETTINGS["d_vocab"], (batch, length), generator=generator)


def adding_hooks(
    of: str, n_layers: int = 3, source: str = "previous", carry: str = "sum", detach: bool = False
) -> list[tuple[str, Callable[[Tensor, HookPoint], Tensor]]]:
    """A stream by hand: callbacks that keep each layer's projection and add it to later ones."""
    local: dict[int, Tensor] = {}
    total: dict[int, Tensor] = {}

    def add(projection: Tensor, hook: HookPoint) -> Tensor:
        layer = hook.layer()
        passed = local if carry == "raw" else total
        sources = {"previous": [layer - 1], "first": [0], "all": range(layer)}[source]
        arriving = [passed[j].detach() if detach else passed[j] for j in sources if layer > 0]
        local[layer] = total[layer] = projection
        if arriving:
            total[layer] = projection + sum(arriving[1:], start=arriving[0])
        return total[layer]

    return [(f"blocks.{layer}.attn.hook_{of}", add) for layer in range(n_layers)]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def reseal(folder: Path) -> None:
    """Makes a saved model's checksums fit its files again, after a change on purpose."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text())
        content["sha256"] = {name: digest(folder / name) for name in content["sha256"]}
    except (OSError, ValueError, TypeError, KeyError):  # damaged beyond that
        return
    content.pop("checksum")
    write_sealed(path, content)


def reached(run: Sequence[dict[str, Any]], loss: float) -> float:
    """The step at which the loss falls to this one, linear between evaluations."""
    last, first = next(two for two in pairwise(run) if two[1]["valid_loss"] <= loss)
    fall = (last["valid_loss"] - loss) / (last["valid_loss"] - first["valid_loss"])
    return float(last["step"] + fall * (first["step"] - last["step"]))
