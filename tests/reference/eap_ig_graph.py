"""What EAP-IG makes of one of its JSON files, in loops.

Written after ``Graph.from_model`` and ``from_json`` in src/eap/graph.py of
https://github.com/hannamw/EAP-IG (commit 4fad6c6): which nodes and edges a model of some sizes has,
and what of them a file sets. A name that the model has not is a KeyError there, and here.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple


class EAPIGGraph(NamedTuple):
    nodes: dict[str, bool]
    scores: dict[str, float]
    in_graph: dict[str, bool]


def edge_names(cfg: dict[str, Any]) -> list[str]:
    """Its edges: of a reader in attention, one into q, k and v of every head."""
    before, names = ["input"], []
    for layer in range(cfg["n_layers"]):
        heads = [f"a{layer}.h{head}" for head in range(cfg["n_heads"])]
        for source in before:
            names += [f"{source}->{head}<{port}>" for head in heads for port in "qkv"]
        seen = before if cfg["parallel_attn_mlp"] else before + heads
        names += [f"{source}->m{layer}" for source in seen]
        before = [*before, *heads, f"m{layer}"]
    return names + [f"{source}->logits" for source in before]


def from_json(path: Path) -> EAPIGGraph:
    """The file as EAP-IG has it: what it does not name has score 0 and is not in the circuit."""
    document = json.loads(path.read_text())
    names = edge_names(document["cfg"])
    nodes = {name.split("->")[0]: False for name in names} | {"logits": True}
    scores, in_graph = dict.fromkeys(names, 0.0), dict.fromkeys(names, False)
    for name, said in document["nodes"].items():
        if name != "logits":
            _set(nodes, name, said["in_graph"])
    for name, said in document["edges"].items():
        _set(scores, name, said["score"])
        _set(in_graph, name, said["in_graph"])
    return EAPIGGraph(nodes, scores, in_graph)


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    if name not in values:
        raise KeyError(name)
    values[name] = value
