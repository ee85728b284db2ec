"""What the links carry in indirect-object prompts: who gave, as a token or as a position.

Links are frozen to what they carry on the corrupted prompts
(:mod:`resval_lens.tasks.ioi_corruptions`), in which the subject's token, position, or both, say
otherwise; everything else is the prompt's own. How far the logit difference IO − S falls is how
much the model heeds what these links say of the subject:

    effect = (logit difference, links frozen) / (logit difference) − 1

0: it does not matter; −1: nothing is left of the preference; −2: the preference is inverted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch

from resval_lens.analyses.results.result import Result
from resval_lens.analyses.tasks.pairs import ioi_pairs
from resval_lens.hooks import freeze, link_activations, link_groups
from resval_lens.hooks.link_runs import LinkRuns
from resval_lens.hooks.prompts import MAX_TOKENS, check_model, ready, refuse_hooks
from resval_lens.notes import Note
from resval_lens.runtime import evaluating
from resval_lens.tasks.ioi import IOIPrompt
from resval_lens.tasks.ioi_corruptions import SIGNALS, Kind, Signal
from resval_lens.tasks.leading import AUTO
from resval_lens.transformer import ResValTransformer


@dataclass(frozen=True)
class LinkSignals(Result):
    """What freezing links to corrupted prompts does to the logit difference IO − S.

    Attributes:
        logit_difference: of the model as it is.
        prompts: how many.
        signals: what each kind of corrupted prompt makes of (token, position).
        ablation: what is done to the links.
        effects: by names of links (all, a layer's, each alone) and kind.
    """

    logit_difference: float
    prompts: int
    signals: Mapping[Kind, tuple[Signal, Signal]]
    ablation: str
    effects: Mapping[str, Mapping[Kind, float]]


@torch.no_grad()
def link_signals(
    model: ResValTransformer,
    prompts: Sequence[IOIPrompt],
    kinds: Sequence[Kind] = get_args(Kind),
    seed: int = 0,
    prepend: str = AUTO,
    note: Note = lambda text: None,
) -> LinkSignals:
    """The effect of freezing links to each kind of corrupted prompt: all, by layer, one by one.

    Args:
        kinds: of corrupted prompts.
        seed: of their new names.
        prepend: what leads each prompt (:func:`~resval_lens.tasks.leading.leading_token`).
        note: called with what is being done.

    Raises:
        ValueError: a model without links, no kinds, hooks on the model, or a logit difference that
            is not above 0.
    """
    check_model(model)
    if not kinds:
        raise ValueError(f"kinds is empty; name some of {', '.join(get_args(Kind))}")
    refuse_hooks(model)
    groups = link_groups(model)
    names = groups["all"]
    effects: dict[str, dict[Kind, float]] = {group: {} for group in groups}
    clean = 0.0
    for kind in kinds:
        note(f"links of prompts corrupted by {kind}")
        pairs = ready(model, ioi_pairs(model, prompts, kind, seed, prepend=prepend))
        clean, summed = 0.0, dict.fromkeys(groups, 0.0)
        with evaluating(model):
            for some in pairs.within(MAX_TOKENS):
                runs = LinkRuns(model, some)
                part = runs.pairs  # as wide as their longest
                clean += part.measure(runs.clean).sum().item() / len(pairs)
                frozen = freeze(link_activations(model, part.corrupted, names, part.mask))
                for group, chosen in groups.items():
                    measured = part.measure(runs.edited(frozen, chosen))
                    summed[group] += measured.sum().item() / len(pairs)
        if clean <= 0:
            raise ValueError(f"the logit difference is {clean:.3g}; expected one above 0")
        for group, value in summed.items():
            effects[group][kind] = value / clean - 1
    signals = {kind: SIGNALS[kind] for kind in kinds}
    ablation = "links frozen to the corrupted prompt's"
    return LinkSignals(clean, len(prompts), signals, ablation, effects)
