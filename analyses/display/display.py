"""What ``show_...`` returns: a picture that displays in a notebook and saves itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from resval_lens.analyses.display.notebook import bundle_here
from resval_lens.analyses.display.page import (
    CIRCUITSVIS,
    later,
    page,
    script,
    scrolled,
    small,
    still,
    style,
    words,
)
from resval_lens.analyses.display.svg import svg
from resval_lens.analyses.drawing.figures import drawn, kind_of
from resval_lens.io.files import write_bytes

_numbers = count()


@dataclass(frozen=True)
class Display:
    """A picture. As a notebook cell's last value it shows itself; nothing is ever fetched.

    Where no script runs (a notebook that is not trusted, GitHub, PDF) a small image stands for it.

    Attributes:
        name: its accessible name, and the title of a saved page.
        body: the picture as HTML, without style and script.
        draw: the picture as an image: a format ("png", "svg", "pdf") in, bytes out.
        draw_small: a PNG of few bytes.
    """

    name: str
    body: str
    draw: Callable[[str], bytes]
    draw_small: Callable[[], bytes]

    @cached_property
    def _small(self) -> bytes:
        return self.draw_small()

    def _repr_html_(self) -> str:
        body = self.body
        if CIRCUITSVIS in body:  # it has images inside, and is 1.3 MB, once in a notebook
            return f'{style(body)}{bundle_here()}<div class="rv">{body}</div>{script(body)}'
        shown = still(self._small, self.name) + later(body)
        return f'{style(body)}<div class="rv">{shown}</div>{script(body)}'

    def _repr_png_(self) -> bytes:
        """For what shows no HTML, like LaTeX."""
        return self._small

    def page(self) -> str:
        """The picture as a page that opens offline."""
        return page(self.name, self.body)

    def __repr__(self) -> str:
        return f"Display({self.name!r})"

    def save(self, path: str | Path) -> Path:
        """Writes what the suffix names, whole or not at all.

        ``.html`` is a page that opens offline, ``.png``, ``.svg`` and ``.pdf`` are images.

        Raises:
            ValueError: another suffix, or a folder that is not there.
        """
        path = Path(path)
        kind = kind_of(path, "html")
        if not path.parent.is_dir():
            raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
        content = self.page().encode() if kind == "html" else self.draw(kind)
        write_bytes(path, content)
        return path


def show_figure(figure: Figure, name: str) -> Display:
    """Any figure of the package as a :class:`Display`; the figure is closed.

    Args:
        name: what a screen reader says of it.
    """
    try:
        body = figure_html(figure, name)
        figure.set_layout_engine("none")  # images are laid out as the page is
    finally:
        plt.close(figure)
    return Display(
        name, body, lambda kind: drawn(figure, kind), lambda: small(drawn(figure, "png", dpi=80))
    )


def figure_html(figure: Figure, name: str, caption: str = "", above: str = "") -> str:
    """The figure as HTML for a page, with words under it if there is a ``caption``.

    Args:
        above: HTML over it.
    """
    below = f"<figcaption>{words(caption)}</figcaption>" if caption else ""
    return f"<figure>{above}{scrolled(svg(figure, name, unique('f')))}{below}</figure>"


def unique(prefix: str) -> str:
    """An id that no other element made by this process has."""
    return f"rv-{prefix}{next(_numbers)}"
