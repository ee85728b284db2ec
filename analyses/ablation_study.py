"""What each edit of the links does to a task: all links, each layer's, each alone.

zero        the link carries nothing
mean        its mean at that position over other prompts (padding left out)
resample    what it carries on the prompt's corrupted twin
scale c     c times what it would
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformer_lens.utilities import LocallyOverridenDefaults

from resval_lens.hooks import (
    Link,
    freeze,
    link_activations,
    link_groups,
    links,
    mean_link_activations,
    scale,
    zero,
)
from resval_lens.hooks.ablate import Edit
from resval_lens.hooks.link_runs import LinkRuns
from resval_lens.hooks.links import Numbers
from resval_lens.hooks.prompts import Metric, PromptPairs, answer_logits
from resval_lens.runtime import evaluating
from resval_lens.transformer import ResValTransformer

EDITS = {
    "zero": "carries nothing",
    "mean": "carries its mean at that position over others",
    "resample": "carries what it does on the prompt's twin",
}
"""The edits and what an edited link does."""


@torch.no_grad()
def ablation_study(
    model: ResValTransformer,
    pairs: PromptPairs,
    others: PromptPairs,
    measures: Mapping[str, Metric],
    *,
    edits: Sequence[str] = tuple(EDITS),
    scales: Sequence[float] = (),
    of: str | None = None,
    layers: Numbers | None = None,
    heads: Numbers | None = None,
    chunk: int = 64,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Mean measures on the clean prompts with links edited, as JSON.

    Args:
        others: prompts of the same length, whose clean runs give the means.
        measures: of the answers' logits and the prompts' labels, by name.
        edits: some of ``EDITS``.
        scales: factors c of further edits.
        of, layers, heads: the links: see :func:`~resval_lens.hooks.links.links`.
        chunk: prompts run at once.
        note: called with what is being done.

    Returns:
        ``clean`` and ``corrupted`` hold the measures of the unedited runs; ``rows``, for each group
        of links (:func:`groups`) and edit, the measures and how many ``links`` it has.

    Raises:
        ValueError: a model without links, links that are not there, no edit or an unknown one,
            a factor that is not finite, or ``others`` of another length.
    """
    for name in edits:
        if name not in EDITS:
            raise ValueError(f"edits must be among {', '.join(EDITS)}; got {name!r}")
    if not edits and not scales:
        raise ValueError("there is no edit; name one of zero, mean, resample or a scale")
    if others.clean.shape[1:] != pairs.clean.shape[1:]:
        raise ValueError(
            f"the other prompts are {list(others.clean.shape[1:])}, not "
            f"{list(pairs.clean.shape[1:])} as these"
        )
    chosen = links(model, of, layers, heads)
    named = groups(model, chosen)
    changes: dict[str, Edit] = {"zero": zero()} if "zero" in edits else {}
    scaled = {f"scale {c:g}": scale(c) for c in scales}
    changes |= {name: edit for name, edit in scaled.items() if name != "scale 0" or not changes}
    found: dict[tuple[str, str], list[dict[str, Tensor]]] = {}
    # Every token counts, even where a tokenizer pads on the left.
    with evaluating(model), LocallyOverridenDefaults(model, padding_side="right"):
        if "mean" in edits:
            note("mean links")
            means_of = mean_link_activations(model, others.clean, chosen, others.answers, chunk)
            changes["mean"] = freeze(means_of)
        for part in pairs.split(chunk):
            runs = LinkRuns(model, part)
            clean = _measured(runs.clean, part, measures)
            corrupted = answer_logits(model, part.corrupted, part.answers)
            found.setdefault(("no links", "clean"), []).append(clean)
            found.setdefault(("no links", "corrupted"), []).append(
                _measured(corrupted, part, measures)
            )
            if "resample" in edits:
                changes["resample"] = freeze(link_activations(model, part.corrupted, chosen))
            for edit, change in changes.items():
                note(f"links: {edit}")
                for name, group in named.items():
                    measured = clean
                    if edit != "scale 1":
                        measured = _measured(runs.edited(change, group), part, measures)
                    found.setdefault((name, edit), []).append(measured)
    if "zero" in edits:
        found |= {(name, "scale 0"): found[name, "zero"] for name in named}
    means = {
        key: {name: torch.cat([x[name] for x in parts]).mean().item() for name in measures}
        for key, parts in found.items()
    }
    return {
        "prompts": len(pairs),
        "others": len(others),
        "measures": list(measures),
        "edits": {name: EDITS[name] for name in edits},
        "scales": list(scales),
        "links": len(chosen),
        "clean": means["no links", "clean"],
        "corrupted": means["no links", "corrupted"],
        "rows": [
            {"links": name, "n_links": len(group), "edit": edit, "measures": means[name, edit]}
            for name, group in named.items()
            for edit in (*edits, *(f"scale {c:g}" for c in scales))
        ],
    }


def groups(model: ResValTransformer, chosen: Sequence[Link]) -> dict[str, list[Link]]:
    """Links by name: ``all`` (or ``chosen``, if it is not all), whole layers' (``v1``), each alone.

    Groups of the same links are one, by its last name.
    """
    every = link_groups(model)
    whole = "all" if set(chosen) == set(every["all"]) else "chosen"
    named = {whole: list(chosen)}
    named |= {
        name: group for name, group in every.items() if name != "all" and set(group) <= set(chosen)
    }
    by_links = {tuple(sorted(group)): name for name, group in named.items()}
    return {name: list(group) for group, name in by_links.items()}


def _measured(
    logits: Tensor, part: PromptPairs, measures: Mapping[str, Metric]
) -> dict[str, Tensor]:
    return {name: measure(logits, part.labels).cpu().double() for name, measure in measures.items()}
