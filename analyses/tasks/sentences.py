"""Tasks that circuits are compared on in the literature: one sentence, one word to come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from resval_lens.analyses.tasks import words as lists
from resval_lens.analyses.tasks.text import TextPrompt, TextTask, Words, other_than, place

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from resval_lens.hooks.prompts import Metric
    from resval_lens.transformer import ResValTransformer

CENTURIES = range(11, 18)
"""Of the years in greater-than."""


class Pronouns(TextTask):
    """He or she, after a first name: Mathwin et al. 2023, "Identifying a preliminary circuit for
    predicting gendered pronouns in GPT-2 small".

        So Mary is such a good friend, isn't → she

    Corrupted prompts have a name of the other gender.
    """

    name = "pronoun"
    title = "gendered pronouns"
    corruptions = ("other-gender",)
    positions = ("name", "is", "end")

    def prompt(self, clean: Random, corrupt: Random, kind: str, words: Words) -> TextPrompt:
        he, she = words.fitting(lists.MALE), words.fitting(lists.FEMALE)
        is_she = clean.random() < 0.5
        name = clean.choice(she if is_she else he)
        other = corrupt.choice(he if is_she else she)
        role = clean.choice(words.fitting(lists.ROLES))
        quality = clean.choice(words.fitting(lists.QUALITIES))
        text, corrupted = (f"So {who} is such a {quality} {role}, isn't" for who in (name, other))
        right, wrong = (" she", " he") if is_she else (" he", " she")
        places = {"name": place(text, name), "is": place(text, " is")}
        return TextPrompt(text, corrupted, right, (wrong,), places)


class Agreement(TextTask):
    """The verb agrees with its subject, not with the noun beside it: Linzen et al. 2016 (arXiv
    1611.01368); for circuits Finlayson et al. 2021 (arXiv 2106.06087).

        The keys near the cabinet → are

    Corrupted prompts have the subject in the other number.
    """

    name = "agreement"
    title = "subject-verb agreement"
    corruptions = ("number",)
    positions = ("subject", "attractor", "end")

    def prompt(self, clean: Random, corrupt: Random, kind: str, words: Words) -> TextPrompt:
        fits = set(words.fitting(word for pair in lists.NUMBERS.items() for word in pair))
        nouns = [pair for pair in lists.NUMBERS.items() if fits.issuperset(pair)]
        verbs = list(lists.VERBS.items())
        subject, attractor = clean.sample(nouns, 2)
        beside, verb = clean.choice(lists.BESIDE), clean.choice(verbs)
        is_plural, number = clean.randrange(2), clean.randrange(2)
        text, corrupted = (
            f"The {subject[n]} {beside} the {attractor[number]}" for n in (is_plural, 1 - is_plural)
        )
        places = {
            "subject": place(text, subject[is_plural]),
            "attractor": (len(text) - len(attractor[number]), len(text)),
        }
        right, wrong = f" {verb[is_plural]}", f" {verb[1 - is_plural]}"
        return TextPrompt(text, corrupted, right, (wrong,), places)


class Capitals(TextTask):
    """Recalling the capital of a country: Meng et al. 2022 (arXiv 2202.05262) on recall of facts.

        The capital of France is the city of → Paris

    Corrupted prompts name another country, whose capital is the wrong answer.
    """

    name = "capitals"
    title = "capitals of countries"
    corruptions = ("other-country",)
    positions = ("country", "end")

    def prompt(self, clean: Random, corrupt: Random, kind: str, words: Words) -> TextPrompt:
        both = set(words.fitting(word for pair in lists.CAPITALS.items() for word in pair))
        known = [pair for pair in lists.CAPITALS.items() if both.issuperset(pair)]
        (country, capital), (other, wrong) = clean.sample(known, 2)
        frame = clean.choice(
            ("The capital of {} is the city of", "In {} the capital is the city of",
             "The government of {} sits in the city of")
        )  # fmt: skip
        text, corrupted = frame.format(country), frame.format(other)
        places = {"country": place(text, country)}
        return TextPrompt(text, corrupted, f" {capital}", (f" {wrong}",), places)


class Docstring(TextTask):
    """Naming the third argument in a docstring: Heimersheim and Janiak 2023, "A circuit for Python
    docstrings in a 4-layer attention-only transformer".

    Corrupted prompts have other names: of the answer in the definition (``random-answer``), of the
    first two arguments in the docstring (``random-doc``), or both (``random-both``).
    """

    name = "docstring"
    title = "arguments in a docstring"
    corruptions = ("random-answer", "random-doc", "random-both")
    positions = ("A def", "B def", "C def", "A doc", "B doc", "end")

    def prompt(self, clean: Random, corrupt: Random, kind: str, words: Words) -> TextPrompt:
        arguments = words.fitting(lists.ARGUMENTS, 12)
        told = words.fitting(lists.DESCRIPTIONS, 8)
        function = clean.choice(words.fitting(lists.FUNCTIONS))
        names = clean.sample(arguments, 6)
        says = clean.sample(told, 7)
        new = corrupt.sample([name for name in arguments if name not in names], 3)
        answer = new[0] if kind != "random-doc" else names[2]
        doc = new[1:] if kind != "random-answer" else names[:2]
        text = _docstring(function, names, names[:2], says)
        corrupted = _docstring(function, [*names[:2], answer, *names[3:]], doc, says)
        places = {}
        for letter, name in zip("ABC", names[:3], strict=True):
            start = text.index(f" {name},") + 1  # up to the comma: " mode" begins " model", too
            places[f"{letter} def"] = (start, start + len(name))
        for letter, name in zip("AB", names[:2], strict=True):
            start = text.index(f":param {name}:") + len(":param ")
            places[f"{letter} doc"] = (start, start + len(name))
        wrong = tuple(f" {name}" for name in (*names[:2], *names[3:]))
        return TextPrompt(text, corrupted, f" {names[2]}", wrong, places)


def _docstring(function: str, names: list[str], doc: list[str], says: list[str]) -> str:
    return (
        f"def {function}(self, {', '.join(names)}):\n"
        f'    """{says[0]} {says[1]} {says[2]}\n\n'
        f"    :param {doc[0]}: {says[3]} {says[4]}\n"
        f"    :param {doc[1]}: {says[5]} {says[6]}\n"
        f"    :param"
    )


class RepeatedWords(TextTask):
    """Going on with what came before, in words: Olsson et al. 2022 (arXiv 2209.11895) on induction.

        garden stone river … lamp garden stone → river

    In corrupted prompts the answer's word was another where it first stood (``other-answer``, the
    wrong answer), or the word before it (``no-match``).
    """

    name = "repeated-words"
    title = "induction on words"
    corruptions = ("other-answer", "no-match")
    positions = ("before", "answer", "end")
    length = 10

    def prompt(self, clean: Random, corrupt: Random, kind: str, words: Words) -> TextPrompt:
        nouns = words.fitting(lists.NOUNS, self.length + 3)
        drawn = clean.sample(nouns, self.length + 1)
        first, wrong = drawn[: self.length], drawn[self.length]
        at = clean.randrange(2, self.length - 1)
        changed = list(first)
        if kind == "other-answer":
            changed[at] = wrong
        else:
            changed[at - 1] = other_than(corrupt, nouns, *drawn)
        lead = "Words: "
        text, corrupted = (lead + " ".join([*half, *first[:at]]) for half in (first, changed))
        starts = [len(lead) + len(" ".join(first[:i])) + bool(i) for i in (at - 1, at)]
        places = {
            name: (start, start + len(first[i]))
            for name, start, i in zip(("before", "answer"), starts, (at - 1, at), strict=True)
        }
        return TextPrompt(text, corrupted, f" {first[at]}", (f" {wrong}",), places)


class GreaterThan(TextTask):
    """A later year: Hanna et al. 2023 (arXiv 2305.00586).

        The war lasted from the year 1732 to the year 17 → 33, 34, … 99

    The metric is P(later years) − P(the others), over two digits; where a tokenizer has digits one
    by one, over the tens, the same ones on neither side. Labels are the first year (or ten) that
    is right and the last that is wrong. Corrupted prompts start in year 01, after which all are
    right. Years are drawn among those that every tokenizer splits after the century, with the year
    that comes next: in GPT-2 " 1700" is one token.
    """

    name = "greater-than"
    title = "greater than"
    corruptions = ("year-01",)
    positions = ("year", "end")
    metrics: Mapping[str, str] = {
        "probability-difference": "P(later) − P(earlier)",
        **TextTask.metrics,
    }

    def measures(self, model: ResValTransformer) -> Mapping[str, Metric]:
        later = Later(years(model.tokenizer))
        return {
            "P(later) − P(earlier)": later,
            "accuracy": lambda logits, labels: later(logits, labels) > 0,
        }

    def metric_functions(self, model: ResValTransformer) -> Mapping[str, Metric]:
        first = self.metrics["probability-difference"]
        return {first: Later(years(model.tokenizer)), **super().metric_functions(model)}

    def prompt(self, clean: Random, corrupt: Random, kind: str, words: Words) -> TextPrompt:
        tens_alone = len(words.each(years)[0]) == 10
        starts = sorted(frozenset.intersection(*words.each(_starts)))
        if not starts:
            raise ValueError("there is no year that is a century and its digits, as is the next")
        event = clean.choice(words.fitting(lists.EVENTS))
        century, year = clean.choice(starts)
        text, corrupted = (
            f"The {event} lasted from the year {century}{start:02} to the year {century}"
            for start in (year, 1)
        )
        places = {"year": place(text, f"{century}{year:02}")}
        if tens_alone:
            right, wrong = str(year // 10 + 1), str(year // 10 - 1)
        else:
            right, wrong = f"{year + 1:02}", f"{year:02}"
        return TextPrompt(text, corrupted, right, (wrong,), places)


def years(tokenizer: Any) -> tuple[int, ...]:
    """The tokens 00 to 99 after a century; 0 to 9 where digits are tokens of their own.

    Each is taken after the first century that it stays apart from, those of the prompts first.

    Raises:
        ValueError: years are split otherwise.
    """
    from resval_lens.io.tokenizers import spelled
    from resval_lens.tasks.ioi import token_ids

    centuries = (*CENTURIES, *(each for each in range(10, 100) if each not in CENTURIES))
    for width in (2, 1):
        found: list[int] = []
        for digits in range(10**width):
            apart = (_after(tokenizer, century, f"{digits:0{width}}") for century in centuries)
            token = next((each for each in apart if each is not None), None)
            if token is None or token in found:
                break
            found.append(token)
        else:
            return tuple(found)
    split = spelled(tokenizer, token_ids(tokenizer, " 1732"))
    raise ValueError(f"years are neither centuries and two digits nor digits here: {split}")


def _after(tokenizer: Any, century: int, digits: str) -> int | None:
    """The token of digits after a century; None if they are no token that is added to it."""
    from resval_lens.tasks.ioi import token_ids

    before, whole = (token_ids(tokenizer, f"year {century}{more}") for more in ("", digits))
    return whole[-1] if whole[:-1] == before else None


def _starts(tokenizer: Any) -> frozenset[tuple[int, int]]:
    """Centuries and years to start in, whose labels and corrupted year are tokens of ``years``."""
    tokens = years(tokenizer)
    tens_alone = len(tokens) == 10
    width, these = (1, range(10, 90)) if tens_alone else (2, range(2, 99))
    found = set()
    for century in CENTURIES:
        apart = [_after(tokenizer, century, f"{n:0{width}}") == t for n, t in enumerate(tokens)]
        for year in these:
            needed = (year // 10 - 1, year // 10 + 1) if tens_alone else (1, year, year + 1)
            if all(apart[n] for n in needed):
                found.add((century, year))
    return frozenset(found)


@dataclass(frozen=True)
class Later:
    """P(right) − P(wrong) over tokens in order: from the first label on, up to the last.

    Attributes:
        tokens: of years, or tens, from the earliest.
    """

    tokens: tuple[int, ...]

    def __call__(
        self, logits: Float[Tensor, "prompt d_vocab"], labels: Int[Tensor, "prompt 2"]
    ) -> Float[Tensor, " prompt"]:
        import torch

        order = torch.arange(len(self.tokens), device=logits.device)
        known = torch.tensor(self.tokens, device=logits.device)
        first, last = ((known == labels[:, i, None]).int().argmax(1, True) for i in (0, 1))
        chances = logits.softmax(-1)[:, known]
        right, wrong = order >= first, order <= last  # [prompt, year]
        return (chances * right).sum(1) - (chances * wrong).sum(1)
