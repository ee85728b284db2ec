"""Lays the package out as it is imported, for a documentation tool that reads folders.

hooks/ and analyses/ stand at the top of the repository and are imported as resval_lens.hooks and
resval_lens.analyses: build/docs/resval_lens holds links to all modules.
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def lay_out(target: Path) -> None:
    """Fills ``target``/resval_lens with folders of links to the package's modules, afresh."""
    package = target / "resval_lens"
    shutil.rmtree(package, ignore_errors=True)
    folders = {"resval_lens": package, "hooks": package / "hooks", "analyses": package / "analyses"}
    for folder, place in folders.items():
        for path in (ROOT / folder).rglob("*.py"):
            link = place / path.relative_to(ROOT / folder)
            link.parent.mkdir(parents=True, exist_ok=True)  # links to folders are not followed
            link.symlink_to(path)


def on_startup(command: str, dirty: bool) -> None:
    """Before any plugin looks for modules: mkdocstrings drops paths that are not there yet."""
    lay_out(ROOT / "build" / "docs")
