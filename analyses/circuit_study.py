"""A model's circuit for a task: found, measured, and what its links do in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr

from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.evaluation import (
    curve,
    evaluate,
    faithfulness,
    smallest,
)
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import EdgeScores, Method, score_edges
from resval_lens.hooks import cut_links
from resval_lens.hooks.prompts import PromptPairs, answer_logits
from resval_lens.runtime import evaluating
from resval_lens.transformer import ResValTransformer

FAITHFUL = 0.85
"""The faithfulness at which circuits are compared (87% is that of Wang et al.'s in GPT-2 small)."""
STRONGEST = 25

Note = Callable[[str], None]


def circuit_study(
    model: ResValTransformer,
    pairs: PromptPairs,
    held_out: PromptPairs | None = None,
    *,
    method: Method = "eap-ig",
    steps: int = 5,
    least: float = FAITHFUL,
    exact: bool = False,
    seed: int = 0,
    note: Note = lambda text: None,
) -> dict[str, Any]:
    """Scores every edge, takes the fewest that are faithful enough, and evaluates them.

    Args:
        pairs: prompts by which edges are scored.
        held_out: other prompts, on which circuits are chosen by size and evaluated; by default the
            same.
        least: the faithfulness that the circuit must have.
        exact: score by exact patching, too, and report how far ``method`` agrees.
        seed: of the random circuits.
        note: called with what is being done.

    Returns:
        JSON-able. ``circuit`` as of :func:`~resval_lens.analyses.circuits.evaluation.evaluate`;
        ``links`` has what links do: the share of the circuit's effect that runs through them,
        1 − f(circuit without its links) / f(circuit); f of the whole model with every link
        corrupted; the clean metric with every link cut (zero). None for a model without links.

    Raises:
        ValueError: the metric's gap between clean and corrupted prompts vanishes, no circuit is
            faithful enough, or what scoring refuses.
    """
    graph = Graph.of(model)
    note(f"scoring {len(graph)} edges")
    scores = score_edges(model, pairs, method, graph=graph, steps=steps)
    note("running the model and its twins")
    runs = EdgeRuns(model, pairs if held_out is None else held_out, graph)
    note("circuits of every size")
    curves = curve(runs, scores.values)
    note(f"the smallest circuit of faithfulness {least}")
    circuit = smallest(runs, scores.values, least)
    note("evaluating the circuit")
    evaluated = evaluate(runs, circuit, torch.Generator().manual_seed(seed))
    found = {
        "method": method,
        "steps": scores.steps,
        "prompts": {"scored": len(pairs), "evaluated": len(runs.pairs)},
        "metric": {"clean": runs.clean, "corrupted": runs.corrupted},
        "strongest": [{"edge": edge, "score": value} for edge, value in scores.top(STRONGEST)],
        "curve": curves.to_dict(),
        "least": least,
        "circuit": evaluated | {"path_length": _mean_length(circuit)},
        "links": _links(model, runs, evaluated),
    }
    if exact:
        note("exact scores of every edge")
        oracle = score_edges(model, pairs, "exact", graph=graph)
        found["agreement"] = agreement(scores, oracle)
    return found


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
    corrupted = faithfulness(runs, [Circuit.whole(runs.graph).without_links()])[0]
    pairs = runs.pairs
    with torch.no_grad(), evaluating(model), cut_links(model):
        cut = pairs.measure(answer_logits(model, pairs.clean, pairs.answers)).mean().item()
    return {
        "in_circuit": len(circuit["links"]),
        "share_of_circuit": 1 - without / own,
        "faithfulness_of_model_with_links_corrupted": corrupted.value,
        "clean_metric_with_links_cut": cut,
    }
