"""Tokenising documents, once, into a folder of token files."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Int64, UInt
from tokenizers import Tokenizer

from resval_lens.io.files import checksum, write_json
from resval_lens.io.tokenizers import end_of_text, fingerprint, vocabulary_size
from resval_lens.tasks.text.token_files import (
    FILES,
    FORMAT,
    OFFSET,
    TokenFiles,
    read_meta,
    token_dtype,
)

Progress = Callable[[int, int], None]

BATCH = 2**20  # characters tokenised together, which takes some 100 MB


class BeingWritten(RuntimeError):
    """Another process writes this folder of token files."""


def write_token_files(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    folder: str | Path,
    overwrite: bool = False,
    progress: Progress | None = None,
    source: str | None = None,
) -> TokenFiles:
    """Tokenises ``texts`` into ``folder``, whole or not at all.

    Each document becomes its tokens and one end of text. The text is taken as it stands: no
    beginning is added, nothing is cut or padded, whatever the tokenizer is set to, and the
    letters ``<|endoftext|>`` in a document are letters. All cores work (TOKENIZERS_PARALLELISM,
    RAYON_NUM_THREADS of the tokenizers library), on about a million characters at a time, so
    memory does not grow with the text. The same documents and tokenizer give the same files.

    A killed run leaves ``.NAME.partial`` beside the folder, which the next one takes over; only if
    it is killed in the instant of replacing a folder, that one is left as ``.NAME.old``.

    Args:
        texts: documents, such as :func:`read_texts` gives.
        overwrite: replace token files that are already there.
        progress: called with the documents and tokens written so far, some times a second.
        source: where the texts come from, to keep with them.

    Returns:
        The folder's files, opened.

    Raises:
        ValueError: the folder holds something, and it is not token files or ``overwrite`` is off;
            there are no documents; the tokenizer has no end of text.
        BeingWritten: another process is writing this folder.
    """
    if isinstance(texts, str):
        raise ValueError("texts must be documents; got one text")
    folder = Path(folder).absolute()
    end, d_vocab = end_of_text(tokenizer), vocabulary_size(tokenizer)
    plain = _plain(tokenizer)
    vocabulary = plain.to_str().encode()
    with _replacing(folder, overwrite) as new:
        n_documents = n_tokens = 0
        with (
            _Hashed(new / "tokenizer.json") as tokenizer_file,
            _Hashed(new / "tokens.bin") as tokens_file,
            _Hashed(new / "documents.bin") as documents_file,
        ):
            tokenizer_file.write(vocabulary)
            documents_file.write(np.zeros(1, OFFSET).data)
            for tokens, lengths in _tokenised(texts, plain, end, token_dtype(d_vocab)):
                tokens_file.write(tokens.data)
                documents_file.write((n_tokens + lengths.cumsum()).astype(OFFSET).data)
                n_documents += len(lengths)
                n_tokens += len(tokens)
                if progress:
                    progress(n_documents, n_tokens)
        if not n_documents:
            raise ValueError(f"there are no documents to write to {folder}")
        meta: dict[str, Any] = {
            "format": FORMAT,
            "dtype": token_dtype(d_vocab).str,
            "n_tokens": n_tokens,
            "n_documents": n_documents,
            "d_vocab": d_vocab,
            "end_of_text": end,
            "tokenizer": fingerprint(tokenizer),
            "source": source,
            "sha256": {
                file.path.name: file.sha256.hexdigest()
                for file in (tokens_file, documents_file, tokenizer_file)
            },
        }
        write_json(new / "meta.json", {**meta, "checksum": checksum(meta)})
    return TokenFiles.open(folder, verify=False)


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that takes text as it stands."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True  # as letters
    return copy


def _tokenised(
    texts: Iterable[str], tokenizer: Tokenizer, end: int, dtype: np.dtype[Any]
) -> Iterator[tuple[UInt[np.ndarray, " token"], Int64[np.ndarray, " document"]]]:
    """Tokens and the documents' lengths, ends of text included, a batch of documents at a time."""
    for batch in _batches(texts):
        encoded = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        lengths = np.array([len(document) + 1 for document in encoded], np.int64)
        stream = chain.from_iterable((*document.ids, end) for document in encoded)
        yield np.fromiter(stream, dtype, lengths.sum()), lengths


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text) + 1
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Hashed:
    """A file that is written once, from its beginning to its end, and its SHA-256."""

    def __init__(self, path: Path) -> None:
        self.path, self.sha256 = path, hashlib.sha256()

    def __enter__(self) -> Self:
        self._file = self.path.open("wb")
        return self

    def write(self, content: bytes | memoryview) -> None:
        self.sha256.update(content)
        self._file.write(content)

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())


@contextmanager
def _replacing(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder to fill. When the block ends without an error, it takes ``folder``'s place."""
    new, old = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "old"))
    with _claimed(new):
        try:
            _check_replaceable(folder, overwrite)
            yield new
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.rename(old)
                try:
                    new.rename(folder)
                except BaseException:
                    old.rename(folder)
                    raise
                shutil.rmtree(old)
            else:
                new.rename(folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Makes or empties ``folder``, and keeps other processes from it until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(handle), folder.stat()):  # renamed in between
                raise FileNotFoundError
        except OSError:
            raise BeingWritten(f"{folder} is being written by another process") from None
        for left in folder.iterdir():  # by a killed run
            left.unlink()
        yield
    finally:
        os.close(handle)


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    """Raises ValueError unless ``folder`` is free, or nothing but token files to overwrite."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        read_meta(folder)
    except (ValueError, OSError):
        raise ValueError(f"{folder} exists and is not token files; nothing was written") from None
    others = sorted({path.name for path in folder.iterdir()} - set(FILES))
    if others:
        raise ValueError(
            f"{folder} holds {others[0]} beside token files; nothing was written, so that it is "
            "not lost"
        )
    if not overwrite:
        raise ValueError(f"{folder} holds token files; pass overwrite=True to replace them")
