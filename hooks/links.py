"""Links: what one head receives along a stream."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import SupportsIndex

from resval_lens.transformer import ResValTransformer

Numbers = SupportsIndex | Iterable[SupportsIndex]
"""One whole number or several, NumPy's too."""


@dataclass(frozen=True, order=True)
class Link:
    """The link of one head: what arrives in ``layer`` along ``stream`` for ``head``.

    ``head`` is a key-value head for the streams k and v of a grouped-query model.
    """

    stream: str
    layer: int
    head: int

    @property
    def hook_name(self) -> str:
        """The hook point that holds this link, [batch, pos, head, d_head]."""
        return f"blocks.{self.layer}.attn.hook_{self.stream}_link"

    def __str__(self) -> str:
        return f"{self.stream}{self.layer}.h{self.head}"


def links(
    model: ResValTransformer,
    of: str | None = None,
    layers: Numbers | None = None,
    heads: Numbers | None = None,
) -> tuple[Link, ...]:
    """The links of a model, by stream, layer and head; all of them by default.

    Args:
        of: streams, as letters of q, k, v.
        layers: receiving layers; negative numbers count from the end.
        heads: heads; negative numbers count from the end.

    Raises:
        ValueError: the model has no links, or a stream, layer or head that has none is named.
    """
    streams = {stream.of: stream for stream in model.cfg.streams}
    if not streams:
        raise ValueError("this model has no links: its configuration has streams=''")
    if of == "":
        raise ValueError("of='' names no stream; None is all of them")
    for name in of or ():
        if name not in streams:
            raise ValueError(f"of={of!r}: this model has links of {', '.join(streams)} only")
    layers, heads = whole_numbers(layers, "layers"), whole_numbers(heads, "heads")
    found = []
    for name in [name for name in streams if name in (of or streams)]:
        wanted_heads = among(heads, model.cfg.n_heads_of(name), "heads")
        receiving = [i for i in range(model.cfg.n_layers) if streams[name].receives(i)]
        for layer in receiving if layers is None else among(layers, model.cfg.n_layers, "layers"):
            if layer not in receiving:
                raise ValueError(f"layers: layer {layer} receives no {name}; layers {receiving} do")
            found += [Link(name, layer, head) for head in wanted_heads]
    return tuple(found)


def link_groups(model: ResValTransformer) -> dict[str, list[Link]]:
    """Links by name: ``all``, those of a stream and layer (``v1``), and each (``v1.h0``)."""
    every = links(model)
    groups = {"all": list(every)}
    for link in every:
        groups.setdefault(f"{link.stream}{link.layer}", []).append(link)
    return groups | {str(link): [link] for link in every}


def whole_numbers(chosen: Numbers | None, what: str) -> list[int] | None:
    """A list of whole numbers, NumPy's too, from one or several; None stays None."""
    if chosen is None:
        return None
    several = chosen if isinstance(chosen, Iterable) else [chosen]
    found = []
    for number in several:
        try:
            found.append(operator.index(number))
        except TypeError:
            raise ValueError(f"{what}: {number!r} is not a whole number") from None
    if not found:
        raise ValueError(f"{what}: the selection is empty; name one or more, or None for all")
    return found


def among(chosen: list[int] | None, count: int, what: str) -> list[int]:
    """Numbers from 0 to ``count`` − 1, each once and in order; negative ones count from the end.

    Raises:
        ValueError: one that is beyond, with ``what`` it is.
    """
    if chosen is None:
        return list(range(count))
    for number in chosen:
        if not -count <= number < count:
            raise ValueError(f"{what}: {number!r} is not among 0 to {count - 1}")
    return sorted({number % count for number in chosen})
