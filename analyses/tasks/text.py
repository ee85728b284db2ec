"""Tasks whose prompts are text, drawn for a tokenizer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from resval_lens.analyses.tasks.task import DRAWN, Asked, Task

if TYPE_CHECKING:
    from resval_lens.analyses.tasks.problem import Problem
    from resval_lens.hooks.prompts import Metric
    from resval_lens.load import Loaded
    from resval_lens.transformer import ResValTransformer

Found = TypeVar("Found")

TRIES = 50
"""Drafts for each prompt that is asked for, before a tokenizer is said to have too few."""
ENOUGH = 5_000
"""Drafts without a new prompt, before there are said to be no more."""


@dataclass(frozen=True)
class TextPrompt:
    """A prompt beside its corrupted prompt.

    Attributes:
        text: up to where the answer comes, without a space at its end.
        corrupted: of as many tokens.
        answer: the right continuation, with the space before it.
        wrong: continuations that it is held against; none: the answer alone counts.
        places: characters (start, end) of ``text`` that have a name.
        source: where it is from, for messages.
    """

    text: str
    corrupted: str
    answer: str
    wrong: tuple[str, ...] = ()
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    source: str = ""


class Words:
    """Words that are one token after a space, and those that had to be left out.

    Args:
        tokenizer: whose tokens they become.
        others: with which they are one token, too.
    """

    def __init__(self, tokenizer: Any, *others: Any) -> None:
        self.tokenizer, self.tokenizers = tokenizer, (tokenizer, *others)
        self.left_out: list[str] = []
        self._known: dict[str, bool] = {}
        self._found: dict[Callable[[Any], Any], list[Any]] = {}

    def fitting(self, words: Iterable[str], least: int = 2) -> list[str]:
        """Those of ``words`` that are one token.

        Raises:
            ValueError: fewer than ``least`` are.
        """
        from resval_lens.tasks.ioi import sayable_by_all

        words = list(dict.fromkeys(words))
        new = [word for word in words if word not in self._known]
        said = set(sayable_by_all(self.tokenizers, new))
        self._known |= {word: word in said for word in new}
        self.left_out += [word for word in new if word not in said]
        found = [word for word in words if self._known[word]]
        if len(found) < least:
            raise ValueError(
                f"of {len(words)} words like {words[0]!r} {len(found)} are one token with this "
                f"tokenizer; {least} are needed"
            )
        return found

    def each(self, find: Callable[[Any], Found]) -> list[Found]:
        """What ``find`` says of each tokenizer, the own one first; it is asked once."""
        if find not in self._found:
            self._found[find] = [find(tokenizer) for tokenizer in self.tokenizers]
        return self._found[find]


class AnswerTask(Task):
    """A task with one right answer; labels are its token, then those that it is held against.

    "logit difference" is the answer's logit over the largest of the others'. Where there are no
    others (``contrasts``), its log-probability is the first metric, and it is right where it is the
    likeliest token of all.
    """

    reads_tokens = True
    contrasts = True
    metrics: Mapping[str, str] = {
        "logit-difference": "logit difference",
        "log-probability": "log P(answer)",
        "probability": "P(answer)",
    }

    def measures(self, model: ResValTransformer) -> Mapping[str, Metric]:
        from resval_lens.hooks.prompts import log_probability, margin, probability

        if not self.contrasts:
            return {
                "log P(answer)": log_probability,
                "P(answer)": probability,
                "accuracy": lambda logits, labels: logits.argmax(-1) == labels[:, 0],
            }
        return {
            "logit difference": margin,
            "P(answer)": probability,
            "accuracy": lambda logits, labels: margin(logits, labels) > 0,
        }

    def metric_functions(self, model: ResValTransformer) -> Mapping[str, Metric]:
        from resval_lens.hooks.prompts import log_probability, margin, probability

        names = list(AnswerTask.metrics.values())
        found = dict(zip(names, (margin, log_probability, probability), strict=True))
        return found if self.contrasts else {name: found[name] for name in names[1:]}


class TextTask(AnswerTask):
    """A task whose prompts are text."""

    has_chat = True
    positions: tuple[str, ...] = ("end",)

    @abstractmethod
    def prompt(self, clean: Random, corrupt: Random, kind: str, words: Words) -> TextPrompt:
        """One prompt; what it says clean is drawn from ``clean`` alone."""

    def drawn(self, count: int, seed: int, kind: str, words: Words) -> list[TextPrompt]:
        """``count`` prompts of different texts, whose corrupted prompts have as many tokens.

        Raises:
            ValueError: there are not so many with this tokenizer.
        """
        from resval_lens.tasks.ioi import token_ids

        clean, corrupt = Random(seed), Random(f"{seed} corrupted")
        found: dict[str, TextPrompt] = {}
        missed = 0  # drafts since the last new prompt
        for _ in range(TRIES * count):
            if len(found) == count or missed > ENOUGH:
                break
            missed += 1
            each = self.prompt(clean, corrupt, kind, words)
            both = [
                [token_ids(tokenizer, text) for text in (each.text, each.corrupted)]
                for tokenizer in words.tokenizers
            ]
            if all(len(own) == len(other) and own != other for own, other in both):
                missed *= each.text in found
                found.setdefault(each.text, each)
        if len(found) < count:
            raise ValueError(
                f"{count} prompts are asked for; with this tokenizer there are about {len(found)} "
                f"of {self.title}"
            )
        return list(found.values())

    def draw(self, loaded: Loaded, count: int, asked: Asked = DRAWN) -> Problem:
        from resval_lens.analyses.tasks.posing import posed, tokenizer_of

        kind, seed = self.corruption(loaded, asked), asked.seed or 0
        words = Words(tokenizer_of(loaded), *asked.tokenizers)
        try:
            prompts = self.drawn(count, seed, kind, words)
        except ValueError as error:
            raise ValueError(f"{loaded.name} on {self.title}: {error}") from None
        return posed(self, loaded, prompts, kind, seed, asked, words.left_out)


def place(text: str, word: str, nth: int = 0) -> tuple[int, int]:
    """Characters (start, end) of the ``nth`` occurrence of a word in a text, from 0."""
    start = -1
    for _ in range(nth + 1):
        start = text.index(word, start + 1)
    return start, start + len(word)


def other_than(rng: Random, words: Sequence[str], *used: str) -> str:
    """One of ``words``, drawn among those that are not ``used``.

    Raises:
        ValueError: there is no other.
    """
    left = [word for word in words if word not in used]
    if not left:
        raise ValueError(f"of {len(words)} words all are used: {', '.join(used)}")
    return rng.choice(left)
