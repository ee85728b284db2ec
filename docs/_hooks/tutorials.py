"""The notebooks of notebooks/ as pages of the site, with what they showed when they last ran.

tutorials/NAME.md is made of notebooks/NAME.ipynb when the site is built: words, code, and outputs,
which `make notebooks` writes into the notebooks. Nothing runs here.
"""

from __future__ import annotations

import html
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent.parent
NOTEBOOKS = ROOT / "notebooks"
PLACE = "tutorials"
_MARK = re.compile(r'<div data-output="(\w+)/(\d+)/(\d+)"></div>')
_DOCS = re.compile(r"\]\(\.\./docs/([^)]+)\)")
_BESIDE = re.compile(r"\]\((\w+)\.ipynb\)")


def names() -> list[str]:
    """Every notebook, in its order."""
    return sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


@cache
def cells(name: str) -> list[dict[str, Any]]:
    """A notebook's cells."""
    found: list[dict[str, Any]] = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    return found


def page(name: str) -> str:
    """A notebook as Markdown; in place of outputs that are pictures stand marks."""
    parts = []
    for i, cell in enumerate(cells(name)):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(_BESIDE.sub(r"](\1.md)", _DOCS.sub(r"](../\1)", source)))
        else:
            parts.append(f"``` {{ .python }}\n{source}\n```")
            parts += [_words(name, i, j, each) for j, each in enumerate(cell["outputs"])]
        if i == 0:
            parts.append(f'[Download this notebook]({name}.ipynb){{ download="{name}.ipynb" }}')
    return "\n\n".join(parts) + "\n"


def _words(name: str, i: int, j: int, output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "text/html" in data or "image/png" in data:
        return f'<div data-output="{name}/{i}/{j}"></div>'
    words = "".join(output["text"] if "text" in output else data["text/plain"]).rstrip()
    return f"``` {{ .text .output .no-copy }}\n{words}\n```"


def shown(name: str, i: int, j: int) -> str:
    """An output as HTML."""
    data = cells(name)[i]["outputs"][j]["data"]
    if "text/html" in data:
        inside = "".join(data["text/html"])
    else:
        image, said = ("".join(data[kind]).strip() for kind in ("image/png", "text/plain"))
        inside = (
            f'<img class="rv-still" alt="{html.escape(said)}" src="data:image/png;base64,{image}">'
        )
    return f'<div class="rv shown">{inside}</div>'


def on_files(files: Any, config: Any) -> None:
    """Called by MkDocs with the site's files: the pages, and the notebooks to download."""
    cells.cache_clear()  # a site that is served is built again
    for name in names():
        files.append(File.generated(config, f"{PLACE}/{name}.md", content=page(name)))
        notebook = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
        files.append(File.generated(config, f"{PLACE}/{name}.ipynb", content=notebook))


def on_post_page(output: str, **_: Any) -> str:
    """Called by MkDocs with each finished page: search has read it before, without the pictures."""
    return _MARK.sub(lambda found: shown(found[1], int(found[2]), int(found[3])), output)
