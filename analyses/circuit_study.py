"""A model's circuit for a task: found, measured, and what its links do in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr

from resval_lens.analyses.circuits.circuit import Circuit, check_count, top_n
from resval_lens.analyses.circuits.evaluation import (
    MOST_EDGES,
    MOST_NODES,
    check_gap,
    check_sizes,
    curve,
    evaluate,
    faithfulness,
)
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.running import Ablation, EdgeRuns
from resval_lens.analyses.circuits.scores import EdgeScores, Method, score_edges
from resval_lens.analyses.circuits.search import smallest
from resval_lens.hooks import cut_links
from resval_lens.hooks.answers import answer_logits
from resval_lens.hooks.prompts import Metric, PromptPairs, vanishes
from resval_lens.runtime import evaluating
from resval_lens.transformer import ResValTransformer

FAITHFUL = 0.85
"""The faithfulness at which circuits are compared (87% is that of Wang et al.'s in GPT-2 small)."""
STRONGEST = 25

Note = Callable[[str], None]
Progress = Callable[[int, int], None]


def circuit_study(
    model: ResValTransformer,
    pairs: PromptPairs,
    held_out: PromptPairs | None = None,
    *,
    method: Method = "eap-ig",
    steps: int = 5,
    least: float = FAITHFUL,
    edges: int | None = None,
    sizes: Sequence[int] | None = None,
    exact: bool = False,
    most_edges: int = MOST_EDGES,
    most_nodes: int = MOST_NODES,
    seed: int = 0,
    metrics: Mapping[str, Metric] | None = None,
    note: Note = lambda text: None,
) -> dict[str, Any]:
    """Scores every edge, takes the fewest that are faithful enough, and evaluates them.

    Args:
        pairs: prompts by which edges are scored.
        held_out: other prompts, on which circuits are chosen by size and evaluated; by default the
            same.
        least: the faithfulness that the circuit must have.
        edges: take so many strongest edges instead of searching for the fewest.
        sizes: circuits, by their numbers of edges, that the curve is drawn from; by default shares
            of the graph.
        exact: score by exact patching, too, and report how far ``method`` agrees.
        most_edges, most_nodes: of the circuit that minimality and completeness are measured of;
            drawn where there are more.
        seed: of the random circuits, and of what is drawn.
        metrics: that the circuit is also evaluated by.
        note: called with what is being done.

    Returns:
        JSON-able. ``circuit`` as of :func:`~resval_lens.analyses.circuits.evaluation.evaluate`;
        ``search`` has its size before pruning and, where it was searched for, the sizes tried and
        whether they are all (:class:`~resval_lens.analyses.circuits.search.Smallest`); ``runs``,
        how many circuits were run;
        ``measured``, its faithfulness by each of ``metrics`` (:func:`by_each_metric`);
        ``links`` has what links do: the share of the circuit's effect that runs through them,
        1 − f(circuit without its links) / f(circuit), None where f(circuit) is 0; f of the whole
        model with every link corrupted; the clean metric with every link cut (zero). None for a
        model without links.

    Raises:
        ValueError: the metric's gap between clean and corrupted prompts vanishes, no circuit is
            faithful enough, or what scoring refuses.
    """
    graph = Graph.of(model)
    if edges is not None:
        check_count(graph, edges, "edges")
    if sizes is not None:
        check_sizes(sizes, len(graph))
    note(f"scoring {len(graph):,} edges")
    scores = score_edges(model, pairs, method, graph=graph, steps=steps)
    note("running the model and its twins")
    runs = EdgeRuns(model, pairs if held_out is None else held_out, graph)
    check_gap(runs)

    def counting(text: str) -> Progress:
        return lambda done, total: note(f"{text}: {done:,} of {total:,}")

    curves = curve(runs, scores.values, sizes=sizes, progress=counting("circuits by size"))
    search: dict[str, Any]
    if edges is None:
        what = f"the smallest circuit of faithfulness {least}: sizes tried"
        smallest_ = smallest(runs, scores.values, least, progress=counting(what))
        circuit, search = smallest_.circuit, smallest_.to_dict()
    else:
        circuit, search = top_n(graph, scores.values, edges).pruned(), {"size": edges}
    generator = torch.Generator().manual_seed(seed)
    evaluated = evaluate(
        runs, circuit, generator, most_edges=most_edges, most_nodes=most_nodes, note=note
    )
    (measured,) = by_each_metric(model, runs.pairs, [circuit], metrics or {})
    found = {
        "method": method,
        "steps": scores.steps,
        "prompts": {"scored": len(pairs), "evaluated": len(runs.pairs)},
        "metric": {"clean": runs.clean, "corrupted": runs.corrupted},
        "strongest": [{"edge": edge, "score": value} for edge, value in scores.top(STRONGEST)],
        "curve": curves.to_dict(),
        "least": least if edges is None else None,
        "search": search,
        "circuit": evaluated | {"path_length": _mean_length(circuit)},
        "measured": measured,
        "links": _links(model, runs, evaluated),
    }
    found["runs"] = runs.circuits_run
    if exact:
        note("exact scores of every edge")
        oracle = score_edges(model, pairs, "exact", graph=graph)
        found["agreement"] = agreement(scores, oracle)
    return found


def by_each_metric(
    model: ResValTransformer,
    pairs: PromptPairs,
    circuits: Sequence[Circuit],
    metrics: Mapping[str, Metric],
) -> list[dict[str, Any]]:
    """What each circuit keeps, by every metric and under both ablations, as JSON.

    The "mean" ablation takes its means over the corrupted prompts of each group.

    Returns:
        Of each circuit {metric: {"clean", "resample", "mean"}}, the latter two with the metric
        ``corrupted`` (no edge kept), the ``circuit``'s and its ``faithfulness``.
    """
    found: list[dict[str, Any]] = [{} for _ in circuits]
    if not metrics or not circuits:
        return found
    graph = circuits[0].graph
    ends = Circuit.of(graph, []), Circuit.whole(graph)
    kept = torch.stack([each.kept for each in (*ends, *circuits)])
    for ablation in get_args(Ablation):
        runs = EdgeRuns(model, pairs, graph, ablation=ablation)
        for name, values in runs.by_metrics(kept, metrics).items():
            corrupted, clean, *own = values.mean(1).tolist()
            for entry, metric in zip(found, own, strict=True):
                vanishing = vanishes(clean, corrupted)
                f = None if vanishing else (metric - corrupted) / (clean - corrupted)
                entry.setdefault(name, {"clean": clean})[ablation] = {
                    "corrupted": corrupted,
                    "circuit": metric,
                    "faithfulness": f,
                }
    return found


def metric_matrix(
    model: ResValTransformer,
    pairs: PromptPairs,
    held_out: PromptPairs,
    metrics: Mapping[str, Metric],
    *,
    known: Mapping[str, Sequence[str]] | None = None,
    method: Method = "eap-ig",
    least: float = FAITHFUL,
    note: Note = lambda text: None,
) -> list[dict[str, Any]]:
    """A circuit by each metric, evaluated by all of them, as JSON.

    Edges are scored, and the circuit chosen (the smallest of faithfulness ``least``), by one
    metric; what that circuit keeps of the others says what the metric does not see.

    Args:
        pairs, held_out: as of :func:`circuit_study`.
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
            chosen[name] = smallest(runs, scores.values, least).circuit
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    note("every circuit by every metric")
    measured = by_each_metric(model, held_out, list(chosen.values()), metrics)
    return [
        {
            "by": name,
            "n_edges": len(circuit),
            "n_edges_of_model": len(graph),
            "edges": list(circuit.edges),
            "links": list(circuit.links),
            "measured": own,
        }
        for (name, circuit), own in zip(chosen.items(), measured, strict=True)
    ]


def agreement(scores: EdgeScores, oracle: EdgeScores) -> dict[str, float]:
    """Rank correlation (Spearman's) and correlation (Pearson's) of two scores of every edge.

    ``rank_of_size``: of |score|, by which circuits are chosen.
    """
    ours, exact = (each.values.double().cpu().numpy() for each in (scores, oracle))
    return {
        "rank": float(spearmanr(ours, exact).statistic),
        "rank_of_size": float(spearmanr(np.abs(ours), np.abs(exact)).statistic),
        "correlation": float(pearsonr(ours, exact).statistic),
    }


def _mean_length(circuit: Circuit) -> float | None:
    """Edges of a way from the input to the logits, averaged over all ways."""
    lengths = Counter(circuit.path_lengths())
    return sum(n * count for n, count in lengths.items()) / lengths.total() if lengths else None


def _links(
    model: ResValTransformer, runs: EdgeRuns, circuit: dict[str, Any]
) -> dict[str, Any] | None:
    if not model.cfg.streams:
        return None
    own, without = circuit["faithfulness"], circuit["faithfulness_without_links"]
    none = vanishes(circuit["metric"]["circuit"], runs.corrupted)  # it has no effect to share
    corrupted = faithfulness(runs, [Circuit.whole(runs.graph).without_links()])[0]
    pairs = runs.pairs
    with torch.no_grad(), evaluating(model), cut_links(model):
        cut = pairs.measure(answer_logits(model, pairs.clean, pairs.answers)).mean().item()
    return {
        "in_circuit": len(circuit["links"]),
        "share_of_circuit": None if none else 1 - without / own,
        "faithfulness_of_model_with_links_corrupted": corrupted.value,
        "clean_metric_with_links_cut": cut,
    }
