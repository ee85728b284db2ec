"""Text prompts put into a model's tokens: pairs, labels, named positions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from resval_lens.analyses.tasks.problem import Problem
from resval_lens.analyses.tasks.task import Asked, PromptWarning, Task
from resval_lens.hooks.prompts import PromptPairs
from resval_lens.io.files import first_line
from resval_lens.io.tokenizers import spelled
from resval_lens.tasks.ioi import padding_id, token_ids
from resval_lens.tasks.leading import leading_token

if TYPE_CHECKING:
    from resval_lens.analyses.tasks.text import TextPrompt
    from resval_lens.load import Loaded


def posed(
    task: Task,
    loaded: Loaded,
    prompts: Sequence[TextPrompt],
    kind: str,
    seed: int,
    asked: Asked,
    left_out: Sequence[str] = (),
) -> Problem:
    """A model on prompts that are text. Prompts whose places are at the same positions are a group.

    A prompt's labels are its answer's token and those of what it is held against; where there are
    fewer of these than of another prompt's, its last one again (which no margin sees).

    Raises:
        ValueError: a corrupted prompt of another length, an answer of several tokens (unless
            ``asked.several_tokens``), places that no token ends with, prompts that do not fit the
            context, by where they are from.

    Warns:
        PromptWarning: words as answers without their space.
    """
    model, tokenizer = loaded.model, loaded.model.tokenizer
    lead = None if asked.chat else leading_token(model, asked.prepend)
    if asked.chat:
        prompts = [_in_chat(loaded, each) for each in prompts]
    else:
        _check_spaces(prompts)
    before = [] if lead is None else [lead]
    rows: list[list[int]] = []
    others: list[list[int]] = []
    labels: list[list[int]] = []
    for each in prompts:
        own, other = _alike(tokenizer, each)
        shared, tokens = _answers(tokenizer, each, own, asked)
        rows.append(before + own + shared)
        others.append(before + other + shared)
        labels.append(tokens)
        if len(rows[-1]) > model.cfg.n_ctx:
            raise ValueError(
                f"{_said(each)}{loaded.name} has a context of {model.cfg.n_ctx} tokens; this "
                f"prompt needs {len(rows[-1])}"
            )
    if len({len(row) == 1 for row in labels}) > 1:
        bare = next(each for each in prompts if not each.wrong)
        raise ValueError(f"{_said(bare)}wrong is missing; other prompts have it")
    widest, longest = max(map(len, labels)), max(map(len, rows))
    padding = padding_id(tokenizer)
    where = _positions(task.positions, tokenizer, prompts, rows, len(before))
    padded = [
        torch.tensor([row + [padding] * (longest - len(row)) for row in each])
        for each in (rows, others)
    ]
    lengths = torch.tensor([len(row) for row in rows])
    pairs = PromptPairs(
        padded[0],
        padded[1],
        next(iter(task.measures(model).values())),
        torch.tensor([row + row[-1:] * (widest - len(row)) for row in labels]),
        lengths - 1,
        f"{task.title}, {kind}",
        torch.arange(longest) < lengths[:, None],
        _groups(list(where.values())),
    )
    return Problem(
        loaded.name, model, task, kind, seed, pairs.to(model.cfg.device), where, tuple(prompts),
        lead, tuple(left_out),
    )  # fmt: skip


def tokenizer_of(loaded: Loaded) -> Any:
    """Raises ValueError for a model without a tokenizer."""
    if loaded.model.tokenizer is None:
        raise ValueError(f"{loaded.name}: this model has no tokenizer to tokenise a prompt")
    return loaded.model.tokenizer


def _said(prompt: TextPrompt) -> str:
    return f"{prompt.source}: " if prompt.source else ""


def _in_chat(loaded: Loaded, prompt: TextPrompt) -> TextPrompt:
    """The prompt as a user's message; the answer begins the reply, without a space.

    Raises:
        ValueError: the tokenizer has no chat template, or one that fails or changes the message.
    """
    tokenizer: Any = loaded.model.tokenizer
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(f"{loaded.name}: its tokenizer has no chat template")
    try:
        whole, corrupted = (
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
            for text in (prompt.text, prompt.corrupted)
        )
    except Exception as error:  # a template is a program of the model's authors
        raise ValueError(f"{loaded.name}: its chat template fails ({first_line(error)})") from None
    start = whole.find(prompt.text)
    if start < 0:
        raise ValueError(f"{_said(prompt)}the chat template changes {prompt.text!r}")
    return replace(
        prompt,
        text=whole,
        corrupted=corrupted,
        answer=prompt.answer.lstrip(),
        wrong=tuple(each.lstrip() for each in prompt.wrong),
        places={name: (a + start, b + start) for name, (a, b) in prompt.places.items()},
    )


def _check_spaces(prompts: Sequence[TextPrompt]) -> None:
    """Warns of answers that go on with the prompt's last word, where words have spaces."""
    joined = [
        each
        for each in prompts
        if each.answer[:1].isalpha()
        and (each.text[-1:].isalnum() or each.text[-1:] in ".,;:!?")
        and " " in each.text
    ]
    if joined:
        answer, last = joined[0].answer, joined[0].text.split()[-1]
        warnings.warn(
            f"{_said(joined[0])}answer {answer!r} follows {last!r} without a space "
            f"({len(joined)} of {len(prompts)} prompts); if it is a word of its own, write "
            f"{' ' + answer!r}",
            PromptWarning,
            stacklevel=3,
        )


def _alike(tokenizer: Any, prompt: TextPrompt) -> tuple[list[int], list[int]]:
    """The tokens of both texts.

    Raises:
        ValueError: another number of them, with the words that make the difference.
    """
    own, other = (token_ids(tokenizer, text) for text in (prompt.text, prompt.corrupted))
    if not own:
        raise ValueError(f"{_said(prompt)}clean is empty")
    if len(own) == len(other):
        return own, other
    words = prompt.text.split(), prompt.corrupted.split()
    longer = []
    for tag, *spans in SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        if tag != "equal":
            changed = (*words[0][spans[0] : spans[1]], *words[1][spans[2] : spans[3]])
            longer += [word for word in changed if len(token_ids(tokenizer, f" {word}")) > 1]
    told = "".join(
        f"; {word!r} is {len(tokens)} tokens ({spelled(tokenizer, tokens)})"
        for word in longer[:3]
        for tokens in [token_ids(tokenizer, f" {word}")]
    )
    raise ValueError(
        f"{_said(prompt)}clean has {len(own)} tokens, corrupted {len(other)}; they must be as "
        f"long{told}"
    )


def _answers(
    tokenizer: Any, prompt: TextPrompt, own: list[int], asked: Asked
) -> tuple[list[int], list[int]]:
    """Tokens that all answers share at their beginning, and the one of each that comes next.

    Raises:
        ValueError: answers of several tokens, unless ``asked.several_tokens``; the same token for
            two.
    """
    given = (prompt.answer, *prompt.wrong)
    found = []
    for name, answer in zip(("answer", *["wrong"] * len(prompt.wrong)), given, strict=True):
        whole = token_ids(tokenizer, prompt.text + answer)
        if not answer or whole[: len(own)] != own or len(whole) == len(own):
            why = "answers start with their space"
            if asked.chat:
                why = "the chat template must end where a token does, and not with a space"
            raise ValueError(
                f"{_said(prompt)}the last tokens of {prompt.text[-40:]!r} change when {name} "
                f"{answer!r} follows; {why}"
            )
        tokens = whole[len(own) :]
        if len(tokens) > 1 and not asked.several_tokens:
            raise ValueError(
                f"{_said(prompt)}{name} {answer!r} is {len(tokens)} tokens "
                f"({spelled(tokenizer, tokens)}); an answer is one, unless --several-tokens "
                "(several_tokens=True) takes the first of them that differs"
            )
        found.append(tokens)
    shared = 0
    while (
        len(found) > 1
        and all(len(t) > shared for t in found)
        and (len({tokens[shared] for tokens in found}) == 1)
    ):
        shared += 1
    if any(len(tokens) == shared for tokens in found):
        why = "no answer may be the beginning of another"
        if len(set(given)) < len(given):
            why = "the same answer stands twice among answer and wrong"
        raise ValueError(f"{_said(prompt)}{why}: {', '.join(map(repr, given))}")
    nexts = [tokens[shared] for tokens in found]
    if nexts[0] in nexts[1:]:
        raise ValueError(
            f"{_said(prompt)}answer {prompt.answer!r} and a wrong one go on with the same token, "
            f"{spelled(tokenizer, nexts[:1])}"
        )
    return found[0][:shared], nexts


def _positions(
    names: Sequence[str],
    tokenizer: Any,
    prompts: Sequence[TextPrompt],
    rows: Sequence[Sequence[int]],
    before: int,
) -> dict[str, Int[Tensor, " prompt"]]:
    """The last token of each place that has a name; ``end`` is the last of the prompt."""
    where: dict[str, list[int]] = {name: [] for name in names}
    for prompt, row in zip(prompts, rows, strict=True):
        for name in names:
            if name == "end":
                where[name].append(len(row) - 1)
                continue
            if name not in prompt.places:
                raise ValueError(f"{_said(prompt)}position {name!r} is missing; others have it")
            start, end = prompt.places[name]
            if not 0 <= start < end <= len(prompt.text):
                raise ValueError(
                    f"{_said(prompt)}position {name!r} is ({start}, {end}); expected characters of "
                    f"the {len(prompt.text)} of clean"
                )
            last = _last_token(tokenizer, prompt.text, start, end)
            if last is None:
                raise ValueError(
                    f"{_said(prompt)}position {name!r}, {prompt.text[start:end]!r}, begins or ends "
                    f"within a token of {prompt.text!r}"
                )
            where[name].append(before + last)
    return {name: torch.tensor(each) for name, each in where.items()}


def _last_token(tokenizer: Any, text: str, start: int, end: int) -> int | None:
    """The token that characters ``start`` to ``end`` end with; None if they cut one in two.

    The space before a word is part of its token in some tokenizers; characters may leave it out.
    """
    if not tokenizer.is_fast:  # it does not say where its tokens are
        through = token_ids(tokenizer, text[:end])
        return len(through) - 1 if token_ids(tokenizer, text)[: len(through)] == through else None
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    begins = {_unspaced(text, *span) for span in spans}
    last = sum(begin < end for begin, _ in spans) - 1
    whole = last >= 0 and spans[last][1] == end and _unspaced(text, start, end) in begins
    return last if whole else None


def _unspaced(text: str, start: int, end: int) -> int:
    """Where characters ``start`` to ``end`` begin, after the space in front."""
    return end - len(text[start:end].lstrip())


def _groups(where: Sequence[Int[Tensor, " prompt"]]) -> Int[Tensor, " prompt"]:
    """One number for prompts whose places are at the same positions, in any set of prompts."""
    rows = torch.stack(list(where), 1).tolist()
    digests = (blake2b(repr(row).encode(), digest_size=7).digest() for row in rows)
    return torch.tensor([int.from_bytes(digest) for digest in digests])
