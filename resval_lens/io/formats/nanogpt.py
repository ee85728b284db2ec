"""Checkpoints of nanoGPT (https://github.com/karpathy/nanoGPT): ckpt.pt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import einops
import torch
from torch import Tensor

from resval_lens.host import HookedTransformerConfig
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
            weights = _converted(state, n_layers, n_heads)
        except Exception as error:
            raise ValueError(f"{file} is not {expected}: {first_line(error)}") from None
        return Converted(str(file), cfg, weights, with_padding(tokenizer))


def _converted(state: Mapping[str, Tensor], n_layers: int, n_heads: int) -> dict[str, Tensor]:
    """nanoGPT's parameters by HookedTransformer's names; biases where it has any."""
    state = {name.removeprefix("_orig_mod."): x for name, x in state.items()}  # torch.compile's
    names = {
        "transformer.wte.weight": "embed.W_E",
        "transformer.wpe.weight": "pos_embed.W_pos",
        "transformer.ln_f.weight": "ln_final.w",
        "transformer.ln_f.bias": "ln_final.b",
    }
    found = {ours: state[theirs] for theirs, ours in names.items() if theirs in state}
    found["unembed.W_U"] = state["lm_head.weight"].T
    for layer in range(n_layers):
        ours, theirs = f"blocks.{layer}.", f"transformer.h.{layer}."
        biased = f"{theirs}ln_1.bias" in state
        for norm in ("1", "2"):
            found[f"{ours}ln{norm}.w"] = state[f"{theirs}ln_{norm}.weight"]
            if biased:
                found[f"{ours}ln{norm}.b"] = state[f"{theirs}ln_{norm}.bias"]
        each = state[f"{theirs}attn.c_attn.weight"].tensor_split(3)
        for of, x in zip("QKV", each, strict=True):
            found[f"{ours}attn.W_{of}"] = einops.rearrange(x, "(i h) m -> i m h", i=n_heads)
        x = state[f"{theirs}attn.c_proj.weight"]
        found[f"{ours}attn.W_O"] = einops.rearrange(x, "m (i h) -> i h m", i=n_heads)
        found[f"{ours}mlp.W_in"] = state[f"{theirs}mlp.c_fc.weight"].T
        found[f"{ours}mlp.W_out"] = state[f"{theirs}mlp.c_proj.weight"].T
        if biased:
            each = state[f"{theirs}attn.c_attn.bias"].tensor_split(3)
            for of, x in zip("QKV", each, strict=True):
                found[f"{ours}attn.b_{of}"] = einops.rearrange(x, "(i h) -> i h", i=n_heads)
            found[f"{ours}attn.b_O"] = state[f"{theirs}attn.c_proj.bias"]
            found[f"{ours}mlp.b_in"] = state[f"{theirs}mlp.c_fc.bias"]
            found[f"{ours}mlp.b_out"] = state[f"{theirs}mlp.c_proj.bias"]
    return found
