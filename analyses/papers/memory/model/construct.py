"""Weights of an induction head, written down: every matrix an associative memory.

A memory W = Σ α uᵀ v, read by a vector x as x W, answers α v to u and (nearly) nothing to what is
(nearly) orthogonal to u. Random vectors of d dimensions are orthogonal up to crosstalk of order
1/√d. With d dimensions for all that is ever in the stream, duals of the vectors remove it.
Sinusoids of near positions are no such vectors: memories of them recall their neighbours, too. And
the readout hears a token's own embedding: to keep that small, too, embeddings must have length 1
(``embed_std=d_model**-.5``; with the default of 1 it stays of order 1 at any width).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.analyses.papers.memory.model.association import (
    check_induction_model,
    duals,
    value_weights,
)
from resval_lens.analyses.papers.memory.model.model import MemoryAttention, MemoryTransformer


@torch.no_grad()
def construct(
    model: MemoryTransformer,
    log_bigrams: Float[Tensor, "d_vocab d_vocab"],
    tau1: float = 10.0,
    tau2: float = 10.0,
    tau3: float = 10.0,
    *,
    trained_length: int | None = None,
    known: Iterable[int] | None = None,
    exact: bool = False,
) -> MemoryTransformer:
    """Writes an induction head into ``model``'s trained weights; the model itself is returned.

    Row vectors; Φ = W_V¹ W_O¹, v(·) is what layer 1's value of a token is (its own and, where
    values flow, layer 0's), and u' is the dual of u: u/|u|², or exact.

        W_K¹ = τ1 √d Σ_t p'_{t−1}ᵀ p'_t              absolute: previous token, t < trained_length
        W_K¹ = τ1 √d Σ_k r'_{−1}ᵀ w'_E(k)             relative: previous token, at any length
        W_K² = τ2 √d Σ_k (Φ w_E(k))'ᵀ w'_E(k)         what followed this token before?
        W_O² = τ3 Σ_v v(w_E(v))'ᵀ w'_U(v)             say it
        W_F  = Σ_{u,v} log π_b(v|u) w'_E(u)ᵀ w'_U(v)   global knowledge as a key-value memory

    With ``exact`` W_F also takes back what x² says by itself, x² W_U, but for what W_O² wrote.
    (√d undoes the scores' division.) What it then computes:
    :mod:`resval_lens.analyses.papers.memory.model.predictions`.
    Forms: arXiv 2306.00802, section 4, and arXiv 2412.11459, sections 3 and 4.

    Args:
        log_bigrams: log π_b(v|u) at [u, v], in nats, finite.
        tau1, tau2, tau3: strengths of previous-token head, induction head and its output, in nats.
        trained_length: positions that the absolute previous-token head knows; ``n_ctx`` by default.
            A relative one knows them all.
        known: tokens that the memories know; all by default.
        exact: use dual vectors, so that nothing but rounding is left of the crosstalk. Needs a
            dimension for every vector that can be in the stream.

    Raises:
        ValueError: other than two layers, queries that are not x_t, positions that no memory of
            this kind holds, streams of queries or keys or learned mixing, log-probabilities or
            strengths that are not finite, a length or token that is not there, too few dimensions
            for ``exact``, or vectors that are all but dependent (sinusoids of ten positions).
    """
    for name, strength in {"tau1": tau1, "tau2": tau2, "tau3": tau3}.items():
        if not isfinite(strength):
            raise ValueError(f"{name} must be a finite number; got {strength!r}")
    trained, tokens = _checked(model, log_bigrams, trained_length, known)
    first, second = model.blocks[0].attn, model.blocks[1].attn
    W_E, W_U = model.embed.W_E, model.unembed.W_U
    scale = float(first.attn_scale)
    places = model.pos_embed.W_pos if model.cfg.in_the_stream else W_E[:0]
    stream = torch.cat([W_E, places])  # all that enters layer 0
    echoes = stream @ first.W_V[0] @ first.W_O[0]  # what its head can add
    n, d_vocab = len(stream), model.cfg.d_vocab

    queries = duals(stream, exact)
    if model.cfg.in_the_stream:
        p = queries[d_vocab : d_vocab + trained]
        first.W_K[0] = tau1 * scale * p[:-1].T @ p[1:]
    else:
        assert isinstance(first, MemoryAttention)
        r = duals(torch.cat([W_E, first.W_R]), exact)[d_vocab + 1]
        first.W_K[0] = tau1 * scale * torch.outer(r, queries[tokens].sum(0))

    middle = duals(torch.cat([stream, echoes]), exact)  # all that enters layer 1
    second.W_K[0] = tau2 * scale * middle[n:][tokens].T @ middle[tokens]

    own, link = value_weights(second)
    values = own * torch.cat([stream, echoes]) @ second.W_V[0]
    values[:n] += link * stream @ first.W_V[0]
    written = torch.linalg.pinv(W_U) if exact else (W_U / W_U.square().sum(0)).T
    second.W_O[0] = tau3 * duals(values, exact)[tokens].T @ written[tokens]

    if exact:
        # Every vector that arrives at the readout, and the logits it is to be answered with.
        arriving = torch.cat([stream, echoes, written])
        answers = arriving.new_zeros(len(arriving), d_vocab)
        answers[tokens] = log_bigrams.to(answers)[tokens]
        answers[2 * n :] = torch.eye(d_vocab, dtype=W_U.dtype, device=W_U.device)
        answers -= arriving @ W_U
        model.feed_forward.W_F.copy_(duals(arriving, exact).T @ answers @ written)
    else:
        memory = log_bigrams.to(written)[tokens] @ written
        model.feed_forward.W_F.copy_(queries[tokens].T @ memory)
    return model


def _checked(
    model: MemoryTransformer,
    log_bigrams: Tensor,
    trained_length: int | None,
    known: Iterable[int] | None,
) -> tuple[int, Tensor]:
    cfg = model.cfg
    check_induction_model(model)
    if not model.compares_inputs:
        raise ValueError("W_Q must be the identity and every bias 0, as they are before training")
    if log_bigrams.shape != (cfg.d_vocab, cfg.d_vocab):
        raise ValueError(
            f"log_bigrams must have shape [{cfg.d_vocab}, {cfg.d_vocab}], d_vocab twice; got "
            f"{list(log_bigrams.shape)}"
        )
    if not log_bigrams.isfinite().all():
        raise ValueError("log_bigrams must be finite; give unseen bigrams a smallest probability")
    trained = cfg.n_ctx if trained_length is None else trained_length
    if not 1 < trained <= cfg.n_ctx:
        raise ValueError(
            f"trained_length must be a number of positions from 2 to {cfg.n_ctx}; got {trained}"
        )
    tokens = sorted(set(range(cfg.d_vocab) if known is None else known))
    if not tokens or tokens[0] < 0 or tokens[-1] >= cfg.d_vocab:
        raise ValueError(f"known must be tokens from 0 to {cfg.d_vocab - 1}; got {tokens}")
    return trained, torch.tensor(tokens, device=model.embed.W_E.device)
