"""Which heads of a whole model are shown: chosen ones, or the strongest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.analyses.attribution.sources import MEASURE, SourceNorms, strength
from resval_lens.hooks.links import Numbers, among, head_name, whole_numbers


class ShownHeads(NamedTuple):
    """Heads in the order they are shown.

    Attributes:
        caption: what to say of the choice.
        strength: of each head, by which a reader may order them; None: they have an order.
        norms: of the values at source positions.
    """

    patterns: Float[Tensor, "head query key"]
    names: list[str]
    caption: str
    strength: Float[Tensor, " head"] | None
    norms: SourceNorms | None = None

    @property
    def in_order(self) -> bool:
        """Whether the strongest come first."""
        if self.strength is None:
            return False
        size = self.strength.abs()
        return bool((size[:-1] >= size[1:]).all())


def named_heads(
    patterns: Float[Tensor, "head query key"],
    names: Sequence[str],
    norms: SourceNorms | None = None,
) -> ShownHeads:
    """Heads that are shown as they are given."""
    return ShownHeads(patterns, list(names), "", None, norms)


def shown_heads(
    patterns: Float[Tensor, "layer head query key"],
    heads: Numbers | Sequence[str] | None = None,
    layers: Numbers | None = None,
    by: Float[Tensor, "layer head"] | None = None,
    most: int | None = None,
    norms: SourceNorms | None = None,
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
    measure = strength(patterns) if by is None else by.detach().float().cpu()
    what = MEASURE if by is None else "the largest |strength|"
    if names is None or by is not None:  # named ones stay as they were named
        places = sorted(places, key=lambda place: -abs(measure[place].item()))
        what = f", strongest first: {what}"
    else:
        what = f", as named; strength: {what}"
    said = f"{min(most or len(places), len(places))} of {n_layers * n_heads} heads{what}"
    places = places[:most]
    at = torch.tensor(places).unbind(1)
    if norms is not None:
        norms = SourceNorms(norms.own[at], norms.link[at])
    return ShownHeads(
        patterns[at], [head_name(*place) for place in places], said, measure[at], norms
    )


def is_named(heads: Numbers | Sequence[str] | None) -> bool:
    """Whether heads are named, like ``"a12.h3"``, and not numbered."""
    return isinstance(heads, str) or (
        isinstance(heads, Sequence) and any(isinstance(head, str) for head in heads)
    )


def _names(heads: Numbers | Sequence[str] | None) -> list[str] | None:
    if not is_named(heads):
        return None
    return [heads] if isinstance(heads, str) else list(map(str, heads))  # type: ignore[arg-type]
