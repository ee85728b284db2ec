"""A model's circuit for a task: found, measured, and what its links do in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy
import torch

from resval_lens.analyses.circuits.bootstrap import Bootstrap, Stable
from resval_lens.analyses.circuits.circuit import Circuit, check_count
from resval_lens.analyses.circuits.circuit import threshold as edges_above
from resval_lens.analyses.circuits.curve import Curve, check_sizes, curve
from resval_lens.analyses.circuits.evaluation import (
    MOST_EDGES,
    MOST_NODES,
    Ends,
    EvaluatedCircuit,
    check_gap,
    counting,
    evaluate,
    faithfulness,
)
from resval_lens.analyses.circuits.graph import Graph, graph_of
from resval_lens.analyses.circuits.graph_file import check_heads, write_graph
from resval_lens.analyses.circuits.methods import method_of
from resval_lens.analyses.circuits.metrics import FAITHFUL, ByMetric, by_each_metric
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import EdgeScores, score_edges
from resval_lens.analyses.circuits.search import Tried, smallest
from resval_lens.analyses.circuits.selection import Selection, name_of, selection_of
from resval_lens.analyses.results.result import OPTIONAL, Result
from resval_lens.hooks import cut_links
from resval_lens.hooks.answers import answer_logits
from resval_lens.hooks.prompts import Metric, PromptPairs, vanishes
from resval_lens.notes import Note
from resval_lens.runtime import evaluating
from resval_lens.transformer import ResValTransformer

STRONGEST = 25


@dataclass(frozen=True)
class Prompts:
    """On how many prompts edges were scored, and on how many others circuits evaluated."""

    scored: int
    evaluated: int


@dataclass(frozen=True)
class ScoredEdge:
    """An edge and its score, in the metric's unit."""

    edge: str
    score: float


@dataclass(frozen=True)
class LinkShares:
    """What the links of a circuit's model do.

    Attributes:
        in_circuit: how many links the circuit has.
        share_of_circuit: of the circuit's effect, what runs through them, 1 − f(circuit without
            its links) / f(circuit); None where the circuit has no effect.
        faithfulness_of_model_with_links_corrupted: of the whole model, every link corrupted.
        clean_metric_with_links_cut: the mean metric with every link cut (zero).
    """

    in_circuit: int
    share_of_circuit: float | None
    faithfulness_of_model_with_links_corrupted: float | None
    clean_metric_with_links_cut: float


@dataclass(frozen=True)
class Agreement(Result):
    """Rank correlation (Spearman's) and correlation (Pearson's) of two scores of every edge.

    ``rank_of_size``: of |score|, by which circuits are chosen.
    """

    rank: float
    rank_of_size: float
    correlation: float


@dataclass(frozen=True)
class StudiedCircuit(EvaluatedCircuit):
    """``path_length``: edges of a way from the input to the logits, averaged over all ways."""

    path_length: float | None


@dataclass(frozen=True)
class CircuitStudy(Result):
    """The fewest edges that are faithful enough, evaluated.

    Attributes:
        steps: runs that eap-ig averages over; None for other methods.
        metric: of the prompts that circuits are evaluated on.
        strongest: the edges of the largest scores, in the circuit or not.
        min_faithfulness: the faithfulness that was asked for; None where a size or a threshold was.
        measured: what the circuit keeps of further metrics.
        links: None of a model without links.
        runs: how many circuits were run.
        agreement: of the scores with exact ones, if that was asked for.
        threshold: the score that was asked for, of the circuit's weakest edge at least.
        select: how scores choose edges, where it is not by the highest |score|.
        bootstrap: by how many resamples of prompts edges had to keep their sign, and how many did.
        sized_on: on how many prompts the size was searched for, where these were the scored ones.
    """

    method: str
    steps: int | None
    prompts: Prompts
    metric: Ends
    strongest: tuple[ScoredEdge, ...]
    curve: Curve
    min_faithfulness: float | None
    search: Tried
    circuit: StudiedCircuit
    measured: ByMetric
    links: LinkShares | None
    runs: int
    agreement: Agreement | None = field(default=None, metadata=OPTIONAL)
    threshold: float | None = field(default=None, metadata=OPTIONAL)
    select: str | None = field(default=None, metadata=OPTIONAL)
    bootstrap: Stable | None = field(default=None, metadata=OPTIONAL)
    sized_on: int | None = field(default=None, metadata=OPTIONAL)


def circuit_study(
    model: ResValTransformer,
    pairs: PromptPairs,
    held_out: PromptPairs | None = None,
    *,
    method: str = "eap-ig",
    steps: int | None = None,
    select: str | Selection = "top",
    bootstrap: int = 0,
    min_faithfulness: float = FAITHFUL,
    edges: int | None = None,
    threshold: float | None = None,
    sizes: Sequence[int] | None = None,
    size_on_scored: bool = False,
    exact: bool = False,
    most_edges: int = MOST_EDGES,
    most_nodes: int = MOST_NODES,
    seed: int = 0,
    metrics: Mapping[str, Metric] | None = None,
    scores: EdgeScores | None = None,
    given: Circuit | None = None,
    export: str | Path | None = None,
    note: Note = lambda text: None,
) -> CircuitStudy:
    """Scores every edge, takes the fewest that are faithful enough, and evaluates them.

    Args:
        pairs: prompts by which edges are scored.
        held_out: other prompts, on which circuits are chosen by size and evaluated; by default the
            same.
        min_faithfulness: the faithfulness that the circuit must have.
        method, steps: as in :func:`~resval_lens.analyses.circuits.scores.score_edges`.
        select: how scores choose edges: a name of
            :data:`~resval_lens.analyses.circuits.selection.SELECTIONS`, or a selection itself.
        bootstrap: so many resamples of the prompts say which scores keep their sign; edges whose
            does not are chosen last. 0: scores are taken as they are.
        edges: take so many edges instead of searching for the fewest; or
        threshold: those whose scores are at least so large. ACDC needs one, and drops by it.
        sizes: circuits, by their numbers of edges, that the curve is drawn from; by default shares
            of the graph.
        size_on_scored: search for the fewest edges on ``pairs``, too, so that the other prompts
            choose nothing.
        exact: score by exact patching, too, and report how far ``method`` agrees.
        most_edges, most_nodes: of the circuit that minimality and completeness are measured of;
            drawn where there are more.
        seed: of the random circuits, of resamples, and of what is drawn.
        metrics: that the circuit is also evaluated by.
        scores: of edges that were scored before, say those of a file; ``method`` is then theirs.
        given: a circuit to evaluate as it is, instead of one chosen by scores.
        export: a file for scores and circuit, which
            :func:`~resval_lens.analyses.circuits.graph_file.write_graph` writes.
        note: called with what is being done.

    Raises:
        ValueError: the metric's gap between clean and corrupted prompts vanishes, no circuit is
            faithful enough, an unknown selection, one or a bootstrap beside a ``threshold`` or a
            ``given`` circuit, a bootstrap of scores without those of each prompt, more than one of
            ``edges``, ``threshold`` and ``given``, one of them and ``size_on_scored``, a threshold
            that no way from the input to the logits reaches, ``scores`` or a ``given`` circuit of
            another model, or what scoring or writing refuses.
    """
    if edges is not None and threshold is not None:
        raise ValueError(f"edges={edges} and threshold={threshold:g} both choose edges; give one")
    if given is not None and (edges is not None or threshold is not None):
        raise ValueError("a circuit is given: leave out edges and threshold")
    how = selection_of(select)
    if how != selection_of("top") and (threshold is not None or given is not None):
        raise ValueError(f"select={select}: a threshold or a given circuit already chooses edges")
    if bootstrap and (threshold is not None or given is not None):
        raise ValueError(
            f"bootstrap={bootstrap}: a threshold or a given circuit already chooses edges"
        )
    if size_on_scored and (edges, threshold, given) != (None, None, None):
        raise ValueError(
            "size_on_scored searches for a size; edges, threshold or a given circuit sets it"
        )
    drops_below = threshold if method_of(method).by_threshold else None
    graph = Graph.of(model)
    for had in (scores, given):
        if had is not None:
            graph_of(model, had.graph)
    if export is not None:
        check_heads(graph)
    if edges is not None:
        check_count(graph, edges, "edges")
    if sizes is not None:
        check_sizes(sizes, len(graph))
    if scores is None:
        scoring = f"scoring {len(graph):,} edges"
        note(scoring)
        scores = score_edges(
            model,
            pairs,
            method,
            graph=graph,
            steps=steps,
            threshold=drops_below,
            by_prompt=bootstrap > 0,
            progress=counting(note, scoring),
        )
    ranked, stable = scores, None  # what is reported and exported are scores as they are
    if bootstrap:
        ranked, stable = Bootstrap(bootstrap, seed).stable_first(scores)
    note("running the model and its corrupted prompts")
    runs = EdgeRuns(model, pairs if held_out is None else held_out, graph)
    check_gap(runs)
    by_size = counting(note, "circuits by size")
    curves = curve(runs, ranked.values, how, sizes=sizes, progress=by_size)
    if given is not None:
        circuit, search = given, Tried(len(given))
    elif threshold is not None:
        above = edges_above(graph, scores.values, threshold)
        circuit, search = above.pruned(), Tried(len(above))
        if not len(circuit):
            raise ValueError(
                f"threshold={threshold:g} leaves no edge from the input to the logits; the metric "
                f"falls from {runs.clean:.3g} to {runs.corrupted:.3g} over all of them: take a "
                "smaller one"
            )
    elif edges is None:
        what = f"the smallest circuit of faithfulness {min_faithfulness}: sizes tried"
        on = EdgeRuns(model, pairs, graph) if size_on_scored else runs
        smallest_ = smallest(on, ranked.values, min_faithfulness, how, counting(note, what))
        circuit, search = smallest_.circuit, smallest_.search
    else:
        chosen = how.choose(graph, ranked.values, edges)
        circuit, search = chosen.circuit.pruned(), Tried(edges, gap=chosen.gap)
    if export is not None:
        write_graph(export, scores, circuit)
    generator = torch.Generator().manual_seed(seed)
    evaluated = evaluate(
        runs, circuit, generator, most_edges=most_edges, most_nodes=most_nodes, note=note
    )
    (measured,) = by_each_metric(model, runs.pairs, [circuit], metrics or {})
    links, agreed = _links(model, runs, evaluated), None
    if exact:
        note("exact scores of every edge")
        agreed = agreement(scores, score_edges(model, pairs, "exact", graph=graph))
    return CircuitStudy(
        method=scores.method,
        steps=scores.steps,
        prompts=Prompts(scores.prompts, len(runs.pairs)),
        metric=Ends(runs.clean, runs.corrupted),
        strongest=tuple(ScoredEdge(edge, value) for edge, value in scores.top(STRONGEST)),
        curve=curves,
        min_faithfulness=min_faithfulness
        if edges is None and threshold is None and given is None
        else None,
        search=search,
        circuit=StudiedCircuit(**vars(evaluated), path_length=_mean_length(circuit)),
        measured=measured,
        links=links,
        runs=runs.circuits_run,
        agreement=agreed,
        threshold=threshold,
        select=None if how == selection_of("top") else name_of(how),
        bootstrap=stable,
        sized_on=len(pairs) if size_on_scored else None,
    )


def agreement(scores: EdgeScores, oracle: EdgeScores) -> Agreement:
    """How far two scores of every edge agree."""
    ours, exact = (each.values.double().cpu().numpy() for each in (scores, oracle))
    return Agreement(
        float(scipy.stats.spearmanr(ours, exact).statistic),
        float(scipy.stats.spearmanr(np.abs(ours), np.abs(exact)).statistic),
        float(scipy.stats.pearsonr(ours, exact).statistic),
    )


def _mean_length(circuit: Circuit) -> float | None:
    lengths = Counter(circuit.path_lengths())
    return sum(n * count for n, count in lengths.items()) / lengths.total() if lengths else None


def _links(
    model: ResValTransformer, runs: EdgeRuns, circuit: EvaluatedCircuit
) -> LinkShares | None:
    if not model.cfg.streams:
        return None
    own, without, share = circuit.faithfulness, circuit.faithfulness_without_links, None
    if not vanishes(circuit.metric.circuit, runs.corrupted):  # it has an effect to share
        assert own is not None
        assert without is not None
        share = 1 - without / own
    corrupted = faithfulness(runs, [Circuit.whole(runs.graph).without_links()])[0]
    pairs = runs.pairs
    with torch.no_grad(), evaluating(model), cut_links(model):
        cut = pairs.measure(answer_logits(model, pairs.clean, pairs.answers)).mean().item()
    return LinkShares(len(circuit.links), share, corrupted.value, cut)
