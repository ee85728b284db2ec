"""What ``resval-lens patch`` says: the cells that carry the answer from one run to the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from resval_lens.analyses.results.result import FLAT, OPTIONAL, Result
from resval_lens.analyses.results.tables import WIDE
from resval_lens.analyses.tasks.problem import Example, Facts, Problem, undone
from resval_lens.hooks.patching import PatchResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = {"denoise": ("corrupted", "clean"), "noise": ("clean", "corrupted")}
"""The run that is patched, and the one that activations are taken from, by direction."""


@dataclass(frozen=True, kw_only=True)
class Patching(Result):
    """A :class:`~resval_lens.hooks.patching.PatchResult` with the facts of its model and prompts.

    Attributes:
        drawn: how many prompts were asked for.
        general: whether they are no stories' prompts.
        patched_positions, patched_heads: "all", or which.
        base, source: the metric of the run that is patched, and of the one that it takes from.
        values, recovered: of each cell the metric, and the share of the gap that it recovers.
        tokens: of a prompt, where positions are numbers.
    """

    facts: Facts = field(metadata=FLAT)
    drawn: int | None = field(default=None, metadata=OPTIONAL)
    general: bool | None = field(default=None, metadata=OPTIONAL)
    site: str
    direction: str
    axes: Mapping[str, list[Any]]
    patched_positions: str | Sequence[str | int] | None = field(default=None, metadata=OPTIONAL)
    patched_heads: str | list[int] | None = field(default=None, metadata=OPTIONAL)
    base: float
    source: float
    values: Float[Tensor, "..."] | None = field(default=None, metadata=OPTIONAL)
    recovered: Float[Tensor, "..."]
    tokens: list[str] | None = None
    example: Example | None

    @classmethod
    def of(cls, chosen: Problem, patched: PatchResult) -> Patching:
        """``patched`` on the prompts of ``chosen``."""
        return cls(
            facts=chosen.facts(), site=patched.site, direction=patched.direction, axes=patched.axes,
            base=patched.base, source=patched.source, recovered=patched.recovered(),
            example=chosen.example(),
        )  # fmt: skip

    def sentences(self) -> list[str]:
        """The cell that recovers most; that the model does not do the task, if it does not."""
        runs = dict(zip(RUNS[self.direction], (self.base, self.source), strict=True))
        found = self.found()
        return [
            *undone(self.facts.metric, runs["clean"], runs["corrupted"]),
            f"{found[:1].upper()}{found[1:]}",
        ]

    def cells(self) -> list[tuple[str, float]]:
        """Each cell's name, "layer 2, head 1", and the share that it recovers, largest first."""
        names = [
            ", ".join(f"{axis} {label}" for axis, label in zip(self.axes, place, strict=True))
            for place in product(*self.axes.values())
        ]
        shares = self.recovered.cpu().double().flatten().tolist()
        return sorted(zip(names, shares, strict=True), key=lambda cell: -abs(cell[1]))

    def found(self) -> str:
        """What the first of the cells recovers."""
        cell, share = self.cells()[0]
        return f"{cell} ({self.site}) recovers {share:.0%} of the gap."

    def tables(self) -> list[Table | str]:
        """The cells that recover most of the gap."""
        shown: list[Table | str] = [self._table()]
        if self.tokens and self.drawn and self.facts.prompts < self.drawn:
            shown.append(
                f"Positions by number: {self.facts.prompts} of {self.drawn} prompts have "
                f"{len(self.tokens)} tokens, the commonest length."
            )
        return shown

    def _table(self, most: int = 12) -> Table:
        base, source = RUNS[self.direction]
        metric, prompts = self.facts.metric, self.facts.prompts
        table = Table(
            title=f"{self.site} of the {base} run, taken from the {source} run;\n"
            f"{self.facts.task_and_corruption}\n"
            f"({prompts} prompts; {metric} {base} {self.base:z.3f}, {source} {self.source:z.3f})",
            **WIDE,
        )
        for axis in self.axes:
            table.add_column(axis, no_wrap=True)
        for name in (metric, "recovered"):
            table.add_column(name, justify="right")
        assert self.values is not None
        values, recovered = (
            self.values.cpu().double().numpy(),
            self.recovered.cpu().double().numpy(),
        )
        order = np.argsort(-np.abs(recovered), axis=None, kind="stable")
        for cell in order[:most]:
            place = np.unravel_index(cell, recovered.shape)
            labels = (
                self._label(axis, own[i])
                for (axis, own), i in zip(self.axes.items(), place, strict=True)
            )
            share = f"{recovered[place]:+z.3f}"
            table.add_row(*labels, f"{values[place]:z.3f}", share)
        left = f"; {recovered.size - most} more in the JSON" if recovered.size > most else ""
        table.caption = f"(recovered: 0 as {base}, 1 as {source}{left})"
        return table

    def _label(self, axis: str, label: int | str) -> str:
        if axis != "position" or isinstance(label, str) or self.tokens is None:
            return str(label)
        return f"{label} {self.tokens[label].strip()}"

    @property
    def largest(self) -> float:
        """The largest absolute share."""
        return float(self.recovered.cpu().double().abs().max())

    def figure(self, most: float = 1.0) -> Figure:
        """Heat maps of what each cell recovers, on a scale to ± ``most`` at least."""
        from resval_lens.analyses.studies.intervention_figures import patched

        return patched(
            self.recovered.cpu().double().numpy(), self.axes, self.site, self.direction,
            tokens=self.tokens, model=self.facts.model, task=self.facts.task_and_corruption,
            most=most,
        )  # fmt: skip

    def figures(self) -> dict[str, Figure]:
        """:meth:`figure`."""
        return {"patch.png": self.figure()}
