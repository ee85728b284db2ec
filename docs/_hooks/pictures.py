"""Figures stand in pages as SVG: their words are read, their marks speak, colours follow the theme.

Pages write ![words](figure.svg), which GitHub shows as an image; the site has the drawing itself.
page.css and page.js of resval_lens.analyses.display are what displays and reports have, too.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
SHARED = ("page.css", "page.js")
_PICTURE = re.compile(r'<p>\s*<img alt="([^"]*)" src="([^"]+\.svg)"\s*/?>\s*</p>')


def on_files(files: Any, config: Any) -> None:
    """Called by MkDocs with the site's files: what pictures share is among them."""
    for name in SHARED:
        content = (ROOT / "analyses" / "display" / name).read_text(encoding="utf-8")
        files.append(File.generated(config, f"assets/{name}", content=content))


def with_pictures(page: str, folder: str) -> str:
    """A page's HTML with its figures in it.

    Args:
        folder: of the page, within docs/.
    """
    from resval_lens.analyses.display.display import unique
    from resval_lens.analyses.display.page import scrolled
    from resval_lens.analyses.display.svg import inlined

    def picture(found: re.Match[str]) -> str:
        document = (DOCS / normpath(join(folder, found[2]))).read_text(encoding="utf-8")
        drawing = inlined(document, html.unescape(found[1]), unique("site"))
        return f'<figure class="rv">{scrolled(drawing)}</figure>'

    return _PICTURE.sub(picture, page)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with each finished page: search has read it before, without the figures."""
    return with_pictures(output, dirname(page.file.src_uri))
