"""Prompts for indirect object identification in the words of the stories, seen or held out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from random import Random
from typing import Literal, get_args

from resval_lens.tasks.ioi import IOIPrompt
from resval_lens.tasks.stories import giving, words

Which = Literal["seen", "unseen"]

MOST_PROMPTS = 100_000
MOST_REPEATED = 1_000
"""Draws in a row of prompts that there are already, after which there are taken to be no more."""

_PAIRS = {"seen": words.SEEN_PAIRS, "unseen": words.HELD_OUT_PAIRS}
_LEADS = {"seen": giving.LEADS, "unseen": giving.HELD_OUT_LEADS}
_OBJECTS = {"seen": words.GIVEN, "unseen": words.HELD_OUT_OBJECTS}


def ioi_prompts(
    n: int,
    seed: int,
    names: Which = "seen",
    frames: Which = "seen",
    objects: Which = "seen",
    people: Collection[str] | None = None,
) -> list[IOIPrompt]:
    """``n`` distinct prompts, each a story's beginning that ends right before the recipient's name.

    BABA (the first-named gives) and ABBA (the second-named) take turns, so an even ``n`` has as
    many of each. ``template`` has the slots {A}, {B}, {S} (the subject), {place} and {object}; its
    prompts differ in these alone, and a corrupted one in {S}: a third name that never was held out
    with either. The same arguments give the same prompts.

    Args:
        n: from 1 to ``MOST_PROMPTS``.
        seed: a whole number from 0 up.
        names: pairs that share stories, or pairs that never do.
        frames: giving frames of the stories, or those that no story uses.
        objects: objects that are given in stories, or those that never are.
        people: only these are named; by default all of the stories.

    Raises:
        ValueError: a number out of its range, another word than "seen" or "unseen", or ``people``
            of whom so many prompts cannot be made.

    >>> ioi_prompts(1, seed=25)[0].text
    'When Mary and Jane went to the zoo, Mary gave a plum to'
    """
    if not 1 <= n <= MOST_PROMPTS:
        raise ValueError(f"n must lie between 1 and {MOST_PROMPTS}; got {n!r}")
    if seed < 0:
        raise ValueError(f"seed must be a whole number from 0 up; got {seed!r}")
    for name, which in (("names", names), ("frames", frames), ("objects", objects)):
        if which not in get_args(Which):
            raise ValueError(f"{name} must be 'seen' or 'unseen'; got {which!r}")
    thirds = [name for name in words.NAMES if people is None or name in people]
    pairs = [
        pair
        for pair in _PAIRS[names]
        if set(pair) <= set(thirds) and any(words.may_meet(name, *pair) for name in thirds)
    ]
    rng = Random(seed)
    found: dict[str, IOIPrompt] = {}
    repeated = 0
    while len(found) < n:
        if not pairs or repeated > MOST_REPEATED:
            raise ValueError(
                f"only {len(found)} of {n} {names} prompts can be made of {len(thirds)} people"
            )
        order = ("BABA", "ABBA")[len(found) % 2]
        pair, lead = rng.choice(pairs), rng.choice(_LEADS[frames])
        prompt = _prompt(rng, order, pair, lead, rng.choice(_OBJECTS[objects]), thirds)
        repeated = repeated + 1 if prompt.text in found else 0
        found.setdefault(prompt.text, prompt)
    return list(found.values())


def _prompt(
    rng: Random, order: str, pair: tuple[str, str], lead: str, noun: str, thirds: Sequence[str]
) -> IOIPrompt:
    subject, io = rng.sample(pair, 2)
    first, second = (subject, io) if order == "BABA" else (io, subject)
    third = rng.choice(thirds)
    while not words.may_meet(third, *pair):
        third = rng.choice(thirds)
    place = rng.choice(tuple(words.PLACES))
    lead = lead.replace("{to}", "{place}").replace("{at}", f"{words.PLACES[place]} {{place}}")
    article = rng.choice(("the", words.with_article(noun).split()[0]))
    template = f"{lead} {{S}} {rng.choice(giving.VERBS)} {article} {{object}} to"
    text, corrupted = (
        template.format(A=first, B=second, S=who, place=place, object=noun)
        for who in (subject, third)
    )
    return IOIPrompt(text, io, subject, order, template, corrupted)
