"""Tables in the terminal."""

from __future__ import annotations

from typing import Any

from rich import box

STYLE: Any = {"title_justify": "left", "caption_justify": "left", "box": box.SIMPLE_HEAD}
WIDE: Any = STYLE | {"min_width": 64}
NARROW: Any = STYLE | {"pad_edge": False, "padding": (0, 1, 0, 0)}
