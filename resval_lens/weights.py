"""Weight processing that stays right when values flow from layer to layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformer_lens.components import GroupedQueryAttention

from resval_lens.attention import StreamAttention
from resval_lens.config import ResValConfig
from resval_lens.streams import Streams


def check_processing(
    cfg: ResValConfig, fold_ln: bool, fold_value_biases: bool, refactor: bool
) -> None:
    """Refuses the steps that are wrong for this model.

    Raises:
        ValueError: ``refactor_factored_attn_matrices`` with any stream (each head's factors get a
            basis of their own, and what is carried would arrive in another layer's basis); folding
            around a gate (which reads the normalised input, and makes the carried bias depend on
            the token); folding value biases where attention weights do not sum to one or values
            are clipped.
    """
    streams = cfg.streams
    if refactor and streams:
        raise ValueError(
            "refactor_factored_attn_matrices=True: streams carry activations between layers in "
            "each head's own basis, which refactoring changes layer by layer"
        )
    gated = [stream.of for stream in streams if stream.mix == "gate"]
    if gated and fold_ln:
        raise ValueError(
            f"fold_ln=True: the gate of the {gated[0]} stream reads the normalised input, whose "
            "scale folding changes; pass fold_ln=False"
        )
    unlike = (
        "use_attention_sinks=True" if cfg.use_attention_sinks
        else "" if cfg.clip_qkv is None
        else f"clip_qkv={cfg.clip_qkv}"
    )  # fmt: skip
    if unlike and fold_value_biases:
        raise ValueError(
            f"fold_value_biases=True: under {unlike} a value bias is not a constant of the output; "
            "pass fold_value_biases=False"
        )
    if "v" in gated and fold_value_biases:
        raise ValueError(
            "fold_value_biases=True: behind a gate the carried value bias depends on the token; "
            "pass fold_value_biases=False"
        )


@torch.no_grad()
def fold_value_biases_through_streams(streams: Streams, layers: Sequence[StreamAttention]) -> None:
    """Moves every value bias into output biases, in place, along the value stream too.

        β_l = a · b_V,l + Σ_j b_j · handed bias of j          b_O,l += Σ_h β_l,h W_O,l,h

    Attention weights sum to one over keys and the stream is linear, so a bias reaches the output
    of its own layer, and of every layer its values flow to, as a constant.
    """
    stream = next(stream for stream in streams if stream.of == "v")
    handed: list[Tensor] = []
    for layer, attn in enumerate(layers):
        local = total = _value_bias(attn)[None, None]  # [1, 1, head, d_head]
        sources = stream.sources(layer)
        if sources:
            mix = attn.mix("v")
            assert mix is not None
            own, link = mix(local, tuple(handed[j] for j in sources), local)
            total = own + link
        handed.append(local.clone() if stream.carry == "raw" else total.clone())
        per_head = total[0, 0].repeat_interleave(attn.cfg.n_heads // total.shape[2], dim=0)
        attn.b_O.add_(torch.einsum("hd,hdm->m", per_head, attn.W_O))
    for attn in layers:
        _value_bias(attn).zero_()


def _value_bias(attn: StreamAttention) -> Tensor:
    """The stored bias, one for each key-value head."""
    return attn._b_V if isinstance(attn, GroupedQueryAttention) else attn.b_V
