"""The two tasks on which circuits are compared, as clean and corrupted prompts with a metric.

- Indirect objects in a language model: logit(IO) − logit(S), twins of any kind of
  :mod:`resval_lens.tasks.ioi_twins`.
- Classifying in context in the two-layer classifier: logit(right label) − max logit(wrong labels of
  the context), twins with exchanged labels or objects (:mod:`resval_lens.tasks.icl_twins`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from resval_lens.hooks.prompts import PromptPairs, logit_difference, margin
from resval_lens.tasks.icl import ICLBatch, ICLWorld
from resval_lens.tasks.icl_twins import Exchanged, exchanged
from resval_lens.tasks.ioi import IOIPrompt, encode
from resval_lens.tasks.ioi_twins import Kind, encode_twins, twins
from resval_lens.transformer import ResValTransformer


def ioi_pairs(
    model: ResValTransformer,
    prompts: Sequence[IOIPrompt],
    kind: Kind = "giver",
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> PromptPairs:
    """IO − S of prompts, led by the end of text as in packed training rows, beside their twins.

    Args:
        kind, seed, names: of the twins.

    Raises:
        ValueError: a model without a tokenizer, or what ``encode`` and ``twins`` refuse.
    """
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        raise ValueError("this model has no tokenizer; a prompt cannot be put into its tokens")
    batch = encode(prompts, tokenizer, tokenizer.eos_token_id)
    texts = twins(prompts, kind, seed, names)
    corrupted = encode_twins(prompts, texts, tokenizer, tokenizer.eos_token_id)
    labels = torch.stack([batch.io, batch.subject], 1)
    name = f"indirect objects, {kind} twins"
    return PromptPairs(batch.tokens, corrupted, logit_difference, labels, batch.last, name)


def icl_pairs(world: ICLWorld, batch: ICLBatch, what: Exchanged = "labels") -> PromptPairs:
    """The right label's margin over the best wrong one of the context.

    Args:
        what: is exchanged in the twins.

    Raises:
        ValueError: sequences that are not bursty.
    """
    found = exchanged(world, batch, what)
    name = f"in-context classification, exchanged {what}"
    return PromptPairs(found.clean, found.corrupted, margin, found.labels, name=name)
