"""Edge scores and circuits in EAP-IG's JSON, held to a reading of it in loops and to files by hand.

The files by hand are what ``Graph.to_json`` writes, of both versions (src/eap/graph.py at commit
4fad6c6 and eap/graph.py at 009cb68 of https://github.com/hannamw/EAP-IG), for one layer of a head.
"""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.graph_file import read_graph, write_graph
from resval_lens.analyses.circuits.scores import EdgeScores, score_edges
from resval_lens.analyses.circuits.study import circuit_study
from resval_lens.io.files import note
from tests.hand_built import LINKED_CIRCUIT, linked_model, linked_pairs
from tests.helpers import ARCHITECTURES, tiny_model
from tests.reference import eap_ig_graph
from tests.test_circuit_runs import tiny_pairs

NEWER = """{"cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": false, "d_model": 16},
 "nodes": {"input": {"in_graph": true, "score": NaN}, "a0.h0": {"in_graph": true, "score": 0.5},
           "m0": {"in_graph": false, "score": -1.0}, "logits": {"in_graph": true}},
 "edges": {"input->a0.h0<q>": {"score": 0.125, "in_graph": false},
           "input->a0.h0<k>": {"score": -0.0009765625, "in_graph": false},
           "input->a0.h0<v>": {"score": -2.5, "in_graph": true},
           "input->m0": {"score": 0.30000001192092896, "in_graph": false},
           "a0.h0->m0": {"score": 0.0, "in_graph": false},
           "input->logits": {"score": 1.0, "in_graph": false},
           "a0.h0->logits": {"score": -3.25, "in_graph": true},
           "m0->logits": {"score": 0.75, "in_graph": false}}}"""
OLDER = """{"cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": false},
 "nodes": {"input": true, "a0.h0": true, "m0": false, "logits": true},
 "edges": {"input->a0.h0<q>": {"score": null, "in_graph": false},
           "input->a0.h0<k>": {"score": null, "in_graph": false},
           "input->a0.h0<v>": {"score": null, "in_graph": true},
           "input->m0": {"score": null, "in_graph": false},
           "a0.h0->m0": {"score": null, "in_graph": false},
           "input->logits": {"score": null, "in_graph": false},
           "a0.h0->logits": {"score": null, "in_graph": true},
           "m0->logits": {"score": null, "in_graph": false}}}"""
SOME = {"input->a0.h0<v>", "a0.h0->logits"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    note.cache_clear()  # notes are said once
    return tmp_path / "graph.json"


def one_head() -> Graph:
    return Graph.of(tiny_model(n_layers=1, n_heads=1, d_head=16))


def some(graph: Graph, dtype: torch.dtype = torch.float32) -> tuple[EdgeScores, Circuit]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(len(graph), generator=generator, dtype=dtype)
    kept = torch.rand(len(graph), generator=generator) < 0.3
    return EdgeScores(graph, values, "eap-ig", 5, 7), Circuit(graph, kept)


def changed(path: Path, text: str, *keys: str, to: Any) -> Path:
    """A file of ``text`` with another value at ``keys``."""
    document = json.loads(text)
    inside = document
    for key in keys[:-1]:
        inside = inside[key]
    inside[keys[-1]] = to
    path.write_text(json.dumps(document))
    return path


def test_a_file_of_the_newer_version_is_read(path: Path) -> None:
    path.write_text(NEWER)
    graph = one_head()
    scores, circuit = read_graph(path, graph)
    assert scores is not None
    assert circuit is not None
    assert (scores.method, scores.steps, scores.prompts) == ("graph.json", None, 0)
    assert {str(edge): scores[str(edge)] for edge in graph.edges} == {
        "input->a0.h0<q>": 0.125, "input->a0.h0<k>": -0.0009765625, "input->a0.h0<v>": -2.5,
        "input->m0": 0.30000001192092896, "a0.h0->m0": 0.0, "input->logits": 1.0,
        "a0.h0->logits": -3.25, "m0->logits": 0.75,
    }  # fmt: skip
    assert set(circuit.edges) == SOME


def test_a_file_of_the_older_version_is_read(path: Path) -> None:
    path.write_text(OLDER)
    scores, circuit = read_graph(path, one_head())
    assert scores is None
    assert circuit is not None
    assert set(circuit.edges) == SOME


def test_what_a_file_does_not_name_is_nothing(path: Path) -> None:
    """As in EAP-IG; and MIB's circuits have edges without scores."""
    document = json.loads(NEWER)
    document["edges"] = {"input->m0": {"score": 2}, "m0->logits": {"in_graph": True}}
    path.write_text(json.dumps(document))
    scores, circuit = read_graph(path, one_head())
    assert scores is not None
    assert circuit is not None
    assert (circuit.edges, scores.top(2)[0]) == (["m0->logits"], ("input->m0", 2.0))
    assert scores.values.count_nonzero() == 1


@pytest.mark.parametrize("architecture", ["mha", "parallel-mlp", "gqa-ungrouped", "attn-only"])
@pytest.mark.parametrize("streams", ["", "qv"])
def test_eap_ig_reads_what_is_written(path: Path, architecture: str, streams: str) -> None:
    graph = Graph.of(tiny_model(streams, **ARCHITECTURES[architecture]))
    scores, circuit = some(graph)
    write_graph(path, scores, circuit)
    nodes, theirs, in_graph = eap_ig_graph.from_json(path)
    mlps = {name for name in nodes if name.startswith("m")} if graph.cfg.attn_only else set()
    residual = [str(edge) for edge in graph.edges[: graph.n_residual]]
    assert {edge for edge in theirs if not mlps & set(edge.split("->"))} == set(residual)
    for edge in theirs:
        known = edge in residual
        assert theirs[edge] == (scores[edge] if known else 0)
        assert in_graph[edge] == (edge in circuit.edges)
    assert {name for name, inside in nodes.items() if inside} == {"logits", *circuit.nodes}


@pytest.mark.parametrize("streams", ["", "v", "qkv"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
def test_a_graph_comes_back_as_it_was(path: Path, streams: str, dtype: torch.dtype) -> None:
    graph = Graph.of(tiny_model(streams))
    scores, circuit = some(graph, dtype)
    write_graph(path, scores, circuit)
    again, kept = read_graph(path, graph)
    assert again is not None
    assert kept is not None
    assert torch.equal(again.values, scores.values.double())
    assert torch.equal(kept.kept, circuit.kept)
    assert (again.method, again.steps, again.prompts) == ("eap-ig", 5, 7)
    write_graph(path, scores)
    assert read_graph(path, graph)[1] is None
    write_graph(path, circuit=circuit)
    alone = read_graph(path, graph)
    assert alone.scores is None
    assert alone.circuit is not None
    assert torch.equal(alone.circuit.kept, circuit.kept)


def test_links_are_told_of(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    linked, plain = Graph.of(tiny_model("v")), Graph.of(tiny_model())
    with caplog.at_level(logging.WARNING, "resval_lens"):
        write_graph(path, circuit=Circuit.of(linked, ["a0.h2<v>->a1.h2<v>", "input->a0.h0<v>"]))
        write_graph(other := path.with_name("plain.json"), *some(plain))
        read_graph(other, plain)
        read_graph(other, linked)
    assert [record.message for record in caplog.records] == [
        f"{path}: 8 links, 1 of them in the circuit, stand under 'resval_lens', which EAP-IG does "
        "not read",
        f"{other} knows no links: all of this model's are outside of its circuit",
    ]
    with pytest.raises(ValueError, match=r"names the edge 'a0.h0<v>->a1.h0<v>', which this model"):
        read_graph(path, plain)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("cfg", "n_layers"), 12, "is of a model with n_layers=12; this one has 1"),
        (("cfg", "n_heads"), 12, "is of a model with n_heads=12; this one has 1"),
        (("cfg", "d_model"), 768, "is of a model with d_model=768; this one has 16"),
        (("cfg", "parallel_attn_mlp"), True, "parallel_attn_mlp=True; this one has False"),
        (("cfg",), {}, "is of a model with n_layers=None; this one has 1"),
        (("nodes", "a0.h1"), {"in_graph": True},
         "names the node 'a0.h1', which this model does not have"),
        (("nodes", "m0"), {"neurons": [True, False]}, "takes single neurons out of m0"),
        (("edges", "input->a0.h0"), {"score": 1}, "names the edge 'input->a0.h0', which this"),
        (("edges", "input->m0"), 1, "input->m0 is not an object with score and in_graph"),
        (("edges", "input->m0"), {"score": "1"}, "input->m0 needs a finite number as score"),
        (("edges", "input->m0"), {"score": float("nan")}, "input->m0 needs a finite number as"),
        (("nodes", "m0"), {"neurons": 5}, "neurons of m0 must be a list of true and false; got 5"),
        (("nodes", "m0"), {"neurons": ["x"]}, r"neurons of m0 must .* got \['x'\]"),
        (("resval_lens",), {"steps": "x"}, "resval_lens.steps must be a whole number; got 'x'"),
        (("resval_lens",), {"prompts": [1]}, r"prompts must be a whole number; got \[1\]"),
        (("resval_lens",), {"method": 1}, "resval_lens.method must be text; got 1"),
        (("edges", "input->m0"), {"in_graph": 1}, "true or false as in_graph; got None, 1"),
        (("edges",), [], "not edges in EAP-IG's JSON: no object 'edges'"),
        (("resval_lens",), [], "no object 'resval_lens'"),
        (("resval_lens",), {"links": 1}, "no object 'resval_lens.links'"),
    ],
)  # fmt: skip
def test_another_model_or_document_is_refused(
    path: Path, keys: tuple[str, ...], value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_graph(changed(path, NEWER, *keys, to=value), one_head())


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "not JSON"), ("[1]", "no object$"), ('{"circuit": {}}', "no object 'cfg'")],
)
def test_what_is_no_such_file_is_refused(path: Path, content: str, message: str) -> None:
    path.write_text(content)
    with pytest.raises(ValueError, match=f"graph.json is not edges in EAP-IG's JSON: {message}"):
        read_graph(path, one_head())


def test_what_cannot_be_written_is_refused(path: Path) -> None:
    graph, other = one_head(), Graph.of(tiny_model())
    scores, circuit = some(graph)
    with pytest.raises(ValueError, match="both None"):
        write_graph(path)
    with pytest.raises(ValueError, match="of different graphs"):
        write_graph(path, scores, some(other)[1])
    scores.values[3] = float("nan")
    with pytest.raises(ValueError, match=f"the score of {graph.edges[3]} is nan"):
        write_graph(path, scores, circuit)
    grouped = Graph.of(tiny_model(n_key_value_heads=2))
    with pytest.raises(ValueError, match="2 key-value heads for 4 heads: EAP-IG has edges into"):
        write_graph(path, *some(grouped))
    with pytest.raises(ValueError, match="2 key-value heads"):
        read_graph(path, grouped)
    assert not path.exists()


def test_ungrouped_heads_share_what_corrupting_their_group_does(path: Path) -> None:
    """What EAP gives the edges of a group's heads sums to what it gives their one edge."""
    model = tiny_model("v", n_key_value_heads=2, dtype=torch.float64)
    pairs = tiny_pairs(model)
    grouped = score_edges(model, pairs, "eap")
    model.set_ungroup_grouped_query_attention(True)
    write_graph(path, score_edges(model, pairs, "eap"))
    each = read_graph(path, Graph.of(model)).scores
    assert each is not None
    for port in "kv":
        heads = [each[f"input->a1.h{head}<{port}>"] for head in (2, 3)]
        assert sum(heads) == pytest.approx(grouped[f"input->a1.h1<{port}>"], rel=1e-9)


def test_a_study_writes_its_circuit_and_evaluates_it_again(path: Path) -> None:
    model, pairs = linked_model(), linked_pairs()
    found = circuit_study(model, pairs, export=path)
    scores, circuit = read_graph(path, Graph.of(model))
    assert circuit is not None
    assert set(circuit.edges) == LINKED_CIRCUIT == set(found.circuit.edges)
    again = circuit_study(model, pairs, method="exact", scores=scores, given=circuit)
    assert (again.method, again.steps, again.prompts) == ("eap-ig", 5, found.prompts)
    assert again.circuit.faithfulness == found.circuit.faithfulness == pytest.approx(1)
    assert (again.curve, again.strongest) == (found.curve, found.strongest)
    part = Circuit.of(Graph.of(model), LINKED_CIRCUIT - {"input->a0.h1<v>"})
    assert circuit_study(model, pairs, given=part).circuit.faithfulness == pytest.approx(0)
    with pytest.raises(ValueError, match="leave out edges and threshold"):
        circuit_study(model, pairs, given=part, edges=3)
    with pytest.raises(ValueError, match="that of another model"):
        circuit_study(model, pairs, given=some(one_head())[1])
    with pytest.raises(ValueError, match="that of another model"):
        circuit_study(model, pairs, scores=some(one_head())[0])


# What to_pt saves: src/eap/graph.py at commit 4fad6c6


def saved_by_to_pt(document: dict[str, Any]) -> dict[str, Any]:
    """The same graph as tensors [source, target], of every pair of nodes."""
    sources = [name for name in document["nodes"] if name != "logits"]
    targets = list(dict.fromkeys(name.split("->")[1] for name in document["edges"]))
    scores = torch.zeros(len(sources), len(targets))
    kept = torch.zeros(len(sources), len(targets), dtype=torch.bool)
    for name, said in document["edges"].items():
        source, target = name.split("->")
        scores[sources.index(source), targets.index(target)] = said["score"]
        kept[sources.index(source), targets.index(target)] = said["in_graph"]
    nodes = torch.tensor([document["nodes"][name]["in_graph"] for name in sources])
    return {
        "cfg": document["cfg"], "src_nodes": sources, "dst_nodes": targets, "edges_scores": scores,
        "edges_in_graph": kept, "nodes_in_graph": nodes,
    }  # fmt: skip


def test_tensors_are_read_as_the_json_of_the_same_graph(path: Path) -> None:
    path.write_text(NEWER)
    wanted = read_graph(path, one_head())
    saved = saved_by_to_pt(json.loads(NEWER))
    torch.save(saved, path.with_suffix(".pt"))
    found = read_graph(path.with_suffix(".pt"), one_head())
    assert found.scores is not None
    assert wanted.scores is not None
    assert found.scores.values.equal(wanted.scores.values)
    assert found.circuit is not None
    assert {str(edge) for edge in found.circuit.edges} == SOME
    neurons = torch.ones(len(saved["src_nodes"]), 16, dtype=torch.bool)
    neurons[1, 3] = False
    torch.save({**saved, "neurons_in_graph": neurons}, path.with_suffix(".pt"))
    with pytest.raises(ValueError, match=r"takes single neurons out of a0\.h0"):
        read_graph(path.with_suffix(".pt"), one_head())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edges_scores": None}, r"AttributeError \('NoneType' object has no attribute 'tolist'\)"),
        ({"dst_nodes": ["m0"]}, "ValueError"),
        ({"src_nodes": [1, 2, 3]}, "names the node 1, which this model does not have"),
        ({"cfg": Path("x")}, "is not a graph of EAP-IG's to_pt: Weights only load failed"),
    ],
)
def test_other_tensors_are_refused(change: dict[str, Any], message: str, path: Path) -> None:
    torch.save({**saved_by_to_pt(json.loads(NEWER)), **change}, path.with_suffix(".pt"))
    with pytest.raises(ValueError, match=message) as raised:
        read_graph(path.with_suffix(".pt"), one_head())
    assert "\n" not in str(raised.value)
