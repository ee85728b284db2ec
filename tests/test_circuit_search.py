"""The fewest edges that are faithful enough: sizes tried coarse to fine, and each circuit run once.

Runs are stood in for by a table of faithfulness by size, so that thousands of cases cost nothing.
"""

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resval_lens.analyses.circuits.circuit import Circuit, top_n
from resval_lens.analyses.circuits.curve import curve
from resval_lens.analyses.circuits.evaluation import (
    EdgesTried,
    EvaluatedCircuit,
    Measured,
    NodesTried,
    evaluate,
    faithfulness,
    minimality,
)
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.circuits.search import EVERY, Tried, most_runs, smallest
from resval_lens.analyses.circuits.study import circuit_study
from resval_lens.analyses.drawing.marks import TIP
from resval_lens.analyses.studies.circuit import _of_search, circuit_table
from resval_lens.analyses.studies.circuit_figures import circuits
from resval_lens.hooks.prompts import PromptPairs
from resval_lens.transformer import ResValTransformer
from tests.helpers import tiny_model
from tests.test_circuit_runs import tiny_pairs

LEAST = 0.85


@cache
def some_model(n_layers: int) -> ResValTransformer:
    return tiny_model("v", n_layers=n_layers)


class Table(EdgeRuns):
    """Circuits whose faithfulness is that of their number of edges in a table."""

    def __init__(self, model: ResValTransformer, by_size: list[float]) -> None:
        self.model, self.graph, self.by_size = model, Graph.of(model), by_size
        self.clean, self.corrupted = 1.0, 0.0
        self.sizes: list[int] = []

    def means(
        self, kept: torch.Tensor, progress: object = None, near: object = None
    ) -> torch.Tensor:
        sizes = kept.sum(1).tolist()
        self.sizes += sizes
        return torch.tensor([self.by_size[size] for size in sizes], dtype=torch.float64)


def by_brute_force(by_size: list[float]) -> int:
    return next(size for size in range(1, len(by_size)) if by_size[size] >= LEAST)


@st.composite
def tables(draw: st.DrawFn, n_edges: int) -> list[float]:
    """Faithfulness by size, as ragged as it comes; 1 for the whole model."""
    seed = draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    rising = torch.linspace(0, 1, n_edges + 1, dtype=torch.float64) ** draw(st.floats(0.05, 20))
    noise = torch.randn(n_edges + 1, generator=generator, dtype=torch.float64)
    found: list[float] = (rising + draw(st.sampled_from([0.0, 0.01, 0.3, 3.0])) * noise).tolist()
    return [*found[:-1], 1.0]


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_in_a_small_graph_the_result_is_that_of_every_size(data: st.DataObject) -> None:
    model = some_model(2)
    n = len(Graph.of(model))
    assert n <= EVERY
    table = data.draw(tables(n))
    scores = torch.randn(n, generator=torch.Generator().manual_seed(n))
    found = smallest(Table(model, table), scores, LEAST)
    wanted = by_brute_force(table)
    assert (found.size, found.every) == (wanted, True)
    assert found.circuit.edges == top_n(Graph.of(model), scores, wanted).pruned().edges
    assert found.tried == {size: table[size] for size in range(1, wanted + 1)}


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_in_a_large_graph_it_is_the_smallest_of_few_sizes(data: st.DataObject) -> None:
    model = some_model(5)
    n = len(Graph.of(model))
    assert n > EVERY
    table = data.draw(tables(n))
    runs, told = Table(model, table), []
    scores = torch.randn(n, generator=torch.Generator().manual_seed(n))
    found = smallest(runs, scores, LEAST, progress=lambda *count: told.append(count))
    assert not found.every
    assert found.tried == {size: table[size] for size in sorted(runs.sizes)}
    assert len(set(runs.sizes)) == len(runs.sizes) <= most_runs(n) <= 3.5 * math.log2(n) + 4
    assert all(done <= most for done, most in told)
    faithful = [size for size, f in found.tried.items() if f >= LEAST]
    assert found.size == min(faithful)
    assert found.size == 1 or found.tried[found.size - 1] < LEAST  # one edge less is not enough
    if all(before <= after for before, after in pairwise(table)):
        assert found.size == by_brute_force(table)


def test_a_peak_between_two_sizes_is_missed_in_a_large_graph_alone() -> None:
    for n_layers, wanted in ((2, 50), (5, 100)):
        model = some_model(n_layers)
        n = len(Graph.of(model))
        table = [1.0 if size == 50 or size >= 100 else 0.0 for size in range(n + 1)]
        assert smallest(Table(model, table), torch.ones(n), LEAST).size == wanted


@pytest.mark.parametrize("n_edges", [513, 600, 1_000, 70_651, 10**6, 10**8])
def test_runs_are_few_however_many_edges_there_are(n_edges: int) -> None:
    assert most_runs(n_edges) <= 3.5 * math.log2(n_edges) + 4


def test_no_size_is_faithful_enough() -> None:
    for n_layers, which in ((2, "no circuit"), (5, r"no circuit of the \d+ sizes tried")):
        model = some_model(n_layers)
        n = len(Graph.of(model))
        table = [0.0] * (n + 1)
        table[4] = 0.5
        message = f"{which} has a faithfulness of 0.85; the most faithful, of 4 edges, has 0.500"
        with pytest.raises(ValueError, match=message):
            smallest(Table(model, table), torch.ones(n), LEAST)


def test_no_circuit_is_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("v", dtype=torch.float64)
    runs = EdgeRuns(model, tiny_pairs(model))
    kept = torch.rand(5, len(runs.graph), generator=torch.Generator().manual_seed(0)) < 0.5
    first = runs.values(kept)
    assert runs.circuits_run == 5
    ran: list[int] = []
    run = EdgeRuns.by_metrics

    def counted(self: EdgeRuns, kept: torch.Tensor, *rest: Any) -> dict[str, torch.Tensor]:
        ran.append(len(kept))
        return run(self, kept, *rest)

    monkeypatch.setattr(EdgeRuns, "by_metrics", counted)
    done: list[int] = []
    both = torch.cat([kept.flip(0), ~kept[:2], ~kept[:2]])
    again = runs.values(both, done.append)
    torch.testing.assert_close(again[:5], first.flip(0), rtol=0, atol=0)
    alone = EdgeRuns(model, runs.pairs).values(~kept[:2])
    torch.testing.assert_close(again[5:], torch.cat([alone, alone]))
    assert (ran[0], runs.circuits_run, done[-1]) == (2, 7, 9)
    assert runs.values(kept[:0]).shape == (0, len(runs.pairs))


def test_so_many_strongest_edges_and_a_curve_of_such_sizes() -> None:
    model = tiny_model("v", dtype=torch.float64)
    pairs = tiny_pairs(model)
    found = circuit_study(model, pairs, edges=60, sizes=[3, 30, 60])
    strongest = [line.edge for line in found.strongest]
    assert found.search == Tried(60)
    assert found.to_dict()["search"] == {"size": 60}
    assert found.min_faithfulness is None
    assert found.curve.sizes == (3, 30, 60)
    assert found.curve.faithfulness[-1] == pytest.approx(found.circuit.faithfulness)
    assert set(found.circuit.edges) & set(strongest)
    assert found.runs > 60 / 2
    n = len(Graph.of(model))
    for wrong in (0, n + 1):
        with pytest.raises(ValueError, match=f"edges must lie between 1 and {n}"):
            circuit_study(model, pairs, edges=wrong)
    for sizes in ([], [0, 3], [3, 3], [5, 2], [n + 1]):
        with pytest.raises(ValueError, match=f"sizes must rise from 1 or more to at most {n}"):
            circuit_study(model, pairs, sizes=sizes)


def test_a_size_can_be_searched_for_on_the_scored_prompts() -> None:
    model = tiny_model("v", dtype=torch.float64)
    pairs = tiny_pairs(model)
    others = replace(pairs, clean=pairs.clean.flip(1), corrupted=pairs.corrupted.flip(1))
    found = circuit_study(model, pairs, others, min_faithfulness=0.6, size_on_scored=True)
    scores = score_edges(model, pairs, "eap-ig").values
    wanted = smallest(EdgeRuns(model, pairs), scores, 0.6)
    assert found.sized_on == len(pairs)
    assert list(found.circuit.edges) == wanted.circuit.edges
    assert found.search.faithfulness == pytest.approx(tuple(wanted.tried.values()))
    (f,) = faithfulness(EdgeRuns(model, others), [wanted.circuit])
    assert found.circuit.faithfulness == pytest.approx(f.value)
    said = " ".join(_of_search(found))
    assert f"chosen on the {len(pairs)} prompts that edges were scored on; there f is" in said
    with pytest.raises(ValueError, match="size_on_scored searches for a size"):
        circuit_study(model, pairs, edges=5, size_on_scored=True)
    assert circuit_study(model, pairs, others, min_faithfulness=0.6).sized_on is None


def test_a_curve_of_sizes_is_that_of_their_shares() -> None:
    model = tiny_model("v", dtype=torch.float64)
    runs = EdgeRuns(model, tiny_pairs(model))
    n = len(runs.graph)
    scores = torch.randn(n, generator=torch.Generator().manual_seed(0))
    sizes = [round(0.1 * n), round(0.4 * n), n]
    own = curve(runs, scores, sizes=sizes)
    shares = curve(runs, scores, fractions=[size / n for size in sizes])
    assert own == shares


def test_minimality_and_completeness_of_some_of_a_large_circuit() -> None:
    model = tiny_model("v", dtype=torch.float64)
    runs = EdgeRuns(model, tiny_pairs(model))
    circuit = top_n(runs.graph, torch.arange(len(runs.graph)).float(), 60)
    texts: list[str] = []

    def measured(seed: int, edges: int = 256, nodes: int = 64) -> EvaluatedCircuit:
        return evaluate(
            runs, circuit, torch.Generator().manual_seed(seed), 2, edges, nodes, texts.append
        )

    whole, some, same, other = measured(0), measured(0, 9, 3), measured(0, 9, 3), measured(1, 9, 3)
    n_nodes = len(circuit.nodes) - sum(name in ("input", "logits") for name in circuit.nodes)
    assert whole.measured == Measured(EdgesTried(60, 60), NodesTried(n_nodes, n_nodes))
    assert some.measured == Measured(EdgesTried(9, 60), NodesTried(3, n_nodes))
    losses = minimality(runs, circuit)
    drawn = some.minimality
    assert len(drawn) == 9
    assert drawn == {edge: losses[edge] for edge in drawn}
    assert some == same
    assert set(drawn) != set(other.minimality)
    assert some.random == whole.random  # what is drawn comes after them
    assert len(some.completeness) == 4  # three alone, then all nodes
    assert len(some.completeness[-1].knocked_out) == n_nodes
    assert "minimality: 10 of 10" in texts


def test_many_masks_are_held_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("v", dtype=torch.float64)
    pairs: PromptPairs = tiny_pairs(model)
    circuit = Circuit.whole(Graph.of(model))
    wanted = minimality(EdgeRuns(model, pairs), circuit)
    runs, held, told = EdgeRuns(model, pairs), [], []
    values = EdgeRuns.values

    def counted(self: EdgeRuns, kept: torch.Tensor, *progress: object) -> torch.Tensor:
        held.append(len(kept))
        return values(self, kept, *progress)  # type: ignore[arg-type]

    monkeypatch.setattr(EdgeRuns, "values", counted)
    monkeypatch.setattr("resval_lens.analyses.circuits.evaluation.AT_ONCE", 7 * len(runs.graph))
    found = minimality(runs, circuit, progress=lambda *count: told.append(count))
    assert max(held) == 7
    assert found == pytest.approx(wanted)
    assert told[-1] == (len(runs.graph) + 1, len(runs.graph) + 1)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_of_a_large_circuit_the_strongest_edges_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resval_lens.analyses.studies.circuit_figures.MOST_DRAWN", 5)
    model = tiny_model("v", dtype=torch.float64)
    pairs = tiny_pairs(model)
    study = circuit_study(model, pairs, edges=60, most_edges=12)
    axes = circuits({"some": study.circuit}).axes[0]
    worth = sorted(study.circuit.minimality.items(), key=lambda item: -abs(item[1]))
    assert len(worth) == 12
    assert axes.get_title(loc="left") == f"some\nthe strongest 5 of {study.circuit.n_edges} edges"
    tips = [str(line.get_gid()).removeprefix(TIP) for line in axes.patches if line.get_gid()]
    drawn = {text.partition(" (")[0] for text in tips}
    assert drawn == {edge for edge, _ in worth[:5]}
    caption = circuit_table(study).caption
    assert caption == f"(12 of {study.circuit.n_edges} edges were drawn and tried)"
