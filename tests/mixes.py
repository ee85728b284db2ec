"""A stream of every mix there is, for the tests that go through all of them."""

from typing import Any

import pytest

from resval_lens.mixes import MIXES
from resval_lens.streams import AttentionStream

each_mix = pytest.mark.parametrize("mix", MIXES)
UNGATED = [name for name, mix in MIXES.items() if not mix.is_gated]


def sources_of(mix: str) -> tuple[str, ...]:
    """What ``source`` may be."""
    several = ("all",) if MIXES[mix].takes_several else ()
    return ("tokens", "previous", "first", *several)


def weights_of(mix: str) -> dict[str, Any]:
    """Own and carried weights to start with; not the defaults."""
    for weights in ({"own": 0.8, "carried": -0.6}, {"own": 0.75, "carried": 0.25}):
        try:
            AttentionStream("v", mix=mix, **weights)
        except ValueError:
            continue
        return weights
    return {"carried": 0.7, **({"bias": True} if "bias" in MIXES[mix].further else {})}


def settings_of(mix: str) -> dict[str, Any]:
    """Fields of a stream of that mix."""
    return {"mix": mix, **weights_of(mix)}


def stream_of(mix: str, of: Any = "v", **fields: Any) -> AttentionStream:
    """One of them, with weights that are not the defaults."""
    return AttentionStream(of, **settings_of(mix), **fields)


each_mix_and_source = pytest.mark.parametrize(
    ("mix", "source"), [(mix, source) for mix in MIXES for source in sources_of(mix)]
)
