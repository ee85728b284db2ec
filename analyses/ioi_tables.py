"""Tables of indirect object identification in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from resval_lens.analyses.tables import STYLE

# A score of resval_lens.analyses.ioi.means: its heading and its form.
SCORES = {
    "logit_difference": ("IO − S", "{:.2f}"),
    "p_io": ("P(IO)", "{:.3f}"),
    "p_subject": ("P(S)", "{:.3f}"),
    "accuracy": ("IO > S", "{:.3f}"),
    "accuracy_top1": ("IO top", "{:.3f}"),
    "corrupted_logit_difference": ("twin", "{:.2f}"),
}
LEGEND = "(twin: IO − S of the corrupted prompts)"


def scores_table(scores: Mapping[str, Mapping[str, float]]) -> Table:
    """One row for each name in ``scores``, of ``resval_lens.analyses.ioi.ioi_scores``."""
    table = _table_of_scores("Indirect object identification", "model")
    for name, row in scores.items():
        table.add_row(name, *_scores(row))
    return table


def cells_table(result: dict[str, Any]) -> Table:
    """The four cells of ``resval_lens.analyses.ioi.four_cells``."""
    table = _table_of_scores("The same weights, run as either architecture", "trained", "run")
    for cell, row in result["cells"].items():
        trained, run = cell.split(", ")
        table.add_row(trained.removeprefix("trained "), run.removeprefix("run "), *_scores(row))
    return table


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


def _table_of_scores(title: str, *names: str) -> Table:
    table = Table(title=f"{title}\n{LEGEND}", **STYLE)
    for name in names:
        table.add_column(name, no_wrap=True)
    for heading, _ in SCORES.values():
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _scores(row: Mapping[str, float]) -> list[str]:
    return [form.format(row[score]) for score, (_, form) in SCORES.items()]


def _spread(numbers: dict[str, Any] | None) -> str:
    if numbers is None:
        return ""
    sd = numbers["sd_sample"]
    return f"{numbers['mean']:.2f}" + ("" if sd is None else f" ± {sd:.2f}")
