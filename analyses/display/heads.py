"""Which heads of a whole model are shown: chosen ones, or the strongest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.hooks.links import Numbers, among, head_name, whole_numbers

MOST = 24
"""Heads of a whole model that are shown if nothing else is asked for."""


class ShownHeads(NamedTuple):
    """Patterns in the order they are shown, the heads' names, and what to say of the choice."""

    patterns: Float[Tensor, "head query key"]
    names: list[str]
    caption: str


def strength(patterns: Float[Tensor, "*head query key"]) -> Float[Tensor, "*head"]:
    """How far a head looks at single tokens before its own: mean over i ≥ 2 of max_{0<j<i} A[i, j].

    The first token, on which heads rest, and a query's own are left out; 0 for fewer than three
    tokens.
    """
    length = patterns.shape[-1]
    if length < 3:
        return patterns.new_zeros(patterns.shape[:-2])
    before = torch.ones(length, length, dtype=torch.bool, device=patterns.device).tril(-1)
    before[:, 0] = False
    return patterns.where(before, 0.0)[..., 2:, :].amax(-1).mean(-1)


def shown_heads(
    patterns: Float[Tensor, "layer head query key"],
    heads: Numbers | Sequence[str] | None = None,
    layers: Numbers | None = None,
    by: Float[Tensor, "layer head"] | None = None,
    most: int | None = None,
) -> ShownHeads:
    """The heads that :func:`~resval_lens.analyses.display.show.show_attention` shows of a model.

    Raises:
        ValueError: a layer or head that is not there, ``by`` of another shape or not finite.
    """
    n_layers, n_heads = patterns.shape[:2]
    if by is not None and (by.shape != (n_layers, n_heads) or not bool(by.isfinite().all())):
        raise ValueError(
            f"strength must be finite numbers [{n_layers}, {n_heads}], one a head; got "
            f"{list(by.shape)}"
        )
    chosen_layers = among(whole_numbers(layers, "layers"), n_layers, "layers")
    in_layers = {head_name(i, h): (i, h) for i in chosen_layers for h in range(n_heads)}
    names = _names(heads)
    if names is not None:
        for name in names:
            if name not in in_layers:
                first, *_, last = in_layers
                raise ValueError(f"heads: {name!r} is not among {first} to {last}")
        places = [in_layers[name] for name in names]
    else:
        numbers = among(whole_numbers(heads, "heads"), n_heads, "heads")  # type: ignore[arg-type]
        places = [(layer, head) for layer in chosen_layers for head in numbers]
    said = f"{len(places)} of {n_layers * n_heads} heads"
    if names is None or by is not None:  # named ones stay as they were named
        measure = strength(patterns) if by is None else by.detach().abs().cpu()
        places = sorted(places, key=lambda place: -measure[place].item())
        most = MOST if most is None else most
        what = "the largest |strength|" if by is not None else (
            "the largest weights on one token before, the first left out"
        )  # fmt: skip
        said = f"{min(most, len(places))} of {n_layers * n_heads} heads: {what}, largest first"
    places = places[:most]
    layer, head = torch.tensor(places).unbind(1)
    return ShownHeads(patterns[layer, head], [head_name(*place) for place in places], said)


def _names(heads: Numbers | Sequence[str] | None) -> list[str] | None:
    if isinstance(heads, str):
        return [heads]
    if isinstance(heads, Sequence) and any(isinstance(head, str) for head in heads):
        return list(map(str, heads))
    return None
