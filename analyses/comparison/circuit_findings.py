"""Circuits over seeds: their measures, and what was found, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from resval_lens.analyses.circuits.metrics import ChosenBy
from resval_lens.analyses.circuits.study import CircuitStudy, Prompts
from resval_lens.analyses.results.result import Result
from resval_lens.analyses.results.seeds import mean_and_sd
from resval_lens.analyses.studies.link_signals import LinkSignals
from resval_lens.analyses.studies.roles import HeadRoles
from resval_lens.tasks.ioi_corruptions import Kind

SIGNALS: tuple[Kind, ...] = ("token", "position", "random")
"""Corruptions that links are frozen to, to see what they carry."""

MEASURES: Mapping[str, Callable[[CircuitStudy], float | None]] = {
    "edges": lambda study: study.circuit.n_edges,
    "of": lambda study: study.circuit.n_edges_of_model,
    "links in it": lambda study: None if study.links is None else study.links.in_circuit,
    "faithfulness": lambda study: study.circuit.faithfulness,
    "share through links": lambda study: (
        None if study.links is None else study.links.share_of_circuit
    ),
    "model, links corrupted": lambda study: (
        None if study.links is None else study.links.faithfulness_of_model_with_links_corrupted
    ),
    "path length": lambda study: study.circuit.path_length,
    "CPR": lambda study: study.curve.cpr,
    "CMD": lambda study: study.curve.cmd,
}
"""What is compared over seeds."""

ENOUGH_EDGES = 100
"""In smaller graphs one edge is a large share, and areas over shares say little."""


@dataclass(frozen=True)
class TaskCircuit:
    """A model's circuit on a task.

    Attributes:
        metric: that its edges were scored by.
        seed: of the model's training; None if it is unknown.
    """

    task: str
    metric: str
    architecture: str
    seed: int | None
    name: str
    study: CircuitStudy


@dataclass(frozen=True)
class MetricMatrix(Result):
    """A model's circuits of indirect objects by each metric, and what each keeps of all.

    Attributes:
        corruption: of the prompts.
        groups: of prompts in which a position means the same.
    """

    name: str
    architecture: str
    seed: int | None
    corruption: str
    prompts: Prompts
    groups: int
    circuits: tuple[ChosenBy, ...]


@dataclass(frozen=True)
class IOIHeads:
    """A model's heads by role; ``signals``, what its links carry, if it has any."""

    architecture: str
    seed: int | None
    name: str
    roles: HeadRoles
    signals: LinkSignals | None


@dataclass(frozen=True)
class OverModels:
    """A measure of several models, in the order of their seeds; ``sd`` is the population's."""

    by_seed: tuple[float, ...]
    mean: float
    sd: float


@dataclass(frozen=True)
class OverSeeds(Result):
    """``MEASURES`` of a task's circuits in one architecture; without those that models lack."""

    task: str
    metric: str
    architecture: str
    seeds: tuple[int | None, ...]
    measures: Mapping[str, OverModels]


def over_seeds(entries: Sequence[TaskCircuit]) -> tuple[OverSeeds, ...]:
    """Each measure of ``MEASURES`` by task and architecture."""
    by_both: dict[tuple[str, str], list[TaskCircuit]] = {}
    for each in entries:
        by_both.setdefault((each.task, each.architecture), []).append(each)
    rows = []
    for (task, kind), own in by_both.items():
        few = own[0].study.circuit.n_edges_of_model < ENOUGH_EDGES
        measures = {}
        for name, measure in MEASURES.items():
            values = [x for x in (measure(each.study) for each in own) if x is not None]
            if len(values) == len(own) and not (few and name in ("CPR", "CMD")):
                measures[name] = _over(values)
        rows.append(OverSeeds(task, own[0].metric, kind, tuple(e.seed for e in own), measures))
    return tuple(rows)


def sentences(
    circuits: Sequence[TaskCircuit],
    heads: Sequence[IOIHeads],
    matrices: Sequence[MetricMatrix] = (),
) -> list[str]:
    """What the value link does, in words, from what corrupting and cutting it does."""
    rows = {(row.task, row.architecture): row for row in over_seeds(circuits)}
    said = []
    for (task, _), row in rows.items():
        if "share through links" in row.measures:
            said += [*_circuit(row, rows.get((task, "classic"))), links_corrupted(row)]
    said += [sentence for matrix in matrices for sentence in _by_metric(matrix)]
    by_kind: dict[str, list[IOIHeads]] = {}
    for each in heads:
        if each.signals is not None:
            by_kind.setdefault(each.architecture, []).append(each)
    return said + [
        sentence for several in by_kind.values() for sentence in what_links_carry(several)
    ]


def _circuit(row: OverSeeds, classic: OverSeeds | None) -> Iterator[str]:
    """How large a circuit is, and what of its effect runs through links."""
    own, links = row.measures, row.measures["links in it"].mean
    whose = "model's circuit has" if len(row.seeds) == 1 else "models' circuits have"
    beside = f" ({classic.measures['edges'].mean:.3g} without the stream)" if classic else ""
    yield (
        f"{row.task}, {_of(row.seeds)}, by {row.metric}: the {row.architecture} {whose} "
        f"{own['edges'].mean:.3g} edges{beside}."
    )
    if not links:
        yield f"{row.task}: none of these edges is a link."
        return
    count = "1 of these edges is a link" if links == 1 else f"{links:.3g} of these edges are links"
    share = _percent(own["share through links"])
    yield f"{row.task}: {count}; {share} of the circuit's effect runs there."


def links_corrupted(row: OverSeeds) -> str:
    """What the whole model keeps with every link corrupted."""
    kept = _percent(row.measures["model, links corrupted"])
    return (
        f"{row.task}: with every link corrupted the whole {row.architecture} model keeps {kept} "
        "of the clean − corrupted gap."
    )


def _by_metric(matrix: MetricMatrix) -> Iterator[str]:
    """What circuits that keep one metric keep of P(IO)."""
    clean = matrix.circuits[0].measured["P(IO)"].clean
    yield (
        f"{matrix.name} ({matrix.corruption} prompts, {_of([matrix.seed])}): P(IO) of the whole "
        f"model is {clean:z.3f}."
    )
    for each in matrix.circuits:
        kept = each.measured["P(IO)"].resample.circuit
        yield f"{matrix.name}: P(IO) of its circuit by {each.by} is {kept:z.3f}."


def what_links_carry(several: Sequence[IOIHeads]) -> list[str]:
    """What the links of models of one architecture carry of the subject."""
    effects = [each.signals.effects["all"] for each in several if each.signals is not None]
    token, position = (_over([effect[kind] for effect in effects]) for kind in SIGNALS[:2])
    signal = "its token" if token.mean < position.mean else "its position"
    whose = f"{several[0].architecture} model ({_of([each.seed for each in several])})"
    return [
        f"What the links of the {whose} carry of the subject is {signal}.",
        f"Links of the {whose}, frozen to prompts whose subject is the other of the two names, "
        f"change the logit difference by {_percent(token)} (−200%: inverted).",
        f"Links of the {whose}, frozen to prompts in which the two names change places, "
        f"change the logit difference by {_percent(position)}.",
        "The logit difference does not say whether either is named.",
    ]


def _of(seeds: Sequence[int | None]) -> str:
    """``seed 0``, ``seeds 0, 1``; how many, where seeds are unknown."""
    if None in seeds:
        return "1 model" if len(seeds) == 1 else f"{len(seeds)} models"
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _over(values: Sequence[float]) -> OverModels:
    return OverModels(tuple(values), *mean_and_sd(values))


def _percent(measure: OverModels) -> str:
    """The mean; of several seeds each, too."""
    several = measure.by_seed
    each = f" (by seed {', '.join(f'{value:z.0%}' for value in several)})" if several[1:] else ""
    return f"{measure.mean:z.0%}{each}".replace("-", "−")
