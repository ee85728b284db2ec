"""The tokenizer of the stories: a byte-level BPE for which every name is one token."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from tokenizers import Tokenizer

from resval_lens.io.files import DATA
from resval_lens.io.tokenizers import load_tokenizer as load_from
from resval_lens.io.tokenizers import train_bpe
from resval_lens.tasks.stories.grammar import stories
from resval_lens.tasks.stories.words import NAMES

SHIPPED = DATA / "stories" / "tokenizer.json"
D_VOCAB = 2048


def load_tokenizer() -> Tokenizer:
    """The tokenizer that ships with the package: 2,048 tokens, ``<|endoftext|>`` is number 0.

    Every name of the stories is one token, after a space and at the beginning of a text.

    >>> load_tokenizer().encode("Mary gave the bag to John.").tokens
    ['Mary', 'Ġgave', 'Ġthe', 'Ġbag', 'Ġto', 'ĠJohn', '.']
    """
    return load_from(SHIPPED)


def train_tokenizer(n_stories: int = 10_000, seed: int = 0) -> Tokenizer:
    """What :func:`load_tokenizer` gives, made again; with other arguments, one like it.

    It learns from stories, then from each name a few times more: with a thousand stories already,
    every name is one token.

    Args:
        n_stories: learnt from, at least 1.
        seed: of the stories.

    Raises:
        ValueError: a number below these, or too few stories for ``D_VOCAB`` tokens.
    """
    if n_stories < 1:
        raise ValueError(f"n_stories must be at least 1; got {n_stories!r}")
    return train_bpe(_texts(n_stories, seed), D_VOCAB)


def _texts(n_stories: int, seed: int) -> Iterator[str]:
    yield from islice(stories(seed), n_stories)
    for name in NAMES:
        yield from (f"{name} {name}",) * (n_stories // 200 + 2)
