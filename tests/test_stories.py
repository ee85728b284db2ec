"""The generated stories: what they say, what they never say, and that only one rule tells who is
given what."""

import doctest
import re
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from itertools import islice, pairwise, product
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import stats
from tokenizers import Tokenizer

from resval_lens.tasks.ioi import encode
from resval_lens.tasks.stories import (
    BOYS,
    GIRLS,
    GIVING_FRAMES,
    HELD_OUT_FRAMES,
    HELD_OUT_OBJECTS,
    HELD_OUT_PAIRS,
    NAMES,
    OBJECTS,
    OTHER_FRAMES,
    PLACES,
    IOIPrompt,
    ioi_prompts,
    is_held_out_frame,
    is_held_out_object,
    is_held_out_pair,
    load_tokenizer,
    stories,
    story,
    train_tokenizer,
)
from resval_lens.tasks.stories.giving import VERBS
from resval_lens.tasks.stories.words import phrases, plural, with_article

COUNT = 20_000
RARE = 1e-4  # a statistic this improbable is a mistake, not chance; the seeds are fixed

NAME = rf"\b(?:{'|'.join(NAMES)})\b"
PLACE = rf"(?:{'|'.join(PLACES)})"
GAVE = rf"(?:{'|'.join(sorted(set(VERBS)))})"
GIVES = rf"\b(?:{GAVE}|giving|threw|kicked|rolled|wrote|sent|sang|told|read|took|carried)\b"
# Between the giver and the verb, and from there to the recipient, no other name and no comma.
EVENT = re.compile(rf"({NAME})(?: [a-z]+)* {GAVE} [a-z ]+? to ({NAME})")


class Event(NamedTuple):
    """Somebody gives something to somebody; ``before`` is the story up to the giver's name."""

    before: list[str]  # the names in it, in order
    giver: str
    receiver: str


@pytest.fixture(scope="module")
def told() -> list[str]:
    return list(islice(stories(seed=0), COUNT))


@pytest.fixture(scope="module")
def events(told: list[str]) -> list[list[Event]]:
    """Of each story, those between its two people (not those with a third person)."""
    return [list(events_of(text)) for text in told]


@pytest.fixture(scope="module")
def flat(events: list[list[Event]]) -> list[Event]:
    return [event for of_story in events for event in of_story]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer()


def events_of(text: str) -> Iterator[Event]:
    people = two_people(text)
    for match in EVENT.finditer(text):
        before = re.findall(NAME, text[: match.start()])
        if set(before) == set(people) >= {match[1], match[2]}:
            yield Event(before, match[1], match[2])


def two_people(text: str) -> list[str]:
    """The first two that are named; a third comes later."""
    return list(dict.fromkeys(re.findall(NAME, text)))[:2]


def slots(frame: str) -> list[str]:
    return re.findall(r"{([\w.]+)}", frame)


def pattern(frame: str) -> str:
    """A regular expression for what a frame can say."""
    said = {"A": NAME, "B": NAME, "C": NAME, "S": NAME, "R": NAME, "to": PLACE}
    said["at"] = rf"\w+ {PLACE}"
    parts = re.split(r"{([\w.]+)}", frame)
    return "".join(
        said.get(part, r"[\w ]+?") if odd else re.escape(part)
        for part, odd in zip(parts, [False, True] * len(parts), strict=False)
    )


def assert_fair(heads: int, total: int) -> None:
    assert stats.binomtest(heads, total, 0.5).pvalue > RARE


# The words


def test_there_are_words_and_frames_enough() -> None:
    assert len(set(BOYS)) >= 30
    assert len(set(GIRLS)) >= 30
    assert not set(BOYS) & set(GIRLS)
    assert set(NAMES) == {*BOYS, *GIRLS}
    assert all(re.fullmatch("[A-Z][a-z]+", name) for name in NAMES)
    assert len(PLACES) >= 20
    assert len(set(OBJECTS)) == len(OBJECTS) >= 40
    assert len(set(GIVING_FRAMES)) == len(GIVING_FRAMES) >= 30
    assert len({*GIVING_FRAMES, *OTHER_FRAMES}) >= 100
    assert len(HELD_OUT_FRAMES) >= 5
    assert len(HELD_OUT_OBJECTS) >= 5


def test_every_frame_is_told(told: list[str]) -> None:
    text = "\n".join(told[:4000])
    assert [f for f in GIVING_FRAMES + OTHER_FRAMES if not re.search(pattern(f), text)] == []


def test_every_name_place_and_object_is_told(told: list[str]) -> None:
    said = set(re.findall(r"\w+", " ".join(told)))
    words = {*NAMES, *OBJECTS, *(place.removeprefix("the ") for place in PLACES)}
    assert words - said == set()


def test_the_words_of_held_out_frames_are_known_from_others(told: list[str]) -> None:
    said = set(re.findall(r"\w+", " ".join(told)))
    for frame in HELD_OUT_FRAMES:
        assert set(re.findall(r"\w+", re.sub(r"{[\w.]+}", "", frame))) - said == set()


# What a story is


def test_stories_are_plain_text_of_a_page_or_less(told: list[str]) -> None:
    lengths = [len(text.split()) for text in told]
    assert min(lengths) >= 35
    assert max(lengths) <= 130
    assert np.mean([40 <= length <= 120 for length in lengths]) > 0.99
    for text in told:
        assert text.isascii()
        assert text == text.strip()
        assert not re.search(r"[%{}]|  | \n|\n |\n\n", text)
        assert text.count("\n") <= 1
        assert re.match('"?[A-Z]', text)
        assert re.search(r'[.!?]"?$', text)


def test_sentences_begin_with_a_capital(told: list[str]) -> None:
    # After quoted words a sentence may go on: '"Look!" said Tom.'
    assert not any(re.search(r'\. "?[a-z]|[.!?]\n"?[a-z]', text) for text in told)


def test_stories_differ(told: list[str]) -> None:
    assert len(set(told)) == COUNT


def test_a_story_is_the_same_wherever_one_starts(told: list[str]) -> None:
    for start in (0, 1, 255, 256, 700, 19_990):
        assert list(islice(stories(0, start), 10)) == told[start : start + 10]


def test_another_seed_tells_other_stories(told: list[str]) -> None:
    assert set(islice(stories(1), 500)).isdisjoint(told)


def test_a_generator_in_the_same_state_tells_the_same_story() -> None:
    generator = np.random.default_rng(5)
    first, second = story(generator), story(generator)
    assert first != second
    assert story(np.random.default_rng(5)) == first


@pytest.mark.parametrize("name", ["seed", "start"])
def test_a_negative_number_is_refused_at_once(name: str) -> None:
    numbers = {"seed": 0, "start": 0, name: -1}
    with pytest.raises(ValueError, match=f"{name} must be a whole number from 0 up; got -1"):
        stories(**numbers)


# What the paper asks


@pytest.mark.parametrize(
    ("sentence", "names", "place", "given", "noun"),
    [
        ("When {A} and {B} went to {to}, {S} gave {object} to {R}.", names, place, given, noun)
        for names, place, given, noun in (
            (("John", "Mary"), "the shops", "the bag", "bag"),
            (("Tom", "James"), "the park", "the ball", "ball"),
            (("Dan", "Emily"), "the shops", "an apple", "apple"),
        )
    ]
    + [
        (
            "After {A} and {B} went to {to}, {S} gave {object} to {R}.",
            ("Sam", "Amy"),
            "the park",
            "a drink",
            "drink",
        )
    ],
)
def test_the_sentences_of_the_paper_can_be_said(
    told: list[str], sentence: str, names: tuple[str, str], place: str, given: str, noun: str
) -> None:
    assert sentence.replace("gave", "{gave}") in GIVING_FRAMES
    assert not is_held_out_pair(*names)
    assert place in PLACES
    assert given in phrases(noun)
    assert not is_held_out_object(noun)
    text = "\n".join(told)
    form = re.escape(sentence).replace(r"\{to\}", PLACE).replace(r"\{object\}", r"(?:the|an?) \w+")
    for giver, receiver in (r"\1", r"\2"), (r"\2", r"\1"):
        people = form.replace(r"\{A\}", f"({NAME})").replace(r"\{B\}", f"({NAME})")
        assert re.search(people.replace(r"\{S\}", giver).replace(r"\{R\}", receiver), text)


# What is held out


def test_held_out_pairs_are_a_tenth_of_all() -> None:
    share = len(HELD_OUT_PAIRS) / (len(NAMES) * (len(NAMES) - 1) / 2)
    assert 0.08 < share < 0.12
    of_name = Counter(name for pair in HELD_OUT_PAIRS for name in pair)
    assert min(of_name[name] for name in NAMES) >= 1
    assert max(of_name.values()) < len(NAMES) / 3
    for first, second in HELD_OUT_PAIRS:
        assert is_held_out_pair(first, second)
        assert is_held_out_pair(second, first)


def test_held_out_pairs_never_share_a_story(told: list[str]) -> None:
    together = {frozenset(set(re.findall(NAME, text))) for text in told}
    for pair in HELD_OUT_PAIRS:
        assert not any(people >= set(pair) for people in together)


def test_all_other_pairs_share_stories(told: list[str]) -> None:
    together = {frozenset(two_people(text)) for text in told}
    pairs = len(NAMES) * (len(NAMES) - 1) // 2 - len(HELD_OUT_PAIRS)
    assert pairs - len(together) <= 10  # e⁻⁸·⁷ that one is left out


def test_held_out_frames_are_never_told(told: list[str]) -> None:
    text = "\n".join(told)
    for frame in HELD_OUT_FRAMES:
        assert is_held_out_frame(frame)
        assert not re.search(pattern(frame.split("{S}")[0]), text)
    assert not any(is_held_out_frame(frame) for frame in GIVING_FRAMES)


def test_held_out_objects_are_seen_but_never_given(told: list[str]) -> None:
    held_out = rf"\b(?:{'|'.join(HELD_OUT_OBJECTS)})\b"
    sentences = [part for text in told for part in re.split(r"(?<=[.!?])", text)]
    with_one = [part for part in sentences if re.search(held_out, part)]
    assert len(with_one) > 500
    assert [part for part in with_one if re.search(GIVES, part)] == []
    assert {noun for noun in OBJECTS if is_held_out_object(noun)} == set(HELD_OUT_OBJECTS)


def test_all_other_objects_are_given(told: list[str]) -> None:
    given = Counter(re.findall(rf"{GAVE} [a-z ]*?(\w+) to {NAME}", "\n".join(told)))
    assert {noun for noun in OBJECTS if not is_held_out_object(noun)} - set(given) == set()


@pytest.mark.parametrize(
    ("ask", "wrong", "message"),
    [
        (is_held_out_pair, ("Mary", "Bob"), "name 'Bob' is not one of the 72 NAMES"),
        (is_held_out_pair, ("Mary", "Mary"), "a pair is two names; got 'Mary' twice"),
        (is_held_out_object, ("moon",), "object 'moon' is not one of the 69 OBJECTS"),
        (is_held_out_frame, ("{A} ate.",), "frame '{A} ate.' is in neither GIVING_FRAMES nor"),
    ],
)
def test_what_is_not_in_the_stories_is_neither(
    ask: Any, wrong: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ask(*wrong)


# Who gives to whom


def test_most_stories_have_giving_and_many_have_it_late(events: list[list[Event]]) -> None:
    assert np.mean([len(of_story) > 0 for of_story in events]) > 0.8
    assert np.mean([len(of_story) for of_story in events]) > 1.5
    assert np.mean([any(len(e.before) > 6 for e in of_story) for of_story in events]) > 0.4


def test_the_recipient_is_the_other_one(flat: list[Event]) -> None:
    assert all({event.giver, event.receiver} == set(event.before) for event in flat)


def test_the_giver_is_a_fair_coin(events: list[list[Event]], flat: list[Event]) -> None:
    assert_fair(sum(event.giver == event.before[0] for event in flat), len(flat))
    assert_fair(sum(event.giver == event.before[-1] for event in flat), len(flat))
    assert_fair(sum(event.giver < event.receiver for event in flat), len(flat))
    mixed = [
        event.giver in BOYS for event in flat if (event.giver in BOYS) != (event.receiver in BOYS)
    ]
    assert_fair(sum(mixed), len(mixed))
    turns = [
        (before.giver, after.giver) for of_story in events for before, after in pairwise(of_story)
    ]
    assert_fair(sum(before == after for before, after in turns), len(turns))


def test_the_giver_of_a_lead_is_its_first_or_second_person(told: list[str]) -> None:
    leads = re.findall(rf"When ({NAME}) and ({NAME}) [^.]*?, ({NAME}) {GAVE}", "\n".join(told))
    assert len(leads) > 2000
    assert all(giver in people for *people, giver in leads)
    assert_fair(sum(first == giver for first, _, giver in leads), len(leads))


def first_named(names: list[str]) -> str:
    return names[0]


def second_named(names: list[str]) -> str:
    return next(name for name in names if name != names[0])


def last_mentioned(names: list[str]) -> str:
    return names[-1]


def mentioned_more(names: list[str]) -> str | None:
    (first, most), (_, least) = Counter(names).most_common()
    return first if most > least else None


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("guess", [first_named, second_named, last_mentioned, mentioned_more])
def test_no_simple_rule_tells_who_is_given(flat: list[Event], guess: Any, late: bool) -> None:
    guesses = [
        guess(event.before) == event.receiver
        for event in flat
        if (len(event.before) > 6 or not late) and guess(event.before) is not None
    ]
    assert len(guesses) > 5000
    assert 0.4 < np.mean(guesses) < 0.6


# English


def test_pronouns_are_those_of_the_people(told: list[str]) -> None:
    male, female = r"\b[Hh](?:e|im|is|imself)\b", r"\b(?:[Ss]he|[Hh]er|[Hh]erself)\b"
    boys, girls = (
        "\n".join(text for text in told if set(re.findall(NAME, text)) <= set(names))
        for names in (BOYS, GIRLS)
    )
    assert len(re.findall(male, boys)) > 2000
    assert len(re.findall(female, girls)) > 2000
    assert not re.search(female, boys)
    assert not re.search(male, girls)


def test_a_pronoun_stands_for_somebody_in_the_frame() -> None:
    pronoun = re.compile(r"\b(he|him|his|himself|she|her|herself|hers)\b", re.IGNORECASE)
    for frame in GIVING_FRAMES + OTHER_FRAMES + HELD_OUT_FRAMES:
        assert not pronoun.search(re.sub("{.*?}", "", frame))
        named = slots(frame)
        for slot in named:
            person, _, form = slot.partition(".")
            if form in ("he", "his", "himself", "He", "His"):
                assert person in named[: named.index(slot)]


def test_a_and_an_go_with_what_follows(told: list[str]) -> None:
    exceptions = {"honest": "an", "unicorn": "a"}
    text = "\n".join(told)
    for (article, word), times in Counter(re.findall(r"\b([Aa]n?) ([a-z]+)", text)).items():
        expected = exceptions.get(word, "an" if word[0] in "aeiou" else "a")
        assert article.lower() == expected, (article, word, times)


def test_plurals_and_articles() -> None:
    assert [plural(noun) for noun in ("brush", "box", "toy", "puppy", "goose")] == [
        "brushes", "boxes", "toys", "puppies", "geese",
    ]  # fmt: skip
    assert with_article("umbrella") == "an umbrella"
    assert with_article("old bag") == "an old bag"


# Tokens


def test_the_tokenizer_has_2048_tokens_and_one_special(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size(with_added_tokens=False) == 2048
    assert set(tokenizer.get_vocab().values()) == set(range(2048))
    assert [token.content for token in tokenizer.get_added_tokens_decoder().values()] == [
        "<|endoftext|>"
    ]
    assert tokenizer.token_to_id("<|endoftext|>") == 0


@pytest.mark.parametrize("before", ["", " "])
def test_a_name_an_object_and_a_verb_are_one_token(tokenizer: Tokenizer, before: str) -> None:
    words = NAMES if before == "" else NAMES + OBJECTS + VERBS
    assert [word for word in words if len(tokenizer.encode(before + word).ids) != 1] == []


def test_names_are_one_token_within_a_text(tokenizer: Tokenizer, told: list[str]) -> None:
    assert "ĠJohn" in tokenizer.encode("Mary and John").tokens
    for text in told[:300]:
        tokens = [token.removeprefix("Ġ") for token in tokenizer.encode(text).tokens]
        assert [token for token in tokens if token in NAMES] == re.findall(NAME, text)


def test_tokens_decode_to_the_same_text(tokenizer: Tokenizer, told: list[str]) -> None:
    texts = [*told[:2000], "Anything else: é, 東京,\n\ttwo  spaces", ""]
    for text, encoded in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(encoded.ids) == text
        assert 0 not in encoded.ids


def test_the_shipped_tokenizer_is_what_training_gives(tokenizer: Tokenizer) -> None:
    assert train_tokenizer().to_str() == tokenizer.to_str()


def test_a_thousand_stories_are_enough_for_the_names() -> None:
    small = train_tokenizer(1000, seed=3)
    assert all(len(small.encode(before + name).ids) == 1 for name in NAMES for before in ("", " "))


@pytest.mark.parametrize("n", [0, -5])
def test_a_tokenizer_of_no_stories_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"n_stories must be at least 1; got {n}"):
        train_tokenizer(n)


# Prompts


@pytest.mark.parametrize(
    ("names", "frames", "objects"), list(product(("seen", "unseen"), repeat=3))
)
def test_prompts_are_what_they_say(
    tokenizer: Tokenizer, names: Any, frames: Any, objects: Any
) -> None:
    prompts = ioi_prompts(200, 1, names, frames, objects)
    assert len({prompt.text for prompt in prompts}) == 200
    assert Counter(prompt.order for prompt in prompts) == {"ABBA": 100, "BABA": 100}
    for prompt in prompts:
        check_prompt(prompt)
        assert is_held_out_pair(prompt.io, prompt.subject) == (names == "unseen")
        is_unseen = [re.match(pattern(f.split(" {gave}")[0]), prompt.text) for f in HELD_OUT_FRAMES]
        assert any(is_unseen) == (frames == "unseen")
        assert is_held_out_object(prompt.text.split()[-2]) == (objects == "unseen")
    encode(prompts, tokenizer)  # raises unless names are one token and corrupted of equal length


def check_prompt(prompt: IOIPrompt) -> None:
    first, second = re.findall(NAME, prompt.text)[:2]
    assert re.findall(NAME, prompt.text) == [first, second, prompt.subject]
    assert {first, second} == {prompt.io, prompt.subject}
    assert prompt.order == ("ABBA" if first == prompt.io else "BABA")
    assert prompt.text.endswith(" to")
    *introduced, third = re.findall(NAME, prompt.corrupted)
    assert introduced == [first, second]
    assert third not in introduced
    before, _, after = prompt.text.rpartition(prompt.subject)
    assert prompt.corrupted == f"{before}{third}{after}"
    noun = prompt.text.split()[-2]
    place = re.search(PLACE, prompt.text)
    filling = {"A": first, "B": second, "object": noun, "place": place[0] if place else ""}
    assert prompt.template.format(S=prompt.subject, **filling) == prompt.text
    assert prompt.template.format(S=third, **filling) == prompt.corrupted


def test_seen_prompts_go_on_as_stories_do() -> None:
    frames = [re.compile(pattern(frame)) for frame in GIVING_FRAMES]
    for prompt in ioi_prompts(300, 2):
        assert any(frame.fullmatch(f"{prompt.text} {prompt.io}.") for frame in frames)


def test_an_odd_number_has_one_more_of_the_first_named() -> None:
    assert Counter(prompt.order for prompt in ioi_prompts(7, 0)) == {"BABA": 4, "ABBA": 3}


def test_prompts_depend_on_the_seed_alone() -> None:
    assert ioi_prompts(20, 3) == ioi_prompts(20, 3)
    assert ioi_prompts(20, 3) == ioi_prompts(40, 3)[:20]
    assert ioi_prompts(20, 3) != ioi_prompts(20, 4)


def test_prompts_of_one_template_have_equally_many_tokens(tokenizer: Tokenizer) -> None:
    lengths: dict[str, set[int]] = {}
    for prompt in ioi_prompts(3000, 6):
        lengths.setdefault(prompt.template, set()).add(len(tokenizer.encode(prompt.text).ids))
    assert max(map(len, lengths.values())) == 1


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "n must lie between 1 and 100000; got 0"),
        ({"n": 100_001}, "n must lie between 1 and 100000; got 100001"),
        ({"seed": -1}, "seed must be a whole number from 0 up; got -1"),
        ({"names": "new"}, "names must be 'seen' or 'unseen'; got 'new'"),
        ({"frames": ""}, "frames must be 'seen' or 'unseen'; got ''"),
        ({"objects": "all"}, "objects must be 'seen' or 'unseen'; got 'all'"),
    ],
)
def test_impossible_prompts_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ioi_prompts(**{"n": 1, "seed": 0, **wrong})


@pytest.mark.parametrize("module", ["grammar", "prompts", "tokenizer", "words"])
def test_the_examples_in_docstrings_are_true(module: str) -> None:
    result = doctest.testmod(import_module(f"resval_lens.tasks.stories.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
