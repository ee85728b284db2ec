"""Prompts and answers as text, put into a model's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from resval_lens.transformer import ResValTransformer

Texts = str | Sequence[str]
Answers = str | Sequence[str | Sequence[str]]


def encoded_pairs(
    model: ResValTransformer, clean: Texts, corrupted: Texts, prepend_bos: bool | None = None
) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt pos"], Bool[Tensor, "prompt pos"]]:
    """Tokens of prompts and of their corrupted prompts, padded on the right, and the mask of both.

    Raises:
        ValueError: a model without a tokenizer, another number of corrupted prompts, or one of
            another length than its prompt.
    """
    rows = [_token_rows(model, texts, prepend_bos) for texts in (clean, corrupted)]
    if len(rows[0]) != len(rows[1]):
        raise ValueError(f"{len(rows[0])} clean prompts and {len(rows[1])} corrupted prompts")
    for number, (one, other) in enumerate(zip(*rows, strict=True)):
        if len(one) != len(other):
            told = " and ".join(" ".join(map(repr, _pieces(model, x))) for x in (one, other))
            raise ValueError(
                f"prompt {number} has {len(one)} tokens and its corrupted prompt {len(other)}; "
                f"they must be alike: {told}"
            )
    lengths = torch.tensor([len(row) for row in rows[0]])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    padded = torch.zeros(2, *mask.shape, dtype=torch.long)
    for tokens, own in zip(padded, rows, strict=True):
        tokens[mask] = torch.tensor([token for row in own for token in row])
    return padded[0], padded[1], mask


def answer_tokens(
    model: ResValTransformer, prompts: Texts, answers: Answers
) -> Int[Tensor, "prompt answer"]:
    """The token of each answer, as it would follow its prompt.

    Args:
        answers: for each prompt one or several, all as many; ``" Mary"``, with its space.

    Raises:
        ValueError: an answer that is not one token there, by its pieces.
    """
    several = _listed(prompts, "clean")
    given: list[Any] = [answers] if isinstance(answers, str) else list(answers)
    if isinstance(prompts, str) and all(isinstance(each, str) for each in given):
        given = [given]  # the answers of the one prompt
    rows = [[each] if isinstance(each, str) else list(each) for each in given]
    if len(rows) != len(several) or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise ValueError(
            f"answers must be as many for each of the {len(several)} prompts, like "
            f"[(' Mary', ' John'), ...]; got {answers!r}"
        )
    return torch.tensor(
        [
            [_answer(model, prompt, answer) for answer in row]
            for prompt, row in zip(several, rows, strict=True)
        ]
    )


def _answer(model: ResValTransformer, prompt: str, answer: str) -> int:
    tokenizer: Any = model.tokenizer
    before, whole = (_ids(model, text, False) for text in (prompt, prompt + answer))
    if not answer or whole[: len(before)] != before:
        raise ValueError(f"the last tokens of {prompt!r} change when {answer!r} follows")
    own = whole[len(before) :]
    if len(own) != 1:
        pieces = ", ".join(map(repr, _pieces(model, own)))
        raise ValueError(
            f"{answer!r} is {len(own)} tokens after {prompt!r}: {pieces}; an answer must be one"
        )
    if own[0] == tokenizer.unk_token_id:
        raise ValueError(f"{answer!r} is unknown to this tokenizer")
    return own[0]


def _token_rows(
    model: ResValTransformer, texts: Texts, prepend_bos: bool | None
) -> list[list[int]]:
    return [_ids(model, text, prepend_bos) for text in _listed(texts, "prompts")]


def _listed(texts: Texts, name: str) -> list[str]:
    several = [texts] if isinstance(texts, str) else list(texts)
    if not several or not all(isinstance(text, str) for text in several):
        raise ValueError(f"{name} must be text, one or several; got {texts!r}")
    return several


def _ids(model: ResValTransformer, text: str, prepend_bos: bool | None) -> list[int]:
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer; give tokens: PromptPairs(clean, ...)")
    if not text:
        raise ValueError("a prompt is empty")
    # Each text alone, so that nothing is padded; the model's own habit of what leads a prompt.
    habit = model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
    return model.to_tokens(text, prepend_bos=habit, truncate=False)[0].tolist()


def _pieces(model: ResValTransformer, tokens: Sequence[int]) -> list[str]:
    tokenizer: Any = model.tokenizer
    return [tokenizer.decode([token]) for token in tokens]
