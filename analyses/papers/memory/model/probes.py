"""Does a matrix answer as the associative memory that an induction head needs?

Recall R of W over pairs (u_i, v_i): the share of i for which, of all v_j, v_i has the largest
u_i W v_jᵀ (arXiv 2306.00802, section 4; row vectors). Every probe reads the trained matrices of a
:class:`~resval_lens.analyses.papers.memory.model.model.MemoryTransformer` against its frozen
vectors, no data needed; attention is measured on sequences.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from resval_lens.analyses.papers.memory.model.association import value_weights
from resval_lens.analyses.papers.memory.model.model import MemoryAttention, MemoryTransformer
from resval_lens.analyses.papers.memory.tasks.bigrams import Bigrams
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerBatch

NEAR = 64
"""Positions that count as early ones."""


def recall(
    u: Float[Tensor, "pair d"], W: Float[Tensor, "d d"], v: Float[Tensor, "pair d"]
) -> Bool[Tensor, " pair"]:
    """Whether v_i is the v that ``u_i W`` is most like: argmax_j (u_i W) · v_j = i."""
    return ((u @ W) @ v.T).argmax(1) == torch.arange(len(u), device=u.device)


@torch.no_grad()
def memory_recall(
    model: MemoryTransformer,
    bigrams: Bigrams,
    length: int,
    triggers: Collection[int] = (),
) -> dict[str, float | None]:
    """What each trained matrix recalls; None where there is no such matrix or memory.

    (None of W_O², too, where a value stream is mixed with learned weights.)

        W_K1        the previous position: of p_s, p_{t−1} has the largest p_s W_K¹ p_tᵀ (absolute,
                    sinusoidal; t < length); of r_{−i}, r_{−1} the largest with w_E(v) (relative;
                    i < length)
        W_K1_near   the same for t < 64 only, W_K1_far for t from 64 on (absolute, sinusoidal)
        W_K2        the token that went before: of Φ w_E(k'), k' = k has the largest
                    (Φ w_E(k')) W_K² w_E(k)ᵀ; over the triggers k, if there are fixed ones
        W_O2        the token to say: of w_U(v), v = k has the largest v(w_E(k)) W_O² w_U(v)ᵀ,
                    where v(·) is the layer's value, what a value stream brings included
        W_O2_read   the same of v(w_E(k)) W_O² (1 + W_F) W_U: as the readout hears it, since what
                    the head writes passes the feed-forward, too
        W_F_kl      KL(π_b(·|u) ‖ softmax(w_E(u) W_F W_U)), mean over tokens u that are no triggers
                    and occur, in nats
        global_kl   the same of softmax((w_E(u) + w_E(u) W_F) W_U): what is said without attention

    Args:
        length: positions that count, the trained length.
        triggers: the fixed triggers: those that W_K² must know and W_F need not.
    """
    cfg, W_E, W_U = model.cfg, model.embed.W_E, model.unembed.W_U
    first, last = model.blocks[0].attn, model.blocks[-1].attn
    found: dict[str, float | None] = dict.fromkeys(
        ("W_K1", "W_K1_near", "W_K1_far", "W_K2", "W_O2", "W_O2_read", "W_F_kl", "global_kl")
    )
    if cfg.in_the_stream:
        p = model.pos_embed.W_pos[:length]
        hits = ((p[1:] @ first.W_K[0].T) @ p.T).argmax(1) == torch.arange(
            length - 1, device=p.device
        )
        found["W_K1"] = mean(hits)
        found["W_K1_near"], found["W_K1_far"] = mean(hits[: NEAR - 1]), mean(hits[NEAR - 1 :])
    elif isinstance(first, MemoryAttention) and first.positions == "relative":
        hits = (W_E @ (first.W_R[:length] @ first.W_K[0]).T).argmax(1) == 1
        found["W_K1"] = mean(hits)
    if cfg.n_layers > 1:
        echoes = W_E @ first.W_V[0] @ first.W_O[0]
        hits = recall(W_E, last.W_K[0].T, echoes)
        found["W_K2"] = mean(hits[list(triggers)] if triggers else hits)
    mix = last.mix("v")
    if mix is None or not mix.stream.is_learned:
        values = own_and_link_values(model)
        found["W_O2"] = mean(recall(values, last.W_O[0], W_U.T))
        heard = last.W_O[0] + last.W_O[0] @ model.feed_forward.W_F
        found["W_O2_read"] = mean(recall(values, heard, W_U.T))
    occurring = bigrams.unigram_counts > 0
    occurring[list(triggers)] = False
    if occurring.any():
        memory = W_E @ model.feed_forward.W_F
        for name, x in (("W_F_kl", memory), ("global_kl", W_E + memory)):
            log_said = (x @ W_U).double().log_softmax(-1)
            pi = bigrams.conditional.to(log_said)
            gap = torch.special.xlogy(pi, pi) - pi * log_said
            found[name] = float(gap.sum(1)[occurring.to(gap.device)].mean())
    return found


def own_and_link_values(model: MemoryTransformer) -> Float[Tensor, "d_vocab d_head"]:
    """The last layer's value of each token's own embedding, with what a value stream adds to it.

    a · w_E W_V of the last layer + b · w_E W_V of layer 0, where the stream's mixing is constant.
    """
    W_E, last = model.embed.W_E, model.blocks[-1].attn
    own, link = value_weights(last)
    return own * W_E @ last.W_V[0] + link * W_E @ model.blocks[0].attn.W_V[0]


@torch.no_grad()
def attention_recall(model: MemoryTransformer, batch: TriggerBatch) -> dict[str, float | None]:
    """Where the two heads look, over all positions where it is defined.

    previous        share of positions t ≥ 1 whose layer-0 attention is largest at t − 1
    previous_mass   mean attention there
    target          share of positions t with a repeated trigger (in-context positions) whose
                    last-layer attention is largest right after an earlier occurrence of z_t
    target_mass     mean attention on all such places together
    """
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(batch.inputs, names_filter=names, return_type=None)
    first = cache[names[0]][:, 0]
    before = torch.arange(first.shape[1] - 1, device=first.device)
    found: dict[str, float | None] = {
        "previous": mean(first[:, 1:].argmax(-1) == before),
        "previous_mass": mean(first.diagonal(-1, 1, 2)),
        "target": None,
        "target_mass": None,
    }
    if model.cfg.n_layers > 1:
        last, wanted = cache[names[-1]][:, 0], batch.in_context.to(first.device)
        after = followers(batch.inputs).to(first.device)
        top = after.gather(2, last.argmax(-1, keepdim=True))[..., 0]
        found["target"] = mean(top[wanted])
        found["target_mass"] = mean((last * after).sum(-1)[wanted])
    return found


def followers(tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch query_pos key_pos"]:
    """Whether key position s ≤ t comes right after an occurrence of z_t: z_{s−1} = z_t."""
    before = torch.cat([torch.full_like(tokens[:, :1], -1), tokens[:, :-1]], dim=1)
    return (tokens[:, :, None] == before[:, None]).tril()


def mean(x: Shaped[Tensor, "..."]) -> float | None:
    """The mean, or share of what is true, in double precision; None of none."""
    return float(x.double().mean()) if x.numel() else None
