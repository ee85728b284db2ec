"""Links: what one head receives along a stream, and how links and heads are written.

a1.h2                 head 2 of layer 1
a1.h2<v>              its values (k and v: of key-value head 2)
v1.h2                 the link: all that arrives for them along the value stream
a0.h2<v>->a1.h2<v>    the part of it that head 2 of layer 0 passes on: an edge of a circuit
t.h2<v>->a1.h2<v>     the part of it that layer 1's table holds of the token (source "tokens")
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import SupportsIndex

from resval_lens.config import ResValConfig
from resval_lens.streams import TABLE
from resval_lens.transformer import ResValTransformer

Numbers = SupportsIndex | Iterable[SupportsIndex]
"""One whole number or several, NumPy's too."""


LINK = re.compile(
    r"(?P<stream>[qkv])(?P<layer>\d+)\.h(?P<head>\d+)"
    r"|(?:a(?P<source>\d+)|t)\.h(?P<source_head>\d+)<(?P<of>[qkv])>"
    r"->a(?P<to>\d+)\.h(?P<to_head>\d+)<(?P=of)>"
)


def head_name(layer: int, head: int, projection: str = "") -> str:
    """``a1.h2``; its queries, keys or values: ``a1.h2<v>``; of a table: ``t.h2<v>``."""
    return f"{'t' if layer == TABLE else f'a{layer}'}.h{head}" + (
        f"<{projection}>" if projection else ""
    )


@dataclass(frozen=True)
class Link:
    """The link of one head: what arrives in ``layer`` along ``stream`` for ``head``.

    With a ``source``, a layer (or ``TABLE``) and a head of it, the part of that which comes from
    there: a stream
    with several source layers, or a head-mixing matrix, brings several. ``head`` and the source's
    are key-value heads for the streams k and v of a grouped-query model.

    >>> str(Link("v", 1, 2)), str(Link("v", 1, 2, source=(0, 2)))
    ('v1.h2', 'a0.h2<v>->a1.h2<v>')
    """

    stream: str
    layer: int
    head: int
    source: tuple[int, int] | None = None

    @classmethod
    def parse(cls, name: str) -> Link:
        """The link that ``str`` writes so.

        Raises:
            ValueError: what is no link's name.
        """
        found = LINK.fullmatch(name)
        if found is None:
            raise ValueError(
                f"{name!r} is not the name of a link: write v1.h2 (all that arrives there) or "
                "a0.h2<v>->a1.h2<v> (what comes from that head)"
            )
        if found["of"]:
            layer = TABLE if found["source"] is None else int(found["source"])
            source = layer, int(found["source_head"])
            return cls(found["of"], int(found["to"]), int(found["to_head"]), source)
        return cls(found["stream"], int(found["layer"]), int(found["head"]))

    @property
    def whole(self) -> Link:
        """The link that this is a part of; itself without a ``source``."""
        return replace(self, source=None)

    @property
    def hook_name(self) -> str:
        """The hook point that holds this link, [batch, pos, head, d_head]."""
        return f"blocks.{self.layer}.attn.hook_{self.stream}_link"

    def __str__(self) -> str:
        if self.source is None:
            return f"{self.stream}{self.layer}.h{self.head}"
        sender = head_name(*self.source, self.stream)
        return f"{sender}->{head_name(self.layer, self.head, self.stream)}"


LinkLike = Link | str
"""A link, or its name."""


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
        raise ValueError(
            "this model has no links; --streams v (in Python with_streams('v')) runs its weights "
            "with value links"
        )
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


def parts_of(cfg: ResValConfig, link: LinkLike) -> tuple[Link, ...]:
    """What a link is the sum of: a part for each head that it comes from, by layer and head.

    Of a part, itself.

    Raises:
        ValueError: a model of this configuration has no such link.
    """
    link = Link.parse(link) if isinstance(link, str) else link
    stream = next((stream for stream in cfg.streams if stream.of == link.stream), None)
    parts: tuple[Link, ...] = ()
    if stream is not None and 0 <= link.layer < cfg.n_layers:
        heads = range(cfg.n_heads_of(link.stream))
        if link.head in heads:
            sending = heads if stream.how.crosses_heads else (link.head,)
            parts = tuple(
                replace(link, source=(layer, head))
                for layer in stream.sources(link.layer)
                for head in sending
            )
    parts = tuple(part for part in parts if link.source in (None, part.source))
    if not parts:
        raise ValueError(f"this model has no link {link}; links(model) has them all")
    return parts


def whole_links(cfg: ResValConfig, selected: Iterable[LinkLike]) -> tuple[Link, ...]:
    """The links that hook points hold whole, of these links and parts, each once.

    Raises:
        ValueError: a link that a model of this configuration does not have; one of which only some
            parts are selected.
    """
    parts = dict.fromkeys(part for link in selected for part in parts_of(cfg, link))
    found = tuple(dict.fromkeys(part.whole for part in parts))
    for link in found:
        every = parts_of(cfg, link)
        missing = [part for part in every if part not in parts]
        if missing:
            (part, *_) = (part for part in every if part in parts)
            raise ValueError(
                f"{part} is a part of {link}, which is edited whole: select {link}, or "
                f"{', '.join(map(str, missing))}, too"
            )
    return found


def links_between(
    cfg: ResValConfig, stream: str, source: tuple[int, int | None], to: tuple[int, int]
) -> tuple[Link, ...]:
    """The parts of links along which what a head projects comes to a later one; none if it doesn't.

    With ``carry="sum"`` by way of the layers between, too.

    Args:
        stream: q, k or v.
        source, to: layer and head; a source head of None is every one. Key-value heads for k and v.
    """
    settings = next((each for each in cfg.streams if each.of == stream), None)
    if settings is None:
        return ()

    @cache
    def ways(layer: int, head: int) -> tuple[Link, ...]:
        found: dict[Link, None] = {}
        if not settings.receives(layer):
            return ()
        for part in parts_of(cfg, Link(stream, layer, head)):
            assert part.source is not None
            passed_on = settings.carry == "sum" and part.source[0] != TABLE
            before = ways(*part.source) if passed_on else ()
            if before or (part.source[0] == source[0] and source[1] in (None, part.source[1])):
                found |= dict.fromkeys((*before, part))
        return tuple(found)

    return ways(*to)


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
