"""Tables of indirect object identification in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from resval_lens.analyses.ioi import CELLS
from resval_lens.analyses.tables import STYLE

# A score of resval_lens.analyses.ioi.means: its heading and its form.
Scores = Mapping[str, tuple[str, str]]
SCORES: Scores = {
    "logit_difference": ("IO − S", "{:.2f}"),
    "p_io": ("P(IO)", "{:.3f}"),
    "p_subject": ("P(S)", "{:.3f}"),
    "accuracy": ("IO > S", "{:.3f}"),
    "accuracy_top1": ("IO top", "{:.3f}"),
    "corrupted_logit_difference": ("twin", "{:.2f}"),
}
LEGEND = "(IO − S: logit difference; twin: that of the corrupted prompts)"


def scores_table(
    scores: Mapping[str, Mapping[str, float]], title: str = "Indirect object identification"
) -> Table:
    """One row for each name in ``scores``, of ``resval_lens.analyses.ioi.ioi_scores``."""
    table = _table_of_scores(title, ["model"])
    for name, row in scores.items():
        table.add_row(escape(name), *_scores([row]))
    return table


def cells_table(results: Sequence[dict[str, Any]], title: str = "Four cells") -> Table:
    """The four cells of ``resval_lens.analyses.ioi.four_cells``.

    Of one pair all scores; of several pairs mean ± sd of three.
    """
    scores = SCORES
    title += ": the same weights, run as either architecture"
    if len(results) > 1:
        title += f"\n(mean ± population sd of {len(results)} pairs)"
        scores = {name: SCORES[name] for name in ("logit_difference", "p_io", "accuracy")}
    table = _table_of_scores(title, ("trained", "run"), scores)
    for cell in CELLS:
        trained, run = cell.split(", ")
        rows = [result["cells"][cell] for result in results]
        table.add_row(
            trained.removeprefix("trained "), run.removeprefix("run "), *_scores(rows, scores)
        )
    return table


def cells_tables(pairs: Sequence[dict[str, Any]]) -> list[tuple[Table, list[dict[str, Any]]]]:
    """A table for each architecture with streams, and its pairs; of ``lm_compare``'s four cells."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for pair in pairs:
        by_kind.setdefault(pair["architecture"], []).append(pair)
    return [
        (cells_table(own, f"Language models, classic and {kind}"), own)
        for kind, own in by_kind.items()
    ]


def cells_sentences(results: Sequence[dict[str, Any]]) -> list[str]:
    """What the four cells show, in words: P(IO), the mean over pairs."""
    plain, grafted, removed, carried = (
        float(np.mean([result["cells"][cell]["p_io"] for result in results])) for cell in CELLS
    )
    return [
        f"Each run as it was trained: P(IO) {plain:.3f} classic, {carried:.3f} with the stream.",
        "Classic weights run with the stream, as the paper's public script runs them: "
        f"P(IO) {plain:.3f} → {grafted:.3f}.",
        f"Weights trained with the stream, run without: P(IO) {carried:.3f} → {removed:.3f}.",
    ]


def paper_table_2(data: dict[str, Any]) -> Table:
    """``resval_lens.analyses.ioi.paper_table``, ours beside the published.

    Deviations are those of the sample (ddof = 1), as published; the data have the population's,
    too. A single seed has none.
    """
    table = Table(
        title=f"Next-token probability in {data['unit']}, either person as the subject\n"
        "(mean ± sample sd over seeds)",
        pad_edge=False,
        **STYLE,
    )
    table.caption = (
        "published: models of 8 million parameters trained on TinyStories, whatever these are; "
        "sentences by number, their text is in the JSON"
    )
    table.add_column("model", no_wrap=True)
    for name in ("#", "P(IO)", "published", "P(S)", "published"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in data["rows"]:
        if previous not in (None, row["architecture"]):
            table.add_section()
        name = "" if row["architecture"] == previous else f"{row['architecture']} ({row['seeds']})"
        previous = row["architecture"]
        paper = row["published"] or {}
        table.add_row(
            name,
            str(row["sentence"]),
            *(_spread(of.get(score)) for score in ("p_io", "p_subject") for of in (row, paper)),
        )
    return table


def _table_of_scores(title: str, names: Sequence[str], scores: Scores = SCORES) -> Table:
    table = Table(title=f"{title}\n{LEGEND}", **STYLE)
    for name in names:
        table.add_column(name, overflow="fold")
    for heading, _ in scores.values():
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _scores(rows: Sequence[Mapping[str, float]], scores: Scores = SCORES) -> list[str]:
    texts = []
    for score, (_, form) in scores.items():
        numbers = [row[score] for row in rows]
        text = form.format(np.mean(numbers))
        texts.append(text if len(rows) == 1 else f"{text} ± {form.format(np.std(numbers))}")
    return texts


def _spread(numbers: dict[str, Any] | None) -> str:
    if numbers is None:
        return ""
    sd = numbers["sd_sample"]
    return f"{numbers['mean']:.2f}" + ("" if sd is None else f" ± {sd:.2f}")
