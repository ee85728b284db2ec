"""Pairs of words, such as a capital and its country, as bigrams that a context can contradict.

    Athens Greece Oslo Norway Hanoi Vietnam ...

In arXiv 2412.11459 the 232 words of the Google analogy set's "capital-world" are such a vocabulary:
that Greece follows Athens is knowledge from training, that another word does is read in the
context.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from resval_lens.analyses.papers.memory.tasks.bigrams import MOST_TOKENS, Bigrams
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask
from resval_lens.checks import check_whole
from resval_lens.io.files import read_bytes

_SYLLABLES = tuple(c + v for c in "bdfgklmnprstvz" for v in "aeiou")
_FINAL = ("", "l", "n", "r", "s")
_ENDINGS = ("dia", "land", "mark", "nia", "ria", "stan")
_MOST_PAIRS = 10_000


class Pair(NamedTuple):
    """Two words, e.g. a capital and its country."""

    first: str
    second: str


def read_pairs(path: str | Path, section: str = "capital-world") -> list[Pair]:
    """The distinct pairs of a section, in the order in which they first occur.

    The file has the form of the Google analogy set, questions-words.txt: a line ``: name`` begins a
    section, each other line holds two pairs, ``Athens Greece Baghdad Iraq``. There, the section
    capital-world has 116 pairs (232 words).

    Raises:
        ValueError: the file is missing or not UTF-8, a line holds something else, or there is no
            such section or nothing in it. The line names file, line or sections.
    """
    try:
        lines = read_bytes(Path(path), "a text file in UTF-8").decode().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8 ({error})") from None
    sections: dict[str, dict[Pair, None]] = {}
    current: dict[Pair, None] | None = None
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if words[0] == ":" and len(words) == 2:
            current = sections.setdefault(words[1], {})
            continue
        if current is None or len(words) != 4:
            expected = "': section'" if current is None else "4 words or ': section'"
            raise ValueError(f"{path}, line {number}: expected {expected}; got {line!r}")
        current |= {Pair(*words[:2]): None, Pair(*words[2:]): None}
    if not sections.get(section):
        state = "is empty" if section in sections else "is not there"
        known = ", ".join(sections) or "none"
        raise ValueError(f"{path}: section {section!r} {state}; sections: {known}")
    return list(sections[section])


def generated_pairs(n: int, seed: int) -> list[Pair]:
    """n pairs of invented words, an imaginary capital and its country; all 2n words differ.

    The same seed gives the same, and more of them begin with fewer of them.

    Raises:
        ValueError: n is no whole number from 1 to 10,000, seed none from 0 up.
    """
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= _MOST_PAIRS:
        raise ValueError(f"n must be a whole number from 1 to {_MOST_PAIRS:,}; got {n!r}")
    check_whole("seed", seed, 0)
    rng = random.Random(seed)
    seen: set[str] = set()

    def word(endings: Sequence[str]) -> str:
        while True:
            made = "".join(rng.choices(_SYLLABLES, k=2)) + rng.choice(endings)
            if made not in seen:
                seen.add(made)
                return made.capitalize()

    return [Pair(word(_FINAL), word(_ENDINGS)) for _ in range(n)]


def pair_bigrams(pairs: Sequence[Pair], leak: float = 0.0) -> Bigrams:
    """Bigrams of sequences that go from a first word to its second word to any first word.

        π_u(w) = 1/V
        π_b(second | first)  = 1 − leak for its own, leak/(m − 1) for each of the m − 1 others
        π_b(first | second)  = 1/n

    With n first words and m second words, tokens are the former (ids 0 to n − 1, in the order of
    the pairs), then the latter (two first words may share one). A leak above 0 makes the knowledge
    graded: no second word is impossible.

    Raises:
        ValueError: no pairs, more than 10,000 words, a first word that is given twice or is also a
            second word, or a leak outside 0 to 1 or, with a single second word, above 0.
    """
    firsts = [pair.first for pair in pairs]
    seconds = list(dict.fromkeys(pair.second for pair in pairs))
    n, m = len(firsts), len(seconds)
    if not n:
        raise ValueError("pairs must hold at least one pair; got none")
    if n + m > MOST_TOKENS:
        raise ValueError(f"pairs must have at most {MOST_TOKENS:,} words; got {n + m:,}")
    known = set(seconds)
    for word in firsts:
        if word in known:
            raise ValueError(f"pairs: the first word {word!r} is also in another place")
        known.add(word)
    if not 0 <= leak <= 1 or (leak and m == 1):
        expected = "0 with a single second word" if m == 1 else "from 0 to 1"
        raise ValueError(f"leak must be {expected}; got {leak!r}")
    index = {word: i for i, word in enumerate(seconds, n)}
    own = torch.tensor([index[pair.second] for pair in pairs])
    conditional = torch.zeros(n + m, n + m, dtype=torch.float64)
    conditional[:n, n:] = leak / max(m - 1, 1)
    conditional[torch.arange(n), own] = 1 - leak
    conditional[n:, :n] = 1 / n
    unigram = torch.full((n + m,), 1 / (n + m), dtype=torch.float64)
    return Bigrams.from_probabilities([*firsts, *seconds], unigram, conditional)


def analogy_task(
    pairs: Sequence[Pair], n_triggers: int = 5, length: int = 128, leak: float = 0.0
) -> TriggerTask:
    """Sequences in which other second words than their own follow some first words.

    The triggers are ``n_triggers`` first words, drawn fresh for each sequence; the output of each
    is drawn from the second words other than its own. All else is :func:`pair_bigrams`.

    Raises:
        ValueError: as :func:`pair_bigrams` and :class:`TriggerTask`; a single second word; a leak
            with which its own second word is not the likeliest.
    """
    bigrams = pair_bigrams(pairs, leak)
    n, v = len(pairs), bigrams.d_vocab
    if v - n < 2:
        raise ValueError("pairs must have at least 2 second words, to contradict one with another")
    if not 1 - leak > leak / (v - n - 1):
        raise ValueError(
            f"leak must be below {(v - n - 1) / (v - n):.6g}, so that a first word's own second "
            f"word is the likeliest; got {leak!r}"
        )
    return TriggerTask(
        bigrams,
        length=length,
        n_triggers=n_triggers,
        triggers="drawn",
        candidates=tuple(range(n)),
        output_range=(n / v, 1.0),
        never_output="likeliest",
    )
