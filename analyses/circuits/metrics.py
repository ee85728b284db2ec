"""Circuits by several metrics: what one that is chosen by a metric keeps of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch

from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.running import Ablation, EdgeRuns
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.circuits.search import smallest
from resval_lens.hooks.prompts import Metric, PromptPairs, vanishes
from resval_lens.notes import Note
from resval_lens.transformer import ResValTransformer

FAITHFUL = 0.85
"""The faithfulness at which circuits are compared (87% is that of Wang et al.'s in GPT-2 small)."""


@dataclass(frozen=True)
class Kept:
    """What a circuit keeps of a metric under one ablation of all other edges.

    Attributes:
        corrupted: the mean metric where no edge is kept.
        circuit: the mean metric of the circuit.
        faithfulness: None where clean and corrupted hardly differ.
    """

    corrupted: float
    circuit: float
    faithfulness: float | None


@dataclass(frozen=True)
class KeptOfMetric:
    """What a circuit keeps of a metric, whose mean is ``clean`` of the whole model.

    Attributes:
        resample: other edges carry what they carry on the corrupted prompt.
        mean: other edges carry their mean over the corrupted prompts of each group.
    """

    clean: float
    resample: Kept
    mean: Kept

    def told(self, between: str, form: str) -> str:
        """f with other edges resampled, and with them at means."""
        return between.join(
            "" if f is None else format(f, form)
            for f in (self.resample.faithfulness, self.mean.faithfulness)
        )


ByMetric = Mapping[str, KeptOfMetric]
"""What one circuit keeps of every metric, by the metric's name."""


def by_each_metric(
    model: ResValTransformer,
    pairs: PromptPairs,
    circuits: Sequence[Circuit],
    metrics: Mapping[str, Metric],
) -> list[ByMetric]:
    """What each circuit keeps, by every metric and under both ablations."""
    if not metrics or not circuits:
        return [{} for _ in circuits]
    graph = circuits[0].graph
    ends = Circuit.of(graph, []), Circuit.whole(graph)
    kept = torch.stack([each.kept for each in (*ends, *circuits)])
    means: dict[Ablation, dict[str, list[float]]] = {}
    for ablation in get_args(Ablation):
        runs = EdgeRuns(model, pairs, graph, ablation=ablation)
        measured = runs.by_metrics(kept, metrics)
        means[ablation] = {name: values.mean(1).tolist() for name, values in measured.items()}

    def of(number: int, name: str, ablation: Ablation) -> Kept:
        corrupted, clean, *own = means[ablation][name]
        f = None if vanishes(clean, corrupted) else (own[number] - corrupted) / (clean - corrupted)
        return Kept(corrupted, own[number], f)

    return [
        {
            name: KeptOfMetric(
                means["resample"][name][1], of(i, name, "resample"), of(i, name, "mean")
            )
            for name in metrics
        }
        for i in range(len(circuits))
    ]


@dataclass(frozen=True)
class ChosenBy:
    """The circuit that is chosen ``by`` one metric, and what it keeps of all."""

    by: str
    n_edges: int
    n_edges_of_model: int
    edges: tuple[str, ...]
    links: tuple[str, ...]
    measured: ByMetric


def metric_matrix(
    model: ResValTransformer,
    pairs: PromptPairs,
    held_out: PromptPairs,
    metrics: Mapping[str, Metric],
    *,
    known: Mapping[str, Sequence[str]] | None = None,
    method: str = "eap-ig",
    min_faithfulness: float = FAITHFUL,
    note: Note = lambda text: None,
) -> tuple[ChosenBy, ...]:
    """A circuit by each metric, evaluated by all of them.

    Edges are scored, and the circuit chosen (the smallest that reaches ``min_faithfulness``), by
    one metric; what that circuit keeps of the others says what the metric does not see.

    Args:
        pairs: prompts by which edges are scored.
        held_out: other prompts, on which circuits are chosen by size and evaluated.
        known: edges of circuits that were chosen before, by their metric.

    Raises:
        ValueError: what choosing refuses, with the metric's name.
    """
    graph, chosen, known = Graph.of(model), {}, known or {}
    for name, metric in metrics.items():
        if name in known:
            chosen[name] = Circuit.of(graph, known[name])
            continue
        note(f"a circuit by {name}")
        scores = score_edges(model, replace(pairs, metric=metric), method, graph=graph)
        runs = EdgeRuns(model, replace(held_out, metric=metric), graph)
        try:
            chosen[name] = smallest(runs, scores.values, min_faithfulness).circuit
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    note("every circuit by every metric")
    measured = by_each_metric(model, held_out, list(chosen.values()), metrics)
    return tuple(
        ChosenBy(
            name,
            len(circuit),
            len(graph),
            tuple(circuit.edges),
            tuple(map(str, circuit.links)),
            own,
        )
        for (name, circuit), own in zip(chosen.items(), measured, strict=True)
    )
