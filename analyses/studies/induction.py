"""Induction: which heads copy from the context, and whether they need the links."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.table import Table
from torch import Tensor

from resval_lens.analyses.attribution.heads import (
    MAX_TOKENS,
    HeadScores,
    ICLScore,
    RepeatedLoss,
    RepeatedTokens,
    candidates,
    head_scores,
    icl_score,
    link_means,
    repeated_loss,
    repeated_tokens,
)
from resval_lens.analyses.attribution.natural import NaturalRepeats, natural_repeats
from resval_lens.analyses.results.result import OPTIONAL, Result
from resval_lens.analyses.results.tables import WIDE, optional, table
from resval_lens.analyses.studies.knockouts import Others
from resval_lens.hooks import link_groups, link_hooks, zero
from resval_lens.hooks.links import Link, head_name
from resval_lens.notes import Note
from resval_lens.streams import shorthand
from resval_lens.tasks.leading import NamedToken, named_token
from resval_lens.transformer import ResValTransformer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWS = 3
"""Of other heads beside the best, at whose means text is measured."""
TITLES = HeadScores("previous token", "duplicate token", "prefix matching")
"""What the head scores are called."""


@dataclass(frozen=True)
class TopHead:
    """A head with its score."""

    layer: int
    head: int
    score: float

    def __str__(self) -> str:
        return head_name(self.layer, self.head)


@dataclass(frozen=True)
class EditedLoss:
    """Mean losses of repeated tokens (nats), where they come first and again, with links ablated.

    Attributes:
        links: all, a layer's, or one alone (:func:`~resval_lens.hooks.link_groups`).
        ablation: ``zero``, or ``mean``: at each position over other rows of repeated tokens.
        rise: how much ``second`` is above that of the model as it is.
    """

    links: str
    ablation: str
    first: float
    second: float
    rise: float


@dataclass(frozen=True)
class Losses:
    """Mean losses of repeated tokens (nats), where they come first and again; of each token.

    ``uniform`` is the loss of guessing among the tokens that are drawn from.
    """

    first: float
    second: float
    by_token: RepeatedLoss[list[float]]
    uniform: float


@dataclass(frozen=True)
class InductionStudy(Result):
    """Head scores, and the loss of repeated tokens with every link as trained and edited.

    Attributes:
        model: its name.
        rows, length, seed, bos: of the repeated tokens.
        scores: of each head, [layer][head].
        top: the best heads.
        even: what attention has that is spread evenly.
        edits: empty without links.
        icl: the in-context learning score on text; None without.
        natural: where that text repeats itself.
    """

    model: str
    streams: str
    rows: int
    length: int
    seed: int
    bos: int | None
    scores: HeadScores[list[list[float]]]
    top: HeadScores[list[TopHead]]
    even: HeadScores[float]
    loss: Losses
    edits: list[EditedLoss]
    icl: ICLScore | None
    leading_token: NamedToken | None
    natural: NaturalRepeats | None = field(default=None, metadata=OPTIONAL)

    def sentences(self) -> list[str]:
        """Whether there is an induction head, and what repeated tokens cost."""
        best, even = self.top.prefix_matching[0], self.even.prefix_matching
        kind = "an induction head" if best.score > 2 * even else "no induction head on such tokens"
        natural = [self._of_text(), *self._of_heads()] if self.natural else []
        return [
            f"The best prefix matching, of {best}, is {best.score:.3f}; "
            f"uniform attention would give {even:.3f}: {kind}.",
            f"Tokens cost {self.loss.first:.3f} nats at their first occurrence and "
            f"{self.loss.second:.3f} at their second; guessing costs "
            f"{self.loss.uniform:.3f}.",
            *natural,
        ]

    def _of_text(self) -> str:
        assert self.natural is not None
        assert self.icl is not None
        (best,) = top_heads(torch.tensor(self.natural.scores), 1)
        return (
            f"In text, where a token and the next one occurred before, the best head is {best} "
            f"with {best.score:.3f} (uniform: {self.natural.even:.3f}). Token {self.icl.late} of "
            f"a row costs {self.icl.score:+z.3f} nats against token {self.icl.early} (in-context "
            "score)."
        )

    def _of_heads(self) -> list[str]:
        assert self.natural is not None
        if self.natural.without is None:
            return []
        best, *others = self.natural.without
        told = [f"{kind} ones {rise.told('+z.3f')}" for kind, rise in best.rise.items()]
        least = [max(each.rise["repeated"].value for each in others)] if others else []
        return [
            f"With the {len(best.heads)} best heads by random tokens at their means the next token "
            f"costs more by kind of position (nats, 95% over rows): {', '.join(told)}"
            + "".join(
                f"; with as many others of these layers, repeated ones at most {rise:+z.3f} "
                f"({len(others)} draws)"
                for rise in least
            )
            + "."
        ]

    def tables(self) -> list[Table]:
        """The best heads of each score, and the loss of tokens that come again, links edited."""
        natural = [self._natural_table()] if self.natural else []
        return [self._heads_table(), *([self._loss_table()] if self.edits else []), *natural]

    def _natural_table(self) -> Table:
        assert self.natural is not None
        losses = {"as trained": self.natural.loss} | {
            f"links cut: {name}": loss for name, loss in self.natural.loss_cut.items()
        }
        for number, each in enumerate(self.natural.without or ()):
            which = f", others {number}" if number else ""
            losses[f"{' '.join(each.heads)} at means{which}"] = each.loss
        counts = vars(self.natural.positions)
        return table(
            f"Loss (nats) in {self.natural.rows} rows of {self.natural.length} tokens of text",
            ("",), (f"{kind} ({count:,.0f})" for kind, count in counts.items()),
            ([name, *(optional(x, ".3f") for x in vars(loss).values())]
             for name, loss in losses.items()),
            "repeated: token and next one stood before; misleading: the token did, with other ones "
            "after it;\nnew: it did not (how many)",
            WIDE,
        )  # fmt: skip

    def _heads_table(self) -> Table:
        title = f"Heads on {self.rows} rows of {self.length} random tokens, twice over"
        table = Table(title=title, **WIDE)
        for name, even in zip(TITLES, self.even, strict=True):
            table.add_column(f"{name}\n(uniform: {even:.3f})", no_wrap=True)
        for heads in zip(*self.top, strict=True):
            table.add_row(*(f"{head}  {head.score:.3f}" for head in heads))
        return table

    def _loss_table(self, most: int = 32) -> Table:
        table = Table(
            title="Loss (nats) of tokens that come again, links edited\n"
            f"(first occurrence {self.loss.first:.3f}, guessing {self.loss.uniform:.3f})",
            **WIDE,
        )
        table.add_column("links", no_wrap=True)
        for name in ("cut", "rise", "mean-ablated", "rise"):
            table.add_column(name, justify="right")
        table.add_row("as trained", f"{self.loss.second:.3f}")
        rows: dict[str, list[EditedLoss]] = {}
        for row in self.edits:
            rows.setdefault(row.links, []).append(row)
        ranked = sorted(rows, key=lambda name: -max(abs(edit.rise) for edit in rows[name]))
        for name in (name for name in rows if name in ranked[:most]):
            cells = (cell for e in rows[name] for cell in (f"{e.second:.3f}", f"{e.rise:+z.3f}"))
            table.add_row(name, *cells)
        if len(rows) > most:
            table.caption = f"(and {len(rows) - most} that matter less, in the JSON)"
        return table

    def figures(self) -> dict[str, Figure]:
        """Each head's scores."""
        from resval_lens.analyses.studies.intervention_figures import head_scores

        return {"induction.png": head_scores(self.scores, TITLES)}


def induction_study(
    model: ResValTransformer,
    *,
    name: str = "",
    n: int = 50,
    length: int | None = None,
    seed: int = 0,
    bos: int | None = None,
    among: Sequence[int] | None = None,
    text: Int[Tensor, "row pos"] | None = None,
    top: int = 5,
    max_tokens: int = MAX_TOKENS,
    note: Note = lambda text: None,
) -> InductionStudy:
    """Head scores, the loss of repeated tokens with every link as trained and edited.

    Args:
        name: of the model, for reports.
        n, length, bos, among: as for
            :func:`~resval_lens.analyses.attribution.heads.repeated_tokens`.
        text: rows of text without padding.
        top: heads to list of each score.
        max_tokens: rows × positions of one model call, one row at least.
        note: called with what is being done.

    Raises:
        ValueError: as ``repeated_tokens`` and ``icl_score``; ``top`` below 1.
    """
    if top < 1:
        raise ValueError(f"top must be 1 or more; got {top}")
    generator = torch.Generator().manual_seed(seed)
    repeated = repeated_tokens(model, generator, n, length, bos, among)
    note(f"head scores on {n} rows of {repeated.length} tokens, twice")
    scores = head_scores(model, repeated, max_tokens)
    whole = repeated_loss(model, repeated, max_tokens)
    natural, edits = None, []
    if text is not None:
        note("text that repeats itself")
        out = _best_and_others(top_heads(scores.prefix_matching, top), scores, seed)
        natural = natural_repeats(model, text, _layers_links(model), max_tokens, out)
    if model.cfg.streams:
        reference = repeated_tokens(model, generator, n, repeated.length, bos, among)
        edits = losses_by_edit(model, repeated, reference, whole, max_tokens, note)
    return InductionStudy(
        model=name,
        streams=shorthand(model.cfg.streams),
        rows=n,
        length=repeated.length,
        seed=seed,
        bos=bos,
        scores=HeadScores(*(score.tolist() for score in scores)),
        top=HeadScores(*(top_heads(score, top) for score in scores)),
        even=even_scores(repeated),
        loss=Losses(
            whole.first.mean().item(),
            whole.second.mean().item(),
            RepeatedLoss(*(loss.tolist() for loss in whole)),
            math.log(len(candidates(model, bos, among))),
        ),
        edits=edits,
        icl=None if text is None else icl_score(model, text, max_tokens=max_tokens),
        leading_token=None if model.tokenizer is None else named_token(model, bos),
        natural=natural,
    )


def _best_and_others(
    best: list[TopHead], scores: HeadScores[Float[Tensor, "layer head"]], seed: int
) -> list[list[tuple[int, int]]]:
    """The best heads, and ``DRAWS`` times as many others of the same layers or the nearest."""
    layers, heads = scores.prefix_matching.shape
    places = {head_name(*place): place for place in product(range(layers), range(heads))}
    others = Others(places, map(str, best), torch.Generator().manual_seed(seed))
    groups = [[str(head) for head in best], *(others.draw(map(str, best)) for _ in range(DRAWS))]
    return [[places[name] for name in group] for group in groups if group]


def _layers_links(model: ResValTransformer) -> dict[str, list[Link]]:
    """All links, and those of each layer."""
    groups = link_groups(model) if model.cfg.streams else {}
    return {name: links for name, links in groups.items() if ".h" not in name}


def even_scores(repeated: RepeatedTokens) -> HeadScores[float]:
    """Head scores of attention that is spread evenly: at position i, 1/(i + 1) on each token."""
    weights = 1 / np.arange(1, repeated.tokens.shape[1] + 1)
    again = float(weights[-repeated.length :].mean())
    return HeadScores(float(weights[1:].mean()), again, again)


def top_heads(scores: Float[Tensor, "layer head"], count: int) -> list[TopHead]:
    """The ``count`` heads of the highest score (all, if there are fewer), best first."""
    order = scores.flatten().argsort(descending=True, stable=True)[:count].tolist()
    places = [divmod(number, scores.shape[1]) for number in order]
    return [TopHead(i, h, scores[i, h].item()) for i, h in places]


def losses_by_edit(
    model: ResValTransformer,
    repeated: RepeatedTokens,
    reference: RepeatedTokens,
    whole: RepeatedLoss[Float[Tensor, " token"]],
    max_tokens: int = MAX_TOKENS,
    note: Note = lambda text: None,
) -> list[EditedLoss]:
    """Mean losses of repeated tokens (nats) with links ablated: all, each layer's, each alone.

    Args:
        reference: rows whose mean, position by position, takes a link's place.
        whole: the losses without any edit.

    Raises:
        ValueError: a model without links; rows of another length in ``reference``; ``max_tokens``
            below 1.
    """
    if reference.tokens.shape[1] != repeated.tokens.shape[1]:
        raise ValueError(
            f"reference has rows of {reference.tokens.shape[1]} tokens, not "
            f"{repeated.tokens.shape[1]}"
        )
    ablations = {"zero": zero(), "mean": link_means(model, reference.tokens, max_tokens)}
    rows = []
    for name, selected in link_groups(model).items():
        for ablation, edit in ablations.items():
            note(f"{name}: {ablation}")
            with model.hooks(fwd_hooks=link_hooks(model, edit, selected)):
                edited = repeated_loss(model, repeated, max_tokens)
            first, second = (half.mean().item() for half in edited)
            rise = second - whole.second.mean().item()
            rows.append(EditedLoss(name, ablation, first, second, rise))
    return rows
