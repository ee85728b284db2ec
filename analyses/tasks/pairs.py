"""Clean and corrupted prompts of indirect objects and of classifying in context, with metrics.

- Indirect objects in a language model: logit(IO) − logit(S), corrupted prompts of any kind of
  :mod:`resval_lens.tasks.ioi_corruptions`. A group has its names and its end at the same
  positions. That difference is the same whether the model would name the two or anything else, so
  there are three more metrics (:func:`ioi_metrics`).
- Classifying in context in the two-layer classifier: logit(right label) − max logit(wrong labels of
  the context), exchanged labels or objects (:mod:`resval_lens.tasks.icl_corruptions`). All
  sequences are one group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from resval_lens.hooks.prompts import (
    Metric,
    PromptPairs,
    against,
    log_probability,
    logit_difference,
    margin,
    probability,
)
from resval_lens.io.tokenizers import spelled
from resval_lens.tasks.icl import ICLBatch, ICLWorld
from resval_lens.tasks.icl_corruptions import Exchanged, exchanged
from resval_lens.tasks.ioi import (
    NAMES,
    IOIPrompt,
    encode,
    generate_prompts,
    sayable,
    sayable_by_all,
    token_ids,
)
from resval_lens.tasks.ioi_corruptions import Kind, corrupted_texts, encode_corrupted, positions
from resval_lens.tasks.leading import AUTO, leading_token
from resval_lens.tasks.stories import NAMES as STORY_NAMES
from resval_lens.tasks.stories import ioi_prompts
from resval_lens.transformer import ResValTransformer

NAMING = "log P(IO)"
"""The metric by which circuits of indirect objects are compared: it asks for the name itself."""
ICL_METRICS: dict[str, Metric] = {
    "margin": margin,
    "log P(right)": log_probability,
    "P(right)": probability,
}


def io_is_likelier(
    logits: Float[Tensor, "prompt d_vocab"], labels: Int[Tensor, "prompt 2"]
) -> Bool[Tensor, " prompt"]:
    """Whether P(IO) > P(S), with labels (IO, S)."""
    return logit_difference(logits, labels) > 0


def is_right(
    logits: Float[Tensor, "prompt label"], labels: Int[Tensor, "prompt some"]
) -> Bool[Tensor, " prompt"]:
    """Whether the first label's logit is the largest of all."""
    return logits.argmax(-1) == labels[:, 0]


def ioi_metrics(model: ResValTransformer) -> dict[str, Metric]:
    """Metrics of indirect objects, by name; labels are (IO, S).

    "logit difference" (IO − S), "log P(IO)" in nats, "IO − other names" (the mean logit of all
    names that the prompts draw from and are one token), "P(IO)".

    Raises:
        ValueError: a model without a tokenizer, or that has no names.
    """
    return {
        "logit difference": logit_difference,
        NAMING: log_probability,
        "IO − other names": against(name_tokens(_tokenizer(model))),
        "P(IO)": probability,
    }


def name_tokens(tokenizer: Any) -> Int[Tensor, " name"]:
    """Every name of the stories and the general prompts that is one token in a sentence."""
    names = sayable(tokenizer, sorted({*STORY_NAMES, *NAMES}))
    return torch.tensor(sorted({token_ids(tokenizer, f"to {name}")[-1] for name in names}))


def _tokenizer(model: ResValTransformer) -> Any:
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer; a prompt cannot be tokenised")
    return model.tokenizer


class Drawn(NamedTuple):
    """Prompts, and the names that they do without: those of several tokens."""

    prompts: list[IOIPrompt]
    left_out: list[str]


def draw_ioi(
    tokenizer: Any,
    count: int,
    seed: int,
    which: Literal["seen", "unseen", "general"] = "unseen",
    others: Sequence[Any] = (),
) -> Drawn:
    """``count`` prompts whose names are one token each.

    They are those of :func:`~resval_lens.tasks.ioi.generate_prompts` (general) or of
    :func:`~resval_lens.tasks.stories.ioi_prompts`, drawn among the names that the tokenizer has.
    Where it has all of them, leaving names out changes nothing.

    Args:
        others: further tokenizers, which must have the names, too.

    Raises:
        ValueError: fewer than three names are left, or too few for so many prompts.
    """
    known = NAMES if which == "general" else STORY_NAMES
    left = sayable_by_all((tokenizer, *others), known)
    left_out = [name for name in known if name not in left]
    if len(left) < 3:
        ids = token_ids(tokenizer, f" {left_out[0]}")
        raise ValueError(
            f"of {len(known)} names {len(left)} are one token with this tokenizer, but three are "
            f"needed; {left_out[0]!r} is {spelled(tokenizer, ids)}"
        )
    if which == "general":
        return Drawn(generate_prompts(count, seed, left), left_out)
    return Drawn(ioi_prompts(count, seed, which, which, which, people=left), left_out)


def ioi_pairs(
    model: ResValTransformer,
    prompts: Sequence[IOIPrompt],
    kind: Kind = "random-S2",
    seed: int = 0,
    names: Sequence[str] | None = None,
    prepend: str = AUTO,
) -> PromptPairs:
    """The logit difference of prompts, beside their corrupted prompts.

    Args:
        kind, seed, names: of the corrupted prompts.
        prepend: what leads each prompt (:func:`~resval_lens.tasks.leading.leading_token`).

    Raises:
        ValueError: a model without a tokenizer; what ``leading_token``, ``encode`` and
            ``corrupted_texts``
            refuse.
    """
    tokenizer, lead = _tokenizer(model), leading_token(model, prepend)
    return pairs_and_positions(tokenizer, prompts, lead, kind, seed, names)[0]


def pairs_and_positions(
    tokenizer: Any,
    prompts: Sequence[IOIPrompt],
    lead: int | None,
    kind: Kind,
    seed: int,
    names: Sequence[str] | None = None,
) -> tuple[PromptPairs, dict[str, Int[Tensor, " prompt"]]]:
    """:func:`ioi_pairs` that ``lead`` leads, and where each prompt has its names and its end."""
    batch = encode(prompts, tokenizer, lead)
    texts = corrupted_texts(prompts, kind, seed, names)
    corrupted = encode_corrupted(prompts, texts, tokenizer, lead)
    labels = torch.stack([batch.io, batch.subject], 1)
    where = positions(prompts, tokenizer, lead)
    pairs = PromptPairs(
        batch.tokens,
        corrupted,
        logit_difference,
        labels,
        batch.last,
        f"indirect objects, {kind}",
        torch.arange(batch.tokens.shape[1]) <= batch.last[:, None],
        _alike(where),
    )
    return pairs, where


def _alike(where: Mapping[str, Int[Tensor, " prompt"]]) -> Int[Tensor, " prompt"]:
    """One number for prompts whose names and ends stand at the same positions, in the same order.

    The positions themselves, as digits: the same in every set of prompts.
    """
    numbers = torch.zeros_like(where["end"])
    for name in ("IO", "S1", "S2", "end"):
        numbers = numbers * 2**15 + where[name]
    return numbers


def icl_pairs(world: ICLWorld, batch: ICLBatch, what: Exchanged = "labels") -> PromptPairs:
    """The right label's margin over the best wrong one of the context.

    Args:
        what: is exchanged in the corrupted sequences.

    Raises:
        ValueError: sequences that are not bursty.
    """
    sequences = exchanged(world, batch, what)
    name = f"in-context classification, exchanged {what}"
    groups = torch.zeros(len(sequences.clean), dtype=torch.long)
    return PromptPairs(
        sequences.clean, sequences.corrupted, margin, sequences.labels, name=name, groups=groups
    )
