"""Where a number came from: command, versions, git commit, machine."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from resval_lens import __version__


def provenance(**facts: Any) -> dict[str, Any]:
    """A JSON-able record of this process, with ``facts`` (seed, metrics, ...) added.

    The command names no folder that lies elsewhere, so that a record can be published: of such a
    path only the last part.
    """
    import torch  # `resval-lens --version` needs none

    program = Path(sys.argv[0]).name or "python"
    if program == "__main__.py":  # python -m resval_lens.analyses
        program = "resval-lens"
    return {
        "command": shlex.join([program, *map(_named, sys.argv[1:])]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "versions": {
            "python": platform.python_version(),
            "resval-lens": __version__,  # of this source: it may run without being installed
            "torch": str(torch.__version__),  # with the build, +cpu or +cu130, unlike its metadata
            "transformer-lens": version("transformer-lens"),
        },
        "machine": platform.machine(),
        **facts,
    }


def _named(argument: str) -> str:
    """An argument, without the folders that lead out of the one that the command runs in."""
    option, equals, value = argument.rpartition("=") if argument[:2] == "--" else ("", "", argument)
    return option + equals + within(value)


def within(path: str) -> str:
    """A path that lies elsewhere by its last part (of a training run's model the last two)."""
    parts = Path(path).parts
    outside = Path(path).is_absolute() or ".." in parts
    return str(Path(*parts[-1 - (parts[-1] == "model") :])) if outside and parts[1:] else path


@cache
def git_commit() -> str | None:
    """The commit of this source tree, ``+`` added if files differ from it; None outside git.

    Looked up once: later commits are not the code that this process runs.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
