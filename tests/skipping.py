"""Small models in which values and states skip layers, for tests that go through all of them."""

from typing import Any

import torch

from resval_lens.streams import StreamsLike
from resval_lens.transformer import ResValTransformer
from tests.helpers import tiny_model

ROTARY = {
    "n_layers": 4,
    "dtype": torch.float64,
    "positional_embedding_type": "rotary",
    "normalization_type": "RMS",
    "act_fn": "relu",
}
NANOCHAT = {
    **ROTARY,
    "n_key_value_heads": 2,
    "use_qk_norm": True,
    "qk_norm_after_rotation": True,
    "use_local_attn": True,
    "window_size": 3,
    "attn_types": ["local", "global", "local", "local"],
    "residual_mixing": "all",
    "embedding_norm": True,
    "smear_channels": 5,
}
GATED_TABLES = "v(source=tokens, mix=added_gate, layers=(0, 2, 3), channels=6, scale=3)"
CLASSIC = {"n_layers": 4, "dtype": torch.float64}
STATES = ((0,), (1,), (0, 2), (1, 3), (0, 2, 4))
MODELS: dict[str, tuple[StreamsLike, dict[str, Any]]] = {
    "nanochat": (GATED_TABLES, NANOCHAT),
    "all tables": (
        "q(source=tokens) k(source=tokens) v(source=tokens)",
        {**ROTARY, "residual_mixing": STATES},
    ),
    "tables alone": ("v(source=tokens, mix=pair, own=0, carried=1)", CLASSIC),
    "previous values": (
        "v(mix=added_gate, act=relu, bias=True)",
        {**ROTARY, "residual_mixing": "embedding"},
    ),
    "smeared": ("", {**CLASSIC, "smear_channels": 4, "embedding_norm": True}),
}


def skipping_model(name: str, **changes: Any) -> ResValTransformer:
    """One of ``MODELS``, every parameter off its initial value."""
    streams, settings = MODELS[name]
    return tiny_model(streams, **{**settings, **changes})
