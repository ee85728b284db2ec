"""What ``resval-lens circuit`` says of one circuit: tables, sentences, a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Self

from rich.table import Table

from resval_lens.analyses.circuits.metrics import ByMetric
from resval_lens.analyses.circuits.study import CircuitStudy, StudiedCircuit
from resval_lens.analyses.results.result import FLAT, OPTIONAL, Result, restored
from resval_lens.analyses.results.tables import NARROW
from resval_lens.analyses.tasks.problem import Example, Facts, undone

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class CircuitReport(Result):
    """A study of one circuit, and of which model on which prompts (``general`` ones?) it is.

    ``by`` names the metric that edges are scored and the circuit is chosen by; ``imported`` the
    file that has its scores, or the circuit itself.
    """

    facts: Facts = field(metadata=FLAT)
    general: bool
    example: Example | None
    by: str
    study: CircuitStudy = field(metadata=FLAT)
    imported: str | None = field(default=None, metadata=OPTIONAL)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """The report whose document it is: there ``prompts`` and ``metric`` are the study's, which
        have the facts' own within them.

        Raises:
            ValueError: the document lacks a field.
        """
        study = CircuitStudy.from_dict(document)
        of_facts = {**document, "prompts": study.prompts.scored, "metric": document["by"]}
        example = document["example"]
        return cls(
            restored(Facts, of_facts),
            document["general"],
            None if example is None else Example(**example),
            document["by"],
            study,
            document.get("imported"),
        )

    def tables(self) -> list[Table | str]:
        """The circuit's edges, what it keeps of every metric, and the strongest edges of all."""
        study = self.study
        return [circuit_table(study), measured_table(study.measured), scores_table(study)]

    def figures(self) -> Mapping[str, Figure]:
        """The circuit, unless it has no edges."""
        from resval_lens.analyses.studies.circuit_figures import circuits

        if not self.study.circuit.edges:
            return {}
        title = f"{self.facts.model}: {self.facts.task_and_corruption}"
        return {"circuit.png": circuits({title: self.study.circuit})}

    def sentences(self) -> list[str]:
        """What the circuit keeps, how it was found, and what links do."""
        study, circuit, name = self.study, self.study.circuit, self.by
        probability, kept = list(study.measured.items())[-1]
        others = "" if self.imported else " that were not used for scoring"
        said = [
            f"{name[:1].upper()}{name[1:]} on {study.prompts.evaluated} prompts{others}: "
            f"{study.metric.clean:z.3f}, corrupted ({self.facts.corruption}) "
            f"{study.metric.corrupted:z.3f}, circuit {circuit.metric.circuit:z.3f}.",
            f"{probability} is {kept.clean:z.3f} on these prompts; the circuit alone gives "
            f"{kept.resample.circuit:z.3f}, with other edges at their means "
            f"{kept.mean.circuit:z.3f}.",
        ]
        said += undone(name, study.metric.clean, study.metric.corrupted)
        said += [*_of_random(circuit), *_of_search(study)]
        said += _of_parts(circuit)
        if circuit.links:
            links = "link" if len(circuit.links) == 1 else f"{len(circuit.links)} links"
            said.append(
                f"Without its {links} the circuit's faithfulness is "
                f"{circuit.faithfulness_without_links:z.3f}."
            )
        if study.links is not None:
            said.append(
                "The whole model with every link corrupted keeps "
                f"{study.links.faithfulness_of_model_with_links_corrupted:z.3f}; with every link "
                f"cut its {name} is {study.links.clean_metric_with_links_cut:z.3f}."
            )
        if study.agreement is not None:
            said.append(
                f"Scores by {study.method} and exact ones agree with a rank correlation of "
                f"{study.agreement.rank:z.2f} (of their sizes {study.agreement.rank_of_size:z.2f})."
            )
        return said


def _of_search(study: CircuitStudy) -> list[str]:
    """That a size that was asked for is no circuit's, where one was chosen, or that not every size
    was tried."""
    search, n_edges = study.search, study.circuit.n_edges
    if search.sizes is None:
        which = (
            "strongest edges"
            if study.threshold is None
            else f"edges with |score| ≥ {study.threshold:g}"
        )
        return [] if search.size == n_edges else [
            f"{n_edges:,} of the {search.size:,} {which} lie on a path from the input to the "
            "logits; the others change nothing."
        ]  # fmt: skip
    said = []
    if study.sized_on is not None:
        assert search.faithfulness is not None
        found = dict(zip(search.sizes, search.faithfulness, strict=True))[search.size]
        said.append(
            f"The size was chosen on the {study.sized_on} prompts that edges were scored on; there "
            f"f is {found:z.3f}."
        )
    if not search.every_smaller_size_tried:
        said.append(
            f"The circuit is the smallest of the {len(search.sizes)} sizes tried (up to "
            f"{search.sizes[-1]:,} edges), not of all."
        )
    return said


def _of_parts(circuit: StudiedCircuit) -> list[str]:
    """How far some edges and nodes speak for all, where a circuit has too many to try each."""
    edges, nodes, said = circuit.measured.minimality, circuit.measured.completeness, []
    if edges.edges < edges.of:
        losses = [abs(loss) for loss in circuit.minimality.values()]
        told = (
            f": without one of them, the metric changes by {median(losses):z.3f} (median), at most "
            f"{max(losses):z.3f}"
            if losses
            else ""
        )
        said.append(
            f"Minimality was measured on {edges.edges:,} of its {edges.of:,} edges, drawn by the "
            f"seed{told}."
        )
    alone = [each.difference for each in circuit.completeness if len(each.knocked_out) == 1]
    if alone and nodes.alone < nodes.of:
        whole = abs(circuit.metric.circuit - circuit.metric.clean)
        said.append(
            f"Circuit and model differ by {whole:z.3f}; with the same head or MLP knocked out in "
            f"both ({nodes.alone:,} of its {nodes.of:,}, drawn), by {min(alone):z.3f} to "
            f"{max(alone):z.3f}."
        )
    return said


def _of_random(circuit: StudiedCircuit) -> list[str]:
    """What random circuits of as many edges keep."""
    told = [
        f"of {what} ({random.n} draws) at most {random.max:.2g} (mean {random.mean:.2g})"
        for random, what in (
            (circuit.connected, "as many random edges that all lie on such paths"),
            (circuit.permuted, "the circuit with the heads of each layer in one another's places"),
        )
        if random is not None and random.max is not None
    ]
    if not told or circuit.faithfulness is None:
        return []
    return [
        f"f of the {circuit.n_edges:,} edges, on paths from the input to the logits, is "
        f"{circuit.faithfulness:z.3f}; {'; '.join(told)}."
    ]


def measured_table(measured: ByMetric) -> Table:
    """What a circuit keeps of every metric."""
    table = Table(title="The circuit by every metric", **NARROW)
    for name in ("metric", "others at"):
        table.add_column(name, no_wrap=True)
    for name in ("clean", "corrupted", "circuit", "f"):
        table.add_column(name, justify="right")
    for metric, own in measured.items():
        for kept, how in (
            (own.resample, "corrupted"),
            (own.mean, "means"),
        ):
            numbers = (f"{x:z.3f}" for x in (own.clean, kept.corrupted, kept.circuit))
            f = "" if kept.faithfulness is None else f"{kept.faithfulness:z.2f}"
            table.add_row(metric, how, *numbers, f)
    table.caption = "others at: what edges outside the circuit carry, of corrupted prompts"
    return table


def circuit_table(study: CircuitStudy, most: int = 30) -> Table:
    """The edges of one circuit with what each is worth, largest first."""
    circuit, random = study.circuit, study.circuit.random
    connected = ""
    if circuit.connected is not None:
        connected = f"; on paths to the logits {circuit.connected.mean:z.3f}"
    if circuit.permuted is not None:
        connected += f"; heads permuted {circuit.permuted.mean:z.3f}"
    worth = sorted(circuit.minimality.items(), key=lambda item: -abs(item[1]))
    table = Table(
        title=f"{circuit.n_edges:,} of {circuit.n_edges_of_model:,} edges: "
        f"faithfulness {circuit.faithfulness:z.3f}\n"
        f"(random edges, as many: {random.mean:z.3f}{connected})",
        **NARROW,
    )
    table.add_column("edge", no_wrap=True)
    table.add_column("lost without it", justify="right")
    for edge, loss in worth[:most]:
        name = f"[bold]{edge}[/bold] (link)" if edge in circuit.links else edge
        table.add_row(name, f"{loss:z.3f}")
    said = []
    tried = circuit.measured.minimality
    if tried.edges < tried.of:
        said.append(f"{tried.edges:,} of {tried.of:,} edges were drawn and tried")
    if len(worth) > most:
        said.append(f"{len(worth) - most} more are in the JSON")
    if said:
        table.caption = f"({'; '.join(said)})"
    return table


def scores_table(study: CircuitStudy, most: int = 15) -> Table:
    """The strongest edges of all, in the circuit or not."""
    title = (
        f"Strongest edges by {study.method}\n"
        "(change of the metric when the edge is corrupted; below 0: it helps)"
    )
    table = Table(title=title, **NARROW)
    table.add_column("edge", no_wrap=True)
    table.add_column("score", justify="right")
    table.add_column("in the circuit")
    for line in study.strongest[:most]:
        inside = "yes" * (line.edge in study.circuit.edges)
        table.add_row(line.edge, f"{line.score:+z.3f}", inside)
    return table
