"""CPR and CMD of every selection of edges, with intervals over resampled held-out prompts.

Edges are scored on some prompts; every circuit is run once on others, and each prompt's metric is
kept. A resample weighs those prompts again: f, its areas and their differences between selections
follow for each resample from the same runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from resval_lens.analyses.circuits.bootstrap import Bootstrap, Stable
from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.curve import FRACTIONS, shares_and_sizes
from resval_lens.analyses.circuits.evaluation import Ends, check_gap, counting
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.running import EdgeRuns, MeasuredBy
from resval_lens.analyses.circuits.scores import EdgeScores, score_edges
from resval_lens.analyses.circuits.selection import SELECTIONS, Selection
from resval_lens.analyses.results.intervals import Interval
from resval_lens.analyses.results.result import FLAT, OPTIONAL, Result
from resval_lens.analyses.results.tables import NARROW
from resval_lens.analyses.tasks.problem import Facts, Problem
from resval_lens.notes import Note

Area = Literal["cpr", "cmd"]


@dataclass(frozen=True)
class SelectionCurve:
    """Faithfulness over size of the circuits that one selection chooses by one method's scores.

    Attributes:
        bootstrapped: whether edges whose scores do not keep their sign are chosen last.
        n_edges: of each circuit, pruned.
        faithfulness: f of each.
        cpr, cmd: the areas of :mod:`~resval_lens.analyses.circuits.curve`.
        cpr_difference, cmd_difference: less those of the first selection by the same method, on the
            same resamples; None of that itself.
        gaps: :attr:`~.Choice.gap` of each circuit, of a selection that has one.
    """

    method: str
    select: str
    bootstrapped: bool
    n_edges: tuple[int, ...]
    faithfulness: tuple[Interval, ...]
    cpr: Interval
    cmd: Interval
    cpr_difference: Interval | None = field(default=None, metadata=OPTIONAL)
    cmd_difference: Interval | None = field(default=None, metadata=OPTIONAL)
    gaps: tuple[float, ...] | None = field(default=None, metadata=OPTIONAL)

    def verdict(self, area: Area) -> int:
        """1 where the area is better than the first selection's, −1 where it is worse, 0 where 0
        lies in the interval of their difference. The better CPR is larger, the better CMD smaller.
        """
        difference = self.cpr_difference if area == "cpr" else self.cmd_difference
        if difference is None or difference.low <= 0 <= difference.high:
            return 0
        return 1 if (difference.value > 0) == (area == "cpr") else -1


@dataclass(frozen=True)
class SelectionStudy(Result):
    """Every selection on one model and task.

    Attributes:
        facts: of the model, and of the prompts that edges are scored on.
        held_out: how many other prompts circuits are run on.
        ends: the metric there.
        sizes: edges that circuits may have, at each share of ``fractions``.
        stable: by method, which scores kept their sign.
        runs: how many circuits were run.
    """

    facts: Facts = field(metadata=FLAT)
    held_out: int
    ends: Ends
    n_edges_of_model: int
    fractions: tuple[float, ...]
    sizes: tuple[int, ...]
    resamples: int
    level: float
    stable: Mapping[str, Stable]
    curves: tuple[SelectionCurve, ...]
    runs: int
    measured_by: MeasuredBy = field(metadata=FLAT)

    def tables(self) -> list[Table | str]:
        """Areas of every selection."""
        title = f"{self.facts.model}: selections, {self.level:.0%} intervals over prompts"
        table = Table(title=title, **NARROW)
        for name in ("scores", "stable first", "selection"):
            table.add_column(name, no_wrap=True)
        for name in ("CPR", "CMD"):
            table.add_column(name, justify="right", no_wrap=True)
        for each in self.curves:
            first = "yes" * each.bootstrapped
            table.add_row(each.method, first, each.select, each.cpr.told(), each.cmd.told())
        return [table]

    def sentences(self) -> list[str]:
        """Which selections are better than the first, and how many scores are stable."""
        said = [
            f"{name}: {one.edges:,} of {one.of:,} scores keep their sign over {one.level:.0%} of "
            f"{one.resamples:,} resamples of {self.facts.prompts} prompts."
            for name, one in self.stable.items()
        ]
        areas: tuple[tuple[Area, str], ...] = (("cpr", "larger"), ("cmd", "smaller"))
        for method in self.stable:
            own = [each for each in self.curves if each.method == method]
            for area, better in areas:
                found = [
                    each.select + ", stable first" * each.bootstrapped
                    for each in own
                    if each.verdict(area) == 1
                ]
                said.append(
                    f"{method}: {area.upper()} is {better} than that of {own[0].select} (0 lies "
                    f"outside the difference's interval) with {'; '.join(found) or 'none'}."
                )
        worst = max((gap for each in self.curves for gap in each.gaps or ()), default=0.0)
        if worst:
            said.append(f"Sums that were not proved largest are within {worst:.2%} of the bound.")
        return said


def selection_study(
    scored: Problem,
    held_out: Problem,
    methods: Sequence[str] = ("eap", "eap-ig"),
    selections: Mapping[str, Selection] = SELECTIONS,
    fractions: Sequence[float] = FRACTIONS,
    bootstrap: Bootstrap = Bootstrap(),  # noqa: B008  # frozen
    note: Note = lambda text: None,
) -> SelectionStudy:
    """CPR and CMD of circuits that every selection chooses, by scores as they are and by those that
    keep their sign.

    Args:
        scored: the problem whose prompts edges are scored on.
        held_out: the same on other prompts, which circuits are run on.
        selections: by name. The first is what the others are compared with.
        bootstrap: of the scores' prompts, and of the held-out ones.

    Raises:
        ValueError: a vanishing gap between clean and corrupted prompts, no selection, or what
            scoring refuses.
    """
    if not selections:
        raise ValueError("selections must name one or more; got none")
    graph = Graph.of(scored.model)
    shares, sizes = shares_and_sizes(len(graph), fractions)
    runs = EdgeRuns(scored.model, held_out.pairs, graph)
    check_gap(runs)
    areas = _Areas(runs, shares, bootstrap)
    stable: dict[str, Stable] = {}
    curves: list[SelectionCurve] = []
    for method in methods:
        scoring = f"{method}: scoring {len(graph):,} edges"
        note(scoring)
        plain = score_edges(
            scored.model,
            scored.pairs,
            method,
            graph=graph,
            by_prompt=True,
            progress=counting(note, scoring),
        )
        sure, stable[method] = bootstrap.stable_first(plain)
        first: _Found | None = None
        for scores, bootstrapped in ((plain, False), (sure, True)):
            for name, how in selections.items():
                note(f"{method}{', bootstrapped' * bootstrapped}: {name}")
                found = areas.of(scores, how, sizes)
                curves.append(areas.curve(method, name, bootstrapped, found, first))
                first = first or found
    return SelectionStudy(
        facts=scored.facts(),
        held_out=len(held_out.pairs),
        ends=Ends(runs.clean, runs.corrupted),
        n_edges_of_model=len(graph),
        fractions=tuple(shares),
        sizes=tuple(sizes),
        resamples=bootstrap.resamples,
        level=bootstrap.level,
        stable=stable,
        curves=tuple(curves),
        runs=runs.circuits_run,
        measured_by=runs.measured_by,
    )


@dataclass(frozen=True)
class _Found:
    """Of one selection: circuits' sizes and gaps, and numbers of all prompts, then of resamples."""

    n_edges: list[int]
    gaps: list[float | None]
    f: Float[Tensor, "sample size"]
    cpr: Float[Tensor, " sample"]
    cmd: Float[Tensor, " sample"]


class _Areas:
    """Circuits run on the held-out prompts, and what follows for them and for their resamples."""

    def __init__(self, runs: EdgeRuns, shares: Sequence[float], bootstrap: Bootstrap) -> None:
        self.runs, self.shares, self.bootstrap = runs, shares, bootstrap
        prompts = len(runs.pairs)
        every = torch.full((1, prompts), 1 / prompts, dtype=torch.float64)
        self.weights = torch.cat([every, bootstrap.weights(prompts)])

    def of(self, scores: EdgeScores, how: Selection, sizes: Sequence[int]) -> _Found:
        choices = [how.choose(scores.graph, scores.values, size) for size in sizes]
        circuits = [each.circuit.pruned() for each in choices]
        values = torch.stack([self._values(each) for each in circuits])
        ends = torch.stack([self.runs.corrupted_values, self.runs.clean_values]).double().cpu()
        low, high = (self.weights @ ends.T).T
        f = ((self.weights @ values.T).T - low) / (high - low)
        cpr, cmd = (
            torch.from_numpy(np.trapezoid(y.numpy(), self.shares, axis=0))
            for y in (f, (1 - f).abs())
        )
        n_edges, gaps = [len(each) for each in circuits], [each.gap for each in choices]
        return _Found(n_edges, gaps, f.T, cpr, cmd)

    def _values(self, circuit: Circuit) -> Float[Tensor, " prompt"]:
        """The metric of each prompt; a circuit without edges is the corrupted run."""
        if not len(circuit):
            return self.runs.corrupted_values.double().cpu()
        return self.runs.values(circuit.kept[None])[0].double().cpu()

    def curve(
        self, method: str, select: str, bootstrapped: bool, found: _Found, first: _Found | None
    ) -> SelectionCurve:
        gaps = tuple(gap for gap in found.gaps if gap is not None)
        differences = {}
        if first is not None:
            differences = {
                "cpr_difference": self._interval(found.cpr - first.cpr),
                "cmd_difference": self._interval(found.cmd - first.cmd),
            }
        return SelectionCurve(
            method,
            select,
            bootstrapped,
            tuple(found.n_edges),
            tuple(self._interval(each) for each in found.f.T),
            self._interval(found.cpr),
            self._interval(found.cmd),
            **differences,
            gaps=gaps or None,
        )

    def _interval(self, values: Float[Tensor, " sample"]) -> Interval:
        low, high = self.bootstrap.interval(values[1:]).tolist()
        return Interval(values[0].item(), low, high)
