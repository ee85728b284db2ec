"""Indirect object identification: who was given what the subject gave (Wang et al. 2022, arXiv
2211.00593).

    When Mary and John went to the shops, John gave the bag to ▁
         IO       S1                      S2                   IO

A prompt names two people, then one of them, the subject S, again as the one who gives; what comes
next is the other's name, the indirect object IO. In the corrupted prompt a third person gives,
and nothing tells the two apart.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from string import Formatter
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from resval_lens.io.tokenizers import spelled

# arXiv 2412.15113, section 4.2; * is the subject.
PAPER_SENTENCES = (
    "When John and Mary went to the shops, * gave the bag to",
    "When Tom and James went to the park, * gave the ball to",
    "When Dan and Emily went to the shops, * gave an apple to",
    "After Sam and Amy went to the park, * gave a drink to",
)
# The paper's public code (small-LM/IOI_task.py) has another first sentence.
SCRIPT_SENTENCES = (
    "After John and Mary went to the store, * gave a bottle of milk to",
    *PAPER_SENTENCES[1:],
)

# First names that are one token after a space in GPT-2's vocabulary, and no ordinary words.
NAMES = (
    "Aaron", "Adam", "Alan", "Alex", "Alice", "Amanda", "Amy", "Andrea", "Andrew", "Angela",
    "Anna", "Anthony", "Arthur", "Barbara", "Ben", "Brandon", "Brian", "Carl", "Carol", "Caroline",
    "Charles", "Chris", "Christina", "Claire", "Clara", "Dan", "Daniel", "David", "Diana",
    "Donald", "Dorothy", "Edward", "Elena", "Elizabeth", "Ellen", "Emily", "Emma", "Eric", "Erin",
    "Ethan", "Eva", "Fred", "Gary", "George", "Hannah", "Harry", "Helen", "Henry", "Ian", "Jack",
    "Jacob", "James", "Jane", "Janet", "Jason", "Jennifer", "Jessica", "Jim", "Joe", "John",
    "Jonathan", "Joseph", "Julia", "Julie", "Karen", "Kate", "Kevin", "Laura", "Linda", "Lisa",
    "Louis", "Lucy", "Luke", "Margaret", "Maria", "Martin", "Mary", "Matthew", "Megan", "Michael",
    "Michelle", "Nancy", "Nicole", "Oliver", "Patrick", "Paul", "Peter", "Rachel", "Rebecca",
    "Richard", "Robert", "Roger", "Ryan", "Sam", "Sandra", "Sarah", "Simon", "Stephen", "Steven",
    "Susan", "Thomas", "Tim", "Tom", "Victoria", "William",
)  # fmt: skip

TEMPLATES = (
    "When {first} and {second} arrived at the {place}, {subject} handed a {object} to",
    "After {first} and {second} walked to the {place}, {subject} passed a {object} to",
    "While {first} and {second} were waiting at the {place}, {subject} offered a {object} to",
    "As {first} and {second} left the {place}, {subject} threw a {object} to",
    "Before {first} and {second} went home from the {place}, {subject} returned a {object} to",
    "One day {first} and {second} met at the {place}. {subject} brought a {object} to",
    "Yesterday {first} and {second} drove to the {place}, where {subject} gave a {object} to",
    "Last week {first} and {second} cleaned the {place}. {subject} showed a {object} to",
    "Because {first} and {second} both liked the {place}, {subject} sent a {object} from there to",
    "In the morning {first} and {second} opened the {place}, and {subject} lent a {object} to",
    "Once {first} and {second} had finished their work at the {place}, {subject} sold a {object} "
    "to",
    "The neighbors {first} and {second} often visited the {place}. {subject} liked to give a "
    "{object} to",
    "It was raining when {first} and {second} reached the {place}, so {subject} carried a {object} "
    "over to",
    "On the way to the {place}, {first} and {second} stopped, and {subject} gave a {object} to",
    "Soon {first} and {second} were back at the {place}, and {subject} gave a {object} to",
    "At the {place}, {first} and {second} noticed a {object}. {subject} gave it to",
    "My cousins {first} and {second} bought a {object} near the {place}. {subject} wanted to hand "
    "it to",
    "Since {first} and {second} had lost a {object} at the {place}, {subject} gave a new one to",
)
PLACES = (
    "bakery", "cafe", "farm", "gym", "hotel", "library", "market", "museum", "park", "shop",
    "theater", "zoo",
)  # fmt: skip
# After "a": each begins with a consonant.
OBJECTS = (
    "ball", "book", "coin", "cookie", "cup", "flower", "hat", "key", "lamp", "letter", "map",
    "pencil", "photo", "ribbon", "spoon", "toy",
)  # fmt: skip
PADDING = ("<pad>", "[PAD]", "<|endoftext|>", "</s>")


@dataclass(frozen=True)
class IOIPrompt:
    """One prompt, e.g. "When Mary and John went to the shops, John gave the bag to".

    Attributes:
        text: the prompt, without a space at its end: the indirect object's name comes next.
        io: the indirect object's name, without a leading space.
        subject: of who gives.
        order: "ABBA": the indirect object is named first, the subject second; "BABA": the subject
            first.
        template: what the prompt was made from, with its slots.
        corrupted: the same prompt with a third person as the subject, so that nothing tells who the
            indirect object is. (The ABC prompts of Wang et al. replace the first two names, too.)

    Raises:
        ValueError: an order other than these, one name for both, or a space at the end.
    """

    text: str
    io: str
    subject: str
    order: str
    template: str
    corrupted: str

    def __post_init__(self) -> None:
        if self.order not in ("ABBA", "BABA"):
            raise ValueError(f"order must be 'ABBA' or 'BABA'; got {self.order!r}")
        if self.io == self.subject:
            raise ValueError(f"io and subject must be two people; both are {self.io!r}")
        for name in ("text", "corrupted"):
            if getattr(self, name) != getattr(self, name).rstrip():
                raise ValueError(f"{name} must not end with a space; got {getattr(self, name)!r}")


def paper_prompts(
    sentences: Sequence[str] = PAPER_SENTENCES, third: str = "Lucy"
) -> list[list[IOIPrompt]]:
    """For each sentence two prompts: the first-named gives (BABA), the second-named gives (ABBA).

    arXiv 2412.15113, section 4.2, averages over the two.

    Args:
        sentences: each names two people as "A and B", then has one ``*`` where the subject goes.
        third: who gives in the corrupted prompts, which the paper does not have.

    Raises:
        ValueError: a sentence of another form, or one that names ``third``.
    """
    return [_both_subjects(sentence, third) for sentence in sentences]


def _both_subjects(sentence: str, third: str) -> list[IOIPrompt]:
    before, *after = sentence.split("*")
    names = re.search(r"\b([A-Z]\w*) and ([A-Z]\w*)\b", before)
    if len(after) != 1 or names is None:
        raise ValueError(
            f"a sentence names two people as 'A and B', then has one * for the subject; got "
            f"{sentence!r}"
        )
    if re.search(rf"\b{re.escape(third)}\b", sentence):
        raise ValueError(f"third={third!r} is named in {sentence!r}; choose another name")
    first, second = names.groups()
    corrupted = sentence.replace("*", third)
    return [
        IOIPrompt(sentence.replace("*", first), second, first, "BABA", sentence, corrupted),
        IOIPrompt(sentence.replace("*", second), first, second, "ABBA", sentence, corrupted),
    ]


def generate_prompts(
    n: int,
    seed: int,
    names: Sequence[str] = NAMES,
    templates: Sequence[str] = TEMPLATES,
    places: Sequence[str] = PLACES,
    objects: Sequence[str] = OBJECTS,
) -> list[IOIPrompt]:
    """``n`` distinct prompts, BABA and ABBA in turn, in the manner of Wang et al. (2022).

    Of each order the prompts are drawn without replacement, all that can be made being equally
    likely; the third name of a corrupted prompt is any of the others. With an odd ``n`` there is
    one more BABA. The same arguments give the same prompts.

    Args:
        templates: with the slots {first} and {second}, then {subject}, each after a space, and
            {place} and {object} at will.
        objects: words that go after "a".

    Raises:
        ValueError: ``n`` below 1 or more than there are prompts, fewer than three names, a name
            given twice or that is not one word, a template of another form, or nothing to fill
            its slots with.
    """
    if len(names) < 3 or len(set(names)) < len(names):
        raise ValueError(f"names must be three or more, each given once; got {list(names)}")
    for name in names:
        if not name or name.split() != [name]:
            raise ValueError(f"a name is one word; got {name!r}")
    frames = [frame for t in templates for frame in _frames(t, places, objects)]
    others = len(names) - 1
    most = len(frames) * len(names) * others
    if n < 1 or n - n // 2 > most:
        raise ValueError(f"n must lie between 1 and {2 * most}, all there are; got {n}")
    rng = random.Random(seed)

    def draw(order: str, count: int) -> list[IOIPrompt]:
        prompts = []
        for number in rng.sample(range(most), count):
            rest, other = divmod(number, others)
            frame, who = divmod(rest, len(names))
            subject, io = names[who], names[other + (other >= who)]
            third = rng.choice([name for name in names if name not in (subject, io)])
            prompts.append(_filled(*frames[frame], io, subject, third, order))
        return prompts

    both = zip_longest(draw("BABA", n - n // 2), draw("ABBA", n // 2))
    return [prompt for pair in both for prompt in pair if prompt is not None]


def _frames(
    template: str, places: Sequence[str], objects: Sequence[str]
) -> list[tuple[str, dict[str, str]]]:
    """The template with each way to fill its place and object.

    Raises:
        ValueError: a template of another form, or no words for its slots.
    """
    slots = [slot for _, slot, _, _ in Formatter().parse(template) if slot is not None]
    people = [slot for slot in slots if slot not in ("place", "object")]
    unspaced = [slot for slot in people if f" {{{slot}}}" not in template]
    if people != ["first", "second", "subject"] or unspaced or template != template.rstrip():
        raise ValueError(
            "a template has {first}, {second} and {subject} once and in this order, each after a "
            f"space, {{place}} and {{object}} at will, and no space at its end; got {template!r}"
        )
    words = {"place": places, "object": objects}
    for slot in words:
        if slot in slots and not words[slot]:
            raise ValueError(f"{slot}s is empty; the template {template!r} needs some")
    used = [slot for slot in words if slot in slots]
    return [
        (template, dict(zip(used, filling, strict=True)))
        for filling in product(*(words[slot] for slot in used))
    ]


def _filled(
    template: str, filling: dict[str, str], io: str, subject: str, third: str, order: str
) -> IOIPrompt:
    first, second = (subject, io) if order == "BABA" else (io, subject)
    text, corrupted = (
        template.format(first=first, second=second, subject=who, **filling)
        for who in (subject, third)
    )
    return IOIPrompt(text, io, subject, order, template, corrupted)


class IOIBatch(NamedTuple):
    """Prompts as tokens, padded on the right to the longest.

    ``last`` is the position of a prompt's last own token, whose logits say who comes next; ``io``
    and ``subject`` are the names' tokens. Causal attention does not see the padding from there.
    ``corrupted`` holds the corrupted prompts, of the same lengths.
    """

    tokens: Int[Tensor, "prompt pos"]
    corrupted: Int[Tensor, "prompt pos"]
    last: Int[Tensor, " prompt"]
    io: Int[Tensor, " prompt"]
    subject: Int[Tensor, " prompt"]


def encode(prompts: Sequence[IOIPrompt], tokenizer: Any, prepend: int | None = None) -> IOIBatch:
    """The prompts' tokens, those of their corrupted prompts, and of the names that may come next.

    Args:
        tokenizer: a ``tokenizers.Tokenizer`` or one of transformers. Padding is its padding or
            end-of-text token, or 0.
        prepend: a token to put before every prompt; nothing else is added.

    Raises:
        ValueError: no prompts; a name that is not one token where it would follow, or that the
            tokenizer does not know; a corrupted prompt of another length or with the same tokens.
    """
    if not prompts:
        raise ValueError("there are no prompts to encode")
    before = [] if prepend is None else [prepend]
    rows, others, io, subject = [], [], [], []
    for prompt in prompts:
        ids, other = (token_ids(tokenizer, text) for text in (prompt.text, prompt.corrupted))
        if len(ids) != len(other) or ids == other:
            wrong = "the same tokens" if ids == other else f"{len(other)} tokens, not {len(ids)}"
            raise ValueError(f"the corrupted prompt of {prompt.text!r} has {wrong}")
        io.append(_name_id(tokenizer, prompt.text, ids, prompt.io))
        subject.append(_name_id(tokenizer, prompt.text, ids, prompt.subject))
        rows.append(before + ids)
        others.append(before + other)
    longest = max(map(len, rows))
    padding = padding_id(tokenizer)

    def padded(rows: list[list[int]]) -> Tensor:
        return torch.tensor([row + [padding] * (longest - len(row)) for row in rows])

    return IOIBatch(
        padded(rows),
        padded(others),
        torch.tensor([len(row) - 1 for row in rows]),
        torch.tensor(io),
        torch.tensor(subject),
    )


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of ``text`` alone: no special tokens, no padding.

    Raises:
        ValueError: a tokenizer that truncates the text.
    """
    encoded = tokenizer.encode(text, add_special_tokens=False)
    if isinstance(encoded, list):
        return encoded
    if encoded.overflowing:
        raise ValueError(f"this tokenizer truncates {text!r}; call its no_truncation() first")
    marked = zip(encoded.ids, encoded.attention_mask, strict=True)
    return [token for token, is_own in marked if is_own]


def padding_id(tokenizer: Any) -> int:
    """The tokenizer's padding token, else its end-of-text token, else 0."""
    if hasattr(tokenizer, "token_to_id"):
        own = (tokenizer.padding or {}).get("pad_id")
        found = [own, *map(tokenizer.token_to_id, PADDING)]
    else:
        found = [tokenizer.pad_token_id, tokenizer.eos_token_id]
    return next((token for token in found if token is not None), 0)


def _name_id(tokenizer: Any, text: str, ids: list[int], name: str) -> int:
    """The token of ``name`` right after ``text``, whose tokens are ``ids``."""
    whole = token_ids(tokenizer, f"{text} {name}")
    if whole[: len(ids)] != ids:
        raise ValueError(f"the tokens of {text!r} change when {name!r} follows")
    if len(whole) != len(ids) + 1:
        count = len(whole) - len(ids)
        parts = spelled(tokenizer, whole[len(ids) :])
        raise ValueError(
            f"name {name!r} is {count} tokens with this tokenizer: {parts}; expected one"
        )
    if whole[-1] == _unknown_id(tokenizer):
        raise ValueError(f"name {name!r} is unknown to this tokenizer")
    return whole[-1]


def sayable(tokenizer: Any, names: Sequence[str]) -> list[str]:
    """Those of ``names`` that are one token after a space, known to the tokenizer."""
    ids = token_ids(tokenizer, "to")
    found = []
    for name in names:
        try:
            _name_id(tokenizer, "to", ids, name)
        except ValueError:
            continue
        found.append(name)
    return found


def sayable_by_all(tokenizers: Sequence[Any], names: Sequence[str]) -> list[str]:
    """Those of ``names`` that are :func:`sayable` with every tokenizer."""
    for tokenizer in tokenizers:
        names = sayable(tokenizer, names)
    return list(names)


def _unknown_id(tokenizer: Any) -> int | None:
    if hasattr(tokenizer, "token_to_id"):
        unknown = getattr(tokenizer.model, "unk_token", None)
        return None if unknown is None else tokenizer.token_to_id(unknown)
    return tokenizer.unk_token_id
