"""Indirect objects in the four cells: weights of either architecture, run as either."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.markup import escape
from rich.table import Table

from resval_lens.analyses.comparison.cells import Cells
from resval_lens.analyses.results.result import Result
from resval_lens.analyses.results.seeds import spread
from resval_lens.analyses.results.tables import table
from resval_lens.analyses.studies.ioi import IOIScores, ioi_scores
from resval_lens.streams import AttentionStream, shorthand
from resval_lens.tasks.ioi import IOIBatch
from resval_lens.transformer import ResValTransformer

Score = tuple[str, str, Callable[[IOIScores], float]]
"""A score's heading, its form and where it stands."""
SCORES: tuple[Score, ...] = (
    ("IO − S", ".2f", lambda scores: scores.logit_difference),
    ("P(IO)", ".3f", lambda scores: scores.p_io),
    ("P(S)", ".3f", lambda scores: scores.p_subject),
    ("IO > S", ".3f", lambda scores: scores.accuracy),
    ("IO top", ".3f", lambda scores: scores.accuracy_top1),
    ("corrupted", ".2f", lambda scores: scores.corrupted_logit_difference),
)
OVER_PAIRS = (SCORES[0], SCORES[1], SCORES[3])
"""What is shown of several pairs of models."""
LEGEND = "(IO − S: logit difference; corrupted: that of the corrupted prompts)"


@dataclass(frozen=True)
class FourCells(Result):
    """Scores of the four cells of a pair of models, run with ``streams`` or without.

    Attributes:
        prompts: how many.
    """

    streams: tuple[AttentionStream, ...]
    prompts: int
    cells: Cells[IOIScores]


def four_cells(
    classic: ResValTransformer, stream: ResValTransformer, batch: IOIBatch, chunk: int = 64
) -> FourCells:
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
    cells = (
        ioi_scores(model.with_streams(streams, share_weights=True), batch, chunk)
        for model in (classic, stream)
        for streams in ((), stream.cfg.streams)
    )
    return FourCells(stream.cfg.streams, len(batch.last), Cells(*cells))


def scores_table(
    scores: Mapping[str, IOIScores], title: str = "Indirect object identification"
) -> Table:
    """One row for each name in ``scores``."""
    rows = ([escape(name), *_cells([row])] for name, row in scores.items())
    return table(f"{title}\n{LEGEND}", ["model"], [name for name, _, _ in SCORES], rows)


def cells_table(pairs: Sequence[FourCells], title: str = "Four cells") -> Table:
    """The four cells: of one pair all scores; of several pairs mean ± sd of three."""
    scores = SCORES
    title += ": the same weights, run as either architecture"
    if len(pairs) > 1:
        title += f"\n(mean ± population sd of {len(pairs)} pairs)"
        scores = OVER_PAIRS
    cells = [pair.cells.by_way() for pair in pairs]
    rows = ([*way, *_cells([each[way] for each in cells], scores)] for way in cells[0])
    columns = [name for name, _, _ in scores]
    return table(f"{title}\n{LEGEND}", ("trained", "run"), columns, rows)


def cells_sentences(pairs: Sequence[FourCells]) -> list[str]:
    """What the four cells show, in words: P(IO), the mean over pairs."""
    every = [[cell.p_io for cell in pair.cells.by_way().values()] for pair in pairs]
    classic, grafted, removed, stream = map(float, np.mean(every, axis=0))
    return [
        f"Each run as it was trained: P(IO) {classic:.3f} classic, {stream:.3f} with the stream.",
        "Classic weights run with the stream, as the paper's public script runs them: "
        f"P(IO) {classic:.3f} → {grafted:.3f}.",
        f"Weights trained with the stream, run without: P(IO) {stream:.3f} → {removed:.3f}.",
    ]


def _cells(rows: Sequence[IOIScores], scores: Sequence[Score] = SCORES) -> list[str]:
    return [spread({i: of(row) for i, row in enumerate(rows)}).told(form) for _, form, of in scores]
