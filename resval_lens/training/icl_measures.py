"""What the attention of a two-layer classifier does: the progress measures of Reddy (2024)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from resval_lens.models.classifier import ICLClassifier
from resval_lens.tasks.icl import ICLBatch

Pattern = Float[Tensor, "batch query key"]


@torch.no_grad()
def attention_measures(model: ICLClassifier, batch: ICLBatch) -> dict[str, float]:
    """Means over ``batch``; all but CLA are attention weights. Names count layers from 1.

    Returns:
        A dict of

        - ``ila1``: layer 0, from a token to the one before it (all tokens but the first);
        - ``ila1_labels``: the same, from label tokens to their objects only;
        - ``tla2``: layer 1, from the query to all labels of the context, summed;
        - ``tila2``: to the right labels of the context, summed;
        - ``induction_strength``: mean weight of a right label minus mean weight of a wrong one;
        - ``cla``: the share of predictions that are a label of the context.

        Sequences without a right label in the context (or without a wrong one) do not count for
        tila2 and induction_strength, which are NaN when none is left.
    """
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in (0, 1)]
    logits, cache = model.run_with_cache(batch.inputs, names_filter=names)
    return measures_from(cache[names[0]][:, 0], cache[names[1]][:, 0], logits, batch)


def measures_from(
    first: Pattern, second: Pattern, logits: Float[Tensor, "batch label"], batch: ICLBatch
) -> dict[str, float]:
    """:func:`attention_measures` from patterns and logits in hand."""
    previous = first.diagonal(offset=-1, dim1=1, dim2=2)  # [batch, pos - 1]: A[i, i − 1]
    to_labels = second[:, -1, 1:-1:2]  # [batch, pair]
    right = batch.context_labels == batch.targets[:, None]
    counts = right.any(1) & ~right.all(1)
    on_right = torch.where(right, to_labels, 0).sum(1)
    on_wrong = torch.where(right, 0, to_labels).sum(1)
    gap = on_right / right.sum(1) - on_wrong / (~right).sum(1)
    answers = logits.argmax(-1)
    return {
        "ila1": float(previous.mean()),
        "ila1_labels": float(previous[:, ::2].mean()),
        "tla2": float(to_labels.sum(1).mean()),
        "tila2": float(on_right[right.any(1)].mean()),
        "induction_strength": float(gap[counts].mean()),
        "cla": float((batch.context_labels == answers[:, None]).any(1).double().mean()),
    }
