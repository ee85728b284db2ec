"""Scores beside the published method, circuits chosen and evaluated."""

import json
import math
import re
from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from resval_lens.analyses.circuits.acdc import acdc_scores
from resval_lens.analyses.circuits.baselines import (
    connected_circuits,
    permuted_circuits,
    random_circuits,
)
from resval_lens.analyses.circuits.circuit import Circuit, greedy, threshold, top_n
from resval_lens.analyses.circuits.curve import curve
from resval_lens.analyses.circuits.evaluation import (
    EvaluatedCircuit,
    completeness,
    evaluate,
    faithfulness,
    minimality,
)
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.methods import METHODS
from resval_lens.analyses.circuits.running import EdgeRuns
from resval_lens.analyses.circuits.scores import EdgeScores, score_edges
from resval_lens.analyses.circuits.search import smallest
from resval_lens.hooks import cut_links
from resval_lens.hooks.prompts import PromptPairs, logit_difference, margin
from resval_lens.models.classifier import ICLClassifier, classifier_config
from resval_lens.streams import AttentionStream
from tests.hand_built import LINKED_CIRCUIT, linked_model, linked_pairs
from tests.helpers import stock_model, tiny_config, tiny_model
from tests.methods import each_method, settings_of
from tests.reference.eap import DenseTable, eap_scores
from tests.test_circuit_runs import some_circuits, tiny_pairs

# Scores


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(
    "changes",
    [{}, {"positional_embedding_type": "rotary", "n_heads": 4, "n_key_value_heads": 2}],
    ids=str,
)
def test_classic_scores_are_those_of_the_published_method(
    steps: int, changes: dict[str, Any]
) -> None:
    pairs = tiny_pairs(tiny_model())

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logit_difference(logits[:, -1], pairs.labels).sum()

    wanted = eap_scores(stock_model(**changes), pairs.clean, pairs.corrupted, metric, steps)
    scores = score_edges(tiny_model(**changes), pairs, "eap-ig", steps=steps)
    assert set(wanted) == set(scores.graph.number)
    for edge, value in wanted.items():
        assert scores[edge] == pytest.approx(value, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("changes", [{}, {"n_heads": 4, "n_key_value_heads": 2}], ids=str)
def test_circuits_run_as_in_the_published_way(changes: dict[str, Any]) -> None:
    model = tiny_model(dtype=torch.float64, **changes)
    pairs, table = tiny_pairs(model), DenseTable(stock_model(dtype=torch.float64, **changes))
    runs = EdgeRuns(model, pairs)
    circuits = some_circuits(runs.graph, 5)
    circuits[0, runs.graph.readers[0].edges.stop :] = False  # of which none reaches the logits
    for kept, found in zip(circuits, runs.values(circuits), strict=True):
        edges = dict(zip(map(str, runs.graph.edges), kept.tolist(), strict=True))
        logits = table.logits(pairs.clean, pairs.corrupted, table.kept(edges))
        torch.testing.assert_close(found, pairs.measure(logits[:, -1])[0])


@each_method
def test_scores_do_not_depend_on_how_prompts_are_divided(method: str) -> None:
    model = tiny_model("v", dtype=torch.float64)
    pairs = tiny_pairs(model)
    settings = settings_of(method)
    whole, parts = (
        score_edges(model, pairs, method, **settings, max_tokens=7 * n).values for n in (3, 1)
    )
    torch.testing.assert_close(whole, parts)


def test_a_detached_link_is_scored_like_any_other() -> None:
    """Training blocks its gradient; the values flow, and so does what corrupting them does."""
    pairs = tiny_pairs(tiny_model())
    plain, detached = (
        score_edges(tiny_model(AttentionStream("v", detach=blocked)), pairs).values
        for blocked in (False, True)
    )
    assert detached[-8:].abs().min() > 0
    torch.testing.assert_close(plain, detached)


def test_a_gated_link_is_scored() -> None:
    model = tiny_model(AttentionStream("v", mix="gate"), dtype=torch.float64)
    W_E = model.embed.W_E.data
    W_E[1] = W_E[0] + 1e-6 * W_E[1]
    clean = torch.tensor([[0, 3, 0, 5]])
    pairs = PromptPairs(clean, torch.where(clean == 0, 1, 0) + clean, logit_difference,
                        torch.tensor([[1, 2]]))  # fmt: skip
    eap, exact = (score_edges(model, pairs, method).values for method in ("eap", "exact"))
    torch.testing.assert_close(eap[-8:], exact[-8:], rtol=1e-3, atol=1e-11)


@each_method
def test_the_hand_built_circuit_is_found(method: str) -> None:
    model, pairs = linked_model(), linked_pairs()
    scores = score_edges(model, pairs, method, **settings_of(method, 1e-6))
    found = {edge for edge, value in scores.top(len(scores.graph)) if abs(value) > 1e-6}
    assert found == LINKED_CIRCUIT
    # One token of four, with a fourth of the attention: the logit difference is 1/4, then −1/4.
    assert [scores[edge] for edge in found] == pytest.approx([-0.5] * 3)


@each_method
def test_with_the_stream_cut_nothing_scores(method: str) -> None:
    model = linked_model().with_streams("")
    scores = score_edges(model, linked_pairs(), method, **settings_of(method))
    assert not any(edge.is_link for edge in scores.graph.edges)
    assert scores.values.abs().max() == 0


def test_the_hand_built_circuit_is_what_acdc_leaves() -> None:
    runs = EdgeRuns(linked_model(), linked_pairs())
    scores = score_edges(runs.model, runs.pairs, "acdc", threshold=0.01)
    assert set(threshold(scores.graph, scores.values, 0.01).edges) == LINKED_CIRCUIT
    assert (
        set(smallest(runs, score_edges(runs.model, runs.pairs).values).circuit.edges)
        == LINKED_CIRCUIT
    )


def test_a_classifiers_edges_are_scored() -> None:
    model = ICLClassifier(classifier_config("v"), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    clean = torch.randn(6, 17, 150, generator=generator) / 5
    corrupted = clean + 0.01 * torch.randn(clean.shape, generator=generator)  # patching is linear
    pairs = PromptPairs(clean, corrupted, margin, torch.randint(32, (6, 3), generator=generator))
    exact = score_edges(model, pairs, "exact")
    integrated = score_edges(model, pairs, "eap-ig")
    assert [str(edge) for edge in exact.graph.edges if edge.is_link] == ["a0.h0<v>->a1.h0<v>"]
    assert exact["a0.h0<v>->a1.h0<v>"] != 0
    assert spearmanr(exact.values, integrated.values).statistic > 0.95


# Circuits


def some_scores(graph: Graph, seed: int = 0) -> torch.Tensor:
    return torch.randn(len(graph), generator=torch.Generator().manual_seed(seed))


def test_top_n_and_threshold_take_the_highest() -> None:
    graph = Graph(tiny_config(streams="v"))
    values = some_scores(graph)
    highest = sorted(range(len(graph)), key=lambda i: -abs(values[i].item()))
    assert set(top_n(graph, values, 7).numbers) == set(highest[:7])
    most_negative = sorted(range(len(graph)), key=lambda i: values[i].item())
    assert set(top_n(graph, values, 7, "helpful").numbers) == set(most_negative[:7])
    least = abs(values[highest[9]].item())
    assert set(threshold(graph, values, least).numbers) == set(highest[:10])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000), st.sampled_from(["", "v", "qv"]))
def test_greedy_grows_from_the_logits_and_is_never_worse_than_its_rule(
    n: int, seed: int, streams: str
) -> None:
    """Every edge leads to the logits, and none that was passed over ranks above the last taken."""
    graph = Graph(tiny_config(streams=streams))
    values = some_scores(graph, seed)
    circuit = greedy(graph, values, n)
    assert len(circuit) == n
    leads = nx.ancestors(circuit.flow(), "logits") | {"logits"}
    flow = {data["edge"]: (u, v) for u, v, data in graph.flow.edges(data=True) if "edge" in data}
    assert all(flow[number][1] in leads for number in circuit.numbers)
    into_logits = [i for i, edge in enumerate(graph.edges) if edge.target == "logits"]
    passed = [i for i in into_logits if i not in circuit.numbers]
    if passed and n > 1:
        best_passed = max(abs(values[i].item()) for i in passed)
        smaller = greedy(graph, values, n - 1)
        added = set(circuit.numbers) - set(smaller.numbers)
        assert len(added) == 1
        assert abs(values[added.pop()].item()) >= best_passed


def brute_force_useful(circuit: Circuit) -> set[int]:
    """Edges on some way from the input to the logits, by walking every way."""
    flow, useful = circuit.flow(), set()
    for way in nx.all_simple_paths(flow, "input", "logits"):
        for source, target in pairwise(way):
            useful |= {flow.edges[source, target].get("edge", -1)}
    return useful - {-1}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["v", "raw", "first", "grouped"]))
def test_pruning_keeps_what_lies_on_a_way(seed: int, kind: str) -> None:
    streams: Any = {
        "raw": AttentionStream("v", carry="raw"),
        "first": AttentionStream("v", source="first"),
        "grouped": "kv",
    }.get(kind, "v")
    heads = {"n_key_value_heads": 2} if kind == "grouped" else {}
    graph = Graph(tiny_config(streams=streams, **heads))
    generator = torch.Generator().manual_seed(seed)
    circuit = Circuit(graph, torch.rand(len(graph), generator=generator) < 0.06)
    pruned = circuit.pruned()
    assert set(pruned.numbers) == brute_force_useful(circuit)
    lengths = [
        sum("edge" in circuit.flow().edges[step] for step in pairwise(way))
        for way in nx.all_simple_paths(circuit.flow(), "input", "logits")
    ]
    assert pruned.path_lengths() == dict(sorted((n, lengths.count(n)) for n in set(lengths)))


@pytest.mark.parametrize(
    ("streams", "changes"),
    [
        ("v", {}),
        ("qv", {"n_key_value_heads": 2}),
        (AttentionStream("v", mix="gate"), {}),
        (AttentionStream("v", source="all", mix="matrix", carry="raw"), {}),
    ],
    ids=["values", "grouped", "gated", "matrix"],
)
def test_pruning_a_circuit_does_not_change_what_it_computes(
    streams: Any, changes: dict[str, Any]
) -> None:
    model = tiny_model(streams, dtype=torch.float64, **changes)
    runs = EdgeRuns(model, tiny_pairs(model))
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(20, len(runs.graph), generator=generator) < 0.15
    circuits = [Circuit(runs.graph, row) for row in kept]
    assert any(len(circuit.pruned()) < len(circuit) for circuit in circuits)
    for circuit, value in zip(circuits, runs.means(kept).tolist(), strict=True):
        pruned = runs.means(circuit.pruned().kept[None]).item()
        assert pruned == pytest.approx(value, abs=1e-12)


def test_raw_links_hand_on_what_the_layer_computed_itself() -> None:
    """A way along two links in a row exists where totals are passed on, not where they are not."""
    edges = ["input->a0.h0<v>", "a0.h0<v>->a1.h0<v>", "a1.h0<v>->a2.h0<v>", "a2.h0->logits"]
    for carry, lengths in (("sum", {4: 1}), ("raw", {})):
        graph = Graph(tiny_config(streams=AttentionStream("v", carry=carry)))  # type: ignore[arg-type]
        assert Circuit.of(graph, edges).path_lengths() == lengths


def plain_acdc(runs: EdgeRuns, tau: float) -> tuple[set[str], dict[str, float]]:
    """One edge at a time: readers from the logits back, writers from the last; what each did."""
    did: dict[str, float] = {}
    graph = runs.graph
    kept = torch.ones(len(graph), dtype=torch.bool)
    before = runs.clean
    n_layers = graph.cfg.n_layers
    readers = ["logits"]
    for layer in reversed(range(n_layers)):
        heads = range(graph.cfg.n_heads)
        readers += [f"m{layer}", *(f"link {layer} {head}" for head in reversed(heads))]
        readers += [f"a{layer}.h{head}<{port}>" for port in "vkq" for head in heads]
    for reader in readers:
        for number in reversed(range(len(graph))):
            edge = graph.edges[number]
            target = edge.target
            if edge.is_link:
                target = f"link {edge.target[1]} {edge.target[4]}"
            if target == reader:
                kept[number] = False
                metric = runs.means(kept[None]).item()
                did[str(edge)] = metric - before
                if abs(metric - before) < tau:
                    before = metric
                else:
                    kept[number] = True
    return set(Circuit(graph, kept).edges), did


@pytest.mark.parametrize("tau", [0.003, 0.03])
def test_acdc_is_one_edge_at_a_time(tau: float) -> None:
    model = tiny_model("v", dtype=torch.float64, n_heads=2, d_head=8)
    runs = EdgeRuns(model, tiny_pairs(model))
    seen: list[tuple[int, int]] = []
    scores = acdc_scores(runs, tau, lambda *done: seen.append(done))
    found = threshold(runs.graph, scores, tau)
    assert 0 < len(found) < len(runs.graph)
    edges, did = plain_acdc(runs, tau)
    assert set(found.edges) == edges
    assert scores.tolist() == pytest.approx([did[str(edge)] for edge in runs.graph.edges])
    assert seen[-1] == (len(runs.graph), len(runs.graph))


# Evaluation


def test_faithfulness_is_1_for_the_model_and_0_for_nothing() -> None:
    model = tiny_model("v", dtype=torch.float64)
    runs = EdgeRuns(model, tiny_pairs(model))
    whole = Circuit.whole(runs.graph)
    found = faithfulness(runs, [whole, Circuit.of(runs.graph, [])])
    assert [each.value for each in found] == pytest.approx([1, 0], abs=1e-12)
    assert [each.status for each in found] == ["valid", "valid"]


def test_a_vanishing_gap_is_invalid_with_its_reason() -> None:
    model = tiny_model("v")
    pairs = tiny_pairs(model)
    same = PromptPairs(pairs.clean, pairs.clean, pairs.metric, pairs.labels)
    runs = EdgeRuns(model, same)
    found = faithfulness(runs, [Circuit.whole(runs.graph)])[0]
    assert found.value is None
    assert found.status == "invalid"
    assert "their gap vanishes" in str(found.reason)
    values = torch.ones(len(runs.graph))
    assert curve(runs, values).cpr is None
    with pytest.raises(ValueError, match="their gap vanishes"):
        smallest(runs, values)


def test_cpr_and_cmd_are_areas_under_the_curve() -> None:
    model = tiny_model("v", dtype=torch.float64)
    runs = EdgeRuns(model, tiny_pairs(model))
    scores = score_edges(model, runs.pairs, "exact").values
    found = curve(runs, scores, fractions=(0.1, 0.5, 1.0))
    sizes = [round(share * len(runs.graph)) for share in (0.1, 0.5, 1.0)]
    assert list(found.sizes) == sizes
    f = [
        each.value or 0.0
        for each in faithfulness(runs, [top_n(runs.graph, scores, size) for size in sizes])
    ]
    assert f[-1] == pytest.approx(1)
    assert found.cpr == pytest.approx(0.4 * (f[0] + f[1]) / 2 + 0.5 * (f[1] + f[2]) / 2)
    gaps = np.abs(1 - np.array(f))
    assert found.cmd == pytest.approx(0.4 * gaps[:2].sum() / 2 + 0.5 * gaps[1:].sum() / 2)


def test_the_smallest_circuit_is_the_first_that_is_faithful_enough() -> None:
    model = tiny_model("v", dtype=torch.float64)
    runs = EdgeRuns(model, tiny_pairs(model))
    scores = score_edges(model, runs.pairs, "exact").values
    found = smallest(runs, scores, 0.6).circuit
    for size in range(1, len(runs.graph)):
        circuit = top_n(runs.graph, scores, size)
        if (faithfulness(runs, [circuit])[0].value or 0) >= 0.6:
            assert found.edges == circuit.pruned().edges
            return


def random_after(circuit: Circuit) -> tuple[list[Circuit], list[Circuit]]:
    """The connected and the permuted circuits that seed 0 draws after random ones."""
    generator = torch.Generator().manual_seed(0)
    random_circuits(circuit.graph, len(circuit), 10, generator)
    connected = connected_circuits(circuit.graph, len(circuit), 10, generator)
    return connected, permuted_circuits(circuit, 10, generator)


def test_the_evaluation_of_the_hand_built_circuit() -> None:
    runs = EdgeRuns(linked_model(), linked_pairs())
    circuit = Circuit.of(runs.graph, LINKED_CIRCUIT)
    found = evaluate(runs, circuit, torch.Generator().manual_seed(0))
    assert found.faithfulness == pytest.approx(1)
    assert found.faithfulness_without_links == pytest.approx(0)
    assert found.random.mean == pytest.approx(0)
    assert found.connected is not None
    assert found.permuted is not None
    for of, drawn in zip((found.connected, found.permuted), random_after(circuit), strict=True):
        values = [each.value or 0 for each in faithfulness(runs, drawn)]
        assert (of.n, of.mean, of.max) == (10, pytest.approx(np.mean(values)), max(values))
    nothing = evaluate(runs, Circuit.of(runs.graph, []), torch.Generator().manual_seed(0))
    assert nothing.connected is None
    gap = runs.clean - runs.corrupted
    assert found.minimality == {edge: pytest.approx(gap) for edge in circuit.edges}
    assert [each.difference for each in found.completeness] == pytest.approx([0, 0, 0])
    assert found.path_lengths == {3: 1}
    assert found.to_dict()["path_lengths"] == {"3": 1}
    assert found.nodes == ("input", "a0.h1", "a1.h1", "logits")
    assert EvaluatedCircuit.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_minimality_and_completeness_are_what_removing_does() -> None:
    model = tiny_model("v", dtype=torch.float64)
    runs = EdgeRuns(model, tiny_pairs(model))
    circuit = top_n(runs.graph, some_scores(runs.graph), 60)

    def metric(kept: torch.Tensor) -> float:
        return runs.means(kept[None]).item()

    losses = minimality(runs, circuit)
    for edge in circuit.edges[::10]:
        rest = Circuit.of(runs.graph, [name for name in circuit.edges if name != edge])
        assert losses[edge] == pytest.approx(metric(circuit.kept) - metric(rest.kept))
    (found,) = completeness(runs, circuit, [["a0.h1", "m1"]])
    out = [edge.source.split("<")[0] in ("a0.h1", "m1") for edge in runs.graph.edges]
    stays = ~torch.tensor(out)
    assert found.circuit == pytest.approx(metric(circuit.kept & stays))
    assert found.model == pytest.approx(metric(stays))


def test_random_circuits_have_their_size_and_differ() -> None:
    graph = Graph(tiny_config(streams="v"))
    drawn = random_circuits(graph, 9, 5, torch.Generator().manual_seed(0))
    assert [len(circuit) for circuit in drawn] == [9] * 5
    assert len({tuple(circuit.numbers) for circuit in drawn}) == 5


def by_names(circuit: Circuit) -> nx.DiGraph:
    """What a circuit's edges join, read from their names alone."""
    flow, cfg = nx.DiGraph(), circuit.graph.cfg
    flow.add_nodes_from(["input", "logits"])
    for name in circuit.edges:
        source, target = name.split("->")
        if source.startswith("t."):
            flow.add_edge("input", source)
        if source.endswith(">"):  # what arrives is no part of what a raw stream passes on
            target += " with link"
            (stream,) = cfg.streams
            if stream.carry == "sum":
                flow.add_edge(f"{source} with link", source)
        flow.add_edge(source, target)
    for node in list(flow):
        layer_head, _, port = node.partition("<")
        if not port or node.startswith("t."):
            continue
        layer, head = map(int, layer_head[1:].split(".h"))
        shared = cfg.n_heads // cfg.n_heads_of(port[0])
        for each in range(head * shared, (head + 1) * shared):
            flow.add_edge(node, f"a{layer}.h{each}")
    return flow


@pytest.mark.parametrize("size", [1, 2, 3, 9, 60, None])
@pytest.mark.parametrize(
    "changes",
    [
        {"streams": "v"},
        {"streams": (AttentionStream("v", carry="raw"),), "n_layers": 3},
        {"streams": "", "n_heads": 4, "n_key_value_heads": 2},
        {"streams": "k", "attn_only": True},
        {"streams": (AttentionStream("v", source="tokens"),)},
    ],
    ids=str,
)
def test_connected_circuits_have_their_size_and_ways_through_every_edge(
    changes: dict[str, Any], size: int | None
) -> None:
    graph = Graph(tiny_config(**changes))
    size = len(graph) if size is None else size
    generator = torch.Generator().manual_seed(0)
    drawn = connected_circuits(graph, size, 5, generator)
    assert [len(circuit) for circuit in drawn] == [size] * 5
    for circuit in drawn:
        flow = by_names(circuit)
        for name in circuit.edges:
            source, target = name.split("->")
            target += " with link" * source.endswith(">")
            assert nx.has_path(flow, "input", source), name
            assert nx.has_path(flow, target, "logits"), name
        assert circuit.pruned().edges == circuit.edges
    if 3 <= size < len(graph):
        assert len({tuple(circuit.numbers) for circuit in drawn}) > 1
    again = connected_circuits(graph, size, 5, torch.Generator().manual_seed(0))
    assert [circuit.numbers for circuit in again] == [circuit.numbers for circuit in drawn]


def test_every_edge_is_drawn_into_connected_circuits() -> None:
    graph = Graph(tiny_config(streams="v"))
    drawn = connected_circuits(graph, 40, 400, torch.Generator().manual_seed(0))
    assert torch.stack([circuit.kept for circuit in drawn]).any(0).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"streams": "", "n_heads": 4, "n_key_value_heads": 2, "n_layers": 3},
        {"streams": "", "n_heads": 3, "d_head": 4},
        {"streams": "v", "n_heads": 3, "d_head": 4},
        {"streams": (AttentionStream("v", source="tokens"),)},
    ],
    ids=str,
)
def test_permuted_circuits_are_the_circuit_with_heads_in_other_places(
    changes: dict[str, Any],
) -> None:
    graph = Graph(tiny_config(**changes))
    (circuit,) = connected_circuits(graph, 14, 1, torch.Generator().manual_seed(2))
    drawn = permuted_circuits(circuit, 12, torch.Generator().manual_seed(0))

    def without_heads(several: Circuit) -> list[str]:
        return sorted(re.sub(r"\.h\d+", "", name) for name in several.edges)

    for each in drawn:
        assert without_heads(each) == without_heads(circuit)
        assert each.pruned().edges == each.edges
        assert nx.is_isomorphic(by_names(each), by_names(circuit))
    assert len({tuple(each.numbers) for each in drawn}) > 1
    touched = torch.stack([each.kept for each in drawn]).any(0)
    assert touched.sum() > len(circuit)


def test_permuted_heads_of_a_group_stay_together() -> None:
    graph = Graph(tiny_config(n_heads=4, n_key_value_heads=2, streams=""))
    names = ["input->a0.h0<v>", "input->a0.h0<q>", "a0.h0->logits", "a0.h1->logits"]
    for each in permuted_circuits(Circuit.of(graph, names), 20, torch.Generator().manual_seed(0)):
        group = next(int(name[-4]) for name in each.edges if name.endswith("<v>"))
        heads = {int(name[4]) for name in each.edges if name.endswith("->logits")}
        assert heads == {2 * group, 2 * group + 1}
    with pytest.raises(ValueError, match="n must be 1 or more; got 0"):
        permuted_circuits(Circuit.of(graph, names), 0, torch.Generator())


def test_connected_circuits_that_there_are_not_are_refused() -> None:
    graph = Graph(tiny_config(n_layers=1, attn_only=True, n_heads=1, d_head=4))
    with pytest.raises(ValueError, match="size must lie between 1 and"):
        connected_circuits(graph, len(graph) + 1, 1, torch.Generator())
    with pytest.raises(ValueError, match="n be 1 or more; got 3, 0"):
        connected_circuits(graph, 3, 0, torch.Generator())


def test_mean_ablation_is_the_mean_over_corrupted_prompts_of_a_group() -> None:
    """Corrupted prompts that are alike in a group are their own mean; otherwise activations are
    averaged.
    """
    model = tiny_model("v", dtype=torch.float64)
    pairs = tiny_pairs(model)
    alike = PromptPairs(pairs.clean, pairs.corrupted[[0, 0, 1]], pairs.metric, pairs.labels)
    groups = torch.tensor([0, 0, 1])
    kept = torch.rand(4, len(Graph.of(model)), generator=torch.Generator().manual_seed(0)) < 0.5
    resampled = EdgeRuns(model, alike)
    averaged = EdgeRuns(model, alike, ablation="mean", groups=groups)
    torch.testing.assert_close(averaged.values(kept), resampled.values(kept))
    assert averaged.measured_by.ablation == (
        "mean over the corrupted prompts of a group (2 groups of 1 to 2; 1 prompts are alone in "
        "theirs, whose mean is their own)"
    )
    one = EdgeRuns(model, pairs, ablation="mean", groups="all")
    _, cache = model.run_with_cache(pairs.corrupted)
    mean = cache["blocks.2.hook_resid_post"].mean(0, keepdim=True)[:, -1:]
    nothing = pairs.measure(model.unembed(model.ln_final(mean))[:, 0].expand(3, -1))[0]
    torch.testing.assert_close(one.corrupted_values, nothing)


def test_grouped_heads_are_knocked_out_and_named_by_their_group() -> None:
    model = tiny_model("v", n_key_value_heads=2, dtype=torch.float64)
    runs = EdgeRuns(model, tiny_pairs(model))
    edges = ["input->a0.h1<v>", "a0.h1<v>->a1.h1<v>", "a1.h2->logits", "a1.h3->logits"]
    circuit = Circuit.of(runs.graph, edges)
    assert circuit.nodes == ["input", "a0.h2", "a0.h3", "a1.h2", "a1.h3", "logits"]
    assert circuit.named().groups["a1.h1<v>"] == ("a1.h2", "a1.h3")
    for names, link_is_cut in ((["a0.h1"], False), (["a0.h2"], False), (["a0.h2", "a0.h3"], True)):
        (found,) = completeness(runs, Circuit.whole(runs.graph), [names])
        cut = [
            number
            for number, edge in enumerate(runs.graph.edges)
            if edge.source in names or (link_is_cut and edge.source == "a0.h1<v>")
        ]
        kept = Circuit.whole(runs.graph).without(cut).kept
        assert found.model == pytest.approx(runs.means(kept[None]).item())


# Bad input


def test_another_models_graph_or_circuit_is_refused(unchecked_annotations: None) -> None:
    values, classic = tiny_model("v"), tiny_model("")
    pairs = tiny_pairs(values)
    runs = EdgeRuns(values, pairs)
    with pytest.raises(ValueError, match="this graph is that of another model"):
        faithfulness(runs, [Circuit.whole(Graph.of(classic))])
    with pytest.raises(ValueError, match="this graph is that of another model"):
        EdgeRuns(values, pairs, Graph.of(classic))
    n = len(runs.graph)
    for kept in (torch.ones(1, n), torch.ones(n).bool(), torch.ones(1, n - 1).bool()):
        with pytest.raises(ValueError, match=f"kept must be booleans .circuit, {n}."):
            runs.values(kept)
        with pytest.raises(ValueError, match=f"kept must be booleans .circuit, {n}."):
            runs.by_metrics(kept, {})
    with pytest.raises(ValueError, match=f"{n} edges need as many scores; got .5."):
        top_n(runs.graph, torch.ones(5), 2)
    with pytest.raises(ValueError, match=r"the score of input->a0\.h0<q> is NaN"):
        smallest(runs, torch.full((n,), float("nan")))


def test_hooks_on_the_model_are_refused() -> None:
    """They would act twice where a run is resumed, or edit what edges are taken to carry."""
    model = tiny_model("v")
    pairs = tiny_pairs(model)
    runs = EdgeRuns(model, pairs)
    with cut_links(model):
        for use in (
            lambda: EdgeRuns(model, pairs),
            lambda: score_edges(model, pairs),
            lambda: runs.means(Circuit.whole(runs.graph).kept[None]),
        ):
            with pytest.raises(ValueError, match=r"a hook on blocks\.1\.attn\.hook_v_link"):
                use()


def test_a_metric_without_a_gradient_needs_exact_scores() -> None:
    model = tiny_model("v")
    pairs = tiny_pairs(model)

    def is_right(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits[:, 1] > logits[:, 2]

    counted = PromptPairs(pairs.clean, pairs.corrupted, is_right, pairs.labels)
    with pytest.raises(ValueError, match='no gradient; score edges by method="exact"'):
        score_edges(model, counted)
    assert score_edges(model, counted, "exact").values.abs().max() <= 1


def scored(runs: EdgeRuns, method: str, **settings: Any) -> EdgeScores:
    return score_edges(runs.model, runs.pairs, method, **settings)


@pytest.mark.parametrize(
    ("do", "says"),
    [
        (lambda runs: scored(runs, "acdc"), "threshold must be above 0 for acdc; got None"),
        (lambda runs: scored(runs, "acdc", threshold=0), "threshold must be above 0 .* got 0"),
        (lambda runs: scored(runs, "acdc", threshold=math.nan), "threshold must be above .* nan"),
        (lambda runs: scored(runs, "eap", threshold=0.1), "the method eap has no threshold"),
        (
            lambda runs: scored(runs, "eap", steps=3),
            "steps=3: the method eap does not average over runs",
        ),
        (lambda runs: scored(runs, "guess"), f"method must be one of {', '.join(METHODS)}; got"),
        (lambda runs: top_n(runs.graph, torch.ones(len(runs.graph)), 0), r"n must lie between 1"),
        (lambda runs: Circuit.of(runs.graph, ["a0.h9->m1"]), r"no edge 'a0.h9->m1'"),
        (lambda runs: Circuit.of(runs.graph, [-1]), r"no edge -1"),
        (
            lambda runs: scored(runs, "eap-ig", steps=0),
            r"steps must be a whole number from 1 up; got 0",
        ),
        (lambda runs: score_edges(runs.model, runs.pairs, max_tokens=0), "max_tokens must be 1"),
        (
            lambda runs: completeness(runs, Circuit.whole(runs.graph), [["a7.h0"]]),
            r"'a7.h0' is not a head or MLP of this model",
        ),
        (
            lambda runs: curve(runs, torch.ones(len(runs.graph)), fractions=(0.5, 0.1)),
            r"fractions must rise",
        ),
        (
            lambda runs: random_circuits(runs.graph, 0, 1, torch.Generator()),
            r"size must lie between 1",
        ),
    ],
)
def test_what_cannot_be_is_refused(do: Any, says: str) -> None:
    model = tiny_model("v")
    with pytest.raises(ValueError, match=says):
        do(EdgeRuns(model, tiny_pairs(model)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_normalization_before_and_after": True}, "normalised before it is added"),
        ({"use_attn_in": True}, "use_attn_in=True"),
    ],
    ids=str,
)
def test_a_model_without_such_a_graph_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Graph(tiny_config(**changes))


def test_an_interrupted_run_leaves_the_model_as_it_was() -> None:
    model = tiny_model("v").train()
    pairs = tiny_pairs(model)
    runs = EdgeRuns(model, pairs)

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.values(~torch.eye(len(runs.graph), dtype=torch.bool), stop)
    broken = PromptPairs(pairs.clean, pairs.corrupted, lambda *_: 1 / 0, pairs.labels)  # type: ignore[arg-type,return-value]
    with pytest.raises(ZeroDivisionError):
        score_edges(model, broken)
    assert not any(point.has_hooks() for point in model.hook_points())
    assert model.training
    assert not model.cfg.use_split_qkv_input
    assert not model.cfg.use_hook_mlp_in
