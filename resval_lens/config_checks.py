"""What each field of a configuration must be; else one line that names it."""

from __future__ import annotations

import math
from functools import cache
from reprlib import repr as shortened
from types import NoneType
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from transformer_lens.utilities import SUPPORTED_ACTIVATIONS

from resval_lens.checks import is_number

NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    list: "a list",
    torch.dtype: "a torch dtype",
    NoneType: "None",
}
CHOICES: dict[str, tuple[str | None, ...]] = {
    "act_fn": tuple(SUPPORTED_ACTIVATIONS),
    "attention_dir": ("causal", "bidirectional"),
    "normalization_type": (None, "LN", "LNPre", "RMS", "RMSPre"),
    "positional_embedding_type": ("standard", "rotary", "shortformer", "alibi"),
    "init_mode": (
        "gpt2", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "muP",
    ),
}  # fmt: skip
LEAST: dict[str, int] = {
    **dict.fromkeys(("n_layers", "seed", "checkpoint_index", "decoder_start_token_id"), 0),
    **dict.fromkeys(
        ("d_model", "d_head", "n_ctx", "n_heads", "d_mlp", "d_vocab", "d_vocab_out", "n_devices",
         "n_key_value_heads", "num_experts", "experts_per_token", "window_size", "rotary_dim",
         "train_seq_length", "NTK_original_ctx_len", "yarn_original_max_position_embeddings",
         "smear_channels", "n_labels", "d_readout", "content", "length"),
        1,
    ),
}  # fmt: skip
POSITIVE = ("attn_scale", "clip_qkv", "rotary_base", "rotary_base_local", "rotary_scaling_factor")
TO_BE_FOUND = ("n_heads", "d_vocab", "d_vocab_out", "attn_scale")
"""Fields in which TransformerLens writes −1 for: from the others."""


def check_fields(cfg: Any) -> None:
    """Refuses values of another type than their field's, or beyond its range.

    NumPy's numbers become Python's, and a torch.device its name. Fields of types that are not in
    ``NAMES`` are left to their class.

    Raises:
        ValueError: the first field that is wrong, with what was expected and its value.
    """
    cls: Any = type(cfg)
    for name, kinds in _kinds(cls).items():
        value = getattr(cfg, name)
        if isinstance(value, np.generic):
            value = value.item()
        if name == "device" and isinstance(value, torch.device):
            value = str(value)
        setattr(cfg, name, value)
        if name == "act_fn" and value is None and cfg.attn_only is True:
            continue  # there is no activation to name
        expected = _refused(name, value, kinds)
        if expected:
            raise ValueError(f"{name} must be {expected}; got {shortened(value)}")


def _refused(name: str, value: Any, kinds: tuple[type, ...]) -> str | None:
    """What was expected, where ``value`` is not that."""
    if name == "dropout" and not (_is(value, float) and 0 <= value < 1):
        return "a share from 0 to below 1"
    if name in CHOICES and not (isinstance(value, str | None) and value in CHOICES[name]):
        return f"one of {', '.join(map(str, CHOICES[name]))}"
    if not any(_is(value, kind) for kind in kinds):
        return " or ".join(NAMES[kind] for kind in kinds)
    if value is None or (value == -1 and name in TO_BE_FOUND):
        return None
    if name in LEAST and value < LEAST[name]:
        return f"{NAMES[int]} from {LEAST[name]} up"
    if name in LEAST and name != "seed" and value >= 2**31:
        return f"{NAMES[int]} below 2**31"
    if name == "seed" and value >= 2**32:
        return f"{NAMES[int]} below 2**32"
    if name in POSITIVE and value <= 0:
        return f"{NAMES[float]} above 0"
    if name == "eps" and value < 0:
        return f"{NAMES[float]} from 0 up"
    if name == "attn_types" and not set(map(str, value)) <= {"global", "local"}:
        return "a list of 'global' and 'local'"
    return None


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return is_number(value) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


@cache
def _kinds(cls: Any) -> dict[str, tuple[type, ...]]:
    """The types that each field may have, of the fields whose types are all in ``NAMES``."""
    found = {}
    for name, hint in get_type_hints(cls).items():
        kinds = tuple(getattr(kind, "__origin__", kind) for kind in get_args(hint) or (hint,))
        if all(kind in NAMES for kind in kinds):
            found[name] = kinds
    return found
