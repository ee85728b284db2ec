"""Writing files so that a crash leaves the old content or the new, never half of either."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` to ``path`` in one step (a sibling file, flushed, then renamed)."""
    with _replacing(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A sibling of ``path`` to write, which takes its place at the end, or goes if that fails."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` to ``path`` as indented JSON, in one step."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path, what: str) -> Any:
    """The JSON in ``path``; ``what`` says what should be there.

    Raises:
        ValueError: the file is missing or holds something else, named with what was expected.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; expected {what}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not {what}: not JSON ({error})") from None


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes ``tensors`` and texts about them to ``path`` as safetensors, in one step."""
    plain = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    with _replacing(path) as partial:
        try:
            save_file(plain, partial, {"format": "pt", **(metadata or {})})
        except SafetensorError as error:  # a full disk, say
            raise OSError(f"cannot write {path}: {error}") from None
        with partial.open("rb") as file:
            os.fsync(file.fileno())


def read_tensors(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Nothing else is read, nothing is run.

    Raises:
        ValueError: the file is missing, truncated or of another format, named with what was
            expected.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; expected {what} in safetensors format")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not {what}: expected a complete safetensors file ({error})"
        ) from None
