"""The examples of the documentation, run."""

from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLES = DOCS / "examples"


def run_example(name: str, **smaller: tuple[str, str]) -> dict[str, Any]:
    """Runs an example in this folder, with some of its code (once each) made smaller."""
    path = EXAMPLES / f"{name}.py"
    code = path.read_text()
    for slow, quick in smaller.values():
        assert code.count(slow) == 1, f"{name}.py: {slow!r}"
        code = code.replace(slow, quick)
    namespace: dict[str, Any] = {"__name__": name}
    exec(compile(code, str(path), "exec"), namespace)
    return namespace


def page(name: str) -> str:
    """A page's text on single lines."""
    return " ".join((DOCS / f"{name}.md").read_text().split())
