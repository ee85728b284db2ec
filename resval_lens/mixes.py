"""Every mix: how what earlier layers pass on joins a layer's own projection.

    total = a · local + Σ_j b_j · passed_j

A mix is one class here and one entry in ``MIXES``. It says which numbers a and b may start with,
which parameters it learns, and what a and b are, given these; whoever needs to know anything about
a mix asks it. Nothing here needs torch, so that names and settings are known at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from resval_lens.mixing import StreamMix
    from resval_lens.streams import AttentionStream

Weight: TypeAlias = "float | Tensor"
"""A number; or one learned number [], one for each head [head], a matrix [reader head, source
head], or of a gated mix [batch, pos, head, 1]."""
Weights: TypeAlias = tuple[Weight, Sequence[Weight]]
"""a, and b of each source layer."""


class Sizes(NamedTuple):
    """Of a receiving layer: source layers, heads (key-value heads for k and v), widths, tokens."""

    sources: int
    heads: int
    d_model: int
    d_head: int
    d_vocab: int


class Start(NamedTuple):
    """A parameter's shape, and what it holds at first: ``value``, everywhere or on the diagonal
    (again and again, where there are more rows than columns).
    """

    shape: tuple[int, ...]
    value: float
    diagonal: bool = False


class Mix:
    """A number each: a, which is ``own``, and b, which is ``carried``. Other mixes differ from it.

    Attributes:
        name: what ``AttentionStream.mix`` calls it.
        a, b: the weights as tables show them, and ``where`` with what they are.
        default: own and carried where a stream does not say; None where it must.
        own_is_learned, carried_is_learned: whether ``own`` and ``carried`` are initial values.
        is_gated: whether the weights depend on the token: then they come from :meth:`gate`.
        own_is_fixed: whether the own weight does not, and the gate is a factor of what is passed
            on.
        further: fields of a stream that this mix has and others have not.
        crosses_heads: whether a head reads other heads' projections, too.
        takes_several: whether several layers can be passed on to one (``source="all"``).
    """

    name: ClassVar[str]
    a: ClassVar[str] = "own"
    b: ClassVar[str] = "carried"
    where: ClassVar[str] = "both fixed numbers"
    default: ClassVar[tuple[float, float] | None] = (1.0, 1.0)
    own_is_learned: ClassVar[bool] = False
    carried_is_learned: ClassVar[bool] = False
    is_gated: ClassVar[bool] = False
    own_is_fixed: ClassVar[bool] = True
    further: ClassVar[tuple[str, ...]] = ()
    crosses_heads: ClassVar[bool] = False
    takes_several: ClassVar[bool] = True

    def usual(self, stream: AttentionStream) -> dict[str, Any]:
        """What fields are where a stream does not say them; none of those that it must say."""
        return dict(zip(("own", "carried"), self.default or (), strict=False))

    def settle(self, stream: AttentionStream) -> dict[str, Any]:
        """``own``, ``carried`` and ``further`` fields of a stream in full.

        Raises:
            ValueError: weights, or a ``source``, that this mix cannot have.
        """
        usual, own, carried = self.usual(stream), stream.own, stream.carried
        if not usual and (own is None or carried is None):
            raise ValueError(
                f"AttentionStream.mix={self.name!r} needs both weights; got own={own!r}, "
                f"carried={carried!r}"
            )
        names = ("own", "carried", *self.further)
        given = {name: getattr(stream, name) for name in names}
        return {name: usual.get(name) if x is None else x for name, x in given.items()}

    def parameters(self, stream: AttentionStream, sizes: Sizes) -> dict[str, Start]:
        """What is learned in each receiving layer, by name.

        No name holds ``W_``, which TransformerLens's initialisers look for: a stream never changes
        the weights that a seed gives.
        """
        return {}

    def gate(self, at: StreamMix, x: Tensor, heads: int) -> Tensor | None:
        """[batch, pos, head, 1] of the attention input ``x``; None unless the mix is gated."""
        return None

    def weights(self, at: StreamMix, gate: Tensor | None = None) -> Weights:
        """a and the b_j of a layer, of the parameters that ``at`` holds.

        Raises:
            ValueError: a gated mix without its ``gate``.
        """
        own, carried = at.fixed
        return own, [carried] * at.sizes.sources


def _carried(stream: AttentionStream) -> float:
    assert stream.carried is not None  # it is settled
    return stream.carried


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


def _given(gate: Tensor | None) -> Tensor:
    if gate is None:
        raise ValueError("a gated mix needs its gate: StreamMix.gate of the attention input")
    return gate


class Add(Mix):
    """The own projection as it is, and b of what is passed on."""

    name = "add"
    a = "1"
    where = "carried a fixed number"

    def settle(self, stream: AttentionStream) -> dict[str, Any]:
        if stream.own not in (None, 1):
            raise ValueError(
                f"AttentionStream.own={stream.own!r} contradicts mix={self.name!r}, whose own "
                f"weight is 1; use mix={Pair.name!r}"
            )
        return super().settle(stream)


class Pair(Mix):
    """Two numbers, both given."""

    name = "pair"
    default = None


class Scalar(Mix):
    """b learned, one number for each source layer."""

    name = "scalar"
    where = "carried learned, one per layer"
    carried_is_learned = True

    def parameters(self, stream: AttentionStream, sizes: Sizes) -> dict[str, Start]:
        return {"carried": Start((sizes.sources,), _carried(stream))}

    def weights(self, at: StreamMix, gate: Tensor | None = None) -> Weights:
        return at.fixed[0], tuple(at.carried)


class LearnedPair(Scalar):
    """Both learned."""

    name = "learned_pair"
    where = "both learned, one per layer"
    default = (0.5, 0.5)
    own_is_learned = True

    def parameters(self, stream: AttentionStream, sizes: Sizes) -> dict[str, Start]:
        return {**super().parameters(stream, sizes), "own": Start((), stream.own or 0.0)}

    def weights(self, at: StreamMix, gate: Tensor | None = None) -> Weights:
        return at.own, tuple(at.carried)


class _Share(Mix):
    """A learned share b of one unit, and a = 1 − b."""

    default = (0.5, 0.5)
    own_is_learned = True
    carried_is_learned = True
    takes_several = False

    def settle(self, stream: AttentionStream) -> dict[str, Any]:
        own, carried = stream.own, stream.carried
        if carried is None:
            carried = self.default[1] if own is None else 1 - own
        if own is not None and abs(own + carried - 1) > 1e-9:
            raise ValueError(
                f"AttentionStream.own={own!r} contradicts carried={carried!r}: "
                f"mix={self.name!r} needs own = 1 - carried"
            )
        return {"own": 1 - carried, "carried": carried}


class Convex(_Share):
    """One learned share λ."""

    name = "convex"
    a = "1 − λ"
    b = "λ"
    where = "λ learned, one per layer"

    def parameters(self, stream: AttentionStream, sizes: Sizes) -> dict[str, Start]:
        return {"carried": Start((sizes.sources,), _carried(stream))}

    def weights(self, at: StreamMix, gate: Tensor | None = None) -> Weights:
        return 1 - at.carried[0], tuple(at.carried)


class Head(Scalar):
    """b learned, one number for each head (key-value head, for k and v)."""

    name = "head"
    where = "carried learned, one per head"

    def parameters(self, stream: AttentionStream, sizes: Sizes) -> dict[str, Start]:
        return {"carried": Start((sizes.sources, sizes.heads), _carried(stream))}


class HeadGain(Mix):
    """a learned, one number for each head: own projections scaled, with or without a link."""

    name = "head_gain"
    where = "own learned, one per head; carried a fixed number"
    default = (1.0, 0.0)
    own_is_learned = True

    def parameters(self, stream: AttentionStream, sizes: Sizes) -> dict[str, Start]:
        return {"own": Start((sizes.heads,), stream.own or 0.0)}

    def weights(self, at: StreamMix, gate: Tensor | None = None) -> Weights:
        return at.own, super().weights(at)[1]


class HeadPair(Head):
    """Both learned, one number each for each head."""

    name = "head_pair"
    where = "both learned, one per head"
    own_is_learned = True

    def parameters(self, stream: AttentionStream, sizes: Sizes) -> dict[str, Start]:
        return {
            **super().parameters(stream, sizes),
            "own": Start((sizes.heads,), stream.own or 0.0),
        }

    def weights(self, at: StreamMix, gate: Tensor | None = None) -> Weights:
        return at.own, tuple(at.carried)


class Gate(_Share):
    """A share g = σ(x·w_h + c_h) of each token and head; g = ``carried`` at the start."""

    name = "gate"
    a = "1 − g"
    b = "g"
    where = "g = σ(x·w_h + c_h) learned, per token and head"
    is_gated = True
    own_is_fixed = False

    def settle(self, stream: AttentionStream) -> dict[str, Any]:
        settled = super().settle(stream)
        if not 0 < settled["carried"] < 1:
            raise ValueError(
                "AttentionStream.carried must lie strictly between 0 and 1 for "
                f"mix={self.name!r}; got {settled['carried']!r}"
            )
        return settled

    def parameters(self, stream: AttentionStream, sizes: Sizes) -> dict[str, Start]:
        return {
            "gate_weight": Start((sizes.heads, sizes.d_model), 0.0),
            "gate_bias": Start((sizes.heads,), _logit(_carried(stream))),
        }

    def gate(self, at: StreamMix, x: Tensor, heads: int) -> Tensor:
        return at.read(x, at.gate_weight, at.gate_bias, heads).sigmoid()[..., None]

    def weights(self, at: StreamMix, gate: Tensor | None = None) -> Weights:
        gate = _given(gate)
        return 1 - gate, [gate]


class AddedGate(Mix):
    """The own projection as it is, and a gate g = scale · act(x·w_h [+ c_h]) of what is passed on.

    x is the first ``channels`` of the attention input. At first g is ``carried`` for every token:
    scale/2 if ``act`` is the sigmoid and there is no bias. A relu without one begins with
    w_h = ``carried`` at channel h, since of all 0 it has no gradient.
    """

    name = "added_gate"
    a = "1"
    b = "g"
    where = "g = scale · act(x·w_h [+ c_h]) learned, per token and head"
    carried_is_learned = True
    is_gated = True
    takes_several = False
    further = ("act", "scale", "channels", "bias")

    def usual(self, stream: AttentionStream) -> dict[str, Any]:
        act = stream.act or "sigmoid"
        scale = (2.0 if act == "sigmoid" else 1.0) if stream.scale is None else stream.scale
        carried = scale / 2 if act == "sigmoid" else 1.0
        fields = {"act": "sigmoid", "scale": scale, "channels": None, "bias": False}
        return {"own": 1.0, "carried": carried, **fields}

    def settle(self, stream: AttentionStream) -> dict[str, Any]:
        settled = super().settle(stream)
        act, scale, carried = (settled[name] for name in ("act", "scale", "carried"))
        channels, bias = settled["channels"], settled["bias"]
        expected = {
            "own": settled["own"] == 1 or "1 for this mix; a number is mix='pair''s",
            "act": act in ("sigmoid", "relu") or "one of sigmoid, relu",
            "scale": scale > 0 or "above 0",
            "channels": channels is None
            or (isinstance(channels, int) and not isinstance(channels, bool) and channels > 0)
            or "None (all) or a whole number from 1 up",
            "bias": isinstance(bias, bool) or "True or False",
        }
        expected["carried"] = (
            carried > 0 or "above 0"
            if act == "relu"
            else 0 < carried < scale or f"between 0 and scale={scale:g}"
        )
        if act == "sigmoid" and not bias and carried != scale / 2:
            expected["carried"] = f"scale / 2 = {scale / 2:g} without a bias"
        for name, found in expected.items():
            if found is not True:
                raise ValueError(f"AttentionStream.{name} must be {found}; got {settled[name]!r}")
        return settled

    def parameters(self, stream: AttentionStream, sizes: Sizes) -> dict[str, Start]:
        shape = sizes.heads, stream.channels or sizes.d_model
        assert stream.scale is not None
        share = _carried(stream) / stream.scale
        if stream.act == "relu" and not stream.bias:
            return {"gate_weight": Start(shape, share, diagonal=True)}
        found = {"gate_weight": Start(shape, 0.0)}
        if stream.bias:
            start = share if stream.act == "relu" else _logit(share)
            found["gate_bias"] = Start((sizes.heads,), start)
        return found

    def gate(self, at: StreamMix, x: Tensor, heads: int) -> Tensor:
        stream = at.stream
        bias = at.gate_bias if stream.bias else None
        read = at.read(x[..., : stream.channels], at.gate_weight, bias, heads)
        act = read.sigmoid() if stream.act == "sigmoid" else read.relu()
        return (act if stream.scale == 1 else act * (stream.scale or 1.0))[..., None]

    def weights(self, at: StreamMix, gate: Tensor | None = None) -> Weights:
        return 1.0, [_given(gate)]


class Matrix(Scalar):
    """b a learned matrix [reader head, source head]; at the start ``carried`` · identity."""

    name = "matrix"
    where = "carried a learned [head, head] matrix: every head reads every head"
    crosses_heads = True

    def parameters(self, stream: AttentionStream, sizes: Sizes) -> dict[str, Start]:
        shape = sizes.sources, sizes.heads, sizes.heads
        return {"carried": Start(shape, _carried(stream), diagonal=True)}


class NextHead(Head):
    """b learned, one number for each head, of what the next head passes on; the last reads head 0.

    Head h reads head h + 1: as many numbers as ``"head"`` has, and no head reads its own.
    """

    name = "next_head"
    where = "carried learned, one per head, which reads head h + 1"
    crosses_heads = True

    def weights(self, at: StreamMix, gate: Tensor | None = None) -> Weights:
        own, carried = super().weights(at)
        return own, [weight.diag().roll(1, dims=1) for weight in carried]  # type: ignore[union-attr]


_ALL = (
    Add(), Pair(), Scalar(), LearnedPair(), Convex(), Head(), HeadGain(), HeadPair(), Gate(),
    AddedGate(), Matrix(), NextHead(),
)  # fmt: skip
MIXES: dict[str, Mix] = {mix.name: mix for mix in _ALL}
"""Every mix by its name, those of your own, too: ``MIXES["mine"] = Mine()``."""
