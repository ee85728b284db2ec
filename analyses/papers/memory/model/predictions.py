"""What a constructed induction head computes, in closed form (arXiv 2412.11459, section 4).

Written with indicators of tokens and positions only: no weights, no embeddings. A model made by
:func:`~resval_lens.analyses.papers.memory.model.construct.construct` equals it to rounding with
``exact=True``; without, up to crosstalk of order 1/√d_model if embeddings have length 1
(``embed_std=d_model**-.5``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """What an induction head does with a batch of sequences.

    Attributes:
        previous: α [batch, query_pos, key_pos], attention of the previous-token head.
        induction: β [batch, query_pos, key_pos], attention of the induction head.
        in_context: τ3 Σ_s β_ts 1[z_s = v] [batch, pos, d_vocab], what the context says (nats).
        known: log π_b(v|z_t) [batch, pos, d_vocab], what the feed-forward says (nats).
    """

    previous: Float[Tensor, "batch pos pos"]
    induction: Float[Tensor, "batch pos pos"]
    in_context: Float[Tensor, "batch pos d_vocab"]
    known: Float[Tensor, "batch pos d_vocab"]

    @property
    def logits(self) -> Float[Tensor, "batch pos d_vocab"]:
        """ξ_v = log π_b(v|z_t) + τ3 Σ_s β_ts 1[z_s = v]"""
        return self.known + self.in_context


def predict(
    tokens: Int[Tensor, "batch pos"],
    log_bigrams: Float[Tensor, "d_vocab d_vocab"],
    tau1: float = 10.0,
    tau2: float = 10.0,
    tau3: float = 10.0,
    *,
    trained_length: int | None = None,
    known: Iterable[int] | None = None,
    relative: bool = True,
) -> Prediction:
    """Attention and logits of a constructed induction head, in 64 bits.

        α_ts = softmax_s(τ1 1[s = t − 1])
        m_ts = τ2 Σ_{s'≤s} α_ss' 1[z_s' = z_t],   β_t = softmax_s(m_ts)
        ξ_v  = log π_b(v|z_t) + τ3 Σ_s β_ts 1[z_s = v]

    Position 0 can only attend to itself, so a z_0 equal to the query is a spurious match.

    Args:
        trained_length: with absolute positions, those that the previous-token head knows: later
            ones attend uniformly.
        known: tokens that the memories know; with relative positions an unknown token attends
            uniformly in layer 0, and any unknown query does in layer 1.
        relative: relative positions; else absolute ones.

    Raises:
        ValueError: tokens, or known ones, that ``log_bigrams`` does not have.
    """
    d_vocab, length = len(log_bigrams), tokens.shape[1]
    _check("tokens", tokens.flatten().tolist(), d_vocab)
    is_known = torch.ones(d_vocab, dtype=torch.bool, device=tokens.device)
    if known is not None:
        is_known, listed = torch.zeros_like(is_known), list(known)
        _check("known", listed, d_vocab)
        is_known[listed] = True
    places = torch.arange(length, device=tokens.device)
    ahead = places[None] > places[:, None]  # [query_pos, key_pos]
    knows = is_known[tokens]  # [batch, pos]

    at_previous = (places[None] == places[:, None] - 1).double().expand(len(tokens), -1, -1)
    if relative:
        active = knows.double()
    else:
        reach = length if trained_length is None else trained_length
        active = (places < reach).double().expand(len(tokens), -1)
    previous = _softmax(tau1 * at_previous * active[:, :, None], ahead)

    same = (tokens[:, :, None] == tokens[:, None]) & knows[:, :, None]  # [batch, t, s']
    matches = same.double() @ previous.mT  # Σ_s' α_ss' 1[z_s' = z_t]
    induction = _softmax(tau2 * matches, ahead)

    said = torch.nn.functional.one_hot(tokens, d_vocab).double() * knows[:, :, None]
    globally = log_bigrams.double()[tokens].where(knows[:, :, None], 0)
    return Prediction(previous, induction, tau3 * induction @ said, globally)


def previous_token_attention(t: int, tau1: float) -> float:
    """α_{t,t−1} = e^τ1 / (e^τ1 + t − 1), t ≥ 2 counted from 1; 1/t where the head is off (τ1 = 0).

    >>> previous_token_attention(4, 0.0)
    0.25
    """
    return 1 / (1 + (t - 1) * math.exp(-tau1))


def _check(name: str, tokens: list[int], d_vocab: int) -> None:
    for token in tokens:
        if not 0 <= token < d_vocab:
            raise ValueError(f"{name} has {token}; log_bigrams has tokens 0 to {d_vocab - 1}")


def _softmax(
    scores: Float[Tensor, "batch pos pos"], ahead: Tensor
) -> Float[Tensor, "batch pos pos"]:
    return scores.masked_fill(ahead, -torch.inf).softmax(-1)
