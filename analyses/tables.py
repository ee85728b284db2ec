"""Tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from resval_lens.analyses.figures import TASKS


def emergence_table(data: dict[str, Any]) -> Table:
    """Ours beside the paper's: first snapshot above the threshold."""
    table = Table(
        title=f"First snapshot (of 500 steps) with accuracy > {data['threshold']}",
        title_justify="left",
    )
    columns = ("task", "variant", "seeds", "ours: mean ± sd", "published", "steps saved")
    for name in columns:
        table.add_column(name, justify="left" if name in ("task", "variant") else "right")
    previous = None
    for row in data["rows"]:
        if previous not in (None, row["task"]):
            table.add_section()
        previous = row["task"]
        reached = [number for number in row["snapshots"] if number is not None]
        ours = f"{row['mean']:.2f} ± {row['sd']:.2f}" if reached else "never"
        if len(reached) < len(row["snapshots"]):
            ours += f" ({len(reached)} of {len(row['snapshots'])} got there)"
        paper = row["published"]
        saved = data["saving_against_classic"].get(row["task"], {}).get(row["variant"])
        table.add_row(
            TASKS[row["task"]],
            row["variant"],
            str(len(row["seeds"])),
            ours,
            "" if paper is None else f"{paper['mean']:.2f} ± {paper['sd']:.2f}",
            "" if saved is None else f"{saved:.1%}",
        )
    return table


def t_test_table(data: dict[str, Any]) -> Table:
    """Every pair of variants."""
    table = Table(
        title="Two-sided t-tests (t < 0: the first gets there earlier)", title_justify="left"
    )
    for name in ("task", "first", "second"):
        table.add_column(name)
    for name in ("t", "p", "t, paired by seed", "p, paired"):
        table.add_column(name, justify="right")

    def shown(number: float | None, form: str) -> str:
        return "" if number is None else format(number, form)

    for test in data["t_tests"]:
        table.add_row(
            TASKS[test["task"]],
            test["first"],
            test["second"],
            shown(test["t"], ".2f"),
            shown(test["p"], ".2g"),
            shown(test["t_paired"], ".2f"),
            shown(test["p_paired"], ".2g"),
        )
    return table


def compare_table(result: dict[str, Any]) -> Table:
    """Accuracies, the effect of each edit, and the four cells."""
    table = Table(title="Accuracy", title_justify="left")
    table.add_column("model")
    table.add_column("links")
    for label in TASKS.values():
        table.add_column(label, justify="right")

    def add(model: str, links: str, row: dict[str, float]) -> None:
        table.add_row(model, links, *(f"{row[task]:.3f}" for task in TASKS))

    for name, study in result["models"].items():
        add(name, "as trained", {task: v["accuracy"] for task, v in study["tasks"].items()})
    for name, study in result["links"].items():
        table.add_section()
        for c in ("-1.0", "0.5", "2.0"):
            add(name, f"scaled by {float(c):g}", study["scale"][c])
        add(name, "cut", study["cut"])
        add(name, "mean-ablated", study["mean"])
    if "four_cells" in result:
        table.add_section()
        for cell, row in result["four_cells"]["cells"].items():
            trained, run = cell.split(", ")
            add(trained, run, row)
    return table


def attention_table(result: dict[str, Any]) -> Table:
    """Reddy's measures on fresh classes."""
    table = Table(
        title="Attention on IC (mean weights; CLA: share of answers)", title_justify="left"
    )
    columns = {
        "ila1_labels": "layer 1: label to its object",
        "tla2": "layer 2: query to labels",
        "tila2": "query to right labels",
        "induction_strength": "induction strength",
        "cla": "CLA",
    }
    table.add_column("model")
    for name in columns.values():
        table.add_column(name, justify="right")
    for name, study in result["attention"].items():
        table.add_row(name, *(f"{study['measures'][key]:.3f}" for key in columns))
    return table


def sentences(result: dict[str, Any], emergence: dict[str, Any] | None) -> Sequence[str]:
    """What was found, in words with numbers; only what the numbers bear."""
    said = []
    if emergence:
        saved = emergence["saving_against_classic"].get("ic", {}).get("values")
        test = next(
            (t for t in emergence["t_tests"]
             if t["task"] == "ic" and {t["first"], t["second"]} == {"classic", "values"}),
            None,
        )  # fmt: skip
        if saved is not None and test and test["p"] is not None:
            said.append(
                f"The values stream reaches {emergence['threshold']} on IC with {saved:.0%} fewer "
                f"training steps than the classic model (t = {test['t']:.1f}, p = {test['p']:.2g}; "
                "published: 24%)."
            )
    if "values" in result["links"]:
        cut, trained = result["links"]["values"]["cut"], result["links"]["values"]["scale"]["1.0"]
        said.append(
            f"Cutting the V₁→V₂ link takes IC from {trained['ic']:.2f} to {cut['ic']:.2f} and IW "
            f"from {trained['iw']:.2f} to {cut['iw']:.2f}."
        )
    if "four_cells" in result:
        cells = result["four_cells"]["cells"]
        said.append(
            "Grafting the link onto the classic model takes its IC from "
            f"{cells['trained classic, run without']['ic']:.2f} to "
            f"{cells['trained classic, run with']['ic']:.2f}."
        )
    return said
