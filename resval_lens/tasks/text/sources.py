"""Documents to train on, one at a time, from the Hugging Face hub or from local files.

.txt       documents between the marks <|endoftext|>; in a file without one, between blank lines
.jsonl     one JSON object a line, the document in a field
.parquet   one document a row, in a column
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from resval_lens.io.extras import needed
from resval_lens.io.files import check_plain, checksum, digest
from resval_lens.io.tokenizers import END_OF_DOCUMENT, could_be_on_hub


def read_texts(source: str | Path, split: str = "train", field: str = "text") -> Iterator[str]:
    """The documents of ``source``, in its order, read as they are asked for.

    Documents of nothing but white space are left out. Documents of a .txt file lose the line
    breaks at their two ends; ``\\r\\n`` is read as ``\\n``, and a byte order mark is dropped.

    Args:
        source: a .txt, .jsonl or .parquet file; a folder of them (not its subfolders), read in the
            order of their names; else the name of a dataset on the Hugging Face hub, such as
            "roneneldan/TinyStories".
        split: of a hub dataset. Of a folder, as on the hub: where names of files begin with this
            word ("train.txt", "train-00000-of-00004.parquet"), those files; where none does,
            "train" is all of them. A file is read whatever the split.
        field: the JSON field or the column that holds the document.

    Raises:
        ValueError: the source is missing or of another kind, at once; a file holds no documents or
            a damaged one, named with its line or row, when it is reached.
    """
    path = Path(source)
    if path.is_dir():
        return _chained([_texts(file, field) for file in _files(path, split)])
    if path.exists():
        return _texts(path, field)
    if isinstance(source, Path) or path.suffix in _READERS or not could_be_on_hub(source):
        raise ValueError(f"{source} is missing; expected a file or folder of documents")
    return _hub_texts(source, split, field)


def named(source: str | Path) -> str:
    """A source without its folder: a file's or folder's name and the SHA-256 of what it holds.

    A name on the hub is as it is. Of a folder the checksum is of the names and checksums of its
    files of documents.

    Raises:
        ValueError: a folder without documents; a file that is no plain one.
    """
    path = Path(source)
    if path.is_dir():
        found = checksum({file.name: digest(file) for file in _files(path, "train", all_of=True)})
    elif path.exists():
        found = digest(path)
    else:
        return str(source)
    return f"{path.resolve().name} (sha256 {found})"


def _files(folder: Path, split: str, all_of: bool = False) -> list[Path]:
    found = sorted(
        file for file in folder.iterdir() if file.suffix in _READERS and file.name[0] != "."
    )
    if not found:
        raise ValueError(f"{folder} holds no {_KINDS} file; expected documents")
    if all_of:
        return found
    named = [file for file in found if re.match(re.escape(split) + r"(?![^\W_])", file.name)]
    if not named and split != "train":
        raise ValueError(
            f"{folder} has no split {split!r}; expected a file such as {split}{found[0].suffix}"
        )
    return named or found


def _chained(parts: Iterable[Iterator[str]]) -> Iterator[str]:
    for part in parts:
        yield from part


def _texts(path: Path, field: str) -> Iterator[str]:
    if path.suffix not in _READERS:
        raise ValueError(f"{path} is of no known kind; expected a {_KINDS} file")
    check_plain(path, f"a {_KINDS} file")
    return _with_content(_READERS[path.suffix](path, field), str(path))


def _with_content(texts: Iterable[str], where: str) -> Iterator[str]:
    empty = True
    for text in texts:
        if text and not text.isspace():
            empty = False
            yield text
    if empty:
        raise ValueError(f"{where} holds no documents")


def _txt(path: Path, field: str) -> Iterator[str]:
    with path.open("rb") as file:
        marked = any(END_OF_DOCUMENT.encode() in line for line in file)
    document: list[str] = []
    for _, line in _lines(path):
        if marked:
            first, *others = line.split(END_OF_DOCUMENT)
        else:
            first, *others = [line] if line.strip() else ["", ""]
        document.append(first)
        for piece in others:
            yield "".join(document).strip("\n")
            document = [piece]
    yield "".join(document).strip("\n")


def _jsonl(path: Path, field: str) -> Iterator[str]:
    for number, line in _lines(path):
        if line.isspace():
            continue
        where = f"{path}: line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON ({error.msg}, column {error.colno})") from None
        except (ValueError, RecursionError) as error:  # a number, or a nesting, without end
            raise ValueError(f"{where} is not JSON ({_one_line(error)})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where} is not a JSON object with a field {field!r}")
        text = _field(row, field, where)
        try:
            text.encode()  # JSON may escape half a character, "\ud83d", which is no text
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: field {field!r} is not Unicode ({error.reason})") from None
        yield text


def _parquet(path: Path, field: str) -> Iterator[str]:
    needed("pyarrow", "text", str(path))
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            row = 0
            if field not in file.schema_arrow.names:
                raise ValueError(_lacks(str(path), field, file.schema_arrow.names))
            for batch in file.iter_batches(batch_size=1024, columns=[field]):
                for value in batch.column(0):
                    row += 1
                    try:
                        text = value.as_py()
                    except UnicodeDecodeError:
                        raise ValueError(f"{path}: row {row} is not UTF-8 text") from None
                    yield _field({field: text}, field, f"{path}: row {row}")
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a complete parquet file ({_one_line(error)})") from None


def _hub_texts(name: str, split: str, field: str) -> Iterator[str]:
    needed("datasets", "text", f"{name!r} on the Hugging Face hub")
    from datasets import load_dataset  # type: ignore[import-untyped]  # a second to import

    try:
        rows = load_dataset(name, split=split, streaming=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name!r} is not a file or folder here, and no dataset with a split {split!r} could "
            f"be had from the Hugging Face hub ({_one_line(error)})"
        ) from None
    where = f"dataset {name!r}, split {split!r}"
    texts = (_field(row, field, f"{where}: row {i}") for i, row in enumerate(rows, 1))
    return _with_content(texts, where)


def _field(row: dict[str, object], field: str, where: str) -> str:
    if field not in row:
        raise ValueError(_lacks(where, field, list(row)))
    text = row[field]
    if not isinstance(text, str):
        raise ValueError(f"{where}: field {field!r} must be text; got {type(text).__name__}")
    return text


def _lacks(where: str, field: str, others: list[str]) -> str:
    return f"{where} has no field {field!r}; its fields are {others}"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1 and their line breaks, each one ``\\n``."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}: line {number} is not UTF-8 text ({error.reason} at byte "
                    f"{error.start} of the line)"
                ) from None
            yield number, text.removesuffix("\r\n") + "\n" if text.endswith("\r\n") else text


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
_KINDS = ", ".join(_READERS).replace(", .parquet", " or .parquet")
