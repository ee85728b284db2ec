"""Numbers as figures, tips and pages write them."""

from __future__ import annotations


def number(value: float, form: str = "z.3f") -> str:
    """``value`` in this format, with the minus sign that the axes of figures have (U+2212)."""
    return format(value, form).replace("-", "\N{MINUS SIGN}")
