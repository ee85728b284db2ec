"""Indirect object identification: what a model says, and Table 2 of arXiv 2412.15113.

At the last position of a prompt, with IO the indirect object's name and S the subject's:

    logit difference = logit(IO) − logit(S)
    P(name) = exp(logit(name)) / Σ_v exp(logit(v)), v over the whole vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens import HookedTransformer

from resval_lens.runtime import evaluating
from resval_lens.streams import shorthand
from resval_lens.tasks.ioi import (
    PAPER_SENTENCES,
    SCRIPT_SENTENCES,
    IOIBatch,
    encode,
    paper_prompts,
)
from resval_lens.transformer import ResValTransformer

# arXiv 2412.15113, Table 2: P(IO) ("correct") and P(S) ("incorrect") in %, (mean, sd) over three
# seeds, of the four sentences. The sd is the sample's (ddof = 1): the public script
# (small-LM/IOI_task.py) takes torch.std, and three numbers from 0 up with the mean 1.54 cannot have
# a population sd above 1.54·√2 = 2.18. The script also never switches dropout off, and runs the
# classic checkpoints through the value-passing network (see four_cells).
PUBLISHED_TABLE_2: dict[str, dict[str, tuple[tuple[float, float], ...]]] = {
    "classic": {
        "p_io": ((11.73, 15.62), (11.88, 9.09), (3.83, 6.09), (1.54, 2.31)),
        "p_subject": ((6.93, 5.70), (7.99, 9.52), (0.51, 0.66), (4.86, 8.35)),
    },
    "values": {
        "p_io": ((42.89, 10.58), (43.44, 14.45), (49.24, 9.89), (28.56, 5.92)),
        "p_subject": ((5.68, 3.76), (6.8, 10.40), (0.03, 0.03), (0.18, 0.15)),
    },
}


CELLS = tuple(
    f"trained {trained}, run {run}"
    for trained in ("classic", "with stream")
    for run in ("without", "with")
)
"""Names of the four cells of :func:`four_cells`."""


class PromptScores(NamedTuple):
    """What a model says to each prompt.

    ``top1``: the likeliest token of all is IO. ``corrupted_logit_difference``: the twin's, of the
    same two names.
    """

    logit_difference: Float[Tensor, " prompt"]
    p_io: Float[Tensor, " prompt"]
    p_subject: Float[Tensor, " prompt"]
    top1: Bool[Tensor, " prompt"]
    corrupted_logit_difference: Float[Tensor, " prompt"]


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
            twin = _last_logits(model, corrupted, last)
        p = logits.softmax(-1)
        rows = torch.arange(len(last))
        parts.append(
            (
                logits[rows, io] - logits[rows, subject],
                p[rows, io],
                p[rows, subject],
                logits.argmax(-1) == io,
                twin[rows, io] - twin[rows, subject],
            )
        )
    return PromptScores(*(torch.cat(score) for score in zip(*parts, strict=True)))


def _last_logits(model: HookedTransformer, tokens: Tensor, last: Tensor) -> Tensor:
    """Logits of each row's last own token, [prompt, vocabulary]."""
    # A tokenizer that pads on the left would have TransformerLens mask what leads a row.
    logits = model(tokens, padding_side="right")
    own = logits[torch.arange(len(last), device=logits.device), last.to(logits.device)].cpu()
    return own.to(torch.promote_types(own.dtype, torch.float32))


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


def means(scores: PromptScores) -> dict[str, float]:
    """The scores of a set of prompts, each the mean over them.

    ``logit_difference`` and ``corrupted_logit_difference`` in logits (nats), ``p_io`` and
    ``p_subject`` as probabilities; ``accuracy`` is the share of prompts with P(IO) > P(S),
    ``accuracy_top1`` the share whose likeliest token is IO.
    """
    return {
        "logit_difference": float(scores.logit_difference.mean()),
        "p_io": float(scores.p_io.mean()),
        "p_subject": float(scores.p_subject.mean()),
        "accuracy": float((scores.logit_difference > 0).double().mean()),
        "accuracy_top1": float(scores.top1.double().mean()),
        "corrupted_logit_difference": float(scores.corrupted_logit_difference.mean()),
    }


def ioi_scores(model: HookedTransformer, batch: IOIBatch, chunk: int = 64) -> dict[str, float]:
    """:func:`means` of :func:`ioi_per_prompt`.

    GPT-2 small: logit difference 3.56, P(IO) .49, accuracy .993 on the prompts of Wang et al.
    (arXiv 2211.00593).
    """
    return means(ioi_per_prompt(model, batch, chunk))


def paper_table(
    models: Mapping[str, Sequence[HookedTransformer]],
    tokenizer: Any,
    sentences: Sequence[str] = PAPER_SENTENCES,
    prepend: int | None = None,
) -> dict[str, Any]:
    """Table 2 of arXiv 2412.15113 for models of ours, as JSON: P(IO) and P(S) in %.

    For a model, a sentence's probabilities are the means over its two prompts (either person
    gives). Over the models of one architecture ("seeds") each entry has the ``mean``, the
    population's standard deviation ``sd`` (ddof = 0), and the sample's, ``sd_sample`` (ddof = 1,
    as published; None for a single seed). ``published`` stands beside the architectures of
    :data:`PUBLISHED_TABLE_2`, "classic" and "values", on the paper's sentences or its script's.
    ``unsaid`` has the sentences that this tokenizer cannot say, with the reason.

    Args:
        models: architecture to models, one for each seed.
        prepend: a token before every prompt; the paper's had none.

    Raises:
        ValueError: an architecture without models; no sentence that the tokenizer can say; what
            :func:`encode`, :func:`~resval_lens.tasks.ioi.paper_prompts` and
            :func:`ioi_per_prompt` refuse.
    """
    said, unsaid, reasons = [], [], []
    for number, pair in enumerate(paper_prompts(sentences)):
        try:
            encode(pair, tokenizer, prepend)
        except ValueError as error:  # a name of several tokens
            unsaid.append({"sentence": number + 1, "text": sentences[number], "why": str(error)})
            reasons.append(error)
        else:
            said.append((number, pair))
    if reasons and not said:
        raise reasons[0]
    batch = encode([prompt for _, pair in said for prompt in pair], tokenizer, prepend)
    rows = []
    for architecture, seeds in models.items():
        if not seeds:
            raise ValueError(f"{architecture!r} has no models")
        scores = [ioi_per_prompt(model, batch) for model in seeds]
        for place, (number, _) in enumerate(said):
            sentence = sentences[number]
            row: dict[str, Any] = {"architecture": architecture, "sentence": number + 1,
                                   "text": sentence, "seeds": len(seeds)}  # fmt: skip
            for name in ("p_io", "p_subject"):
                both = [getattr(score, name)[2 * place : 2 * place + 2] for score in scores]
                row[name] = _over_seeds([100 * float(pair.double().mean()) for pair in both])
            row["published"] = _published(architecture, number, sentence)
            rows.append(row)
    return {"unit": "%", "sentences": list(sentences), "unsaid": unsaid, "rows": rows}


def _over_seeds(values: list[float]) -> dict[str, Any]:
    several = len(values) > 1
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values)),
        "sd_sample": float(np.std(values, ddof=1)) if several else None,
        "per_seed": values,
    }


def _published(architecture: str, number: int, sentence: str) -> dict[str, Any] | None:
    known = (table[number] for table in (PAPER_SENTENCES, SCRIPT_SENTENCES) if number < len(table))
    if architecture not in PUBLISHED_TABLE_2 or sentence not in known:
        return None
    return {
        name: dict(zip(("mean", "sd_sample"), numbers[number], strict=True))
        for name, numbers in PUBLISHED_TABLE_2[architecture].items()
    }


def check_one_tokenizer(models: Mapping[Any, HookedTransformer]) -> None:
    """Raises ValueError for a model, by its name, with another vocabulary than the first's."""
    first, *others = models
    known: Any = models[first].tokenizer
    for name in others:
        own: Any = models[name].tokenizer
        if own.get_vocab() != known.get_vocab():
            raise ValueError(f"{name} has another tokenizer than {first}")


def four_cells(
    classic: ResValTransformer, stream: ResValTransformer, batch: IOIBatch, chunk: int = 64
) -> dict[str, Any]:
    """{trained classic, trained with stream} × {run without, run with}: scores of each.

    The same weights, run as the other architecture. The paper's public evaluation script builds
    one network, the value-passing one, and loads both kinds of checkpoints into it. What it calls
    classic is then the cell "trained classic, run with"; the comparison that the paper's text
    makes is "trained classic, run without" against "trained with stream, run with". A learned
    mix, which classic weights do not have, is run as initialised.

    Raises:
        ValueError: ``classic`` has streams, ``stream`` has none, or the batch does not fit.
    """
    if classic.cfg.streams:
        raise ValueError(
            f"classic has streams={shorthand(classic.cfg.streams)!r}; expected a model without"
        )
    if not stream.cfg.streams:
        raise ValueError("stream has streams=''; expected a model with a stream")
    cells = {}
    runs = ((model, streams) for model in (classic, stream) for streams in ((), stream.cfg.streams))
    for cell, (model, streams) in zip(CELLS, runs, strict=True):
        cells[cell] = ioi_scores(model.with_streams(streams, share_weights=True), batch, chunk)
    return {
        "streams": [carried.to_dict() for carried in stream.cfg.streams],
        "prompts": len(batch.last),
        "cells": cells,
    }
