"""Who writes the answer, in words and numbers: what ``resval-lens attribute`` reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from rich.table import Table
from torch import Tensor

from resval_lens.analyses.attribution.logits import attribute, logit_lens
from resval_lens.analyses.attribution.weights import copying_scores, ov_paths, own_token_scores
from resval_lens.analyses.results.result import FLAT, OPTIONAL, Result
from resval_lens.analyses.results.tables import WIDE
from resval_lens.analyses.tasks.problem import Example, Facts, Problem
from resval_lens.hooks.prompts import PromptPairs
from resval_lens.lens.weights import unfoldable
from resval_lens.notes import Note

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_COPYING = 200
"""Heads' parts whose copying scores are told: the largest; each takes a readout of every prompt."""


@dataclass(frozen=True)
class HeadShares:
    """What all heads write of the logit difference, by where their values come from."""

    own: float
    along_links: float


@dataclass(frozen=True)
class Copying:
    """How far a head's part copies tokens.

    Attributes:
        eigenvalues: :func:`~resval_lens.analyses.attribution.weights.copying_scores`; None of a
            path of weight 0.
        names_answer: :func:`~resval_lens.analyses.attribution.weights.own_token_scores` of the
            answer where it last stands in the prompt; None where prompts do not hold it.
    """

    eigenvalues: float | None
    names_answer: float | None


@dataclass(frozen=True)
class LensPoint:
    """What the logit lens reads ``after`` the embeddings or a layer.

    Attributes:
        logit_difference, probability: means over prompts, the latter of the answer.
        median_rank: of the answer; 0 is the likeliest token.
    """

    after: str
    logit_difference: float
    probability: float
    median_rank: float


@dataclass(frozen=True)
class AttributionStudy(Result):
    """Shares of the mean logit difference, and the logit lens.

    Attributes:
        general: whether the prompts are general ones instead of stories.
        components: each one's mean share in logits, largest first
            (:class:`~resval_lens.analyses.attribution.logits.Attribution`).
        shares: the same in parts of ``total``; empty where that is 0.
        copying: by component; empty where weights do not tell (gates, matrices).
        soft_cap: that logits have; shares are those before it.
    """

    facts: Facts = field(metadata=FLAT)
    general: bool
    total: float
    components: Mapping[str, float]
    shares: Mapping[str, float]
    heads: HeadShares
    copying: Mapping[str, Copying]
    lens: tuple[LensPoint, ...]
    example: Example | None
    soft_cap: float | None = field(default=None, metadata=OPTIONAL)

    def tables(self) -> list[Table | str]:
        """The largest components; the lens."""
        return [attribution_table(self), lens_table(self.lens)]

    def figures(self) -> Mapping[str, Figure]:
        """The largest components."""
        from resval_lens.analyses.studies.circuit_figures import attribution

        return {"attribute.png": attribution(self.facts.model, self.components)}


def attribution_study(
    chosen: Problem, general: bool = False, note: Note = lambda text: None
) -> AttributionStudy:
    """Direct logit attribution and the logit lens of a language model on any task.

    Args:
        general: whether the prompts are general ones, which the report says.
        note: called with what is being done.

    Raises:
        ValueError: what :func:`~resval_lens.analyses.attribution.logits.attribute` refuses.
    """
    asked = chosen.pairs.clean, chosen.pairs.labels, chosen.pairs.last
    note("direct logit attribution")
    shares = attribute(chosen.model, *asked)
    note("logit lens")
    lens = logit_lens(chosen.model, *asked)
    note("copying scores")
    total, means = shares.total.mean().item(), shares.means()
    copying = _copying(chosen, list(means))
    heads = shares.heads.mean(0)  # [layer, source, head]
    own = heads.diagonal().sum().item()
    return AttributionStudy(
        facts=chosen.facts(),
        general=general,
        total=total,
        components=means,
        shares={name: value / total for name, value in means.items()} if total else {},
        heads=HeadShares(own, heads.sum().item() - own),
        copying=copying,
        lens=tuple(
            LensPoint(
                point,
                lens.logit_difference[i].mean().item(),
                lens.probability[i].mean().item(),
                lens.rank[i].double().quantile(0.5).item(),
            )
            for i, point in enumerate(lens.points)
        ),
        example=chosen.example(),
        soft_cap=cap if (cap := chosen.model.cfg.output_logits_soft_cap) > 0 else None,
    )


def _copying(chosen: Problem, components: Sequence[str]) -> dict[str, Copying]:
    """Copying scores of heads' parts by name; none where weights do not tell (shares, matrices)."""
    model = chosen.model
    how = [stream.how for stream in model.cfg.streams if stream.of == "v"]
    if any(mix.crosses_heads or not mix.own_is_fixed for mix in how):
        return {}
    if unfoldable(model.cfg):  # gates without a bias, before norms with one
        return {}
    by_name = {str(path): path for path in ov_paths(model)}
    paths = [by_name[name] for name in components if name in by_name][:MOST_COPYING]
    clean, where = chosen.pairs.clean, answers_within(chosen.pairs)
    named = {} if where is None else own_token_scores(model, clean, where, which=paths)
    # Weights alone say what a head copies once those of the norms are folded in. Not every device
    # has eigenvalues.
    folded = deepcopy(model).to("cpu", print_details=False)
    has_gains = not str(model.cfg.normalization_type).endswith("Pre")
    folded.process_weights_(
        fold_ln=has_gains,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return {
        str(path): Copying(None if math.isnan(score) else score, named.get(path))
        for path, score in copying_scores(folded, paths).items()
    }


def answers_within(pairs: PromptPairs) -> Int[Tensor, " prompt"] | None:
    """Where each prompt last holds its first label; None if one of them does not."""
    clean = pairs.clean.cpu()
    same = clean == pairs.labels[:, :1].cpu()
    same &= torch.arange(clean.shape[1]) <= pairs.answers[:, None].cpu()
    if not same.any(1).all():
        return None
    return clean.shape[1] - 1 - same.flip(1).int().argmax(1)


def attribution_table(found: AttributionStudy, most: int = 14) -> Table:
    """What writes the logit difference."""
    whose = f"the logit difference of {found.total:z.2f}"
    if found.soft_cap:
        whose += f", before the soft cap of {found.soft_cap:g}"
    table = Table(
        title=f"What writes {whose}, after the final norm\n"
        f"(heads' own values {found.heads.own:+z.2f}, over links {found.heads.along_links:+z.2f})",
        **WIDE,
    )
    table.add_column("component", no_wrap=True)
    for name in ("logits", "share", "copying", "names it"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, share in list(found.components.items())[:most]:
        copies, cells = found.copying.get(name), ("", "")
        if copies is not None:
            eigenvalues = "" if copies.eigenvalues is None else f"{copies.eigenvalues:+z.2f}"
            named = "" if copies.names_answer is None else f"{copies.names_answer:.0%}"
            cells = eigenvalues, named
        part = f"{found.shares[name]:+z.0%}" if found.shares else ""
        table.add_row(name, f"{share:+z.3f}", part, *cells)
    looked_up = any(name.endswith(" from t") for name in found.components)
    tables = "; a2.h1 from t: its layer's table's" if looked_up else ""
    table.caption = (
        f"a2.h1: a head's own values; a2.h1 from 1: layer 1's, over links{tables}\n"
        "copying: Σλ/Σ|λ| of the OV circuit (1 copies, −1 lowers tokens)\n"
        "names it: how often the answer is in the top 5 of a head that attends only to the answer"
    )
    return table


def lens_table(lens: Sequence[LensPoint]) -> Table:
    """The logit lens."""
    table = Table(title="Logit lens: the readout of the residual stream so far", **WIDE)
    table.add_column("after")
    for name in ("logit difference", "P(answer)", "median rank"):
        table.add_column(name, justify="right")
    for row in lens:
        table.add_row(
            row.after if row.after == "embed" else f"layer {row.after}",
            f"{row.logit_difference:+z.3f}", f"{row.probability:z.3f}", f"{row.median_rank:g}",
        )  # fmt: skip
    return table
