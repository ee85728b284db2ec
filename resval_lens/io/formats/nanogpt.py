"""Checkpoints of nanoGPT (https://github.com/karpathy/nanoGPT): ckpt.pt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_nanogpt_weights

from resval_lens.io.files import first_line
from resval_lens.io.formats.format import (
    NO_SETTINGS,
    Converted,
    Format,
    Settings,
    leads_with_bos,
    with_padding,
)
from resval_lens.io.formats.state import read_torch

_SETTINGS = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")


class NanoGPT(Format):
    """A checkpoint of nanoGPT's train.py. Its tokenizer is a pickle, or none: it is not read."""

    name = "a nanoGPT checkpoint (ckpt.pt)"

    def holds(self, path: Path) -> bool:
        return (path / "ckpt.pt").is_file() or (path.name == "ckpt.pt" and path.is_file())

    def read(
        self,
        path: Path,
        dtype: torch.dtype,
        device: str,
        tokenizer: Any = None,
        settings: Settings = NO_SETTINGS,
    ) -> Converted:
        file = path / "ckpt.pt" if path.is_dir() else path
        expected = "a checkpoint of nanoGPT's train.py (model, model_args)"
        saved = read_torch(file, expected)
        try:
            state, settings = saved["model"], saved["model_args"]
            sizes = [int(settings[name]) for name in _SETTINGS]
        except Exception as error:  # a file of anything fails in many ways
            raise ValueError(f"{file} is not {expected}: {first_line(error)}") from None
        n_layers, n_heads, width, n_ctx, d_vocab = sizes
        stored = len({name.split(".h.")[1].split(".")[0] for name in state if ".h." in name})
        if n_layers != stored or min(sizes) < 1:
            said = dict(zip(_SETTINGS, sizes, strict=True))
            raise ValueError(
                f"{file} is not {expected}: model_args says {said}, with weights of {stored} layers"
            )
        cfg = HookedTransformerConfig(
            n_layers=n_layers,
            n_heads=n_heads,
            d_model=width,
            d_head=width // n_heads,
            d_mlp=4 * width,
            n_ctx=n_ctx,
            d_vocab=d_vocab,
            act_fn="gelu",
            normalization_type="LN",
            eps=1e-5,
            init_weights=False,
            dtype=dtype,
            device=device,
            default_prepend_bos=leads_with_bos(tokenizer),
            original_architecture="nanogpt",
        )
        try:
            weights: dict[str, Tensor] = convert_nanogpt_weights(state, cfg)
        except Exception as error:
            raise ValueError(f"{file} is not {expected}: {first_line(error)}") from None
        return Converted(str(file), cfg, weights, with_padding(tokenizer))
