"""Edge scores and circuits in files that EAP-IG and the MIB benchmark read and write.

    {"cfg":   {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": false, "d_model": 16},
     "nodes": {"input": {"in_graph": true}, ..., "logits": {"in_graph": true}},
     "edges": {"input->a0.h0<q>": {"score": -0.25, "in_graph": true}, ...}}

Source: ``Graph.to_json`` and ``from_json`` in src/eap/graph.py of
https://github.com/hannamw/EAP-IG; older versions (eap/graph.py) have ``"input": true`` for a node,
null where an edge has no score, and no d_model. The newer form is written, both are read, and so is
what ``to_pt`` saves of the newer (``.pt``; nothing is unpickled). As there, an edge that the file
does not name is outside of the circuit, and its score is 0; of MIB's circuits without scores, every
score is.

The format knows no links. They stand in the same form, with how scores were found, under
``"resval_lens"``, which EAP-IG passes over; so a model's whole graph comes back as it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import torch

from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.scores import EdgeScores
from resval_lens.io.files import first_line, note, parse_json, read_bytes, write_bytes
from resval_lens.io.formats.state import read_torch

SIZES = ("n_layers", "n_heads", "parallel_attn_mlp", "d_model")
HOW = ("method", "steps", "prompts")
OWN = "resval_lens"
WHAT = "edges in EAP-IG's JSON"


class ReadGraph(NamedTuple):
    """What a file says of a graph.

    Attributes:
        scores: of float64, every number as it stands there; None where none differs from 0. Their
            ``method`` is the file's name and ``prompts`` 0 where it does not say.
        circuit: None where it has no edge.
    """

    scores: EdgeScores | None
    circuit: Circuit | None


def write_graph(
    path: str | Path, scores: EdgeScores | None = None, circuit: Circuit | None = None
) -> None:
    """Writes scores of all edges, a circuit, or both, in EAP-IG's JSON.

    A note says how many links stand where EAP-IG does not read them: there, the circuit is one
    whose links all carry what they carry on the corrupted prompt.

    Raises:
        ValueError: neither is given, they are of two graphs, a score is not a finite number, or
            heads are grouped: EAP-IG has an edge into the keys and values of each head, which the
            graph has after ``model.set_ungroup_grouped_query_attention(True)``.
    """
    given = scores or circuit
    if given is None:
        raise ValueError("scores and circuit are both None: there is nothing to write")
    graph = given.graph
    check_heads(graph)
    if scores is not None and circuit is not None and scores.graph.edges != circuit.graph.edges:
        raise ValueError("these scores and this circuit are of different graphs")
    values = [0.0] * len(graph) if scores is None else scores.values.tolist()
    kept = [False] * len(graph) if circuit is None else circuit.kept.tolist()
    for edge, value in zip(graph.edges, values, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"the score of {edge} is {value}, not a finite number")
    edges = {
        str(edge): {"score": value, "in_graph": own}
        for edge, value, own in zip(graph.edges, values, kept, strict=True)
    }
    links = {name: edges.pop(name) for name in map(str, graph.edges[graph.n_residual :])}
    inside = {"logits", *(() if circuit is None else circuit.nodes)}
    how = {} if scores is None else {name: getattr(scores, name) for name in HOW}
    document = {
        "cfg": {name: getattr(graph.cfg, name) for name in SIZES},
        "nodes": {node: {"in_graph": node in inside} for node in graph.nodes},
        "edges": edges,
        OWN: {"links": links, **how},
    }
    write_bytes(Path(path), json.dumps(document).encode())
    if links:
        note(
            f"{path}: {len(links)} links, {sum(kept[graph.n_residual :])} of them in the circuit, "
            f"stand under {OWN!r}, which EAP-IG does not read"
        )


def read_graph(path: str | Path, graph: Graph) -> ReadGraph:
    """Scores and circuit of a file in EAP-IG's JSON (or a ``.pt``) on a model's graph.

    Scores of nodes are passed over. A note says where the file knows nothing of the graph's links:
    all of them are then outside of the circuit.

    Raises:
        ValueError: the file is missing or something else, is of a model of other sizes, names an
            edge or a node that the graph has not, has a score that is not a finite number, takes
            single neurons out of a node, or heads are grouped (see :func:`write_graph`).
    """
    path = Path(path)
    check_heads(graph)
    document = _read(path)
    for name in SIZES:
        own, theirs = getattr(graph.cfg, name), document["cfg"].get(name)
        if theirs != own and (name != "d_model" or theirs is not None):
            raise ValueError(f"{path} is of a model with {name}={theirs}; this one has {own}")
    for node, said in document["nodes"].items():
        if node not in graph.nodes:
            raise ValueError(f"{path} names the node {node!r}, which this model does not have")
        neurons = said.get("neurons", []) if isinstance(said, Mapping) else []
        if not isinstance(neurons, list) or not all(type(x) is bool for x in neurons):
            raise ValueError(
                f"{path}: neurons of {node} must be a list of true and false; got {neurons!r}"
            )
        if not all(neurons):
            raise ValueError(f"{path} takes single neurons out of {node}; circuits here have edges")
    extra = document.get(OWN, {})
    links = extra.get("links", {})
    values = torch.zeros(len(graph), dtype=torch.float64)
    kept = torch.zeros(len(graph), dtype=torch.bool)
    for edge, said in (*document["edges"].items(), *links.items()):
        if edge not in graph.number:
            raise ValueError(f"{path} names the edge {edge!r}, which this model does not have")
        score, inside = said.get("score"), said.get("in_graph", False)
        if (
            type(inside) is not bool
            or type(score) not in (int, float, NoneType)
            or not math.isfinite(score or 0)
        ):
            raise ValueError(
                f"{path}: {edge} needs a finite number as score, true or false as in_graph; got "
                f"{score!r}, {inside!r}"
            )
        values[graph.number[edge]], kept[graph.number[edge]] = score or 0.0, inside
    if len(graph) > graph.n_residual and not links:
        note(f"{path} knows no links: all of this model's are outside of its circuit")
    method, steps, prompts = (extra.get(name) for name in HOW)
    for name, value in (("steps", steps), ("prompts", prompts)):
        if type(value) not in (int, NoneType):
            raise ValueError(f"{path}: {OWN}.{name} must be a whole number; got {value!r}")
    if type(method) not in (str, NoneType):
        raise ValueError(f"{path}: {OWN}.method must be text; got {method!r}")
    scores = EdgeScores(graph, values, str(method or path.name), steps, prompts or 0)
    return ReadGraph(scores if values.any() else None, Circuit(graph, kept) if kept.any() else None)


def _of_tensors(path: Path) -> dict[str, Any]:
    """The document of what EAP-IG's ``to_pt`` saved: tensors [source, target] of all edges."""
    saved = read_torch(path, "a graph of EAP-IG's to_pt")
    try:
        scores, kept = (saved[name].tolist() for name in ("edges_scores", "edges_in_graph"))
        nodes = {
            name: {"in_graph": inside}
            for name, inside in zip(
                saved["src_nodes"], saved["nodes_in_graph"].tolist(), strict=True
            )
        }
        for name, own in zip(nodes, saved.get("neurons_in_graph", ()), strict=False):
            nodes[name]["neurons"] = own.tolist()
        edges = {
            f"{source}->{target}": {"score": score, "in_graph": inside}
            for source, *of_source in zip(saved["src_nodes"], scores, kept, strict=True)
            for target, score, inside in zip(saved["dst_nodes"], *of_source, strict=True)
            if score or inside  # most pairs are no edges
        }
        return {"cfg": saved["cfg"], "nodes": nodes, "edges": edges}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a graph of EAP-IG's to_pt: {type(error).__name__} ({first_line(error)})"
        ) from None


def _read(path: Path) -> dict[str, Any]:
    """The document, whose parts have the types that they need."""
    document: Any
    if path.suffix == ".pt":
        document = _of_tensors(path)
    else:
        content = read_bytes(path, WHAT)
        try:
            document = parse_json(content.decode(), finite=False)  # a node without a score has NaN
        except ValueError as error:
            raise ValueError(f"{path} is not {WHAT}: not JSON ({error})") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} is not {WHAT}: no object")
    own = document.get(OWN, {})
    links = own.get("links", {}) if isinstance(own, dict) else None
    parts = {**{name: document.get(name) for name in ("cfg", "nodes", "edges")}, OWN: own}
    for name, part in {**parts, f"{OWN}.links": links}.items():
        if not isinstance(part, dict):
            raise ValueError(f"{path} is not {WHAT}: no object {name!r}")
    for edge, said in (*document["edges"].items(), *own.get("links", {}).items()):
        if not isinstance(said, dict):
            raise ValueError(
                f"{path} is not {WHAT}: {edge} is not an object with score and in_graph"
            )
    return document


def check_heads(graph: Graph) -> None:
    """Raises ValueError for a graph of grouped heads, whose keys and values have fewer edges."""
    if graph.cfg.n_heads_of("k") != graph.cfg.n_heads:
        raise ValueError(
            f"{graph.cfg.n_key_value_heads} key-value heads for {graph.cfg.n_heads} heads: EAP-IG "
            "has edges into the keys and values of each head; call "
            "model.set_ungroup_grouped_query_attention(True) before edges are scored"
        )
