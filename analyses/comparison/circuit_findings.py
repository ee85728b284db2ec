"""Circuits over seeds: their measures, and what was found, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    said = []
    rows = {(row.task, row.architecture): row for row in over_seeds(circuits)}
    for (task, kind), row in rows.items():
        own, classic = row.measures, rows.get((task, "classic"))
        if "share through links" not in own:
            continue
        beside = ""
        if classic:
            beside = f" ({classic.measures['edges'].mean:.3g} without the stream)"
        links, kept = own["links in it"].mean, own["model, links corrupted"]
        inside = "none of them a link"
        if links:
            count = "1 of them a link" if links == 1 else f"{links:.3g} of them links"
            inside = f"{count}; {_percent(own['share through links'])} of its effect runs there"
        whose = "model's circuit has" if len(row.seeds) == 1 else "models' circuits have"
        said.append(
            f"{task}, {_of(row.seeds)}, by {row.metric}: the {kind} {whose} "
            f"{own['edges'].mean:.3g} edges{beside}, {inside}; with every link corrupted the "
            f"whole model keeps {_percent(kept)} of the clean − corrupted gap."
        )
    said += [_matrix_sentence(matrix) for matrix in matrices]
    by_kind: dict[str, list[tuple[int | None, LinkSignals]]] = {}
    for each in heads:
        if each.signals is not None:
            by_kind.setdefault(each.architecture, []).append((each.seed, each.signals))
    for kind, several in by_kind.items():
        token, position = (
            _over([signals.effects["all"][of] for _, signals in several]) for of in SIGNALS[:2]
        )
        signal = "a token" if token.mean < position.mean else "a position"
        said.append(
            f"What the links of the {kind} model ({_of([seed for seed, _ in several])}) carry of "
            f"who gave is {signal}: frozen to prompts in which the other person's token gives "
            f"they change IO − S by {_percent(token)}, frozen to prompts in which the giver stood "
            f"elsewhere by {_percent(position)} (−200%: inverted). IO − S does not say whether "
            "either is named."
        )
    return said


def _matrix_sentence(matrix: MetricMatrix) -> str:
    """What a circuit that keeps one metric keeps of P(IO)."""
    each = []
    for circuit in matrix.circuits:
        own, count = circuit.measured, len(circuit.links)
        links = f", {count} link{'s' * (count > 1)}" if count else ""
        each.append(
            f"by {circuit.by} {circuit.n_edges} edges{links}, "
            f"f {own[circuit.by].resample.faithfulness:.2f}, "
            f"P(IO) {own['P(IO)'].resample.circuit:.3f}"
        )
    clean = matrix.circuits[0].measured["P(IO)"].clean
    return (
        f"{matrix.name} ({matrix.corruption} prompts, {_of([matrix.seed])}): the whole model's "
        f"P(IO) is {clean:.3f}; circuits chosen {'; '.join(each)}."
    )


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
