"""What ``resval-lens compare MODEL MODEL`` says of two models on one task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import PurePath
from typing import TYPE_CHECKING

from resval_lens.analyses.circuits.study import CircuitStudy
from resval_lens.analyses.comparison.circuit_findings import TaskCircuit
from resval_lens.analyses.results.result import FLAT, Result
from resval_lens.analyses.results.seeds import TTests
from resval_lens.analyses.results.tables import NARROW, Row, optional, p_cell, table
from resval_lens.analyses.studies.ablation import AblationStudy
from resval_lens.analyses.studies.attribution import HeadShares
from resval_lens.analyses.studies.patching import Patching
from resval_lens.analyses.tasks.problem import Facts, undone

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

SHOWN = 8
"""Cells, or components, that a table has of each model."""


@dataclass(frozen=True)
class Size:
    """How large a model is; ``parameters``: how many numbers."""

    layers: int
    heads: int
    d_model: int
    parameters: int


@dataclass(frozen=True)
class Attributed:
    """Direct logit attribution, means over prompts.

    Attributes:
        total: logit of the answer over that of the strongest wrong one.
        heads: what all heads write of it, by where their values come from.
        top: what single heads write, own values and those along links apart, largest first.
    """

    total: float
    heads: HeadShares
    top: Mapping[str, float]


@dataclass(frozen=True)
class ModelFound:
    """What was found in one model.

    Attributes:
        clean, corrupted: mean measures, the metric first.
        links: None of a model without links.
        patched: its z by layer and head, its residual stream by layer and position.
        left_out: parts that it does not have, or could not be asked, and why.
    """

    facts: Facts = field(metadata=FLAT)
    size: Size
    clean: Mapping[str, float]
    corrupted: Mapping[str, float]
    links: AblationStudy | None
    patched: tuple[Patching, ...]
    circuit: CircuitStudy | None
    attribution: Attributed | None
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class Difference:
    """The second model's mean minus the first's, of one measure.

    Attributes:
        prompts: ``clean`` or ``corrupted``.
        tests: the second against the first, over prompts; paired where both read the same.
    """

    measure: str
    prompts: str
    difference: float
    tests: TTests = field(metadata=FLAT)


@dataclass(frozen=True)
class ComparedModels(Result):
    """Two models on one task.

    Attributes:
        unlike: why they do not read the same prompts; empty if they do.
        differences: of every measure, tests corrected for being so many.
    """

    unlike: str
    models: tuple[ModelFound, ModelFound]
    differences: tuple[Difference, ...]

    @property
    def names(self) -> list[str]:
        """The models' names: the last parts of paths, unless these are one."""
        whole = [each.facts.model for each in self.models]
        short = [PurePath(name).name or name for name in whole]
        return short if len(set(short)) > 1 else whole

    def tables(self) -> list[Table | str]:
        """Measures; links edited; the cells, heads and circuits that carry the answer."""
        return [table for several in self.tables_by_study().values() for table in several]

    def tables_by_study(self) -> dict[str, list[Table]]:
        """The tables by what they are of: measures, links, patched, attribution, circuit."""
        links = [
            _edited(name, each.links)
            for name, each in zip(self.names, self.models, strict=True)
            if each.links is not None
        ]
        attribution, circuit = [], []
        parts = [each.attribution for each in self.models]
        if any(parts):
            top = [list(each.top.items()) if each else [] for each in parts]
            title = "Heads that write the answer (attribution, logits)"
            attribution.append(self._ranked(title, top))
        if any(each.circuit for each in self.models):
            circuit.append(self._circuits())
        return {
            "measures": [self._measures()],
            "links": links,
            "patched": list(self._cells()),
            "attribution": attribution,
            "circuit": circuit,
        }

    def _measures(self) -> Table:
        facts = self.models[0].facts
        rows = []
        for each in self.differences:
            values = [getattr(model, each.prompts)[each.measure] for model in self.models]
            p = each.tests.p_holm if self.unlike else each.tests.p_paired_holm
            rows.append(
                (
                    each.measure,
                    each.prompts,
                    *(f"{value:z.3f}" for value in values),
                    f"{each.difference:+z.3f}",
                    p_cell(p),
                )
            )
        how = "independent, as each model has prompts of its own" if self.unlike else "paired"
        sizes = ";\n".join(
            f"{name}: {model.size.layers} layers of {model.size.heads} heads, "
            f"{model.size.parameters:,} parameters, streams {model.facts.streams or 'none'}"
            for name, model in zip(self.names, self.models, strict=True)
        )
        return _folded(
            f"{facts.task_and_corruption}, {facts.prompts} prompts;\n{sizes}",
            ("measure", "prompts"),
            (*self.names, "difference", "p"),
            rows,
            f"(p: t-test over prompts, {how}; corrected by Holm for this table)",
        )

    def _cells(self) -> Iterator[Table]:
        """Of each site, the cells that recover most of the gap."""
        sites = [{each.site: each for each in model.patched} for model in self.models]
        for site in dict.fromkeys(site for own in sites for site in own):
            cells = [own[site].cells() if site in own else [] for own in sites]
            yield self._ranked(f"{site} taken from the clean run: share recovered", cells)

    def _ranked(self, title: str, several: Sequence[Sequence[tuple[str, float]]]) -> Table:
        rows = [
            [cell for one in pair for cell in ((one[0], f"{one[1]:+z.3f}") if one else ("", ""))]
            for pair in zip_longest(*(each[:SHOWN] for each in several))
        ]
        made = table(title, (), (), (), style=NARROW)
        for name in self.names:
            made.add_column(name, no_wrap=True)
            made.add_column("", justify="right")
        for row in rows:
            made.add_row(*row)
        return made

    def _circuits(self) -> Table:
        columns = []
        for each in self.models:
            found = each.circuit
            if found is None:
                columns.append([""] * 6)
                continue
            own, links = found.circuit, found.links
            columns.append(
                [
                    f"{own.n_edges:,}",
                    f"{own.n_edges_of_model:,}",
                    optional(own.faithfulness, "z.3f"),
                    f"{len(own.links):,}",
                    optional(own.faithfulness_without_links if own.links else None, "z.3f"),
                    optional(
                        links.faithfulness_of_model_with_links_corrupted if links else None, "z.3f"
                    ),
                ]
            )
        words = (
            "edges",
            "edges of the model",
            "faithfulness",
            "edges that are links",
            "faithfulness without them",
            "faithfulness, all links corrupted",
        )
        return _folded(
            "The circuit: the fewest edges that are faithful enough",
            ("",),
            self.names,
            zip(words, *columns, strict=True),
            "(found by eap; evaluated on as many other prompts)",
        )

    def sentences(self) -> list[str]:
        """How the models differ, what each one's links do, and where its answer is."""
        said = [*self.differ(), *self.cut(), *self.sized()]
        for name, model in zip(self.names, self.models, strict=True):
            metric = model.facts.metric
            doubt = undone(metric, model.clean[metric], model.corrupted[metric])
            said += [f"{name}: {each}" for each in doubt]
        for name, model in zip(self.names, self.models, strict=True):
            for patched in model.patched:
                said.append(f"{name}: {patched.found()}")
            said += [
                f"{name}: {part} left out: {why}"
                for part, why in model.left_out.items()
                if part != "links"
            ]
        if self.unlike:
            said.append(f"Prompts of the two models differ: {self.unlike}")
        return said

    def differ(self) -> list[str]:
        """How the models differ on clean prompts, in each measure."""
        one, other = self.names
        said = []
        for each in self.differences:
            if each.prompts == "clean":
                how = "the same in both models" if abs(each.difference) < 0.0005 else (
                    f"{abs(each.difference):.3f} {'higher' if each.difference > 0 else 'lower'} in "
                    f"{other} than in {one}"
                )  # fmt: skip
                said.append(f"{_begun(each.measure)} on clean prompts is {how}.")
        return said

    def cut(self) -> list[str]:
        """What is left of the metric in each model without links."""
        metric = self.models[0].facts.metric
        return [
            f"{name}: {metric} is {model.links.cells(metric)[model.links.names[0], 'zero']:z.3f} "
            "with all links cut."
            for name, model in zip(self.names, self.models, strict=True)
            if model.links is not None
        ]

    def sized(self) -> list[str]:
        """How many edges each model's circuit has."""
        said = []
        for name, model in zip(self.names, self.models, strict=True):
            if model.circuit is not None:
                own = model.circuit.circuit
                links = f", {len(own.links):,} of them links" if own.links else ""
                links = ", 1 of them a link" if len(own.links) == 1 else links
                said.append(f"{name}: the circuit has {own.n_edges:,} edges{links}.")
        return said

    def figures(self) -> dict[str, Figure]:
        """Of both the measures and faithfulness by size; of each model what was patched, ablated
        and attributed.
        """
        from resval_lens.analyses.comparison.figures import faithfulness
        from resval_lens.analyses.comparison.two_models_figures import links_cut, measures
        from resval_lens.analyses.studies.circuit_figures import attribution
        from resval_lens.analyses.studies.intervention_figures import ablated

        drawn: dict[str, Figure] = {"measures.png": measures(self)}
        if any(each.links for each in self.models):
            drawn["links-cut.png"] = links_cut(self)
        most = max((each.largest for model in self.models for each in model.patched), default=1.0)
        circuits = []
        for number, (name, model) in enumerate(zip(self.names, self.models, strict=True), 1):
            task = model.facts.task_and_corruption
            for each in model.patched:
                drawn[f"patch-{each.site}-{number}.png"] = each.figure(max(1.0, most))
            if model.links is not None:
                drawn[f"ablate-{number}.png"] = ablated(model.links, name, task)
            if model.attribution is not None and model.attribution.top:
                drawn[f"attribute-{number}.png"] = attribution(name, model.attribution.top)
            if model.circuit is not None:
                circuits.append(
                    TaskCircuit(task, model.facts.metric, name, None, name, model.circuit)
                )
        if circuits:
            drawn["faithfulness.png"] = faithfulness(circuits)
        return drawn


def _folded(
    title: str, words: Sequence[str], numbers: Sequence[str], rows: Iterable[Row], caption: str
) -> Table:
    """A table whose columns are headed by models' names, which may be long."""
    made = table(title, words, numbers, rows, caption, NARROW)
    for column in made.columns:
        column.overflow = "fold"
    return made


def _edited(name: str, links: AblationStudy) -> Table:
    """The metric with links edited."""
    cells = links.cells(links.metric)
    rows = [
        [group, *(f"{cells[group, edit]:z.3f}" for edit in links.edited)] for group in links.names
    ]
    edits = ";\n".join(f"{edit}: a link {meaning}" for edit, meaning in links.edits.items())
    title = f"{name}: {links.metric}, links edited (unedited {links.clean[links.metric]:z.3f})"
    return table(title, ("links",), links.edited, rows, edits, NARROW)


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]
