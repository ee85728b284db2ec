"""Tables of interventions and of induction in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.table import Table

from resval_lens.analyses import tables

STYLE: Any = {**tables.STYLE, "min_width": 64}
RUNS = {"denoise": ("corrupted", "clean"), "noise": ("clean", "corrupted")}
"""The run that is patched, and the one that activations are taken from, by direction."""


def patch_table(found: Mapping[str, Any], most: int = 12) -> Table:
    """The cells that recover most of the gap, of ``patch.json``."""
    base, source = RUNS[found["direction"]]
    table = Table(
        title=f"{found['site']} of the {base} run, taken from the {source} run\n"
        f"({found['prompts']} prompts; {found['metric']} {base} {found['base']:.3f}, "
        f"{source} {found['source']:.3f})",
        **STYLE,
    )
    for axis in found["axes"]:
        table.add_column(axis, no_wrap=True)
    for name in (found["metric"], "recovered"):
        table.add_column(name, justify="right")
    values, recovered = np.array(found["values"]), np.array(found["recovered"])
    order = np.argsort(-np.abs(recovered), axis=None, kind="stable")
    for cell in order[:most]:
        place = np.unravel_index(cell, recovered.shape)
        labels = [
            _position(found, label) if axis == "position" else str(label)
            for axis, label in (
                (axis, labels[i])
                for (axis, labels), i in zip(found["axes"].items(), place, strict=True)
            )
        ]
        table.add_row(*labels, f"{values[place]:.3f}", _signed(recovered[place].item()))
    left = f"; {recovered.size - most} more in the JSON" if recovered.size > most else ""
    table.caption = f"(recovered: 0 as {base}, 1 as {source}{left})"
    return table


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # no minus before a zero


def _position(found: Mapping[str, Any], label: int | str) -> str:
    if isinstance(label, str) or found["tokens"] is None:
        return str(label)
    return f"{label} {found['tokens'][label].strip()}"


def ablation_table(study: Mapping[str, Any], most: int = 32) -> Table:
    """Each measure by links (rows) and edit (columns), of ``ablation_study``.

    The metric has every group's row, the other measures all links' and whole layers'.
    """
    edits = list(dict.fromkeys(row["edit"] for row in study["rows"]))
    names = list(dict.fromkeys(row["links"] for row in study["rows"]))
    cells = {(row["links"], row["edit"]): row["measures"] for row in study["rows"]}
    unedited = ", ".join(
        f"{name} {study['clean'][name]:.3f} ({study['corrupted'][name]:.3f})"
        for name in study["measures"]
    )
    table = Table(
        title=f"{study['prompts']} prompts, links edited; unedited (and on the twins):\n{unedited}",
        **STYLE,
    )
    table.add_column("links", no_wrap=True)
    for edit in edits:
        table.add_column(edit, justify="right")
    metric = study["measures"][0]
    ranked = sorted(
        names,
        key=lambda name: -max(abs(cells[name, e][metric] - study["clean"][metric]) for e in edits),
    )
    shown = set(ranked[:most])
    for number, measure in enumerate(study["measures"]):
        if number:
            table.add_section()
        table.add_row(f"[bold]{measure}[/bold]")
        for name in names:
            if name in shown and (not number or ".h" not in name or len(names) == 1):
                row = (f"{cells[name, edit][measure]:.3f}" for edit in edits)
                table.add_row(f"  {name}", *row)
    lines = [f"{name}: a link {meaning}" for name, meaning in study["edits"].items()]
    if len(names) > 1:
        lines.append("every link alone, in every measure: in the JSON")
    table.caption = "\n".join(lines)
    return table


def story_loss_table(losses: Mapping[str, Any]) -> Table:
    """Of ``story_loss.story_loss``: links cut, and layers' own parts."""
    table = Table(
        title=f"Loss on {losses['rows']} × {losses['tokens']} tokens of validation stories: "
        f"{losses['clean']:.3f} nats",
        **STYLE,
    )
    table.add_column("cut", no_wrap=True)
    table.add_column("loss", justify="right")
    for name, loss in losses["cut"].items():
        table.add_row(f"links: {name}", f"{loss:.3f}")
    for name, loss in losses["own cut"].items():
        table.add_row(f"own: {name}", f"{loss:.3f}")
    table.caption = "own: a layer's own values (queries, keys) at 0, its link as it was"
    return table
