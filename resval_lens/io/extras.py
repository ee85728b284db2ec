"""Packages that are not always there: extras of resval-lens bring them."""

from __future__ import annotations

from importlib.util import find_spec


def needed(package: str, extra: str, by: str) -> None:
    """Refuses what needs a package that is not installed, before it is imported.

    Args:
        extra: the extra of ``pyproject.toml`` that brings the package.
        by: what needs it, as in "a GGUF file".

    Raises:
        ValueError: it is not installed; what to install.
    """
    found = find_spec(package)
    if found is None or found.origin is None:  # a mere folder of that name, a run's log, has none
        raise ValueError(f"{by} needs {package}: pip install 'resval-lens[{extra}]'")
