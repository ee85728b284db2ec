"""What the runs of the small models have in common: checks of their settings, their generators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Generator

from resval_lens.checks import check_above_zero, check_whole


def check_name(name: Any) -> None:
    """Raises ValueError unless ``name`` can be a folder's, as the name of a run is."""
    plain = isinstance(name, str) and name.isprintable() and not set(name) & set("/\\")
    if not plain or not name or name.startswith(".") or len(name) > 200:
        raise ValueError(
            f"name must be one to be a folder's: 1 to 200 printable characters, no slash, no dot "
            f"at the beginning; got {str(name)[:40]!r}"
        )


def check_sgd_settings(run: Any) -> None:
    """Raises ValueError, naming it with its value, for a setting of ``run`` that cannot be.

    The name is fit for a folder's, steps, batch, snapshot_every and test_size are whole numbers
    from 1 up, the seed one from 0 up, and lr a finite number above 0.
    """
    check_name(run.name)
    for name in ("steps", "batch", "snapshot_every", "test_size"):
        check_whole(name, getattr(run, name), 1)
    check_whole("seed", run.seed, 0)
    check_above_zero("lr", run.lr)


def seeded_generators(seed: int, names: Sequence[str]) -> dict[str, Generator]:
    """Independent generators by name, all from one seed, in the order of ``names``."""
    seeds = np.random.SeedSequence(seed).generate_state(len(names), dtype=np.uint64)
    return {
        name: Generator().manual_seed(int(each % 2**63))
        for name, each in zip(names, seeds, strict=True)
    }
