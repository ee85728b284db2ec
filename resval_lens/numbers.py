"""Numbers, written and read as text."""

from __future__ import annotations


def number(value: float, form: str = "z.3f") -> str:
    """``value`` in this format, with the minus sign that the axes of figures have (U+2212)."""
    return format(value, form).replace("-", "\N{MINUS SIGN}")


def numbers(text: str, name: str = "seeds", negative: bool = False) -> list[int]:
    """Whole numbers from ``"0,1,2"`` or ``"0-3"``; with ``negative`` from ``"0,2,-1"``, too.

    Raises:
        ValueError: anything else, or none.
    """
    like = "0,2,-1" if negative else "0,1,2"
    try:
        first, dash, last = text.partition("-")
        if dash and (first.strip().isdecimal() or not negative):
            found = list(range(int(first), int(last) + 1))
        else:
            found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"{name} must be numbers like {like} or 0-3; got {text!r}") from None
    if not found:
        raise ValueError(f"{name} must name at least one number; got {text!r}")
    return found
