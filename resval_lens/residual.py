"""Residual mixing: what a block reads is a learned weighted sum of earlier states.

    x_l = Σ_j w_lj h_j         what block l reads and adds its outputs to (hook_resid_pre)
    h_0                        the embeddings, after their norm and smear (hook_resid_embed)
    h_{j+1}                    what comes out of block j (hook_resid_post)
    x_n = Σ_j w_nj h_j         what the readout reads (hook_resid_final)

One set of weights a reader: block 0, block 1, .., the readout. Skips of U-nets, the embedding mixed
into every block (modded-nanogpt, nanochat) and the "backout" of nanochat are such sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Mixing = tuple[tuple[int, ...], ...]
"""Which states each reader reads; () where each reads the state before it, unweighted."""
Residual = Float[Tensor, "batch pos d_model"]

NAMED = ("embedding", "all")


def parse_mixing(given: Any, n_layers: int) -> Mixing:
    """Residual mixing in full from any accepted way of writing it.

    Args:
        given: "embedding" (each reader reads the state before it and the embeddings), "all" (every
            state before it), the states of each reader, or nothing.

    Raises:
        ValueError: none of these; a reader without states, or with one that comes after it.

    >>> parse_mixing("embedding", 2)
    ((0,), (0, 1), (0, 2))
    """
    if given is None or (isinstance(given, list | tuple) and not given):
        return ()
    readers = range(n_layers + 1)
    if given == "embedding":
        return tuple(tuple(sorted({0, reader})) for reader in readers)
    if given == "all":
        return tuple(tuple(range(reader + 1)) for reader in readers)
    wrong = (
        f"residual_mixing must be one of {', '.join(NAMED)}, or the states that each of "
        f"{n_layers} blocks and the readout reads, like ((0,), (0, 1), ...); got {given!r}"
    )
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ValueError(wrong)
    several = [tuple(x) if isinstance(x, list | tuple) else () for x in given]
    if len(several) != len(readers):
        raise ValueError(wrong)
    for reader, states in enumerate(several):
        if not states or len(set(states)) != len(states):
            raise ValueError(wrong)
        for state in states:
            if not isinstance(state, int) or isinstance(state, bool) or not 0 <= state <= reader:
                who = "the readout" if reader == n_layers else f"block {reader}"
                raise ValueError(
                    f"residual_mixing: {who} reads states 0 to {reader}; got {state!r}"
                )
    return tuple(tuple(sorted(states)) for states in several)


def kept_before(mixing: Mixing, reader: int) -> tuple[int, ...]:
    """The states before that of ``reader`` which it or later readers read."""
    return tuple(sorted({j for states in mixing[reader:] for j in states if j < reader}))


class ResidualMix(nn.Module):
    """One reader's weights: 1 for the last state that it reads, 0 for the others, at first."""

    def __init__(self, mixing: Mixing, reader: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.states = mixing[reader]
        start = torch.zeros(len(self.states), dtype=dtype)
        start[-1] = 1
        self.weights = nn.Parameter(start)

    def forward(self, states: Mapping[int, Residual]) -> Residual:
        """Σ_j w_j h_j, where the last of the states is."""
        there = states[self.states[-1]].device
        parts = [
            weight * states[state].to(there)
            for state, weight in zip(self.states, self.weights.to(there), strict=True)
        ]
        return sum(parts[1:], start=parts[0])


class Smear(nn.Module):
    """Adds a share of the embedding before: x_t + s · σ(w · x_t[:n]) · x_{t−1} (nanochat)."""

    def __init__(self, channels: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, dtype=dtype))
        self.scale = nn.Parameter(torch.zeros((), dtype=dtype))

    def forward(
        self, x: Residual, before: Float[Tensor, "batch 1 d_model"] | None, own: Tensor | None
    ) -> Residual:
        """
        Args:
            before: the embedding before the first position, if there is one.
            own: 1 at tokens and 0 at padding, which is smeared into nothing, of these positions.
        """
        kept = x if own is None else x * own[..., None]
        if before is None:
            before = torch.zeros_like(x[:, :1])
        previous = torch.cat([before, kept[:, :-1]], 1)
        gate = torch.sigmoid(x[..., : len(self.weight)] @ self.weight)
        return x + self.scale * gate[..., None] * previous


def rms_normed(x: Residual, eps: float) -> Residual:
    """x / √(mean(x²) + eps)"""
    return F.rms_norm(x, (x.shape[-1],), eps=eps)


def written_weights(
    weights: Float[Tensor, "reader state"],
) -> Float[Tensor, "reader written"]:
    """With which weight each reader reads what was written: the embeddings (0), block j−1 (j).

    A state is what its block read and what it wrote: h_{j+1} = x_j + (what block j writes).

    Args:
        weights: w_lj, 0 where a reader does not read a state.
    """
    readers = len(weights)
    states = torch.zeros_like(weights)  # [state, written]: what each state is made of
    states[0, 0] = 1
    read = torch.zeros_like(weights)
    for reader in range(readers):
        read[reader] = weights[reader] @ states
        if reader + 1 < readers:
            states[reader + 1] = read[reader]
            states[reader + 1, reader + 1] += 1
    return read
