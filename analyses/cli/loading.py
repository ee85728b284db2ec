"""Models as the options of a command say: ``--streams``, ``--device``, ``--dtype``, ..."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resval_lens.load import LoadOptions
    from resval_lens.transformer import ResValTransformer


def settings_of(written: Sequence[str] | None) -> dict[str, float]:
    """Reads every ``--setting``.

    Raises:
        ValueError: no name and number with ``=`` between them, or a name twice.

    >>> settings_of(["softcap=20", "step=300"])
    {'softcap': 20.0, 'step': 300.0}
    """
    found: dict[str, float] = {}
    for text in written or ():
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not name or not math.isfinite(number):
            raise ValueError(f"--setting is written NAME=NUMBER, like softcap=20; got {text!r}")
        if name in found:
            raise ValueError(f"--setting {name} is given twice")
        found[name] = number
    return found


def load_options(
    streams: str | None,
    device: str | None,
    dtype: str | None,
    fold: bool,
    setting: Sequence[str] | None = None,
) -> LoadOptions:
    """How a model is loaded, from the options that say so."""
    import torch

    from resval_lens.load import LoadOptions

    return LoadOptions(
        streams,
        device,
        None if dtype is None else getattr(torch, dtype),
        fold,
        settings=settings_of(setting),
    )


def load_language_model(name: Path, how: LoadOptions) -> ResValTransformer:
    """:func:`~resval_lens.load.load_model`, of models with a tokenizer.

    Raises:
        ValueError: there is none, or it has no tokenizer.
    """
    model = how.load(name).model
    if model.tokenizer is None:
        raise ValueError(f"{name} has no tokenizer.json; a prompt cannot be tokenised")
    return model
