"""Tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from resval_lens.tasks.icl import TASKS

STYLE: Any = {"title_justify": "left", "caption_justify": "left", "box": box.SIMPLE_HEAD}
NARROW: Any = STYLE | {"pad_edge": False, "padding": (0, 1, 0, 0)}


def compare_table(result: dict[str, Any]) -> Table:
    """Accuracies, the effect of each edit, and the four cells."""
    table = Table(title="Accuracy", **STYLE)
    table.add_column("model (seed)")
    table.add_column("links")
    table.add_column("n", justify="right")
    for label in TASKS.values():
        table.add_column(label, justify="right")

    def add(model: str, links: str, n: int, row: dict[str, float]) -> None:
        table.add_row(model, links, f"{n:,}", *(f"{row[task]:.3f}" for task in TASKS))

    for name, study in result["models"].items():
        accuracies = {task: v["accuracy"] for task, v in study["tasks"].items()}
        add(f"{name} ({study['seed']})", "as trained", study["sequences"], accuracies)
        if name in result["links"]:
            add("", "cut", study["sequences"], result["links"][name]["cut"])
    for name, study in result["links"].items():
        table.add_section()
        for c in ("-1.0", "0.0", "0.5", "1.0", "2.0"):
            add(name, f"scaled by {float(c):g}", study["sequences"], study["scale"][c])
        add(name, "mean-ablated", study["sequences"], study["mean"])
    if "four_cells" in result:
        table.add_section()
        n = result["models"]["values"]["sequences"]
        for cell, row in result["four_cells"]["cells"].items():
            trained, run = cell.split(", ")
            add(trained, run, n, row)
    return table


def controls_table(controls: Mapping[str, Any]) -> Table:
    """The cut beside changes of gain, of ``resval_lens.analyses.icl.compare``."""
    table = Table(
        title=f"{controls['model']}: the links cut, beside other edits\n"
        f"({controls['sequences']:,} sequences)",
        **STYLE,
    )
    table.add_column("edit", no_wrap=True)
    for label in TASKS.values():
        table.add_column(label, justify="right")
    for name, row in controls["accuracy"].items():
        table.add_row(name, *(f"{row[task]:.3f}" for task in TASKS))
    table.caption = "own: layer 1's own values; a cut takes gain away, too, which × 2 gives back"
    return table


def attention_table(result: dict[str, Any]) -> Table:
    """Reddy's measures on fresh classes."""
    table = Table(title="Attention on IC (mean weights; CLA: share of answers)", **STYLE)
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


def sentences(result: dict[str, Any]) -> Sequence[str]:
    """What was found of classifiers, in words with numbers; only what the numbers bear."""
    said = []
    if "values" in result["links"]:
        cut, seed = result["links"]["values"]["cut"], result["models"]["values"]["seed"]
        tasks = result["models"]["values"]["tasks"]
        trained = {task: v["accuracy"] for task, v in tasks.items()}
        said.append(
            f"Cutting the V₁→V₂ link of the values model (seed {seed}) takes IC from "
            f"{trained['ic']:.2f} to {cut['ic']:.2f} and IW from {trained['iw']:.2f} to "
            f"{cut['iw']:.2f}."
        )
    if "controls" in result:
        accuracy, n = result["controls"]["accuracy"], result["controls"]["sequences"]
        doubled = accuracy["own × 2, links cut"]
        said.append(
            f"On {n:,} sequences, IC of the same model is {accuracy['links cut']['ic']:.2f} with "
            f"the link cut, {doubled['ic']:.2f} with the link cut and layer 1's own values "
            f"doubled (IW {doubled['iw']:.2f}), and {accuracy['own cut']['ic']:.2f} with those cut "
            "instead: one seed, at the end of training."
        )
    if "four_cells" in result:
        cells, seed = result["four_cells"]["cells"], result["models"]["classic"]["seed"]
        said.append(
            f"Grafting the link onto the classic model (seed {seed}) takes its IC from "
            f"{cells['trained classic, run without']['ic']:.2f} to "
            f"{cells['trained classic, run with']['ic']:.2f}."
        )
    return said
