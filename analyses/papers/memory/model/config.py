"""The configuration of the simplified transformer whose weights are associative memories."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from resval_lens.checks import check_whole, is_number
from resval_lens.config import ResValConfig
from resval_lens.models.presets import ENCODINGS, Positions
from resval_lens.streams import StreamsLike

IN_THE_STREAM = ("absolute", "sinusoidal")
"""Encodings that are added to the token embeddings; the others act on attention scores."""

FROZEN = (
    "embed.W_E", "pos_embed.W_pos", "unembed.*", "blocks.*.attn.W_R", "blocks.*.attn.W_Q",
    "blocks.*.attn.W_V", "blocks.*.attn.b_*",
)  # fmt: skip

PLAIN: dict[str, Any] = {
    "attn_only": True, "normalization_type": None, "attention_dir": "causal",
    "n_key_value_heads": None, "tied_embedding": False, "use_local_attn": False,
    "use_qk_norm": False, "use_attention_sinks": False, "use_logn_attn": False, "clip_qkv": None,
    "attn_scores_soft_cap": -1.0, "output_logits_soft_cap": -1.0,
    "scale_attn_by_inverse_layer_idx": False, "load_in_4bit": False, "residual_mixing": (),
    "embedding_norm": False, "smear_channels": None,
}  # fmt: skip
"""What the architecture is; TransformerLens's other settings of it would make another."""


@dataclass
class MemoryConfig(ResValConfig):
    """A simplified transformer; make one with :func:`memory_config`.

    Attributes:
        positions: how a token's position is told:

            absolute     p_t added to its embedding, random and frozen (APE)
            sinusoidal   the same with sines and cosines, times embed_std
            relative     r_{s−t} added to the key's token in scores, random and frozen (RPE; Shaw
                         et al., arXiv 1803.02155, key side)
            rotary       queries and keys rotated by their positions (RoPE)
            alibi        −slope · distance added to scores (ALiBi)

        position_layers: the layers in which relative, rotary or ALiBi positions act; the others
            compare content only.
        embed_std: standard deviation of the entries of token, absolute and relative embeddings.
        alibi_slope: slope of ALiBi's penalty; 1/2 is the steepest of an eight-headed model's.
        initial_std: standard deviation of the entries of trained matrices before training, in
            units of 1/√d_model. 0: they start at zero.

    Raises:
        ValueError: a setting that cannot be, or that makes it another architecture (norms, MLPs,
            several heads, ...), named with its value.
    """

    positions: Positions = "relative"
    position_layers: tuple[int, ...] = (0,)
    embed_std: float = 1.0
    alibi_slope: float = 0.5
    initial_std: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.positions, str) or self.positions not in ENCODINGS:
            raise ValueError(
                f"positions must be one of {', '.join(ENCODINGS)}; got {self.positions!r}"
            )
        for name in ("embed_std", "alibi_slope", "initial_std"):
            value, may_be_0 = getattr(self, name), name == "initial_std"
            least = "from 0 up" if may_be_0 else "above 0"
            known = is_number(value) and isfinite(value)
            if not known or value < 0 or (value == 0 and not may_be_0):
                raise ValueError(f"{name} must be a finite number {least}; got {value!r}")
        layers = self.position_layers if isinstance(self.position_layers, Iterable) else "none"
        if not all(isinstance(layer, int) and not isinstance(layer, bool) for layer in layers):
            raise ValueError(
                f"position_layers must be layer numbers, like (0,); got {self.position_layers!r}"
            )
        self.position_layers = tuple(layers)
        # Scores and embeddings of the kinds that TransformerLens has are its own, of the others
        # ours: MemoryAttention.
        self.positional_embedding_type = "standard" if self.in_the_stream else "alibi"
        super().__post_init__()
        for layer in self.position_layers:
            if layer not in range(self.n_layers):
                raise ValueError(
                    f"position_layers={self.position_layers} names layer {layer!r}; the model has "
                    f"layers 0 to {self.n_layers - 1}"
                )
        if self.positions == "rotary" and self.d_head % 2:
            raise ValueError(f"rotary positions rotate pairs of dimensions; d_head={self.d_head}")
        for name, expected in PLAIN.items():
            if getattr(self, name) != expected:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: a simplified transformer has {expected!r}"
                )
        if self.d_vocab_out != self.d_vocab:
            raise ValueError(
                f"d_vocab_out={self.d_vocab_out} must equal d_vocab={self.d_vocab}: what is "
                "predicted is the next token"
            )
        if self.n_heads != 1 or self.d_head != self.d_model:
            raise ValueError(
                f"n_heads={self.n_heads}, d_head={self.d_head}: there is one head a layer, as wide "
                f"as the residual stream, d_model={self.d_model}"
            )

    @property
    def in_the_stream(self) -> bool:
        """Whether positions are added to the residual stream."""
        return self.positions in IN_THE_STREAM


def memory_config(
    d_vocab: int,
    positions: Positions = "relative",
    streams: StreamsLike = "",
    *,
    d_model: int = 128,
    n_ctx: int = 256,
    n_layers: int = 2,
    **settings: Any,
) -> MemoryConfig:
    """The simplified transformer of arXiv 2412.11459 and 2306.00802.

    One head a layer, attention only, no normalisation, W_Q the identity, scores divided by
    √d_model; after the last layer a linear feed-forward. Embeddings, positions, the readout and
    every W_V are random and frozen, so is every W_O but the last; trained are every W_K, the last
    W_O and the feed-forward's W_F.

    Args:
        settings: further fields of :class:`MemoryConfig`; ``frozen`` replaces what is frozen.

    Raises:
        ValueError: a setting that cannot be, named with its value.
    """
    known = {field.name for field in fields(MemoryConfig)}
    for name in settings:
        if name not in known:
            raise ValueError(f"MemoryConfig has no field {name!r}")
    for name, value in {
        "d_vocab": d_vocab, "d_model": d_model, "n_ctx": n_ctx, "n_layers": n_layers
    }.items():  # fmt: skip
        check_whole(name, value, 1)
    frozen = (*FROZEN, *(f"blocks.{layer}.attn.W_O" for layer in range(n_layers - 1)))
    return MemoryConfig(
        **{
            "n_layers": n_layers,
            "d_model": d_model,
            "n_ctx": n_ctx,
            "n_heads": 1,
            "d_head": d_model,
            "d_vocab": d_vocab,
            "attn_only": True,
            "normalization_type": None,
            "device": "cpu",
            "positions": positions,
            "streams": streams,
            "frozen": frozen,
            **settings,
        }
    )
