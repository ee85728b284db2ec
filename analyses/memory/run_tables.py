"""Training runs of simplified transformers, in tables of the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from resval_lens.analyses.memory.curves import shown
from resval_lens.analyses.memory.encodings import EDITS, step_of
from resval_lens.analyses.tables import STYLE

HEADS = {
    "W_O2": "W_O²", "W_K2": "W_K²", "W_K1": "W_K¹", "W_F": "W_F", "previous": "t − 1",
    "target": "target", "accuracy": "accuracy",
}  # fmt: skip


def _table(title: str, columns: Sequence[str], words: int = 1) -> Table:
    # Eight columns fit into 80 characters with one space, the box's own, between two of them.
    table = Table(title=title, padding=0, **STYLE)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < words else "right", no_wrap=True)
    return table


def curve_tables(data: Mapping[str, Any]) -> list[Table]:
    """When each measure passes, and where it ends, by variant."""
    tables = []
    first_title = f"First step above {data['threshold']:g} (W_F: {data['known']:.0%} of bigrams)"
    for key, title, form in (("first", first_title, ".0f"), ("final", "At the last step", ".2f")):
        table = _table(title, ["variant", *HEADS.values()])
        for name, study in data["variants"].items():
            there = [study[key].get(measure) for measure in HEADS]
            if key == "first":
                cells = ["" if x is None else shown(x, form, tight=True) for x in there]
            else:  # eight columns have no room for deviations
                cells = ["" if x is None else _number(x["mean"], form) for x in there]
            table.add_row(_named(name, len(study["steps"])), *cells)
        tables.append(table)
    tables[-1].caption = (
        "(variant (seeds), means; recall of the memories; what W_F tells\n"
        "of the bigrams; share of positions that look at t − 1, at the\n"
        "target; in-context accuracy)"
    )
    return tables


def length_tables(data: Mapping[str, Any]) -> list[Table]:
    """Accuracy, loss and attention at each length, by variant."""
    names = {
        "accuracy": "In-context accuracy",
        "excess": "Loss above the best predictor's (nats)",
        "previous_mass": "Layer 0's attention to t − 1",
        "target_mass": "Layer 1's attention to the target",
    }
    tables = []
    for measure, title in names.items():
        lengths = [f"{length:,}" for length in data["lengths"]]
        table = _table(f"{title}, by length (trained: {data['trained_length']})",
                       ["variant", *lengths])  # fmt: skip
        for name, study in data["over_seeds"].items():
            seeds = len(study["lengths"][0][measure]["by_seed"])
            table.add_row(
                _named(name, seeds), *(shown(row[measure], tight=True) for row in study["lengths"])
            )
        tables.append(table)
    return tables


def encoding_tables(data: Mapping[str, Any]) -> list[Table]:
    """Steps and final accuracy, the tests, the edits, the four cells."""
    steps = _table(
        "First step above an in-context accuracy; numbers at the end",
        ["variant", *(f"> {x:g}" for x in data["thresholds"]), "accuracy", "2 × length", "t − 1"],
    )
    for name, study in data["variants"].items():
        measures = study["measures"]
        firsts = [shown(measures[step_of(x)], ".0f", tight=True) for x in data["thresholds"]]
        ends = ("accuracy", "accuracy, twice the length", "attention to t − 1")
        seeds = len(measures["accuracy"]["by_seed"])
        steps.add_row(
            _named(name, seeds), *firsts, *(shown(measures[end], tight=True) for end in ends)
        )
    tables = [steps]
    if data["pairs"]:
        table = _table(
            "With a value stream against without, by seed",
            ["encoding", "measure", "seeds", "difference", "saved", "paired t", "p"], 2,
        )  # fmt: skip
        for row in data["pairs"]:
            if row["measure"].startswith(("step", "accuracy")):
                form = "+.0f" if row["saved"] is not None else "+.3f"
                table.add_row(
                    row["encoding"],
                    row["measure"],
                    str(len(row["seeds"])),
                    _number(row["difference"], form),
                    _number(row["saved"], ".0%"),
                    _number(row["t_paired"], ".2f"),
                    _number(row["p_paired"], ".2g"),
                )
        tables.append(table)
    if data["ablations"]:
        table = _table("In-context accuracy of the trained model, edited",
                       ["variant", "seed", "as trained", "link cut", "silenced", "both",
                        "uniform"])  # fmt: skip
        for entry in data["ablations"]:
            cells = (_number(entry["accuracy"].get(edit)) for edit in EDITS)
            table.add_row(entry["variant"], str(entry["seed"]), *cells)
        table.caption = (
            "(silenced: layer 0's head adds nothing to the residual stream;\n"
            "both: and the link is cut; uniform: layer 0 attends to all alike)"
        )
        tables.append(table)
    if data["cells"]:
        table = _table("The same weights, run without → with a stream",
                       ["encoding", "seed", "trained without", "trained with"])  # fmt: skip
        for entry in data["cells"]:
            pairs = (
                " → ".join(
                    _number(entry["cells"][f"trained {trained}, run {run}"])
                    for run in ("without", "with")
                )
                for trained in ("without", "with")
            )
            table.add_row(entry["variant"], str(entry["seed"]), *pairs)
        tables.append(table)
    return tables


def _named(variant: str, seeds: int) -> str:
    return f"{variant} ({seeds})"


def _number(x: float | None, form: str = ".3f") -> str:
    return "" if x is None else format(x, form)
