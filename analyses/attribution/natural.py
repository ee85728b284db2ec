"""Induction in text as it is: a token that stood before, and is followed by the same as then.

    … the old [dog] [barked] … the young [dog] → [barked]

Position t of a row is *repeated* if for some j < t − 1 both x_j = x_t and x_{j+1} = x_{t+1}: an
induction head that attends to j + 1 predicts x_{t+1}. It is *misleading* if x_t stood before,
always followed by another token, and *new* if x_t did not stand before. (Random tokens that come
twice are in :mod:`~resval_lens.analyses.attribution.heads`.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from resval_lens.analyses.attribution.heads import MAX_TOKENS, chunks, measuring, token_losses
from resval_lens.analyses.results.intervals import Interval, mean_interval
from resval_lens.analyses.results.result import OPTIONAL
from resval_lens.hooks import Link, link_hooks, zero
from resval_lens.hooks.links import head_name
from resval_lens.hooks.prompts import wide
from resval_lens.transformer import ResValTransformer


@dataclass(frozen=True)
class ByKind:
    """A number for each kind of position: repeated, misleading and new ones; None without any."""

    repeated: float | None
    misleading: float | None
    new: float | None


@dataclass(frozen=True)
class Without:
    """Losses with some heads' z at its mean over all positions of the text.

    Attributes:
        rise: of the loss at each kind of position, a mean over rows.
    """

    heads: tuple[str, ...]
    loss: ByKind
    rise: Mapping[str, Interval]


@dataclass(frozen=True)
class NaturalRepeats:
    """How heads attend, and how well the model predicts, where text repeats itself.

    Attributes:
        rows, length: of the text.
        positions: how many there are of each kind.
        loss: mean −log P(next token) in nats at each kind.
        loss_cut: the same with groups of links at zero.
        scores: [layer][head], the mean over repeated positions of the attention to all j + 1.
        even: what attention that is spread evenly has there.
        without: of each group of heads that was asked for; None of none.
    """

    rows: int
    length: int
    positions: ByKind
    loss: ByKind
    scores: list[list[float]]
    even: float
    loss_cut: Mapping[str, ByKind] = field(default_factory=dict)
    without: tuple[Without, ...] | None = field(default=None, metadata=OPTIONAL)


def followers(tokens: Int[Tensor, "row pos"]) -> Bool[Tensor, "row pos pos"]:
    """[row, t, j + 1]: whether x_j = x_t and x_{j+1} = x_{t+1} for j + 1 < t.

    The last position has no next token, and so none.
    """
    same = tokens[:, :, None] == tokens[:, None, :]
    found = torch.zeros_like(same)
    found[:, :-1, 1:] = same[:, :-1, :-1] & same[:, 1:, 1:]
    return found.tril(-1)


def stood_before(tokens: Int[Tensor, "row pos"]) -> Bool[Tensor, "row pos"]:
    """Whether a position's token stands at j < t − 1 of its row."""
    return (tokens[:, :, None] == tokens[:, None, :]).tril(-2).any(-1)


@torch.no_grad()
def natural_repeats(
    model: ResValTransformer,
    tokens: Int[Tensor, "row pos"],
    cut: Mapping[str, Sequence[Link]] | None = None,
    max_tokens: int = MAX_TOKENS,
    out: Sequence[Sequence[tuple[int, int]]] = (),
) -> NaturalRepeats:
    """Attention and losses where rows of text repeat themselves.

    Args:
        tokens: rows without padding.
        cut: groups of links whose cut is measured, by name.
        out: groups of heads (layer, head) that are measured without.

    Raises:
        ValueError: no position is repeated; rows too long for the context, or a classifier.
    """
    where = followers(tokens)
    repeated = where.any(-1)[:, :-1]
    before = stood_before(tokens)[:, :-1]
    kinds = {"repeated": repeated, "misleading": before & ~repeated, "new": ~before}
    count = int(repeated.sum())
    if not count:
        raise ValueError(
            f"{len(tokens)} rows of {tokens.shape[1]} tokens hold no token that is followed by the "
            "same as before"
        )
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    summed = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, dtype=torch.float64)
    with measuring(model):
        parts = chunks(model, tokens, max_tokens)
        for rows, own in zip(parts, where.split([len(rows) for rows in parts]), strict=True):
            _, cache = model.run_with_cache(rows, names_filter=names, return_type=None)
            for layer, name in enumerate(names):
                pattern = wide(cache[name])  # [row, head, query, key]
                summed[layer] += (pattern * own[:, None].to(pattern.device)).sum((0, 2, 3)).cpu()
    weights = 1 / torch.arange(1, tokens.shape[1] + 1)

    def losses(hooks: list[Any]) -> Float[Tensor, "row pos"]:
        with model.hooks(fwd_hooks=hooks):
            return token_losses(model, tokens, max_tokens)

    def by_kind(found: Float[Tensor, "row pos"]) -> ByKind:
        return ByKind(
            **{kind: found[own].mean().item() if own.any() else None for kind, own in kinds.items()}
        )

    whole, without = losses([]), []
    for heads in out:
        found = losses(_at_means(model, tokens, heads, max_tokens))
        rise = {
            kind: mean_interval(_by_row(found - whole, own))
            for kind, own in kinds.items()
            if own.any()
        }
        named = tuple(head_name(*head) for head in heads)
        without.append(Without(named, by_kind(found), rise))
    return NaturalRepeats(
        len(tokens),
        tokens.shape[1],
        ByKind(**{kind: float(own.sum()) for kind, own in kinds.items()}),
        by_kind(whole),
        (summed / count).tolist(),
        float((where.sum(-1) * weights).sum()) / count,
        {
            name: by_kind(losses(link_hooks(model, zero(), list(links)) if links else []))
            for name, links in (cut or {}).items()
        },
        tuple(without) or None,
    )


def _by_row(
    values: Float[Tensor, "row pos"], own: Bool[Tensor, "row pos"]
) -> Float[np.ndarray, " some"]:
    """The mean of a row's values, of each row that has any."""
    rows = (row[mask] for row, mask in zip(values, own, strict=True) if mask.any())
    return np.array([row.mean().item() for row in rows])


def _at_means(
    model: ResValTransformer,
    tokens: Int[Tensor, "row pos"],
    heads: Sequence[tuple[int, int]],
    max_tokens: int,
) -> list[Any]:
    """Hooks that put the z of these heads at its mean over all rows and positions."""
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)
    names = {f"blocks.{layer}.attn.hook_z": several for layer, several in by_layer.items()}
    sums: dict[str, Tensor] = {}
    with measuring(model):
        for rows in chunks(model, tokens, max_tokens):
            _, cache = model.run_with_cache(rows, names_filter=list(names), return_type=None)
            for name, several in names.items():
                own = wide(cache[name][:, :, several]).sum((0, 1))
                sums[name] = sums[name] + own if name in sums else own

    def put(z: Tensor, hook: HookPoint) -> Tensor:
        name, edited = str(hook.name), z.clone()
        edited[:, :, names[name]] = (sums[name] / tokens.numel()).to(z.dtype)
        return edited

    return [(name, put) for name in names]
