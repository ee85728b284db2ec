"""What lm-evaluation-harness gives; it need not be installed to read this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from resval_lens.analyses.results.result import Result
from resval_lens.analyses.results.tables import STYLE
from resval_lens.tasks.leading import NamedToken


@dataclass(frozen=True)
class HarnessScore:
    """One metric of one task.

    Attributes:
        shots: examples before each question; None of a group of tasks.
        filter: of the answers before they are compared.
        stderr: of the value; None where the harness has none.
        n: questions.
        cut: texts (a question with each of its answers is one) over n_ctx that lost their
            beginnings.
    """

    task: str
    shots: int | None
    metric: str
    filter: str
    value: float
    stderr: float | None
    n: int | None
    cut: int


@dataclass(frozen=True)
class HarnessScores(Result):
    """Scores of each model, and what led texts.

    From :func:`~resval_lens.analyses.studies.harness.evaluate`.
    """

    models: Mapping[str, Sequence[HarnessScore]]
    leading_tokens: Mapping[str, NamedToken | None]

    def tables(self) -> list[Table | str]:
        """Of each model its name and its scores."""
        return [part for name, own in self.models.items() for part in (name, _table(own))]


def _table(scores: Sequence[HarnessScore]) -> Table:
    table = Table(**STYLE)
    for name in ("task", "shots", "metric"):
        table.add_column(name)
    for name in ("value", "± stderr", "questions", "cut"):
        table.add_column(name, justify="right")
    for score in scores:
        table.add_row(
            score.task,
            "" if score.shots is None else str(score.shots),
            score.metric if score.filter == "none" else f"{score.metric} ({score.filter})",
            f"{score.value:.4f}",
            "" if score.stderr is None else f"{score.stderr:.4f}",
            "" if score.n is None else str(score.n),
            str(score.cut),
        )
    if any(score.cut for score in scores):
        table.caption = (
            "(cut: texts, a question with each of its answers, that were over the context\n"
            "and lost their beginnings)"
        )
    return table
