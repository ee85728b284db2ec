"""The simplified transformer's logits, computed as cheaply as algebra allows; for training.

With W_Q = 1 a query is the residual stream itself; W_V and W_O, W_F and W_U act one after the
other and are multiplied first; the scores of relative positions are shifted instead of gathered.
Same function, same gradients, no hooks:
:class:`~resval_lens.analyses.papers.memory.model.model.MemoryTransformer` is the one to look into.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from resval_lens.analyses.papers.memory.model.association import value_weights
from resval_lens.analyses.papers.memory.model.model import (
    MemoryAttention,
    MemoryTransformer,
    key_distances,
    rotated,
)
from resval_lens.lens.norm import any_watched


def can_run_fast(model: MemoryTransformer) -> bool:
    """Whether :func:`fast_logits` is this model's.

    At most two layers, whose queries are their inputs and stay so
    (:attr:`~resval_lens.analyses.papers.memory.model. model.MemoryTransformer.compares_inputs`), a
    value stream of fixed weights or none, no dropout, and nobody watching.
    """
    fixed = ("W_Q", "b_Q", "b_K", "b_V", "b_O")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    streams = model.cfg.streams
    return (
        model.cfg.n_layers <= 2
        and not model.cfg.dropout
        and all(s.of == "v" and not s.is_learned and not s.detach for s in streams)
        and not any(name.endswith((*fixed, "b_U")) for name in trained)
        and model.compares_inputs
        and not any_watched(model)
    )


def fast_logits(
    model: MemoryTransformer, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos d_vocab"]:
    """``model(tokens)`` for a model of :func:`can_run_fast`, without its hooks.

    Raises:
        ValueError: tokens that the model cannot read.
    """
    model.check_tokens(tokens)
    length = tokens.shape[1]
    masked = key_distances(length, length, tokens.device) < 0
    x = model.embed.W_E[tokens]
    if model.cfg.in_the_stream:
        x = x + model.pos_embed.W_pos[:length]
    before = None  # layer 0's input, whose values arrive in layer 1
    for block in model.blocks:
        attn = block.attn
        assert isinstance(attn, MemoryAttention)
        pattern = _scores(attn, x).masked_fill_(masked, -torch.inf).softmax(-1)
        own, link = value_weights(attn)
        values = x @ (own * attn.W_V[0] @ attn.W_O[0])
        if link and before is not None:
            values = values + before @ (link * model.blocks[0].attn.W_V[0] @ attn.W_O[0])
        before, x = x, x + pattern @ values
    W_F, W_U = model.feed_forward.W_F, model.unembed.W_U
    return x @ (W_U + W_F @ W_U)


def _scores(
    attn: MemoryAttention, x: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch query_pos key_pos"]:
    k = x @ attn.W_K[0]
    q = x
    if attn.positions == "rotary":
        q, k = rotated(q[:, :, None], 0)[:, :, 0], rotated(k[:, :, None], 0)[:, :, 0]
    scores = q @ k.mT
    if attn.positions == "relative":
        length = x.shape[1]
        scores = scores + shifted(x @ (attn.W_R[:length] @ attn.W_K[0]).T)
    scores = scores / attn.attn_scale
    if attn.positions == "alibi":
        distances = key_distances(x.shape[1], x.shape[1], x.device)
        scores = scores - attn.cfg.alibi_slope * distances.to(scores.dtype)
    return scores


def shifted(
    by_distance: Float[Tensor, "batch pos pos"],
) -> Float[Tensor, "batch query_pos key_pos"]:
    """out[t, s] = by_distance[t, t − s] where s ≤ t, by a change of strides; elsewhere anything.

    With rows reversed and padded to one more column, row t begins one place later each time
    (arXiv 1809.04281, section 3.4.1).
    """
    batch, length, _ = by_distance.shape
    padded = F.pad(by_distance.flip(-1), (0, 1))
    return padded.as_strided(
        (batch, length, length),
        (length * (length + 1), length, 1),
        padded.storage_offset() + length - 1,
    )
