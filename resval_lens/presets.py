"""Named model variants."""

from __future__ import annotations

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

ICL_VARIANTS: dict[str, Streams] = PAPER_VARIANTS | FURTHER_VARIANTS


def icl_variant(name: str) -> Streams:
    """The streams of a two-layer variant by name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in ICL_VARIANTS:
        raise ValueError(f"no variant {name!r}; there are {', '.join(ICL_VARIANTS)}")
    return ICL_VARIANTS[name]
