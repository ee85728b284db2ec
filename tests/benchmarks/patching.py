"""Activation patching against TransformerLens's, on the same model, prompts and cells."""

import contextlib
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformer_lens import patching as stock

from resval_lens import ResValTransformer
from resval_lens.hooks.patching import patch
from resval_lens.hooks.prompts import PromptPairs, logit_difference
from resval_lens.tasks.ioi import encode
from resval_lens.tasks.stories import ioi_prompts, load_tokenizer
from tests.benchmarks.timing import Seconds, Step, timed

CASES: dict[str, tuple[str, tuple[str, ...], Callable[..., Tensor]]] = {
    "resid_pre by layer × position": (
        "resid_pre",
        ("layer", "position"),
        stock.get_act_patch_resid_pre,
    ),
    "z by layer × position × head": (
        "z",
        ("layer", "position", "head"),
        stock.get_act_patch_attn_head_out_by_pos,
    ),
    "z by layer × head": ("z", ("layer", "head"), stock.get_act_patch_attn_head_out_all_pos),
}


def ioi_pairs(prompts: int = 16, corruption: str = "corrupted") -> PromptPairs:
    """IOI prompts of equal length.

    Args:
        corrupted: ``"corrupted"``: the giver is a third name; ``"other"``: another prompt, which
            differs from its first name on.
    """
    tokenizer = load_tokenizer()
    drawn = ioi_prompts(20 * prompts, 0, "seen", "seen", "seen")
    batch = encode(drawn, tokenizer, 0)
    length = int(batch.last.mode().values) + 1
    rows = (batch.last == length - 1).nonzero()[:prompts, 0]
    if len(rows) < prompts:
        raise ValueError(f"{len(rows)} of {len(drawn)} prompts have {length} tokens")
    clean, corrupted = batch.tokens[rows, :length], batch.corrupted[rows, :length]
    if corrupted == "other":
        corrupted = clean.roll(1, 0)
    labels = torch.stack([batch.io[rows], batch.subject[rows]], 1)
    return PromptPairs(clean, corrupted, logit_difference, labels)


def peers(rounds: int = 5, corruption: str = "corrupted", prompts: int = 16) -> dict[str, Seconds]:
    """TransformerLens's seconds for all cells and ours, for each of ``CASES``.

    Both take turns; ours makes the clean run within, TransformerLens's is given it.
    """
    model = ResValTransformer.from_pretrained("stories-small-values")
    pairs = ioi_pairs(prompts, corrupted)
    _, cache = model.run_with_cache(pairs.clean)

    def metric(logits: Tensor) -> Tensor:
        return logit_difference(logits[:, -1], pairs.labels).mean()

    def theirs(function: Callable[..., Tensor]) -> Tensor:
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            return function(model, pairs.corrupted, cache, metric)

    found: dict[str, Seconds] = {}
    for name, (site, by, function) in CASES.items():
        ours: Callable[[], Any] = partial(patch, model, pairs, site, by=by)
        torch.testing.assert_close(ours().values, theirs(function), rtol=1e-3, atol=1e-3)
        both: dict[str, Step] = {"theirs": partial(theirs, function), "ours": ours}
        found[name] = timed(both, rounds, warm=False)
    return found
