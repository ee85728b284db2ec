"""Named model variants."""

from __future__ import annotations

from typing import Any, Literal, get_args

from resval_lens.streams import AttentionStream, Streams, parse_streams

PAPER_VARIANTS: dict[str, Streams] = {
    "classic": (),
    "queries": parse_streams("q"),
    "keys": parse_streams("k"),
    "values": parse_streams("v"),
}
"""The four two-layer architectures of arXiv 2412.15113, section 3.2."""

FURTHER_VARIANTS: dict[str, Streams] = {
    "values-detached": (AttentionStream(of="v", detach=True),),
    "queries-values": parse_streams("qv"),
    "queries-keys-values": parse_streams("qkv"),
    "values-half": (AttentionStream(of="v", mix="pair", own=0.5, carried=0.5),),
}
"""Checks that the paper leaves open: the values flow but their gradient does not (do the extra
gradient signals matter?), several streams at once, and the even mix of ResFormer."""


def _pair(own: float, carried: float) -> Streams:
    return (AttentionStream(of="v", mix="pair", own=own, carried=carried),)


GAIN_VARIANTS: dict[str, Streams] = {
    "own-half": _pair(0.5, 0.0),
    "own-root-2": _pair(2**0.5, 0.0),
    "own-2": _pair(2.0, 0.0),
    "values-norm-matched": _pair(0.5**0.5, 0.5**0.5),
    "values-no-own": _pair(0.0, 1.0),
}
"""Gain or stream? The stream also makes layer 1's values larger. Here they are larger or smaller
without any link, or the link is there and their norm as without it (two independent parts of equal
norm, each over √2); the last has the link alone: no W_V of layer 1's own."""

PART_OF_GAIN: dict[str, dict[str, float]] = {
    "size-root-2": {"v_size": 2**0.5},
    "rate-2": {"v_rate": 2.0},
}
"""What own-root-2 changes, one thing at a time, as fields of ICLRun. Under SGD V₁ = g W X learns as
a W that starts g times as large, at g² times the learning rate (g W moves by g² lr ∂L/∂(g W))."""

ICL_VARIANTS: dict[str, Streams] = (
    PAPER_VARIANTS | FURTHER_VARIANTS | GAIN_VARIANTS | dict.fromkeys(PART_OF_GAIN, ())
)


def icl_variant(name: str) -> Streams:
    """The streams of a two-layer variant by name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in ICL_VARIANTS:
        raise ValueError(f"no variant {name!r}; there are {', '.join(ICL_VARIANTS)}")
    return ICL_VARIANTS[name]


Positions = Literal["absolute", "relative", "sinusoidal", "rotary", "alibi"]
ENCODINGS: tuple[Positions, ...] = get_args(Positions)
"""Positional encodings of the simplified transformers, in the order in which they are reported."""
_DRAWN = {"triggers": "drawn"}
_HELD_OUT = {"output_range": (0.0, 0.75)}
MEMORY_VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"positions": name} for name in ENCODINGS},
    **{f"{name}-values": {"positions": name, "streams": "v"} for name in ENCODINGS},
    "one-layer": {"positions": "relative", "n_layers": 1},
    "absolute-drawn": {"positions": "absolute", "task": _DRAWN},
    "relative-drawn": {"positions": "relative", "task": _DRAWN},
    "relative-values-drawn": {"positions": "relative", "streams": "v", "task": _DRAWN},
    "absolute-held-out": {"positions": "absolute", "task": _HELD_OUT},
    "relative-held-out": {"positions": "relative", "task": _HELD_OUT},
    "relative-values-held-out": {"positions": "relative", "streams": "v", "task": _HELD_OUT},
}
"""Simplified transformers of arXiv 2412.11459 by name: fields of MemoryRun. Each positional
encoding, without and with a value stream; a single layer, which cannot hold an induction head;
triggers that each sequence draws; and the last quarter of the tokens never a trigger's output.
"""


def memory_variant(name: str) -> dict[str, Any]:
    """What sets a simplified transformer apart, by name; under "task" fields of its TriggerTask.

    Raises:
        ValueError: an unknown name.
    """
    if name not in MEMORY_VARIANTS:
        raise ValueError(f"no variant {name!r}; there are {', '.join(MEMORY_VARIANTS)}")
    return dict(MEMORY_VARIANTS[name])
