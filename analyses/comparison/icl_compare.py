"""Two-layer classifiers compared: the first half of ``resval-lens compare``.

Everything here is measured live on the models given; emergence curves come from the recorded runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.table import Table

from resval_lens.analyses.comparison.icl import (
    Accuracies,
    AttentionStudy,
    FourCells,
    LinkStudy,
    Results,
    accuracies_of,
    attention_study,
    four_cells,
    link_study,
    trained_classifiers,
)
from resval_lens.analyses.comparison.link_controls import (
    CUT,
    DOUBLED,
    OWN_CUT,
    first_of,
    link_controls,
)
from resval_lens.analyses.results.result import OPTIONAL, Result
from resval_lens.analyses.results.tables import Row, table
from resval_lens.notes import Note
from resval_lens.tasks.icl import TASKS
from resval_lens.training.icl import evaluate
from resval_lens.training.icl_run import ICLRun, Worlds
from resval_lens.training.recorded import RecordedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRAFTED = "classic + link"
CONTROL_SEQUENCES = 500
SHOWN_SCALES = (-1.0, 0.0, 0.5, 1.0, 2.0)
MEASURES = {
    "ila1_labels": "layer 0: label to its object",
    "tla2": "layer 1: query to labels",
    "tila2": "query to right labels",
    "induction_strength": "induction strength",
    "cla": "CLA",
}
"""Attention measures that are shown (:mod:`resval_lens.training.icl_measures`)."""


@dataclass(frozen=True)
class Evaluated:
    """A trained model on ``sequences`` of each test set of its run."""

    seed: int
    sequences: int
    tasks: Results

    @property
    def accuracies(self) -> Accuracies:
        """Accuracy by task."""
        return accuracies_of(self.tasks)


@dataclass(frozen=True)
class Controls:
    """Accuracies by edit and task.

    From :func:`~resval_lens.analyses.comparison.link_controls.link_controls`.
    """

    model: str
    sequences: int
    accuracy: Mapping[str, Accuracies]

    def table(self) -> Table:
        """The cut beside changes of gain."""
        return _table_of_tasks(
            f"{self.model}: the links cut, beside other edits\n({self.sequences:,} sequences)",
            ("edit",),
            ([name, *_cells(row)] for name, row in self.accuracy.items()),
            "own: layer 1's own values; a cut takes gain away, too, which × 2 gives back",
        )


@dataclass(frozen=True)
class ComparedClassifiers(Result):
    """One model of each variant.

    Attributes:
        models: as trained.
        links: edited, of each model with streams, and of the classic one with a link grafted on.
        attention: on fresh classes.
        four_cells: of the classic model and that with a values stream, where there are both.
        controls: of the latter.
    """

    models: Mapping[str, Evaluated]
    links: Mapping[str, LinkStudy]
    attention: Mapping[str, AttentionStudy]
    four_cells: FourCells | None = field(metadata=OPTIONAL)
    controls: Controls | None = field(metadata=OPTIONAL)

    def tables(self) -> list[Table]:
        """Accuracies under each edit and in the four cells, controls, and attention measures."""
        controls = [self.controls.table()] if self.controls else []
        return [self.accuracy_table(), *controls, self.attention_table()]

    def accuracy_table(self) -> Table:
        """Accuracies, the effect of each edit, and the four cells."""
        rows: list[Row] = []

        def add(model: str, links: str, n: int, row: Accuracies) -> None:
            rows.append([model, links, f"{n:,}", *_cells(row)])

        for name, model in self.models.items():
            add(f"{name} ({model.seed})", "as trained", model.sequences, model.accuracies)
            if name in self.links:
                add("", "cut", model.sequences, self.links[name].accuracies_cut)
        for name, study in self.links.items():
            rows.append(None)
            for c in SHOWN_SCALES:
                add(name, f"scaled by {c:g}", study.sequences, study.scale[c])
            add(name, "mean-ablated", study.sequences, study.mean)
        if self.four_cells:
            rows.append(None)
            n = self.models["values"].sequences
            for (trained, run), row in self.four_cells.cells.by_way().items():
                add(f"trained {trained}", f"run {run}", n, row)
        return table("Accuracy", ("model (seed)", "links"), ("n", *TASKS.values()), rows)

    def attention_table(self) -> Table:
        """Reddy's measures on fresh classes."""
        rows = (
            [name, *(f"{study.measures[measure]:.3f}" for measure in MEASURES)]
            for name, study in self.attention.items()
        )
        title = "Attention on IC (mean weights; CLA: share of answers)"
        return table(title, ("model",), MEASURES.values(), rows)

    def cells_table(self) -> Table | None:
        """Accuracies of the four cells, where there are both models."""
        if not self.four_cells:
            return None
        ways = self.four_cells.cells.by_way().items()
        rows = ([trained, f"{run} stream", *_cells(row)] for (trained, run), row in ways)
        return _table_of_tasks("Classifiers: accuracy", ("trained", "run"), rows)

    def sentences(self) -> list[str]:
        """What cutting and grafting the link does; only what the numbers bear."""
        said = []
        if "values" in self.links:
            model, cut = self.models["values"], self.links["values"].accuracies_cut
            trained = model.accuracies
            said += [
                f"Cutting the link v1 of the values model (seed {model.seed}) takes IC from "
                f"{trained['ic']:.2f} to {cut['ic']:.2f}.",
                f"The same cut takes IW from {trained['iw']:.2f} to {cut['iw']:.2f}.",
            ]
        if self.controls:
            accuracy = self.controls.accuracy
            said += [
                f"The cut alone leaves IC at {accuracy[CUT]['ic']:.2f} "
                f"({self.controls.sequences:,} sequences, one seed, the end of training).",
                "The cut with layer 1's own values doubled leaves IC at "
                f"{accuracy[DOUBLED]['ic']:.2f} (IW {accuracy[DOUBLED]['iw']:.2f}).",
                "Layer 1's own values cut, and the link whole, leave IC at "
                f"{accuracy[OWN_CUT]['ic']:.2f}.",
            ]
        if self.four_cells:
            cells = self.four_cells.cells
            said.append(
                f"Grafting the link onto the classic model (seed {self.models['classic'].seed}) "
                f"takes its IC from {cells.classic['ic']:.2f} to {cells.grafted['ic']:.2f}."
            )
        return said

    def figures(self) -> dict[str, Figure]:
        """Accuracies, links scaled, attention."""
        from resval_lens.analyses.comparison import figures

        return {
            "accuracy.png": self.accuracy_figure(),
            **({"link_edits.png": figures.link_edits(self.links)} if self.links else {}),
            "attention.png": figures.attention(self.attention),
        }

    def accuracy_figure(self) -> Figure:
        """Accuracy of each model on each task."""
        from resval_lens.analyses.comparison.figures import bars

        return bars({name: model.accuracies for name, model in self.models.items()})


def _table_of_tasks(
    title: str, words: Sequence[str], rows: Iterable[Row], caption: str = ""
) -> Table:
    return table(title, words, TASKS.values(), rows, caption)


def _cells(row: Accuracies) -> list[str]:
    return [f"{row[task]:.3f}" for task in TASKS]


def compare(
    runs: Sequence[RecordedRun[ICLRun]],
    sequences: int = 10_000,
    link_sequences: int = 2_000,
    note: Note = lambda text: None,
    worlds: Worlds | None = None,
) -> ComparedClassifiers:
    """The whole study.

    Args:
        sequences: of each test set, for accuracies and cells.
        link_sequences: of each test set, for each edit of the links.
        note: called with what is being done.
        worlds: where worlds are drawn.

    Raises:
        ValueError: numbers below 1, or no run with a model.
    """
    if link_sequences < 1:
        raise ValueError(f"link_sequences must be 1 or more; got {link_sequences}")
    note("loading models and drawing test sets")
    chosen = {each.name: each for each in trained_classifiers(runs, sequences, worlds)}
    studies: dict[str, LinkStudy] = {}
    attention = {}
    for name, trained in chosen.items():
        note(f"{name}: attention")
        attention[name] = attention_study(trained)
        if trained.model.cfg.streams:
            note(f"{name}: accuracies, links edited")
            studies[name] = link_study(trained, link_sequences)
    results = {name: study.whole for name, study in studies.items()}
    cells = controls = None
    if {"classic", "values"} <= set(chosen):
        note("classic with a link grafted on: accuracies, links edited")
        classic, streams = chosen["classic"], chosen["values"].model.cfg.streams
        grafted = classic.model.with_streams(streams)
        studies[GRAFTED] = link_study(classic, link_sequences, grafted)
        results["classic"] = studies[GRAFTED].without
        cells = four_cells(studies[GRAFTED], studies["values"])
    if "values" in studies:
        note("values: the cut beside changes of gain")
        values = chosen["values"]
        some = first_of(values.tests, min(link_sequences, CONTROL_SEQUENCES))
        accuracy = link_controls(values.model, some, values.seed)
        controls = Controls("values", len(some["test"].targets), accuracy)
    models = {
        name: Evaluated(
            trained.seed,
            len(trained.tests["test"].targets),
            results.get(name) or evaluate(trained.model, trained.tests),
        )
        for name, trained in chosen.items()
    }
    return ComparedClassifiers(models, studies, attention, cells, controls)
