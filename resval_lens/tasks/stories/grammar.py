"""Telling a story: an opening, sentences in any order until it is long enough, an ending.

story      a function of N_DRAWS numbers between 0 and 1
stories    row i of an endless table of such numbers
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import NamedTuple, TypeVar

from numpy.random import PCG64, Generator, SeedSequence

from resval_lens.tasks.stories import giving, lists, sentences, words

N_DRAWS = 192  # a step uses 12 at most
MOST_STEPS = 12
P_GIVING_FIRST = 0.35
P_REACTION = 0.5
P_TOPIC = 0.4
P_TWO_PARAGRAPHS = 0.3
_BLOCK = 256  # stories whose numbers are drawn together

T = TypeVar("T")


class _Frame(NamedTuple):
    """Sentences with slots, made ready for ``text % slots``."""

    text: str
    draws: tuple[str, ...]  # the slots whose words are drawn fresh each time
    n_words: int
    moves: bool  # to a new place
    is_there: bool | None  # whether people are there afterwards; None: as before


_Frames = tuple[_Frame, ...]


def _with_articles(nouns: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(words.with_article, nouns))


def _plurals(nouns: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(words.plural, nouns))


def _capitals(phrases: Sequence[str]) -> tuple[str, ...]:
    return tuple(phrase[0].upper() + phrase[1:] for phrase in phrases)


_TO_EAT = tuple(food for food in words.FOODS + words.HELD_OUT_FOODS if food != "drink")
_TO_SEE = words.THINGS + words.HELD_OUT_THINGS
_WORDS: Mapping[str, tuple[str, ...]] = {
    "gave": giving.VERBS,
    "thing": _TO_SEE,
    "a_thing": _with_articles(_TO_SEE),
    "things": _plurals(_TO_SEE),
    "a_food": _with_articles(_TO_EAT),
    "foods": _plurals(_TO_EAT),
    "foods_too": _plurals(_TO_EAT),
    "animal": lists.ANIMALS,
    "a_animal": _with_articles(lists.ANIMALS),
    "A_animal": _capitals(_with_articles(lists.ANIMALS)),
    "animals": _plurals(lists.ANIMALS),
    "trait": lists.TRAITS,
    "a_trait": _with_articles(lists.TRAITS),
    "a_trait_too": _with_articles(lists.TRAITS),
    "color": lists.COLORS,
    "a_color": _with_articles(lists.COLORS),
    "A_color": _capitals(_with_articles(lists.COLORS)),
    "feeling": lists.FEELINGS,
    "feeling_too": lists.FEELINGS,
    "weather": lists.WEATHER,
    "day": lists.DAYS,
    "month": lists.MONTHS,
    "number": lists.NUMBERS,
    "family": lists.FAMILY,
    "a_job": _with_articles(lists.JOBS),
    "A_job": _capitals(_with_articles(lists.JOBS)),
    "game": lists.GAMES,
    "instrument": lists.INSTRUMENTS,
    "a_sight": _with_articles(lists.SIGHTS),
    "a_creature": _with_articles(lists.CREATURES),
    "a_dream": _with_articles(lists.CREATURES + lists.LANDS),
    "cloth": lists.CLOTHES,
    "body": lists.BODY,
    "moved": lists.MOVED,
    "along": lists.ALONG,
    "how": lists.HOW,
    "said": lists.SAID,
}
_DRAWN = {*_WORDS, "object", "noun"}
_PHRASES = {noun: words.phrases(noun) for noun in words.GIVEN}
_AT = {place: f"{preposition} {place}" for place, preposition in words.PLACES.items()}
_PLACES = tuple(words.PLACES)


def _forms(role: str, name: str) -> dict[str, str]:
    """Every slot that a person fills: {A}, {A.he}, {A.His}, ..."""
    of = words.PRONOUNS[name]._asdict()
    forms = {f"{role}.{form}": word for form, word in of.items()}
    return {role: name, **forms, f"{role}.He": of["he"].title(), f"{role}.His": of["his"].title()}


_FORMS = {role: {name: _forms(role, name) for name in words.NAMES} for role in "ABCSR"}


def _ready(frames: Sequence[str], moves: bool = False, leaves: bool = False) -> _Frames:
    ready = []
    for frame in frames:
        slots = re.findall(r"{([\w.]+)}", frame)
        names_place = "to" in slots or "at" in slots
        ready.append(
            _Frame(
                text=re.sub(r"{([\w.]+)}", r"%(\1)s", frame),
                draws=tuple(slot for slot in slots if slot in _DRAWN),
                n_words=len(frame.split()),
                moves=moves,
                is_there=not leaves if names_place else None,
            )
        )
    return tuple(ready)


def _leads(leads: Sequence[str], moves: bool = False, leaves: bool = False) -> _Frames:
    return _ready([f"{lead} {giving.GIVING}." for lead in leads], moves, leaves)


_MOVING = _leads(giving.MOVING_LEADS, moves=True)
_ANYWHERE = _MOVING + _leads(giving.ANYWHERE_LEADS)
_THERE = _ANYWHERE + _leads(giving.STAYING_LEADS) + _leads(giving.LEAVING_LEADS, leaves=True)
_FIRST_LEADS = _THERE + _leads(giving.OPENING_LEADS)
_OPENINGS = _ready(sentences.OPENINGS)
_HERE = {place: _ready(frames) for place, frames in sentences.HERE.items()}
_ENDINGS = _ready(sentences.ENDINGS)
_REACTIONS = _ready(giving.REACTIONS)
_KEEPING_REACTIONS = _ready(giving.REACTIONS + giving.KEEPING_REACTIONS)
_GIVING: Mapping[str, _Frames] = {
    "give": _ready(giving.GIVING_SENTENCES),
    "give otherwise": _ready(giving.OTHER_GIVING),
    "give something particular": _ready(giving.PARTICULAR_GIVING),
}
_OTHER: Mapping[str, _Frames] = {
    "alone": _ready(sentences.ALONE),
    "together": _ready(sentences.TOGETHER),
    "said": _ready(sentences.SAID),
    "around": _ready(sentences.AROUND),
}
_THIRD = _ready(sentences.THIRD + giving.THIRD_GIVING)
# What comes next is as likely as it is often here.
_STEPS = (
    ("give",) * 20 + ("give otherwise",) * 4 + ("give something particular",) * 4 + ("lead",) * 9
    + ("alone",) * 21 + ("together",) * 16 + ("said",) * 12 + ("around",) * 6 + ("here",) * 5
    + ("third",) * 2
)  # fmt: skip


class _Telling:
    """One story in the making; what ``draws`` gives decides everything."""

    def __init__(self, draws: list[float]) -> None:
        self._draw: Callable[[], float] = iter(draws).__next__
        self._pair = self._pick(words.SEEN_PAIRS)
        self._third: str | None = self._pick(words.NAMES)
        self._topic = self._pick(words.GIVEN)  # given more often than any other object
        self._slots: dict[str, str] = {}
        self._used: set[str] = set()
        self._parts: list[str] = []
        self._n_words = 0
        self._place = self._pick(_PLACES)
        self._is_there = False

    def tell(self) -> str:
        if self._draw() < P_GIVING_FIRST:
            self._give(_FIRST_LEADS)
        else:
            self._say(_OPENINGS)
        enough = 32 + 50 * self._draw()
        for _ in range(MOST_STEPS):
            if self._n_words >= enough:
                break
            self._step(self._pick(_STEPS))
        self._say(_ENDINGS)
        if self._draw() >= P_TWO_PARAGRAPHS:
            return " ".join(self._parts)
        middle = 1 + int(self._draw() * (len(self._parts) - 1))
        return f"{' '.join(self._parts[:middle])}\n{' '.join(self._parts[middle:])}"

    def _step(self, kind: str) -> None:
        if kind == "lead":
            self._give(_THERE if self._is_there else _ANYWHERE)
        elif kind in _GIVING:
            self._give(_GIVING[kind])
        elif kind == "third":
            self._meet_third()
        elif kind in _OTHER:
            self._say(_OTHER[kind])
        elif self._is_there:
            self._say(_HERE[self._place])

    def _give(self, frames: _Frames) -> None:
        """Somebody gives; half the time the other, or both, show what they make of it."""
        frame = self._say(frames)
        if self._draw() < P_REACTION:
            kept = "gave" in frame.draws and self._slots["gave"] in giving.KEPT
            self._add(self._unused(_KEEPING_REACTIONS if kept else _REACTIONS))

    def _meet_third(self) -> None:
        """At most once: somebody who may be in a story with either of the two."""
        if self._third is None:
            return
        start = words.NAMES.index(self._third)
        rotated = words.NAMES[start:] + words.NAMES[:start]
        third = next(name for name in rotated if words.may_meet(name, *self._pair))
        self._third = None
        self._slots.update(_FORMS["C"][third])
        self._say(_THIRD)

    def _say(self, frames: _Frames) -> _Frame:
        """Adds one of ``frames``; its people, who gives and its words are drawn."""
        frame = self._unused(frames)
        first, second = self._pair if self._draw() < 0.5 else self._pair[::-1]
        subject, receiver = self._pair if self._draw() < 0.5 else self._pair[::-1]
        slots = self._slots
        for role, name in (("A", first), ("B", second), ("S", subject), ("R", receiver)):
            slots.update(_FORMS[role][name])
        if frame.moves:
            self._place = self._pick(_PLACES)
        slots["to"], slots["at"] = self._place, _AT[self._place]
        if frame.is_there is not None:
            self._is_there = frame.is_there
        for slot in frame.draws:
            if slot in _WORDS:
                slots[slot] = self._pick(_WORDS[slot])
            else:
                noun = self._topic if self._draw() < P_TOPIC else self._pick(words.GIVEN)
                slots[slot] = noun if slot == "noun" else self._pick(_PHRASES[noun])
        self._add(frame)
        return frame

    def _unused(self, frames: _Frames) -> _Frame:
        """Any of ``frames`` that this story has not used yet, if there is one."""
        start = int(self._draw() * len(frames))
        for frame in frames[start:] + frames[:start]:
            if frame.text not in self._used:
                break
        self._used.add(frame.text)
        return frame

    def _add(self, frame: _Frame) -> None:
        self._parts.append(frame.text % self._slots)
        self._n_words += frame.n_words

    def _pick(self, choices: Sequence[T]) -> T:
        return choices[int(self._draw() * len(choices))]


def story(generator: Generator) -> str:
    """One training story of some 40 to 120 words: ASCII, without a line break at its end.

    Two people, whose names are never a pair that is held out, meet, play, talk and give things to
    each other. Who gives is a fair coin, independent of all that came before. It takes ``N_DRAWS``
    numbers from ``generator``.

    >>> from numpy.random import default_rng
    >>> story(default_rng(0))[:58]
    "It was Thursday. Leah's uncle took Leah and Jacob to the b"
    """
    return _Telling(generator.random(N_DRAWS).tolist()).tell()


def stories(seed: int, start: int = 0) -> Iterator[str]:
    """Endless training stories, from number ``start`` on.

    Story i is :func:`story` of row i of a table of random numbers that ``seed`` determines, so it
    is the same wherever one starts.

    Args:
        seed: a whole number from 0 up.
        start: a whole number from 0 up.

    Raises:
        ValueError: a number below 0.

    >>> next(stories(seed=1, start=300))[:62]
    'Felix and Nora were good friends. Felix wanted to be kind and '
    """
    for name, value in (("seed", seed), ("start", start)):
        if value < 0:
            raise ValueError(f"{name} must be a whole number from 0 up; got {value!r}")
    return _tell_from(seed, start)


def _tell_from(seed: int, start: int) -> Iterator[str]:
    for block in count(start // _BLOCK):
        table = Generator(PCG64(SeedSequence((seed, block)))).random((_BLOCK, N_DRAWS))
        for row in table[start % _BLOCK if block == start // _BLOCK else 0 :]:
            yield _Telling(row.tolist()).tell()
