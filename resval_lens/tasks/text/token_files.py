"""Tokenised text in a folder: memory-mapped, checked, read-only.

    tokens.bin       every document's tokens and one end of text, one after the other
    documents.bin    where each document starts, and where the last one ends (int64)
    tokenizer.json   what the tokens were made with
    meta.json        dtype, counts, fingerprint of the tokenizer, SHA-256 of every file

Numbers are little-endian; tokens are uint16 where the vocabulary is below 65,536, else uint32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt
from tokenizers import Tokenizer

from resval_lens.io.files import check_plain, checksum, digest, read_json
from resval_lens.io.tokenizers import fingerprint, load_tokenizer

FORMAT = "resval-lens/tokens/1"
FILES = ("tokens.bin", "documents.bin", "tokenizer.json", "meta.json")
OFFSET = np.dtype("<i8")

_CHUNK = 2**22  # bytes, or numbers, looked at together when a folder is checked
_META: dict[str, type | tuple[type, ...]] = {
    "dtype": str,
    "n_tokens": int,
    "n_documents": int,
    "d_vocab": int,
    "end_of_text": int,
    "tokenizer": str,
    "source": (str, type(None)),
    "sha256": dict,
}


@dataclass(frozen=True, eq=False)
class TokenFiles:
    """The token stream of a folder, opened by :meth:`open`.

    Attributes:
        folder: where it lies.
        tokens: the stream; document d is ``tokens[offsets[d] : offsets[d + 1]]``, its end of text
            included.
        offsets: n_documents + 1 of them, from 0 to n_tokens.
        d_vocab: every token is below it.
        end_of_text: the token that ends each document. It is nowhere else, unless the tokenizer
            makes it of ordinary text.
        fingerprint: of the tokenizer, when the folder was written.
        source: where the text came from, as the writer was told.
    """

    folder: Path
    tokens: UInt[np.ndarray, " token"]
    offsets: Int64[np.ndarray, " border"]
    d_vocab: int
    end_of_text: int
    fingerprint: str
    source: str | None = None

    @staticmethod
    def open(folder: str | Path, verify: bool = True) -> TokenFiles:
        """The token files in ``folder``.

        Args:
            verify: read everything once and check it against its SHA-256, that documents follow
                one another, each with its end of text, and that every token is below d_vocab.
                Without, only meta.json and the sizes are checked.

        Raises:
            ValueError: a file is missing or damaged, or of another format; it is named.
        """
        folder = Path(folder)
        meta = read_meta(folder)
        files = TokenFiles(
            folder,
            _mapped(folder / "tokens.bin", meta["dtype"], meta["n_tokens"]),
            _mapped(folder / "documents.bin", OFFSET.str, meta["n_documents"] + 1),
            meta["d_vocab"],
            meta["end_of_text"],
            meta["tokenizer"],
            meta["source"],
        )
        if verify:
            for name, expected in meta["sha256"].items():
                if digest(folder / name) != expected:
                    raise ValueError(f"{folder / name} is damaged: its SHA-256 is not {expected}")
            _check_offsets(files)
            _check_tokens(files)
        return files

    @property
    def n_tokens(self) -> int:
        """Tokens in all, ends of text included."""
        return len(self.tokens)

    @property
    def n_documents(self) -> int:
        return len(self.offsets) - 1

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the tokens were made with."""
        return load_tokenizer(self.folder / "tokenizer.json")

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises ValueError unless the tokens were made with ``tokenizer``."""
        # Both as this version of the library writes them: another version's JSON may differ.
        own, given = fingerprint(self.tokenizer()), fingerprint(tokenizer)
        if own != given:
            raise ValueError(
                f"the tokens in {self.folder} were made with another tokenizer (fingerprint "
                f"{own[:12]}; this one has {given[:12]}); use the tokenizer.json in that folder, "
                "or write the tokens again with this tokenizer"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # To another process go the folder's name, not the tokens.
        return TokenFiles.open, (self.folder, False)


def read_meta(folder: Path) -> dict[str, Any]:
    """``meta.json`` of a folder of token files.

    Raises:
        ValueError: the folder or the file is missing, damaged or of another format.
    """
    path = folder / "meta.json"
    meta = read_json(path, "the record of token files")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise ValueError(f"{path}: expected format {FORMAT!r}; got {found!r}")
    for name, kind in _META.items():
        value = meta.get(name, ...)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{path} is damaged: {name!r} is missing or of another kind")
    if meta.pop("checksum", None) != checksum(meta):
        raise ValueError(f"{path} is damaged: its checksum does not fit its content")
    if meta["dtype"] != token_dtype(meta["d_vocab"]).str:
        raise ValueError(
            f"{path}: dtype {meta['dtype']!r} does not fit a vocabulary of {meta['d_vocab']}"
        )
    if set(meta["sha256"]) != set(FILES) - {"meta.json"}:
        raise ValueError(f"{path} is damaged: it has no SHA-256 of each file")
    return meta


def token_dtype(d_vocab: int) -> np.dtype[Any]:
    """What holds tokens below ``d_vocab``: uint16 below 65,536, else uint32."""
    return np.dtype("<u2" if d_vocab < 2**16 else "<u4")


def _mapped(path: Path, dtype: str, count: int) -> Any:
    expected = count * np.dtype(dtype).itemsize
    check_plain(path, f"{expected} bytes of token files")
    size = path.stat().st_size
    if size != expected or count < 1:
        raise ValueError(f"{path} is damaged: expected {expected} bytes, above 0; it has {size}")
    # A plain array on the mapped memory: np.memmap is slow to index.
    return np.memmap(path, dtype, "r").view(np.ndarray)


def _check_offsets(files: TokenFiles) -> None:
    path, offsets = files.folder / "documents.bin", files.offsets
    if offsets[0] != 0 or offsets[-1] != files.n_tokens:
        raise ValueError(
            f"{path} is damaged: expected offsets from 0 to {files.n_tokens}; got {offsets[0]} to "
            f"{offsets[-1]}"
        )
    for start in range(0, files.n_documents, _CHUNK):
        part = offsets[start : start + _CHUNK + 1]
        wrong = np.flatnonzero((part[1:] <= part[:-1]) | (part[1:] > files.n_tokens))
        if wrong.size:
            first, end = part[wrong[0] : wrong[0] + 2]
            raise ValueError(
                f"{path} is damaged: document {start + wrong[0]} lies from {first} to {end}"
            )
        ends = files.tokens[part[1:] - 1]
        wrong = np.flatnonzero(ends != files.end_of_text)
        if wrong.size:
            raise ValueError(
                f"{path} is damaged: document {start + wrong[0]} ends with token "
                f"{ends[wrong[0]]}, not with the end of text {files.end_of_text}"
            )


def _check_tokens(files: TokenFiles) -> None:
    for start in range(0, files.n_tokens, _CHUNK):
        highest = files.tokens[start : start + _CHUNK].max()
        if highest >= files.d_vocab:
            raise ValueError(
                f"{files.folder / 'tokens.bin'} is damaged: token {highest} is not below "
                f"d_vocab={files.d_vocab}"
            )
