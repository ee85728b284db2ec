"""Ways for values to skip layers: models that differ in nothing else, over seeds.

When does the task emerge, what does cutting the links cost it and all text, and how much of the
task's circuit runs along them?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING

import torch

from resval_lens.analyses.circuits.study import CircuitStudy, ScoredEdge, circuit_study
from resval_lens.analyses.comparison.lm_emergence import check_alike, first_step, short_names
from resval_lens.analyses.results.result import OPTIONAL, Result
from resval_lens.analyses.results.seeds import Spread, TTests, corrected, spread, t_tests
from resval_lens.analyses.studies.ablation import ablation_study
from resval_lens.analyses.studies.story_loss import story_loss, story_rows
from resval_lens.analyses.tasks.problem import pose_two
from resval_lens.analyses.tasks.task import Asked
from resval_lens.hooks.answers import answer_logits
from resval_lens.load import AS_SAVED
from resval_lens.notes import Note
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import RecordedRun

if TYPE_CHECKING:
    from rich.table import Table

LEVELS = (("p_io", "P(IO)", 0.5), ("accuracy_top1", "top-1", 0.95))
"""Scores that a run's evaluations have, and what they must exceed to count as emerged."""
GROUPS = ("training", "trained", "links cut", "circuit")
WHOLE = ("circuit: edges", "circuit: links")
CIRCUITS_BY, P_IO = "log-probability", "P(IO)"
"""What circuits are chosen by (a logit difference does not see whether the name is said), and what
is measured of them."""
STRONGEST = 5


@dataclass(frozen=True)
class Cut:
    """What is left with a group of links at zero: the task's measures, and the loss on stories."""

    links: str
    measures: Mapping[str, float]
    story_loss: float


@dataclass(frozen=True)
class Circuit:
    """The smallest faithful circuit, and what its links are to it; ``p_io``: its P(IO)."""

    edges: int
    links: int
    faithfulness: float | None
    p_io: float
    share_through_links: float | None
    strongest_links: tuple[ScoredEdge, ...]


@dataclass(frozen=True)
class Studied:
    """One run.

    Attributes:
        way: the run's name, without what all names begin with.
        emerged: the step of the first evaluation above each level of ``LEVELS``, by prompts and
            score; None if there is none.
        clean: the task's measures on its prompts, and ``story_loss`` in nats a token.
        cuts: all links, then those of each layer; none without links.
        circuit: None where no circuit is faithful enough, as ``reason`` says.
    """

    way: str
    seed: int
    parameters: int
    validation_loss: float
    emerged: Mapping[str, float | None]
    clean: Mapping[str, float]
    story_loss: float
    cuts: tuple[Cut, ...]
    circuit: Circuit | None
    reason: str | None = field(default=None, metadata=OPTIONAL)

    @property
    def measures(self) -> dict[str, float | None]:
        """Its numbers, by what the table calls them: a group, and a name in it."""
        found: dict[str, float | None] = {
            "training: parameters, in millions": self.parameters / 1e6
        }
        found |= {f"training: step of {name}": step for name, step in self.emerged.items()}
        found["training: validation loss"] = self.validation_loss
        found |= {f"trained: {name}": value for name, value in self.clean.items()}
        for cut in self.cuts[:1]:
            found |= {f"links cut: {name}": value for name, value in cut.measures.items()}
            found["links cut: story loss, more by"] = cut.story_loss - self.story_loss
        found["circuit: edges"] = None if self.circuit is None else float(self.circuit.edges)
        found["circuit: P(IO)"] = None if self.circuit is None else self.circuit.p_io
        if self.circuit is not None and self.cuts:
            found["circuit: links"] = float(self.circuit.links)
            found["circuit: share of its effect through links"] = self.circuit.share_through_links
        return found


@dataclass(frozen=True)
class Row:
    """One measure: of each way, and each other way's tests against the first."""

    measure: str
    ways: Mapping[str, Spread]
    tests: Mapping[str, TTests]


@dataclass(frozen=True)
class Ways(Result):
    """Several ways over seeds.

    Attributes:
        prompts: that edges were scored on; as many others were used for all else.
        ways: names of the runs, the first being what the others are tested against.
        rows: every measure of :attr:`Studied.measures`; tests are corrected for being so many.
    """

    prompts: int
    ways: tuple[str, ...]
    rows: tuple[Row, ...]
    runs: tuple[Studied, ...]

    def tables(self) -> list[Table]:
        """Every measure, the tests, and what each layer's links are worth."""
        from resval_lens.analyses.comparison.ways_tables import ways_tables

        return ways_tables(self)

    def sentences(self) -> list[str]:
        """When the task emerges, what cutting the links costs, and what of circuits they carry."""
        from resval_lens.analyses.comparison.ways_tables import ways_sentences

        return ways_sentences(self)


def ways(
    runs: Sequence[RecordedRun[LMRun]],
    prompts: int = 64,
    seed: int = 0,
    note: Note = lambda text: None,
) -> Ways:
    """Every run's emergence, ablation and circuit on its indirect objects.

    The first run's name is the way that others are tested against.

    Args:
        prompts: that edges are scored on; as many others are edited and run.
        seed: of the prompts.

    Raises:
        ValueError: no run; runs that differ in more than seed, name and streams; one without its
            trained model.
    """
    if not runs:
        raise ValueError("there is no finished run of a language model")
    check_alike(runs)
    found = []
    names = short_names([each.run.name for each in runs])
    for number, (recorded, name) in enumerate(zip(runs, names, strict=True), 1):
        note(f"{recorded.folder.name}, {number} of {len(runs)}")
        found.append(replace(_studied(recorded, prompts, seed, note), way=name))
    return gathered(found, prompts)


def gathered(runs: Sequence[Studied], prompts: int) -> Ways:
    """Runs over seeds, and tests of every way against the first run's."""
    names = tuple(dict.fromkeys(run.way for run in runs))
    first, *others = names
    every = dict.fromkeys(name for run in runs for name in run.measures)
    measures = sorted(every, key=lambda name: GROUPS.index(name.partition(":")[0]))
    by = {
        (measure, way): {
            run.seed: run.measures[measure]
            for run in runs
            if run.way == way and measure in run.measures
        }
        for measure, way in product(measures, names)
    }
    tests = corrected(
        {
            (measure, way): t_tests(by[measure, way], by[measure, first])
            for measure, way in product(measures, others)
            if by[measure, way] and by[measure, first] and not measure.endswith("millions")
        }
    )
    rows = tuple(
        Row(
            measure,
            {way: spread(by[measure, way]) for way in names},
            {way: tests.get((measure, way), TTests()) for way in others},
        )
        for measure in measures
    )
    return Ways(prompts, names, rows, tuple(runs))


def _studied(recorded: RecordedRun[LMRun], prompts: int, seed: int, note: Note) -> Studied:
    lines = recorded.evaluations
    emerged = {
        f"{name} > {above:g}, {of}": first_step(of, score, above, lines)
        for of in lines[-1].get("ioi", {})
        for score, name, above in LEVELS
    }
    scored, others = pose_two(str(recorded.folder), prompts, Asked(seed=seed), "ioi", AS_SAVED)
    model, cuts = scored.model, tuple[Cut, ...]()
    text = story_rows(model)
    if model.cfg.streams:
        study = ablation_study(
            model, others.pairs, scored.pairs, others.measures, edits=("zero",), alone=False,
            text=text, note=note,
        )  # fmt: skip
        assert study.story_loss is not None
        cuts = tuple(
            Cut(row.links, row.measures, study.story_loss.cut[row.links]) for row in study.rows
        )
    with torch.no_grad():
        logits = answer_logits(model, others.pairs.clean, others.pairs.answers)
    clean = {
        name: replace(others.pairs, metric=metric).measure(logits)[0].mean().item()
        for name, metric in others.measures.items()
    }
    loss = story_loss(model, text, {}).clean
    circuit, reason = None, None
    by = [each.by(CIRCUITS_BY) for each in (scored, others)]
    try:
        circuit = _of(circuit_study(
            model, by[0].pairs, by[1].pairs, most_edges=0, most_nodes=0, seed=seed,
            metrics={P_IO: others.measures[P_IO]}, note=note,
        ))  # fmt: skip
    except ValueError as error:  # the task has not emerged, or no circuit is faithful
        reason = str(error)
    return Studied(
        way=recorded.run.name,
        seed=recorded.run.seed,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        validation_loss=float(lines[-1]["valid_loss"]),
        emerged=emerged,
        clean=clean,
        story_loss=loss,
        cuts=cuts,
        circuit=circuit,
        reason=reason,
    )


def _of(study: CircuitStudy) -> Circuit:
    links = [edge for edge in study.strongest if edge.edge in set(study.circuit.links)]
    return Circuit(
        len(study.circuit.edges),
        len(study.circuit.links),
        study.circuit.faithfulness,
        study.measured[P_IO].resample.circuit,
        study.links.share_of_circuit if study.links else None,
        tuple(links[:STRONGEST]),
    )
