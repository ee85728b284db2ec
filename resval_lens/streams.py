"""Residual attention streams: which projections flow from layer to layer, and how they mix.

    local_l = x_l W_l + b_l                                   what layer l computes itself
    link_l  = b · passed_j                                    what arrives, after mixing
    total_l = a · local_l + link_l                            what layer l's attention uses

``passed_j`` is layer j's ``local_j`` (``carry="raw"``) or its ``total_j`` (``carry="sum"``). With
``AttentionStream(of="v")``, a = b = 1 and j = l − 1 this is the residual value stream of
arXiv 2412.15113, section 3.2 and footnote 2: same head index, no new parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from resval_lens.mixes import MIXES, Mix

Projection = Literal["q", "k", "v"]
Source = Literal["previous", "first", "all", "tokens"]
Carry = Literal["raw", "sum"]
TABLE = -1
"""The source of a link whose values are looked up by the token, where others have a layer."""
FURTHER = ("act", "scale", "channels", "bias")
"""Fields that only some mixes have."""


@dataclass(frozen=True)
class AttentionStream:
    """One residual stream between the q, k or v projections of attention layers.

    Attributes:
        of: the projection that flows: ``"q"``, ``"k"`` or ``"v"`` (k and v on key-value heads).
        source: ``"previous"`` layer, the ``"first"`` layer, or ``"all"`` earlier layers; or
            ``"tokens"``: each receiving layer, layer 0 too, has a table of its own, [d_vocab,
            head, d_head], that is looked up by the token (value embeddings). It begins at 0.
        carry: what a layer passes on: ``"sum"`` its total, so that values accumulate (the paper's
            formula read literally); ``"raw"`` its own projection alone (the authors' language-model
            code). The two differ from the third layer on.
        mix: how what is passed on joins the local, ``total = own·local + carried·passed``: one of
            :data:`~resval_lens.mixes.MIXES`, by name. With ``source="all"`` what is learned of
            ``carried`` is learned per source layer, too.
        own, carried: the two weights where they are fixed, their initial values where learned
            (``carried`` is λ or g for convex and gate, ``carried · identity`` for matrix).
            ``None`` takes the mix's default.
        layers: the layers that receive; ``None`` is every layer but the first, or every layer for
            ``source="tokens"``.
        detach: the values flow, the gradient does not flow back through the link.
        act, scale, channels, bias: of a mix that has them (``"added_gate"``); ``None`` takes the
            mix's default.

    Raises:
        ValueError: an unknown or contradictory setting, named with its value.

    >>> AttentionStream(of="v")
    AttentionStream(of='v', source='previous', carry='sum', mix='add', own=1.0, carried=1.0, \
layers=None, detach=False, act=None, scale=None, channels=None, bias=None)
    """

    of: Projection
    source: Source = "previous"
    carry: Carry = "sum"
    mix: str = "add"
    own: float | None = None  # a number once made
    carried: float | None = None  # a number once made
    layers: tuple[int, ...] | None = None
    detach: bool = False
    act: str | None = None
    scale: float | None = None
    channels: int | None = None
    bias: bool | None = None

    def __post_init__(self) -> None:
        for name, choices in (("of", get_args(Projection)), ("source", get_args(Source)),
                              ("carry", get_args(Carry)), ("mix", tuple(MIXES))):  # fmt: skip
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"AttentionStream.{name} must be one of {', '.join(choices)}; "
                    f"got {getattr(self, name)!r}"
                )
        if not isinstance(self.detach, bool):
            raise ValueError(f"AttentionStream.detach must be True or False; got {self.detach!r}")
        if self.source == "tokens":
            if self.detach:
                raise ValueError("AttentionStream.detach=True: the tables could never be learned")
            object.__setattr__(self, "carry", "sum")  # there is nothing that a layer passes on
        for name in FURTHER:
            value = getattr(self, name)
            if value is not None and name not in self.how.further:
                raise ValueError(f"AttentionStream.{name}={value!r}: mix={self.mix!r} has none")
        if self.source == "all" and not self.how.takes_several:
            *most, last = (mix.name for mix in MIXES.values() if mix.takes_several)
            raise ValueError(
                f"AttentionStream.source='all' contradicts mix={self.mix!r}, which takes one "
                f"source; use {', '.join(most)} or {last}"
            )
        self._settle_weights()
        self._settle_layers()

    def _settle_weights(self) -> None:
        for name in ("own", "carried", "scale"):
            value = getattr(self, name)
            if value is not None:
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                if not is_number or value != value or abs(value) == float("inf"):
                    raise ValueError(
                        f"AttentionStream.{name} must be a finite number; got {value!r}"
                    )
        for name, value in self.how.settle(self).items():
            is_number = isinstance(value, int) and name in ("own", "carried", "scale")
            object.__setattr__(self, name, float(value) if is_number else value)

    def _settle_layers(self) -> None:
        if self.layers is None:
            return
        first = 0 if self.source == "tokens" else 1
        why = "" if first == 0 else " (layer 0 has no earlier layer to receive from)"
        wrong = ValueError(
            f"AttentionStream.layers must be None or distinct layer numbers from {first} up{why}; "
            f"got {self.layers!r}"
        )
        if isinstance(self.layers, str | int) or not isinstance(self.layers, Iterable):
            raise wrong
        layers = tuple(self.layers)
        if any(not isinstance(n, int) or isinstance(n, bool) or n < first for n in layers):
            raise wrong
        if not layers or len(set(layers)) != len(layers):
            raise wrong
        object.__setattr__(self, "layers", tuple(sorted(layers)))

    @property
    def how(self) -> Mix:
        """What the mix says of itself."""
        return MIXES[self.mix]

    @property
    def is_learned(self) -> bool:
        """Whether it adds parameters to the model."""
        return self.source == "tokens" or self.how.own_is_learned or self.how.carried_is_learned

    def receives(self, layer: int) -> bool:
        """Whether ``layer`` receives along this stream."""
        if self.layers is not None:
            return layer in self.layers
        return layer >= (0 if self.source == "tokens" else 1)

    def sources(self, layer: int) -> tuple[int, ...]:
        """The layers whose projections arrive in ``layer``, in order; empty if none do.

        ``TABLE`` stands for the layer's own table.
        """
        if not self.receives(layer):
            return ()
        return {
            "tokens": (TABLE,),
            "previous": (layer - 1,),
            "first": (0,),
            "all": tuple(range(layer)),
        }[self.source]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, every field that its mix has."""
        fields = {
            name: x for name, x in asdict(self).items() if name not in FURTHER or x is not None
        }
        return {**fields, "layers": None if self.layers is None else list(self.layers)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> AttentionStream:
        """The inverse of :meth:`to_dict`; unknown keys raise ValueError."""
        known = [field.name for field in fields(cls)]
        for key in settings:
            if key not in known:
                raise ValueError(
                    f"AttentionStream has no field {key!r}; its fields are {', '.join(known)}"
                )
        if "of" not in settings:
            raise ValueError(f"AttentionStream needs the field 'of'; got {dict(settings)!r}")
        return cls(**settings)


Streams = tuple[AttentionStream, ...]
StreamsLike = str | AttentionStream | Iterable[AttentionStream | Mapping[str, Any]] | None


def parse_streams(
    streams: StreamsLike, n_layers: int | None = None, carry: Carry = "sum"
) -> Streams:
    """Streams in full from any accepted way of writing them, in the order q, k, v.

    A string is what :func:`shorthand` writes: each letter is a stream with the defaults, but for
    the fields in brackets after it; ``""`` and ``None`` are the classic transformer.

    Args:
        carry: of the streams of a string that does not say it.

    Raises:
        ValueError: an unknown letter, field or value, two streams of the same projection, or a
            receiving layer that a model of ``n_layers`` does not have.

    >>> [stream.of for stream in parse_streams("vq")]
    ['q', 'v']
    >>> parse_streams("v(mix=pair, own=2, carried=0)")[0].own
    2.0
    """
    if streams is None:
        streams = ""
    if isinstance(streams, str):
        parsed = _written(streams, carry)
    elif isinstance(streams, AttentionStream):
        parsed = [streams]
    else:
        if not isinstance(streams, Iterable):
            raise ValueError(
                f"streams must be letters of q, k, v or AttentionStream objects; got {streams!r}"
            )
        parsed = []
        for item in streams:
            if not isinstance(item, AttentionStream | Mapping):
                raise ValueError(f"streams must hold AttentionStream objects; got {item!r}")
            parsed.append(
                item if isinstance(item, AttentionStream) else AttentionStream.from_dict(item)
            )
    flowing = [stream.of for stream in parsed]
    for name in flowing:
        if flowing.count(name) > 1:
            raise ValueError(f"streams has {flowing.count(name)} streams of {name!r}; one is meant")
    if n_layers is not None:
        for stream in parsed:
            beyond = [layer for layer in stream.layers or () if layer >= n_layers]
            if beyond:
                raise ValueError(
                    f"AttentionStream.layers={stream.layers} names layer {beyond[0]}; the model "
                    f"has layers 0 to {n_layers - 1}"
                )
    return tuple(sorted(parsed, key=lambda stream: "qkv".index(stream.of)))


_STREAM = re.compile(r"([a-z])\s*(?:\(((?:[^()]|\([^()]*\))*)\))?[\s,]*")
_FIELD = re.compile(r"\s*(\w+)\s*=\s*(\([^()]*\)|[^,()]+?)\s*(?:,|$)")


def _written(text: str, carry: Carry) -> list[AttentionStream]:
    """The streams of a string, as :func:`shorthand` writes them."""

    def wrong(part: str) -> ValueError:
        return ValueError(
            f"streams={text!r} has {part!r}; write letters of q, k, v, or '' for the classic "
            "transformer; in brackets after a letter what is not as usual, like "
            "'v(mix=pair, own=2, carried=0)'"
        )

    parsed, at, text_ = [], 0, text.strip()
    while at < len(text_):
        found = _STREAM.match(text_, at)
        if found is None or found[1] not in get_args(Projection):
            raise wrong(text_[at])
        settings, inner = {"carry": carry}, found[2] or ""
        end = 0
        while end < len(inner.rstrip()):
            field = _FIELD.match(inner, end)
            if field is None:
                raise wrong(inner[end:].strip())
            settings[field[1]] = _value(field[1], field[2])
            end = field.end()
        parsed.append(AttentionStream.from_dict({"of": found[1], **settings}))
        at = found.end()
    return parsed


def _value(field: str, text: str) -> Any:
    """What a field of a stream is set to: numbers, True, False, None and layers are read."""
    try:
        if field in ("own", "carried", "scale"):
            return float(text)
        if field == "channels" and text != "None":
            return int(text)
        if field == "layers" and text != "None":
            return tuple(int(part) for part in text.strip("()").split(",") if part.strip())
    except ValueError:
        return text  # refused by the field's own check
    return {"True": True, "False": False, "None": None}.get(text, text)


def shorthand(streams: Streams) -> str:
    """The shortest way to name streams: what differs from the defaults, in brackets.

    >>> shorthand(parse_streams("qv")), shorthand((AttentionStream("v", source="first"),))
    ('qv', 'v(source=first)')
    """
    names = []
    for stream in streams:
        usual: dict[str, Any] = {"source": "previous", "carry": "sum", "mix": "add"}
        usual |= {"own": None, "carried": None, "layers": None, "detach": False}
        usual |= stream.how.usual(stream)
        changed = [f"{k}={getattr(stream, k)}" for k, v in usual.items() if getattr(stream, k) != v]
        names.append(f"{stream.of}({', '.join(changed)})" if changed else stream.of)
    return "".join(names) if all(len(name) == 1 for name in names) else " ".join(names)


def architecture(streams: Streams) -> str:
    """Streams as the paper calls them: ``classic``, ``queries``, ``keys``, ``values``; or in short.

    A single stream has the same name whether raw projections or totals are passed on; see
    :func:`architectures_of` for several models side by side.
    """
    if not streams:
        return "classic"
    names = {"q": "queries", "k": "keys", "v": "values"}
    if len(streams) == 1 and shorthand((replace(streams[0], carry="sum"),)) in names:
        return names[streams[0].of]
    return shorthand(streams)


def architectures_of(several: Sequence[Streams]) -> list[str]:
    """:func:`architecture` of each; in full where two that differ would have the same name."""
    named: dict[str, set[Streams]] = {}
    for streams in several:
        named.setdefault(architecture(streams), set()).add(streams)
    return [
        architecture(streams) if len(named[architecture(streams)]) == 1 else shorthand(streams)
        for streams in several
    ]
