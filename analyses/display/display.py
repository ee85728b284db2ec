"""What ``show_...`` returns: a picture that displays in a notebook and saves itself."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from itertools import count
from pathlib import Path

from matplotlib.figure import Figure

from resval_lens.analyses.display.page import (
    circuitsvis_script,
    page,
    script,
    scrolled,
    style,
)
from resval_lens.analyses.display.svg import svg
from resval_lens.analyses.figures import png
from resval_lens.files import write_bytes

_numbers = count()


@dataclass(frozen=True)
class Display:
    """A picture. As a notebook cell's last value it shows itself; nothing is ever fetched.

    Attributes:
        name: its accessible name, and the title of a saved page.
        body: the picture as HTML, without style and script.
        png: the picture as an image.
        with_circuitsvis: whether ``body`` needs CircuitsVis (1.3 MB, in every such output).
    """

    name: str
    body: str
    png: bytes
    with_circuitsvis: bool = False

    def _repr_html_(self) -> str:
        bundle = circuitsvis_script() if self.with_circuitsvis else ""
        return f'{style()}{bundle}<div class="rv">{self.body}</div>{script()}'

    def __repr__(self) -> str:
        return f"Display({self.name!r})"

    def save(self, path: str | Path) -> Path:
        """Writes a page that opens offline (``.html``) or an image (``.png``), whole or not at all.

        Raises:
            ValueError: another suffix, or a folder that is not there.
        """
        path = Path(path)
        if path.suffix not in (".html", ".png"):
            raise ValueError(f"a display is saved as .html or .png; got {str(path)!r}")
        if not path.parent.is_dir():
            raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
        if path.suffix == ".png":
            write_bytes(path, self.png)
        else:
            write_bytes(path, page(self.name, self.body, self.with_circuitsvis).encode())
        return path


def show_figure(figure: Figure, name: str) -> Display:
    """Any figure of the package as a :class:`Display`; the figure is closed.

    Args:
        name: what a screen reader says of it.
    """
    body = figure_html(figure, name)
    return Display(name, body, png(figure))


def figure_html(figure: Figure, name: str, caption: str = "") -> str:
    """The figure as HTML for a page, with words under it if there is a ``caption``."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{scrolled(svg(figure, name, unique('f')))}{below}</figure>"


def unique(prefix: str) -> str:
    """An id that no other element made by this process has."""
    return f"rv-{prefix}{next(_numbers)}"
