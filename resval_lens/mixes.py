"""Every mix: how what earlier layers hand on joins a layer's own projection.

    total = a · local + Σ_j b_j · handed_j

A mix is one class here and one entry in ``MIXES``. It says which numbers a and b may start with,
which parameters it learns, and what a and b are, given these; whoever needs to know anything about
a mix asks it. Nothing here needs torch, so that names and settings are known at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from resval_lens.mixing import StreamMix

Weight: TypeAlias = "float | Tensor"
"""A number; or one learned number [], one for each head [head], a matrix [reader head, source
head], or of a gated mix [batch, pos, head, 1]."""
Weights: TypeAlias = tuple[Weight, Sequence[Weight]]
"""a, and b of each source layer."""


class Sizes(NamedTuple):
    """Of a receiving layer: source layers, heads (key-value heads for k and v) and d_model."""

    sources: int
    heads: int
    d_model: int


class Start(NamedTuple):
    """A parameter's shape, and what it holds at first: ``value``, everywhere or on the diagonal."""

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
        crosses_heads: whether a head reads other heads' projections, too.
        takes_several: whether several layers can be handed on to one (``source="all"``).
    """

    name: ClassVar[str]
    a: ClassVar[str] = "own"
    b: ClassVar[str] = "carried"
    where: ClassVar[str] = "both fixed numbers"
    default: ClassVar[tuple[float, float] | None] = (1.0, 1.0)
    own_is_learned: ClassVar[bool] = False
    carried_is_learned: ClassVar[bool] = False
    is_gated: ClassVar[bool] = False
    crosses_heads: ClassVar[bool] = False
    takes_several: ClassVar[bool] = True

    def settle(self, own: float | None, carried: float | None, source: str) -> tuple[float, float]:
        """``own`` and ``carried`` of a stream in full.

        Raises:
            ValueError: weights, or a ``source``, that this mix cannot have.
        """
        if self.default is None:
            if own is None or carried is None:
                raise ValueError(
                    f"AttentionStream.mix={self.name!r} needs both weights; got own={own!r}, "
                    f"carried={carried!r}"
                )
            return own, carried
        return (
            self.default[0] if own is None else own,
            self.default[1] if carried is None else carried,
        )

    def parameters(self, own: float, carried: float, sizes: Sizes) -> dict[str, Start]:
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


class Add(Mix):
    """The own projection as it is, and b of what is handed on."""

    name = "add"
    a = "1"
    where = "carried a fixed number"

    def settle(self, own: float | None, carried: float | None, source: str) -> tuple[float, float]:
        if own not in (None, 1):
            raise ValueError(
                f"AttentionStream.own={own!r} contradicts mix={self.name!r}, whose own weight is "
                f"1; use mix={Pair.name!r}"
            )
        return super().settle(own, carried, source)


class Pair(Mix):
    """Two numbers, both given."""

    name = "pair"
    default = None


class Scalar(Mix):
    """b learned, one number for each source layer."""

    name = "scalar"
    where = "carried learned, one per layer"
    carried_is_learned = True

    def parameters(self, own: float, carried: float, sizes: Sizes) -> dict[str, Start]:
        return {"carried": Start((sizes.sources,), carried)}

    def weights(self, at: StreamMix, gate: Tensor | None = None) -> Weights:
        return at.fixed[0], tuple(at.carried)


class LearnedPair(Scalar):
    """Both learned."""

    name = "learned_pair"
    where = "both learned, one per layer"
    default = (0.5, 0.5)
    own_is_learned = True

    def parameters(self, own: float, carried: float, sizes: Sizes) -> dict[str, Start]:
        return {"carried": Start((sizes.sources,), carried), "own": Start((), own)}

    def weights(self, at: StreamMix, gate: Tensor | None = None) -> Weights:
        return at.own, tuple(at.carried)


class _Share(Mix):
    """A learned share b of one unit, and a = 1 − b."""

    default = (0.5, 0.5)
    own_is_learned = True
    carried_is_learned = True
    takes_several = False

    def settle(self, own: float | None, carried: float | None, source: str) -> tuple[float, float]:
        if source == "all":
            *most, last = (mix.name for mix in MIXES.values() if mix.takes_several)
            raise ValueError(
                f"AttentionStream.source='all' contradicts mix={self.name!r}, which divides one "
                f"unit between two parts; use {', '.join(most)} or {last}"
            )
        if carried is None:
            carried = self.default[1] if own is None else 1 - own
        if own is not None and abs(own + carried - 1) > 1e-9:
            raise ValueError(
                f"AttentionStream.own={own!r} contradicts carried={carried!r}: "
                f"mix={self.name!r} needs own = 1 - carried"
            )
        return 1 - carried, carried


class Convex(_Share):
    """One learned share λ."""

    name = "convex"
    a = "1 − λ"
    b = "λ"
    where = "λ learned, one per layer"

    def parameters(self, own: float, carried: float, sizes: Sizes) -> dict[str, Start]:
        return {"carried": Start((sizes.sources,), carried)}

    def weights(self, at: StreamMix, gate: Tensor | None = None) -> Weights:
        return 1 - at.carried[0], tuple(at.carried)


class Head(Scalar):
    """b learned, one number for each head (key-value head, for k and v)."""

    name = "head"
    where = "carried learned, one per head"

    def parameters(self, own: float, carried: float, sizes: Sizes) -> dict[str, Start]:
        return {"carried": Start((sizes.sources, sizes.heads), carried)}


class Gate(_Share):
    """A share g = σ(x·w_h + c_h) of each token and head; g = ``carried`` at the start."""

    name = "gate"
    a = "1 − g"
    b = "g"
    where = "g = σ(x·w_h + c_h) learned, per token and head"
    is_gated = True

    def settle(self, own: float | None, carried: float | None, source: str) -> tuple[float, float]:
        own, carried = super().settle(own, carried, source)
        if not 0 < carried < 1:
            raise ValueError(
                "AttentionStream.carried must lie strictly between 0 and 1 for "
                f"mix={self.name!r}; got {carried!r}"
            )
        return own, carried

    def parameters(self, own: float, carried: float, sizes: Sizes) -> dict[str, Start]:
        return {
            "gate_weight": Start((sizes.heads, sizes.d_model), 0.0),
            "gate_bias": Start((sizes.heads,), math.log(carried / (1 - carried))),
        }

    def gate(self, at: StreamMix, x: Tensor, heads: int) -> Tensor:
        return at.read(x, at.gate_weight, at.gate_bias, heads).sigmoid()[..., None]

    def weights(self, at: StreamMix, gate: Tensor | None = None) -> Weights:
        if gate is None:
            raise ValueError("a gated mix needs its gate: StreamMix.gate of the attention input")
        return 1 - gate, [gate]


class Matrix(Scalar):
    """b a learned matrix [reader head, source head]; at the start ``carried`` · identity."""

    name = "matrix"
    where = "carried a learned [head, head] matrix: every head reads every head"
    crosses_heads = True

    def parameters(self, own: float, carried: float, sizes: Sizes) -> dict[str, Start]:
        return {"carried": Start((sizes.sources, sizes.heads, sizes.heads), carried, diagonal=True)}


MIXES: dict[str, Mix] = {
    mix.name: mix
    for mix in (Add(), Pair(), Scalar(), LearnedPair(), Convex(), Head(), Gate(), Matrix())
}
"""Every mix by its name, those of your own, too: ``MIXES["mine"] = Mine()``."""
