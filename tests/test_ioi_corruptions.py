"""Corrupted indirect-object prompts: who stands where, what that makes known, and which tokens."""

import doctest
from dataclasses import replace
from typing import Any, get_args

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from resval_lens.tasks import ioi_corruptions
from resval_lens.tasks.ioi import NAMES, IOIPrompt, encode, generate_prompts, paper_prompts
from resval_lens.tasks.ioi_corruptions import (
    SIGNALS,
    Kind,
    corrupted_text,
    corrupted_texts,
    encode_corrupted,
    name_places,
    new_names,
    positions,
)
from resval_lens.tasks.stories import NAMES as STORY_NAMES
from resval_lens.tasks.stories import ioi_prompts, load_tokenizer
from tests.test_ioi import TOKENIZER, WORD, vocabulary, words_tokenizer

KINDS: tuple[Kind, ...] = get_args(Kind)
NEW: dict[str, list[str]] = {
    "random": ["Anna", "Paul"],
    "random+position": ["Anna", "Paul"],
    "ABC": ["Anna", "Paul", "Lucy"],
}
BABA, ABBA = paper_prompts(["When Mary and John went to the shops, * gave the bag to"], "Carl")[0]
STORIES = load_tokenizer()

# The prompts of each source, the tokenizer that has their names as tokens, and those names.
SOURCES: dict[str, tuple[list[IOIPrompt], Tokenizer, tuple[str, ...]]] = {
    "generated": (generate_prompts(60, seed=1), TOKENIZER, NAMES),
    "paper": ([p for pair in paper_prompts() for p in pair], TOKENIZER, NAMES),
    "stories": (ioi_prompts(60, seed=1), STORIES, STORY_NAMES),
    "stories, unseen": (
        ioi_prompts(60, 2, "unseen", "unseen", "unseen"), STORIES, STORY_NAMES,
    ),
}  # fmt: skip
sources = pytest.mark.parametrize("source", SOURCES)
kinds = pytest.mark.parametrize("kind", KINDS)


def named(prompt: IOIPrompt, text: str) -> tuple[str, ...]:
    """Who stands in a text where the prompt names people, read off word by word."""
    own, words = WORD.findall(prompt.text), WORD.findall(text)
    assert len(own) == len(words)
    people = (prompt.io, prompt.subject)
    return tuple(b for a, b in zip(own, words, strict=True) if a in people)


# Texts


@pytest.mark.parametrize(
    ("kind", "after_abba", "after_baba"),
    [
        ("position", "John Mary John", "John Mary Mary"),
        ("token", "John Mary Mary", "John Mary John"),
        ("token+position", "Mary John Mary", "Mary John John"),
        ("random", "Anna Paul Paul", "Paul Anna Paul"),
        ("random+position", "Paul Anna Paul", "Anna Paul Paul"),
        ("random-S2", "Mary John Carl", "Mary John Carl"),
        ("ABC", "Anna Paul Lucy", "Paul Anna Lucy"),
    ],
)
def test_each_kind_names_who_the_table_says(kind: Kind, after_abba: str, after_baba: str) -> None:
    for prompt, expected in ((ABBA, after_abba), (BABA, after_baba)):
        first, second, subject = expected.split()
        assert corrupted_text(prompt, kind, NEW.get(kind, ())) == (
            f"When {first} and {second} went to the shops, {subject} gave the bag to"
        )


@sources
@kinds
def test_the_signals_are_what_the_names_say(source: str, kind: Kind) -> None:
    prompts, _, names = SOURCES[source]
    for prompt, text in zip(
        prompts, corrupted_texts(prompts, kind, seed=4, names=names), strict=True
    ):
        first, second, subject = named(prompt, text)
        own = (prompt.io, prompt.subject)
        repeated = subject if subject in (first, second) else None
        token = {None: "none", prompt.io: "inverted", prompt.subject: "kept"}.get(
            repeated, "random"
        )
        ours = ("second" if prompt.order == "ABBA" else "first", "first", "second")
        place = {first: "first", second: "second"}.get(subject)
        position = "none" if place is None else "kept" if place == ours[0] else "inverted"
        assert (token, position) == SIGNALS[kind]
        assert first != second
        if token == "random" or kind == "ABC":
            assert not {first, second, subject} & set(own)


@sources
@kinds
def test_only_the_names_change(source: str, kind: Kind) -> None:
    prompts, _, names = SOURCES[source]
    for prompt, text in zip(
        prompts, corrupted_texts(prompts, kind, seed=4, names=names), strict=True
    ):
        pairs = zip(WORD.findall(prompt.text), WORD.findall(text), strict=True)
        changed = {a for a, b in pairs if a != b}
        assert changed <= {prompt.io, prompt.subject}
        assert (kind == "random-S2") <= (text == prompt.corrupted)


def test_a_flip_twice_is_the_prompt() -> None:
    for kind in ("position", "token", "token+position"):
        flipped = {"ABBA": "BABA", "BABA": "ABBA"}
        for prompt in (ABBA, BABA):
            io, subject = prompt.io, prompt.subject
            if kind != "position":
                io, subject = subject, io
            order = prompt.order if kind == "token" else flipped[prompt.order]
            again = replace(
                prompt, text=corrupted_text(prompt, kind), io=io, subject=subject, order=order
            )
            assert corrupted_text(again, kind) == prompt.text


def test_longer_and_shorter_names_stand_in_their_places() -> None:
    prompt = IOIPrompt("Jo met Bartholomew. Jo gave it to", "Bartholomew", "Jo", "BABA", "", "")
    assert corrupted_text(prompt, "position") == "Bartholomew met Jo. Jo gave it to"
    assert corrupted_text(prompt, "token") == "Bartholomew met Jo. Bartholomew gave it to"
    assert corrupted_text(prompt, "ABC", ["A", "Bob", "C"]) == "Bob met A. C gave it to"


def test_a_name_inside_another_word_is_none() -> None:
    prompt = IOIPrompt("Tom met Ann in Annapolis and Tom asked", "Ann", "Tom", "BABA", "", "")
    assert corrupted_text(prompt, "position") == "Ann met Tom in Annapolis and Tom asked"
    assert name_places(prompt) == ((8, 11), (0, 3), (29, 32))


@pytest.mark.parametrize(
    ("text", "order", "message"),
    [
        (
            "Tom met Ann and Sue asked",
            "BABA",
            r"names 'Ann' \(IO\) 1 times and 'Tom' \(S\) 1 times",
        ),
        ("Tom met Sue and Tom asked", "BABA", r"names 'Ann' \(IO\) 0 times"),
        ("Tom met Ann and Tom asked Ann", "BABA", r"names 'Ann' \(IO\) 2 times"),
        ("Tom met Tom, Ann and Tom", "BABA", r"'Tom' \(S\) 3 times; expected once and twice"),
        ("Tom met Ann and Tom asked", "ABBA", "'Tom met Ann and Tom asked' does not name its"),
        ("Ann met Tom and Tom asked", "BABA", "people in the order BABA"),
        ("Tom met Tom and Ann asked", "BABA", "people in the order BABA"),
    ],
)
def test_a_text_of_another_form_is_refused(text: str, order: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrupted_text(IOIPrompt(text, "Ann", "Tom", order, "", ""), "position")


# New names


def test_each_kind_takes_as_many_new_names_as_it_has() -> None:
    assert {kind: new_names(kind) for kind in KINDS} == {
        kind: len(NEW.get(kind, ())) for kind in KINDS
    }
    assert set(SIGNALS) == set(KINDS)


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        ("random", ["Anna"], r"kind='random' takes 2 new names; got \['Anna'\]"),
        ("position", ["Anna"], "kind='position' takes 0 new names"),
        ("ABC", ["Anna", "Paul", "Anna"], "kind='ABC' takes 3 new names"),
        ("ABC", ["Anna", "Paul", "Mary"], "new name 'Mary' is in 'When Mary and John"),
        ("random", ["Anna", "When"], "new name 'When' is in"),
    ],
    ids=str,
)
def test_names_that_cannot_be_are_refused(kind: Kind, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrupted_text(ABBA, kind, names)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    "use",
    [lambda kind: corrupted_text(ABBA, kind), lambda kind: corrupted_texts([], kind, 0)],
    ids=["one", "several"],
)
def test_an_unknown_kind_is_refused_with_those_there_are(use: Any) -> None:
    with pytest.raises(
        ValueError, match=r"kind must be one of random-S2, ABC, position, token, .*; got 'order'"
    ):
        use("order")


def test_the_same_seed_gives_the_same_names() -> None:
    prompts = SOURCES["generated"][0]
    one, same, other = (corrupted_texts(prompts, "ABC", seed, NAMES) for seed in (1, 1, 2))
    assert one == same
    assert sum(a != b for a, b in zip(one, other, strict=True)) > 50


def test_new_names_are_drawn_from_all_and_equally() -> None:
    names = ("Mary", "John", "Anna", "Paul", "Lucy", "Carl")
    texts = corrupted_texts([ABBA] * 4_000, "random", 0, names)
    pairs = [tuple(named(ABBA, text)[:2]) for text in texts]
    counts = {pair: pairs.count(pair) for pair in set(pairs)}
    assert len(counts) == 12  # ordered pairs of four
    assert all(abs(n - 4_000 / 12) < 5 * (4_000 / 12) ** 0.5 for n in counts.values())


def test_by_default_new_names_are_those_of_the_other_prompts() -> None:
    prompts = SOURCES["paper"][0]
    people = {name for p in prompts for name in (p.io, p.subject)}
    seen = {
        name
        for seed in range(20)
        for p, text in zip(prompts, corrupted_texts(prompts, "ABC", seed), strict=True)
        for name in named(p, text)
    }
    assert seen == people


def test_too_few_names_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"takes 3 new names and names has 2 that are not in 'When"
    ):
        corrupted_texts([ABBA], "ABC", 0, ["Mary", "John", "Anna", "Paul"])
    with pytest.raises(ValueError, match=r"takes 2 new names and names has 0"):
        corrupted_texts([ABBA, BABA], "random", 0)
    assert corrupted_texts([ABBA], "token", 0) == [corrupted_text(ABBA, "token")]


# Tokens


@sources
@kinds
@pytest.mark.parametrize("prepend", [None, 5], ids=["alone", "led"])
def test_tokens_of_corrupted_prompts_are_padded_as_their_prompts(
    source: str, kind: Kind, prepend: int | None
) -> None:
    prompts, tokenizer, names = SOURCES[source]
    texts = corrupted_texts(prompts, kind, 0, names)
    batch, tokens = encode(prompts, tokenizer, prepend), encode_corrupted(
        prompts, texts, tokenizer, prepend
    )  # fmt: skip
    assert tokens.shape == batch.tokens.shape
    first = 0 if prepend is None else 1
    for i, text in enumerate(texts):
        end = int(batch.last[i]) + 1
        assert tokens[i, first:end].tolist() == tokenizer.encode(text).ids
        assert tokens[i, end:].equal(batch.tokens[i, end:])
        assert tokens[i, :first].tolist() == [prepend] * first
    if kind == "random-S2":
        assert tokens.equal(batch.corrupted)


@sources
@pytest.mark.parametrize("prepend", [None, 5], ids=["alone", "led"])
def test_positions_hold_the_names(source: str, prepend: int | None) -> None:
    prompts, tokenizer, _ = SOURCES[source]
    batch, where = encode(prompts, tokenizer, prepend), positions(prompts, tokenizer, prepend)
    assert list(where) == ["IO", "S1", "S1+1", "S2", "end"]
    assert where["end"].equal(batch.last)
    assert where["S1+1"].equal(where["S1"] + 1)
    swapped = encode_corrupted(prompts, corrupted_texts(prompts, "position", 0), tokenizer, prepend)
    for i, prompt in enumerate(prompts):
        tokens = [tokenizer.decode([token]).strip() for token in batch.tokens[i]]
        io, s1, s2 = (int(where[name][i]) for name in ("IO", "S1", "S2"))
        assert [tokens[at] for at in (io, s1, s2)] == [prompt.io, prompt.subject, prompt.subject]
        assert s1 < s2
        assert (io < s1) == (prompt.order == "ABBA")
        assert tokenizer.decode([int(swapped[i, io])]).strip() == prompt.subject


def test_positions_are_the_same_with_a_tokenizer_of_transformers() -> None:
    prompts, tokenizer, _ = SOURCES["stories"]
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    ours, theirs = positions(prompts, tokenizer, 0), positions(prompts, wrapped, 0)
    assert all(ours[name].equal(theirs[name]) for name in ours)
    texts = corrupted_texts(prompts, "random", 0)
    assert encode_corrupted(prompts, texts, wrapped).equal(
        encode_corrupted(prompts, texts, tokenizer)
    )


def test_a_corrupted_prompt_that_does_not_fit_is_refused() -> None:
    def refused(text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            encode_corrupted([ABBA], [text], TOKENIZER)

    refused(ABBA.text, "has the same tokens")
    refused(f"{ABBA.text} Mary", "has 15 tokens, not 14")
    refused(
        ABBA.text.replace("bag", "ball"),
        "the corrupted prompt .* of 'When Mary .* differs beyond the names",
    )
    with pytest.raises(ValueError, match="2 prompts need as many corrupted ones; got 1"):
        encode_corrupted([ABBA, BABA], [ABBA.corrupted], TOKENIZER)


def test_names_of_several_tokens_are_refused() -> None:
    prompt = replace(ABBA, text=ABBA.text.replace("Mary", "Bartholomew"), io="Bartholomew")
    with pytest.raises(ValueError, match=r"name 'Bartholomew' is \d tokens in 'When Barth"):
        positions([prompt], STORIES)


def test_names_whose_tokens_reach_beyond_them_are_refused() -> None:
    tokenizer = words_tokenizer()
    together = Regex(r"Mary and|\w+|[^\w\s]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(together, "removed", invert=True)
    tokenizer.model = models.WordLevel({**vocabulary(), "Mary and": 1})
    with pytest.raises(ValueError, match="do not begin or end where its names do"):
        positions([ABBA], tokenizer)


def test_no_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="there are no prompts to find positions in"):
        positions([], TOKENIZER)
    with pytest.raises(ValueError, match="there are no prompts"):
        encode_corrupted([], [], TOKENIZER)


def test_the_examples_in_the_documentation_run() -> None:
    failed, tried = doctest.testmod(ioi_corruptions)
    assert (failed, bool(tried)) == (0, True)
