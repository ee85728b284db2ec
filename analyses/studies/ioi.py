"""Indirect object identification: what a model says.

At the last position of a prompt, with IO the indirect object's name and S the subject's:

    logit difference = logit(IO) − logit(S)
    P(name) = exp(logit(name)) / Σ_v exp(logit(v)), v over the whole vocabulary
    log P(IO) in nats; its mean over prompts is not the logarithm of the mean P(IO)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from resval_lens.hooks.answers import answer_logits
from resval_lens.hooks.prompts import wide
from resval_lens.host import HookedTransformer
from resval_lens.runtime import evaluating
from resval_lens.tasks.ioi import IOIBatch
from resval_lens.transformer import ResValTransformer


class PromptScores(NamedTuple):
    """What a model says to each prompt.

    ``top1``: the likeliest token of all is IO. ``corrupted_logit_difference``: the corrupted
    prompt's, of the same two names.
    """

    logit_difference: Float[Tensor, " prompt"]
    p_io: Float[Tensor, " prompt"]
    p_subject: Float[Tensor, " prompt"]
    top1: Bool[Tensor, " prompt"]
    corrupted_logit_difference: Float[Tensor, " prompt"]
    log_p_io: Float[Tensor, " prompt"]


@dataclass(frozen=True)
class IOIScores:
    """The scores of a set of prompts, each the mean over them.

    Attributes:
        logit_difference, corrupted_logit_difference: in logits (nats).
        p_io, p_subject: probabilities.
        accuracy: the share of prompts with P(IO) > P(S).
        accuracy_top1: the share whose likeliest token is IO.
        log_p_io: of the probability of IO, in nats; NaN in records of runs that did not measure it.
    """

    logit_difference: float
    p_io: float
    p_subject: float
    accuracy: float
    accuracy_top1: float
    corrupted_logit_difference: float
    log_p_io: float = math.nan


@torch.no_grad()
def ioi_per_prompt(model: HookedTransformer, batch: IOIBatch, chunk: int = 64) -> PromptScores:
    """:class:`PromptScores`, on the CPU, through the hooked model (so that edits count).

    The model is run in evaluation mode, without dropout, and left in the mode it was in.

    Args:
        chunk: prompts run at once.

    Raises:
        ValueError: ``chunk`` below 1; a model whose attention is not causal, that has fewer
            positions than the batch, or a smaller vocabulary.
    """
    _check(model, batch, chunk)
    parts = []
    for part in zip(*(tensor.split(chunk) for tensor in batch), strict=True):
        tokens, corrupted, last, io, subject = part
        with evaluating(model):
            logits = _last_logits(model, tokens, last)
            other = _last_logits(model, corrupted, last)
        log_p = logits.log_softmax(-1)
        rows = torch.arange(len(last))
        parts.append(
            (
                logits[rows, io] - logits[rows, subject],
                log_p[rows, io].exp(),
                log_p[rows, subject].exp(),
                logits.argmax(-1) == io,
                other[rows, io] - other[rows, subject],
                log_p[rows, io],
            )
        )
    return PromptScores(*(torch.cat(score) for score in zip(*parts, strict=True)))


def _last_logits(model: HookedTransformer, tokens: Tensor, last: Tensor) -> Tensor:
    """Logits of each row's last own token, [prompt, vocabulary]."""
    if isinstance(model, ResValTransformer):
        return wide(answer_logits(model, tokens, last).cpu())
    # A tokenizer that pads on the left would have TransformerLens mask what leads a row.
    logits = model(tokens, padding_side="right")
    own = logits[torch.arange(len(last), device=logits.device), last.to(logits.device)].cpu()
    return wide(own)


def _check(model: HookedTransformer, batch: IOIBatch, chunk: int) -> None:
    cfg, length = model.cfg, batch.tokens.shape[1]
    if chunk < 1:
        raise ValueError(f"chunk must be 1 or more; got {chunk}")
    if cfg.attention_dir != "causal":
        raise ValueError(
            f"padded prompts need causal attention; this model's is {cfg.attention_dir!r}"
        )
    if length > cfg.n_ctx:
        raise ValueError(f"prompts of {length} tokens do not fit n_ctx={cfg.n_ctx}")
    largest = max(int(tensor.max()) for tensor in (batch.tokens, batch.corrupted, batch.io,
                                                   batch.subject))  # fmt: skip
    if largest >= cfg.d_vocab:
        raise ValueError(f"token {largest} is outside this model's vocabulary of {cfg.d_vocab}")


def means(scores: PromptScores) -> IOIScores:
    """:class:`IOIScores` of a set of prompts."""
    return IOIScores(
        logit_difference=float(scores.logit_difference.mean()),
        p_io=float(scores.p_io.mean()),
        p_subject=float(scores.p_subject.mean()),
        accuracy=float((scores.logit_difference > 0).double().mean()),
        accuracy_top1=float(scores.top1.double().mean()),
        corrupted_logit_difference=float(scores.corrupted_logit_difference.mean()),
        log_p_io=float(scores.log_p_io.mean()),
    )


def ioi_scores(model: HookedTransformer, batch: IOIBatch, chunk: int = 64) -> IOIScores:
    """:func:`means` of :func:`ioi_per_prompt`.

    GPT-2 small: logit difference 3.56, P(IO) .49, accuracy .993 on the prompts of Wang et al.
    (arXiv 2211.00593).
    """
    return means(ioi_per_prompt(model, batch, chunk))


def check_one_tokenizer(models: Mapping[Any, HookedTransformer]) -> None:
    """Raises ValueError for a model, by its name, with another vocabulary than the first's."""
    first, *others = models
    known: Any = models[first].tokenizer
    for name in others:
        own: Any = models[name].tokenizer
        if own.get_vocab() != known.get_vocab():
            raise ValueError(f"{name} has another tokenizer than {first}")
