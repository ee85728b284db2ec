"""Files written so that a crash leaves the old content or the new, and read as data alone.

Who reads may have them from a stranger, or from a damaged disk: a pipe or a device is not waited
for, JSON is taken strictly, and what was written with a checksum must fit it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

MOST_BYTES = 2**30  # of a file that is read into memory as text or JSON
MOST_NESTED = 100  # brackets in one another, in JSON
_DTYPES = {
    **{f"F{bits}": getattr(torch, f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": getattr(torch, f"int{bits}") for bits in (8, 16, 32, 64)},
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

DATA = Path(__file__).parents[1] / "data"
"""The folder of what ships with the package."""


@cache
def note(text: str) -> None:
    """Says ``text`` once in this process, through the logger ``resval_lens``."""
    logging.getLogger("resval_lens").warning(text)


def note_unsealed(path: Path) -> None:
    """Notes that a file has no checksum."""
    note(f"{path} has no checksum, as older versions wrote it: damage would not be seen")


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or else its name."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def check_plain(path: Path, what: str) -> None:
    """Raises ValueError unless ``path`` is a plain file, or a link to one; nothing is opened."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is missing; expected {what}") from None
    except (OSError, ValueError) as error:  # a loop of links, a name with a zero byte
        raise ValueError(f"{path} cannot be read ({error}); expected {what}") from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is not a plain file; expected {what}")


def check_small(path: Path, what: str) -> None:
    """Raises ValueError unless ``path`` is a plain file of at most ``MOST_BYTES``."""
    check_plain(path, what)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} is larger than {MOST_BYTES:,} bytes; expected {what}")


def read_bytes(path: Path, what: str) -> bytes:
    """The content of a plain file of at most ``MOST_BYTES``.

    Raises:
        ValueError: it is missing, too large or not to be read, named with what was expected.
    """
    check_small(path, what)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}); expected {what}") from None


def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """How much memory the entries of tensors take."""
    return sum(x.numel() * x.element_size() for x in tensors)


def check_room(size: int, what: str) -> None:
    """Raises ValueError if ``what``, of ``size`` bytes, is larger than this machine's memory."""
    if size > memory():
        raise ValueError(f"{what} takes {size:,} bytes; this machine has {memory():,}")


def digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    check_plain(path, "a file of which there is a checksum")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
    if partial.is_dir() and not partial.is_symlink():
        raise ValueError(f"{partial} is a folder; {path} is written there first")
    partial.unlink(missing_ok=True)  # a link is written through, a pipe never takes anything
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` to ``path`` as indented JSON, in one step."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object and its checksum, in one step."""
    write_json(path, {**content, "checksum": checksum(content)})


def parse_json(text: str | bytes, finite: bool = True) -> Any:
    """JSON, taken strictly: no key twice, no whole number of more than 300 digits.

    Args:
        finite: refuse NaN and infinities, too.

    Raises:
        ValueError: something else.
    """
    numbers: dict[str, Any] = {"parse_float": _finite, "parse_constant": _finite} if finite else {}
    try:
        content = json.loads(text, object_pairs_hook=_distinct, parse_int=_whole, **numbers)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [content]
    for _ in range(MOST_NESTED):
        level = [inner for x in level if isinstance(x, dict | list)
                 for inner in (x.values() if isinstance(x, dict) else x)]  # fmt: skip
        if not level:
            return content
    raise ValueError("nested too deeply")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key!r} is given twice")
    return content


def _whole(digits: str) -> int:
    if len(digits) > 300:  # more than a float can hold
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is not a finite number")
    return float(text)


def read_json(path: Path, what: str) -> Any:
    """The JSON in ``path`` (:func:`parse_json`); ``what`` says what should be there.

    Raises:
        ValueError: the file is missing or holds something else, named with what was expected.
    """
    content = read_bytes(path, what)
    try:
        return parse_json(content.decode())
    except ValueError as error:
        raise ValueError(f"{path} is not {what}: not JSON ({error})") from None


def check_seal(path: Path, content: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """What :func:`write_sealed` wrote to ``path``, from the JSON that was read there.

    Files of older versions have no checksum: that is noted, not refused.

    Raises:
        ValueError: the checksum does not fit, or there are others than the ``known`` keys.
    """
    unknown = sorted(set(content) - set(known) - {"checksum"})
    if unknown:
        raise ValueError(f"{path} is damaged: it has the unknown {unknown[0]!r}")
    rest = {key: value for key, value in content.items() if key != "checksum"}
    if "checksum" not in content:
        note_unsealed(path)
    elif content["checksum"] != checksum(rest):
        raise ValueError(
            f"{path} is damaged: its checksum does not fit its content (if it was edited on "
            "purpose, remove its line 'checksum')"
        )
    return rest


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
    with _opened(path, what) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


@contextmanager
def _opened(path: Path, what: str) -> Iterator[Any]:
    check_plain(path, f"{what} in safetensors format")
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                kind = file.get_slice(name).get_dtype()
                if kind not in _DTYPES:  # eight bits or fewer, which torch hardly computes with
                    raise ValueError(f"{path}: {name!r} is of the unknown kind {kind}")
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not {what}: expected a complete safetensors file ({error})"
        ) from None


def read_metadata(path: Path, what: str) -> dict[str, str]:
    """The texts about the tensors of a safetensors file; the tensors are not read.

    Raises:
        ValueError: as :func:`read_tensors`.
    """
    with _opened(path, what) as file:
        return file.metadata() or {}


def tensor_shapes(path: Path, what: str) -> dict[str, Tensor]:
    """Tensors without content (``meta``), of the shapes and kinds that a safetensors file names.

    Raises:
        ValueError: as :func:`read_tensors`.
    """
    with _opened(path, what) as file:
        parts = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118
    return {
        name: torch.empty(part.get_shape(), dtype=_DTYPES[part.get_dtype()], device="meta")
        for name, part in parts
    }


def check_finite(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raises ValueError, naming it, for a tensor with an entry that is NaN or infinite."""
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{path}: {name} holds NaN or infinite numbers")
