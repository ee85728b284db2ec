"""What ``resval-lens eval ioi`` says: the paper's sentences, generated prompts, the four cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from resval_lens.analyses.comparison.ioi_cells import (
    FourCells,
    cells_sentences,
    cells_table,
    four_cells,
    scores_table,
)
from resval_lens.analyses.comparison.ioi_paper import PaperTable, paper_table
from resval_lens.analyses.results.result import FLAT, Result
from resval_lens.analyses.studies.ioi import IOIScores, ioi_scores
from resval_lens.notes import Note
from resval_lens.tasks.ioi import IOIBatch
from resval_lens.tasks.leading import NamedToken, named_token
from resval_lens.transformer import ResValTransformer


@dataclass(frozen=True)
class Pair:
    """The four cells of two models, by name."""

    classic: str
    stream: str
    found: FourCells = field(metadata=FLAT)


@dataclass(frozen=True)
class IOIStudy(Result):
    """Language models on indirect objects.

    Attributes:
        prompts: in each set.
        names_left_out: which prompts do without, as the tokenizer has no one token for them.
        paper: its Table 2 of these models.
        scores: by set of prompts and model.
        four_cells: by architecture with streams, on the last set of prompts.
    """

    prompts: int
    leading_token: NamedToken | None
    names_left_out: Sequence[str]
    paper: PaperTable
    scores: Mapping[str, Mapping[str, IOIScores]]
    four_cells: Mapping[str, Sequence[Pair]]

    def to_dict(self) -> dict[str, Any]:
        """Without the number of prompts."""
        return {name: own for name, own in super().to_dict().items() if name != "prompts"}

    def tables(self) -> list[Table]:
        """The paper's, a table of scores for each set of prompts, and the four cells."""
        return [
            *self.paper.tables(),
            *(
                scores_table(scores, f"IOI, {self.prompts} {name} prompts")
                for name, scores in self.scores.items()
            ),
            *(
                cells_table(
                    [pair.found for pair in pairs],
                    f"Classic and {kind}, {list(self.scores)[-1]} prompts",
                )
                for kind, pairs in self.four_cells.items()
            ),
        ]

    def sentences(self) -> list[str]:
        """What the four cells show."""
        return [
            sentence
            for pairs in self.four_cells.values()
            for sentence in cells_sentences([pair.found for pair in pairs])
        ]


def ioi_study(
    models: Mapping[str, Mapping[str, ResValTransformer]],
    sets: Mapping[str, IOIBatch],
    pairs: Mapping[str, Sequence[tuple[str, str]]],
    lead: int | None,
    left_out: Sequence[str] = (),
    note: Note = lambda text: None,
) -> IOIStudy:
    """:class:`IOIStudy` of models of one tokenizer.

    Args:
        models: by architecture and name.
        sets: prompts by name, as many in each.
        pairs: by architecture with streams, the names of a classic model and of such a one.
        lead: the token before every prompt.
        left_out: names that prompts do without.
        note: called with what is being done.
    """
    every = {name: model for own in models.values() for name, model in own.items()}
    first = next(iter(every.values()))
    *_, last = sets.values()
    note("the paper's sentences")
    table = paper_table(
        {kind: list(own.values()) for kind, own in models.items()}, first.tokenizer, prepend=lead
    )
    scores: dict[str, dict[str, IOIScores]] = {}
    for name, batch in sets.items():
        for called, model in every.items():
            note(f"{called}: {name}")
            scores.setdefault(name, {})[called] = ioi_scores(model, batch)
    cells: dict[str, list[Pair]] = {}
    for kind, named in pairs.items():
        for one, other in named:
            note(f"four cells: {one} and {other}")
            found = four_cells(every[one], every[other], last)
            cells.setdefault(kind, []).append(Pair(one, other, found))
    leading = named_token(first, lead)
    return IOIStudy(len(last.last), leading, left_out, table, scores, cells)
