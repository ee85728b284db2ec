"""The people, places and things of the stories, and what training text never shows.

Some pairs of names never share a story, though each name is in many. Some objects are never given,
though people see, find and talk about them.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple
from zlib import crc32

BOYS = (
    "Aaron", "Adam", "Ben", "Dan", "David", "Eric", "Ethan", "Felix", "Fred", "George", "Harry",
    "Henry", "Hugo", "Isaac", "Jack", "Jacob", "James", "Joe", "John", "Kevin", "Leo", "Liam",
    "Lucas", "Luke", "Max", "Noah", "Oliver", "Oscar", "Owen", "Paul", "Peter", "Ryan", "Sam",
    "Simon", "Tim", "Tom",
)  # fmt: skip
GIRLS = (
    "Alice", "Amy", "Anna", "Betty", "Chloe", "Clara", "Diana", "Ella", "Emily", "Emma", "Eva",
    "Hannah", "Helen", "Jane", "Jenny", "Julia", "Kate", "Laura", "Leah", "Lily", "Lisa", "Lucy",
    "Maria", "Mary", "Megan", "Mia", "Molly", "Nina", "Nora", "Olivia", "Rachel", "Sara", "Sophie",
    "Sue", "Tina", "Zoe",
)  # fmt: skip
NAMES = tuple(sorted(BOYS + GIRLS))

# The place, and the word for being there.
PLACES: Mapping[str, str] = {
    "the bakery": "in", "the barn": "in", "the beach": "on", "the castle": "in", "the fair": "at",
    "the farm": "on", "the field": "in", "the forest": "in", "the garden": "in",
    "the harbor": "at", "the hill": "on", "the lake": "by", "the library": "in",
    "the market": "at", "the meadow": "in", "the mill": "at", "the museum": "in",
    "the park": "in", "the playground": "in", "the pond": "by", "the pool": "at",
    "the river": "by", "the shops": "at", "the station": "at", "the zoo": "at",
}  # fmt: skip

FOODS = (
    "apple", "banana", "bun", "cake", "carrot", "cookie", "drink", "egg", "lemon", "orange",
    "peach", "pear", "pie", "plum", "sandwich", "snack",
)  # fmt: skip
THINGS = (
    "acorn", "bag", "ball", "balloon", "basket", "bell", "blanket", "book", "bottle", "box",
    "brush", "bucket", "button", "candle", "card", "coin", "cup", "doll", "drum", "feather",
    "flag", "flower", "hat", "jar", "key", "kite", "lamp", "letter", "map", "pen", "pencil",
    "plate", "puppet", "puzzle", "ribbon", "ring", "rope", "scarf", "shell", "spoon", "stamp",
    "stick", "stone", "ticket", "toy", "umbrella", "whistle",
)  # fmt: skip
HELD_OUT_FOODS = ("melon", "onion")
HELD_OUT_THINGS = ("lantern", "mirror", "parcel", "trumpet")

GIVEN = FOODS + THINGS
HELD_OUT_OBJECTS = HELD_OUT_FOODS + HELD_OUT_THINGS
OBJECTS = tuple(sorted(GIVEN + HELD_OUT_OBJECTS))

_PLURALS = {"goose": "geese", "scarf": "scarves"}
_OF_ANYTHING = ("big", "small", "little", "lovely", "special")
_OF_FOOD = ("fresh", "tasty")
_OF_THINGS = ("blue", "green", "new", "old", "pretty", "red", "yellow")


class Pronouns(NamedTuple):
    """What stands for a name, and what its bearer is."""

    he: str
    him: str
    his: str
    himself: str
    boy: str


_MALE = Pronouns("he", "him", "his", "himself", "boy")
_FEMALE = Pronouns("she", "her", "her", "herself", "girl")
PRONOUNS: Mapping[str, Pronouns] = {name: _MALE if name in BOYS else _FEMALE for name in NAMES}


def with_article(words: str) -> str:
    """``words`` after "a" or "an".

    >>> with_article("old hat"), with_article("honest boy"), with_article("unicorn")
    ('an old hat', 'an honest boy', 'a unicorn')
    """
    vowel = words.startswith(("a", "e", "i", "o", "um", "up", "honest"))
    return f"{'an' if vowel else 'a'} {words}"


def plural(noun: str) -> str:
    """More than one.

    >>> plural("box"), plural("fairy"), plural("monkey"), plural("scarf")
    ('boxes', 'fairies', 'monkeys', 'scarves')
    """
    if noun in _PLURALS:
        return _PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return noun + ("es" if noun.endswith(("s", "x", "sh", "ch")) else "s")


def phrases(noun: str) -> tuple[str, ...]:
    """The ways to say an object when it is given; each is as likely as it is often here.

    >>> phrases("apple")[:3], phrases("apple")[-1]
    (('the apple', 'the apple', 'the apple'), 'a tasty apple')
    """
    adjectives = _OF_ANYTHING + (_OF_FOOD if noun in FOODS + HELD_OUT_FOODS else _OF_THINGS)
    plain = (f"the {noun}", with_article(noun))
    described = [
        phrase
        for adjective in adjectives
        for phrase in (f"the {adjective} {noun}", with_article(f"{adjective} {noun}"))
    ]
    return (plain[0],) * (2 * len(adjectives)) + (plain[1],) * (2 * len(adjectives)) + (*described,)


# A tenth of all pairs, in alphabetical order, by a checksum: other names would change none of them.
_PAIRS = tuple(combinations(NAMES, 2))
HELD_OUT_PAIRS = tuple(pair for pair in _PAIRS if crc32(" ".join(pair).encode()) % 10 == 0)
_HELD_OUT_PAIRS = frozenset(HELD_OUT_PAIRS)
SEEN_PAIRS = tuple(pair for pair in _PAIRS if pair not in _HELD_OUT_PAIRS)


def is_held_out_pair(first: str, second: str) -> bool:
    """Whether these two names, in either order, never share a story.

    Raises:
        ValueError: a name that is not among ``NAMES``, or the same one twice.
    """
    for name in (first, second):
        if name not in PRONOUNS:
            raise ValueError(f"name {name!r} is not one of the {len(NAMES)} NAMES of the stories")
    if first == second:
        raise ValueError(f"a pair is two names; got {first!r} twice")
    return (min(first, second), max(first, second)) in _HELD_OUT_PAIRS


def may_meet(third: str, first: str, second: str) -> bool:
    """Whether ``third`` may come into a story of these two people.

    Raises:
        ValueError: a name that is not among ``NAMES``.
    """
    return third not in (first, second) and not (
        is_held_out_pair(third, first) or is_held_out_pair(third, second)
    )


def is_held_out_object(noun: str) -> bool:
    """Whether nobody in a story ever gives this object (it may be seen, found or eaten).

    Raises:
        ValueError: a noun that is not among ``OBJECTS``.
    """
    if noun not in OBJECTS:
        raise ValueError(f"object {noun!r} is not one of the {len(OBJECTS)} OBJECTS of the stories")
    return noun in HELD_OUT_OBJECTS
