"""Circuits that scores choose: the optimum beside every set of edges, the others beside sorts."""

import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resval_lens.analyses.circuits import optimum as solver
from resval_lens.analyses.circuits.circuit import Circuit, by_ratio, greedy, ranked, top_n
from resval_lens.analyses.circuits.curve import curve
from resval_lens.analyses.circuits.evaluation import faithfulness
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.graph_file import read_graph
from resval_lens.analyses.circuits.optimum import optimum
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.circuits.search import smallest
from resval_lens.analyses.circuits.selection import (
    SELECTIONS,
    Choice,
    Greedy,
    Optimum,
    Rank,
    Ratio,
    Selection,
    Top,
    name_of,
    selection_of,
)
from resval_lens.analyses.circuits.study import circuit_study
from resval_lens.streams import AttentionStream
from tests.hand_built import LINKED_CIRCUIT, linked_model, linked_pairs
from tests.helpers import tiny_config, tiny_model
from tests.test_circuit_runs import tiny_pairs
from tests.test_circuits import some_scores

TINY: dict[str, dict[str, Any]] = {
    "classic": {"n_layers": 2, "n_heads": 1, "attn_only": True},
    "values": {"n_layers": 2, "n_heads": 1, "attn_only": True, "streams": "v"},
    "three streams": {"n_layers": 2, "n_heads": 1, "attn_only": True, "streams": "qkv"},
    "gated": {
        "n_layers": 2, "n_heads": 1, "attn_only": True, "streams": AttentionStream("v", mix="gate"),
    },
    "MLP": {"n_layers": 1, "n_heads": 1},
    "grouped": {"n_layers": 1, "n_heads": 4, "n_key_value_heads": 2, "attn_only": True},
}  # fmt: skip
"""Graphs whose subsets of edges can all be looked at."""
RANKS: tuple[Rank, ...] = ("absolute", "helpful")


def tiny_graph(name: str) -> Graph:
    return Graph(tiny_config(**TINY[name]))


@cache
def every_circuit(name: str) -> np.ndarray:
    """Every set of edges that all lie on ways within it, [circuit, edge], by walking every way.

    A gated link acts wherever what it enters lies on a way.
    """
    graph = tiny_graph(name)
    assert len(graph) <= 15
    steps = {data["edge"]: arc for *arc, data in graph.flow.edges(data=True) if "edge" in data}
    gated = range(graph.n_residual, len(graph)) if name == "gated" else ()
    sets = np.arange(2 ** len(graph))
    useful = np.zeros_like(sets)
    for way in nx.all_simple_paths(graph.flow, "input", "logits"):
        own = sum(1 << edge for edge, arc in steps.items() if tuple(arc) in set(pairwise(way)))
        beside = sum(1 << link for link in gated if steps[link][1] in way)
        useful |= np.where(sets & own == own, own | sets & beside, 0)
    found = sets[useful == sets]
    return (found[:, None] >> np.arange(len(graph)) & 1).astype(bool)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(TINY)), st.sampled_from(RANKS), st.data())
def test_the_optimum_is_the_best_of_every_subset(
    name: str, rank: Rank, data: st.DataObject
) -> None:
    graph, circuits = tiny_graph(name), every_circuit(name)
    drawn = st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0]) | st.floats(-1, 1, width=32)
    values = torch.tensor([data.draw(drawn) for _ in range(len(graph))])
    n = data.draw(st.integers(1, len(graph)))
    sums = circuits @ ranked(graph, values, rank).double().numpy()
    best = sums[circuits.sum(1) <= n].max()
    found = optimum(graph, values, n, rank, tolerance=0)
    assert found.total == pytest.approx(best, abs=1e-7)
    assert found.bound == found.total
    assert found.gap == 0
    assert len(found.circuit) <= n
    assert (circuits == found.circuit.kept.numpy()).all(1).any()


def test_the_optimum_takes_a_weak_edge_that_connects_strong_ones() -> None:
    graph = Graph(tiny_config(streams="v"))
    strong = {"a0.h1<v>->a1.h1<v>": -5.0, "a1.h1->logits": -4.0, "a2.h0->logits": -3.0}
    weak = {"input->a0.h1<v>": 0.5}
    values = torch.zeros(len(graph))
    for edge, score in (strong | weak).items():
        values[graph.number[edge]] = score
    for rank, total in (("absolute", 9.5), ("helpful", 8.5)):
        found = optimum(graph, values, 3, rank)  # type: ignore[arg-type]
        assert set(found.circuit.edges) == {*list(strong)[:2], *weak}
        assert found.total == pytest.approx(total)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 127),
    st.integers(0, 10_000),
    st.sampled_from(["", "v", "qv", AttentionStream("v", mix="gate"),
                     AttentionStream("v", source="first"), AttentionStream("v", carry="raw")]),
    st.sampled_from(RANKS),
)  # fmt: skip
def test_no_other_rule_has_a_larger_sum(n: int, seed: int, streams: Any, rank: Rank) -> None:
    graph = Graph(tiny_config(streams=streams, n_heads=2, d_head=8))
    values = some_scores(graph, seed) ** 3
    n = min(n, len(graph))
    worth = ranked(graph, values, rank).double()
    found = optimum(graph, values, n, rank, tolerance=0)
    kept = found.circuit.kept
    assert found.circuit.pruned().kept.equal(kept)
    assert len(found.circuit) <= n
    assert found.gap == 0
    assert found.total == pytest.approx(worth[kept].sum().item())
    for other in (top_n(graph, values, n, rank), greedy(graph, values, n, rank)):
        assert worth[other.pruned().kept].sum() <= found.total + 1e-9


def test_what_is_left_out_before_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every edge left to the solver its circuits have the same sums."""
    graph = Graph(tiny_config(streams="v", n_heads=2, d_head=8))
    values = some_scores(graph)
    solve, left = solver._Ways.solve, []

    def everything(ways: Any, worth: Any, n: int, allowed: Any, forced: Any, *how: Any) -> Any:
        left.append(allowed.mean() - forced.mean())
        return solve(ways, worth, n, np.ones_like(allowed), np.zeros_like(forced), *how)

    sizes = [4, 9, 20, 40]
    ours = [optimum(graph, values, n, rank, tolerance=0).total for n in sizes for rank in RANKS]
    monkeypatch.setattr(solver._Ways, "solve", everything)
    theirs = [optimum(graph, values, n, rank, tolerance=0).total for n in sizes for rank in RANKS]
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert 0 < min(left) < 1


def test_a_solver_that_is_stopped_says_how_far_it_may_be_from_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = Graph(tiny_config(streams="v", n_heads=2, d_head=8))
    values, n = some_scores(graph), 6
    best = optimum(graph, values, n, tolerance=0)
    monkeypatch.setattr(solver._Ways, "solve", lambda *args: (None, np.inf))
    found = optimum(graph, values, n)
    worth = ranked(graph, values).double()
    others = [rule(graph, values, n).pruned().kept for rule in (top_n, greedy)]
    assert found.total >= max(worth[kept].sum().item() for kept in others) - 1e-12
    assert found.total <= best.total <= found.bound
    assert found.bound == pytest.approx(worth.sort(descending=True).values[:n].sum().item())
    assert found.gap == pytest.approx(1 - found.total / found.bound)
    assert found.gap > 0
    assert Optimum().choose(graph, values, n).gap == found.gap


def test_a_sum_that_is_close_enough_is_taken() -> None:
    graph = Graph(tiny_config(streams="v", n_heads=2, d_head=8))
    for seed in range(5):
        values = some_scores(graph, seed)
        for n in (4, 9, 20):
            best = optimum(graph, values, n, tolerance=0)
            for tolerance in (0.01, 0.2):
                found = optimum(graph, values, n, tolerance=tolerance)
                assert found.total <= best.total + 1e-9 <= found.bound + 2e-9
                assert found.gap <= tolerance


def test_pruning_by_arrays_is_pruning() -> None:
    for streams in (
        "v",
        "qkv",
        AttentionStream("v", mix="gate"),
        AttentionStream("k", carry="raw"),
    ):
        graph = Graph(tiny_config(streams=streams))
        ways = solver._Ways(graph)
        generator = torch.Generator().manual_seed(0)
        for share in (0.03, 0.05, 0.1, 0.5):
            kept = torch.rand(len(graph), generator=generator) < share
            wanted = Circuit(graph, kept).pruned().kept
            assert ways.pruned(kept.numpy()).tolist() == wanted.tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000), st.sampled_from([0.0, 0.3, 0.5, 0.75, 1.0]))
def test_a_ratio_is_that_of_helpful_and_harmful_edges(n: int, seed: int, share: float) -> None:
    graph = tiny_graph("three streams")
    values = some_scores(graph, seed).round()
    n = min(n, len(graph))
    kept = by_ratio(graph, values, n, share).kept
    assert kept.sum() == n
    helping, harming = (values < 0).sum().item(), (values > 0).sum().item()
    ours = (values[kept] < 0).sum().item(), (values[kept] > 0).sum().item()
    if round(share * n) <= helping and n - round(share * n) <= harming:
        assert ours == (round(share * n), n - round(share * n))
    assert sum(ours) == min(n, helping + harming)
    for sign in (-1, 1):  # of either kind the largest
        of_kind = sign * values > 0
        taken, left = (values[of_kind & each].abs() for each in (kept, ~kept))
        assert not len(taken) or not len(left) or taken.min() >= left.max()


def test_selections_are_the_rules_that_they_name() -> None:
    graph, n = Graph(tiny_config(streams="v")), 30
    values = some_scores(graph)
    wanted = {
        "top": top_n(graph, values, n),
        "top-helpful": top_n(graph, values, n, "helpful"),
        "greedy": greedy(graph, values, n),
        "greedy-helpful": greedy(graph, values, n, "helpful"),
        "ratio": by_ratio(graph, values, n, 0.75),
        "optimum": optimum(graph, values, n).circuit,
        "optimum-helpful": optimum(graph, values, n, "helpful").circuit,
    }
    assert list(wanted) == list(SELECTIONS)
    for name, circuit in wanted.items():
        found = SELECTIONS[name].choose(graph, values, n)
        assert found.circuit.kept.equal(circuit.kept)
        if name.startswith("optimum"):
            assert found.gap is not None
            assert 0 <= found.gap <= solver.TOLERANCE
        else:
            assert found.gap is None
        assert name_of(selection_of(name)) == name
    assert name_of(Ratio(0.5)) == "Ratio(share=0.5)"
    assert len({each.what for each in SELECTIONS.values()}) == len(SELECTIONS)


@pytest.mark.parametrize("select", [*SELECTIONS, Ratio(0.5)], ids=str)
def test_curves_and_the_smallest_circuit_take_every_selection(select: str | Selection) -> None:
    model = tiny_model("v", dtype=torch.float64, n_layers=2)
    runs = EdgeRuns(model, tiny_pairs(model))
    values = some_scores(runs.graph)
    how = selection_of(select)
    found = curve(runs, values, select, fractions=(0.1, 0.5, 1.0))
    choices = [how.choose(runs.graph, values, size) for size in found.sizes]
    wanted = [each.value for each in faithfulness(runs, [each.circuit for each in choices])]
    assert found.faithfulness == tuple(wanted)
    assert found.gaps == (
        None if isinstance(how, Top | Greedy | Ratio) else tuple(each.gap for each in choices)
    )
    least = max(f for f in wanted if f is not None) - 1e-9
    search = smallest(runs, values, least, select)
    chosen = how.choose(runs.graph, values, search.size).circuit
    assert search.circuit.edges == chosen.pruned().edges
    assert (faithfulness(runs, [chosen])[0].value or 0) >= least
    assert all(f < least for size, f in search.tried.items() if size < search.size)


def test_a_selection_of_ones_own_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class First(Selection):
        what = "the first edges"

        def choose(self, graph: Graph, values: torch.Tensor, n: int) -> Choice:
            return Choice(Circuit.of(graph, range(n)))

    monkeypatch.setitem(SELECTIONS, "first", First())
    study = circuit_study(linked_model(), linked_pairs(), select="first", edges=9)
    assert study.select == "first"
    assert study.circuit.n_edges <= 9


def test_a_study_by_every_selection_finds_the_hand_built_circuit() -> None:
    for name in SELECTIONS:
        study = circuit_study(linked_model(), linked_pairs(), select=name)
        if name != "ratio":  # no edge harms
            assert set(study.circuit.edges) == LINKED_CIRCUIT
        assert study.select == (None if name == "top" else name)
        assert study.search.gap == (0 if name.startswith("optimum") else None)
    assert "select" not in circuit_study(linked_model(), linked_pairs()).to_dict()


def test_a_study_with_a_bootstrap_says_which_edges_keep_their_sign() -> None:
    model, pairs = linked_model(), linked_pairs()
    study = circuit_study(model, pairs, bootstrap=100, seed=3)
    assert study.bootstrap is not None
    assert set(study.circuit.edges) == LINKED_CIRCUIT
    stable = study.to_dict()["bootstrap"]
    assert stable == {"resamples": 100, "level": 0.95, "seed": 3, "edges": 3, "of": 85}


def test_a_bootstrap_chooses_edges_and_leaves_their_scores(tmp_path: Path) -> None:
    model, file = tiny_model("v", n_layers=2), tmp_path / "found.json"
    pairs = tiny_pairs(model)
    study = circuit_study(model, pairs, bootstrap=20, edges=9, export=file)
    scores = score_edges(model, pairs)
    assert study.bootstrap is not None
    assert 0 < study.bootstrap.edges < study.bootstrap.of
    strongest = {each.edge: each.score for each in study.strongest}
    assert strongest == pytest.approx(dict(scores.top(len(strongest))))
    found = read_graph(file, scores.graph).scores
    assert found is not None
    torch.testing.assert_close(found.values.float(), scores.values)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: selection_of("best"),
            "select must be one of top, top-helpful, ",
        ),
        (lambda: Ratio(1.5), "share must lie between 0 and 1; got 1.5"),
        (
            lambda: optimum(tiny_graph("values"), torch.ones(13), 0),
            "n must lie between 1 and 13, all edges; got 0",
        ),
        (
            lambda: optimum(tiny_graph("values"), torch.ones(13), 1, seconds=0),
            "seconds must be above 0 and tolerance 0 or more; got 0",
        ),
        (lambda: by_ratio(tiny_graph("values"), torch.ones(12), 1, 0.5), "13 edges need as many"),
        (
            lambda: circuit_study(linked_model(), linked_pairs(), select="greedy", threshold=0.1),
            "select=greedy: a threshold or a given circuit already chooses edges",
        ),
        (
            lambda: circuit_study(linked_model(), linked_pairs(), bootstrap=9, threshold=0.1),
            "bootstrap=9: a threshold or a given circuit already chooses edges",
        ),
    ],
)
def test_what_chooses_nothing_is_refused(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        call()
