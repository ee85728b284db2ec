"""Small texts, a tokenizer for them, token streams made by hand, and writers that die."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from resval_lens.tasks.text import TokenFiles, train_bpe, write_token_files, writing
from tests.crashing import DIED, die_before_change

# With what trips readers and tokenizers up: letters outside ASCII, spaces, line breaks, and the
# mark of an end of text as part of a text.
STORIES = [
    "Once upon a time, there was a little girl named Sue.\nShe loved to play in the park.",
    "One day, a little boy named Tim found a big box.\n\nIt was too heavy for the little boy.",
    "  Zoë – “naïve” – ate a 漢字 🍎 in the café.\tYum ",
    "It's the story that we'll tell: 123 boxes, 4,567 apples!",
    "The",
    *(f"Story {i}: the little {name} went to the park. " * (i % 5 + 1) for i, name in
      enumerate(["girl", "boy", "box", "cat"] * 5)),
]  # fmt: skip
WITH_MARK = "In this text <|endoftext|> is made of letters."


@cache
def tokenizer() -> Tokenizer:
    return train_bpe(STORIES, 320, min_frequency=1)


def stream(documents: Sequence[Sequence[int]], end: int = 0, d_vocab: int = 1000) -> TokenFiles:
    """Token files that were never on disk: each document and an end of text."""
    lengths = [len(document) + 1 for document in documents]
    tokens = [token for document in documents for token in (*document, end)]
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    return TokenFiles(
        Path("memory"), np.array(tokens, np.uint16), offsets, d_vocab, end, "fingerprint"
    )


def documents_of(files: TokenFiles) -> list[str]:
    """The text of every document; each has one end of text, at its end."""
    tokenizer = files.tokenizer()
    texts = []
    for start, end in zip(files.offsets[:-1], files.offsets[1:], strict=True):
        *ids, last = files.tokens[start:end].tolist()
        assert last == files.end_of_text
        assert files.end_of_text not in ids
        texts.append(tokenizer.decode(ids))
    return texts


def write(
    texts: list[str],
    folder: Path,
    overwrite: bool = False,
    dies_at_change: int | None = None,
    dies_at_batch: int | None = None,
) -> None:
    """``write_token_files`` in small batches; the process dies at that change or batch."""
    writing.BATCH = 200
    batches = 0

    def progress(documents: int, tokens: int) -> None:
        nonlocal batches
        batches += 1
        if batches == dies_at_batch:
            os._exit(DIED)

    if dies_at_change is not None:
        die_before_change(dies_at_change, folder.parent)
    write_token_files(texts, tokenizer(), folder, overwrite, progress)
