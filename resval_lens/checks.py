"""What a number from outside must be; else one line that names it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_number(value: Any) -> bool:
    """Whether ``value`` is an int or a float; a bool is neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_whole(name: str, value: Any, least: int) -> None:
    """Refuses what is not an int from ``least`` up.

    Raises:
        ValueError: anything else; a bool, too.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number from {least} up; got {value!r}")


def check_above_zero(name: str, value: Any) -> None:
    """Refuses what is not a finite number above 0.

    Raises:
        ValueError: anything else.
    """
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a finite number above 0; got {value!r}")


def check_floats(name: str, value: Any, shape: str, dtype: torch.dtype | None = None) -> None:
    """Refuses what is not a tensor of floats with as many dimensions as ``shape`` names.

    Args:
        shape: as in "batch pos d".
        dtype: the one it must have; None: any of floating point.

    Raises:
        ValueError: anything else.
    """
    names = shape.split()
    expected = f"{dtype or 'floating-point numbers'} [{', '.join(names)}]"
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be {expected}; got {type(value).__name__}")
    alike = value.is_floating_point() if dtype is None else value.dtype == dtype
    if not alike or value.ndim != len(names):
        raise ValueError(f"{name} must be {expected}; got {value.dtype} {list(value.shape)}")
