"""What construction, single steps and probes share: duals, and the models they are about."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.attention import StreamAttention


def duals(vectors: Float[Tensor, "vector d"], exact: bool) -> Float[Tensor, "vector d"]:
    """u' of each row u: u'·u = 1, and nearly (``exact``: exactly) 0 with the other rows.

    Nearly: u/|u|². Exactly: the pseudoinverse's columns, which need a dimension for every vector.

    Raises:
        ValueError: ``exact`` with more vectors than dimensions, or vectors all but dependent.
    """
    if not exact:
        return vectors / vectors.square().sum(1, keepdim=True)
    count, d = vectors.shape
    if count > d:
        raise ValueError(f"exact=True needs a dimension for each of {count} vectors; d_model={d}")
    found = torch.linalg.pinv(vectors).T
    wanted = vectors.any(1).to(vectors).diag()  # no vector, no dual: a stream of own weight 0
    off = (found @ vectors.T - wanted).abs().max()
    if off > torch.finfo(vectors.dtype).eps ** (2 / 3):
        raise ValueError(
            f"exact=True: the {count} vectors of the stream are too nearly dependent for "
            f"{vectors.dtype} (their duals are off by {off.item():.1g})"
        )
    return found


def value_weights(attn: StreamAttention) -> tuple[float, float]:
    """(a, b) of a layer's values, a · local + b · passed, of a stream of constant weights.

    Raises:
        ValueError: the stream's weights are learned.
    """
    mix = attn.mix("v")
    if mix is None:
        return 1.0, 0.0
    if mix.stream.is_learned:
        raise ValueError(f"streams: {mix.stream} has learned weights; memories need constant ones")
    return mix.fixed


def check_induction_model(model: MemoryTransformer) -> None:
    """Raises ValueError unless an induction head can be written into ``model`` as memories.

    That takes two layers, absolute, sinusoidal or relative positions in layer 0 only, and no
    streams but a value stream of constant weights.
    """
    cfg = model.cfg
    if cfg.n_layers != 2:
        raise ValueError(f"an induction head is written into two layers; n_layers={cfg.n_layers}")
    if cfg.positions in ("rotary", "alibi"):
        raise ValueError(
            f"positions={cfg.positions!r}: a previous-token memory is written for absolute, "
            "sinusoidal and relative positions"
        )
    if cfg.positions == "relative" and cfg.position_layers != (0,):
        raise ValueError(
            f"position_layers={cfg.position_layers}: only layer 0's head is to see positions"
        )
    for stream in cfg.streams:
        if stream.of != "v" or stream.is_learned:
            raise ValueError(
                f"streams: memories are known for value streams of fixed weights; got {stream}"
            )
