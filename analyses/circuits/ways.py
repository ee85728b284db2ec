"""Which of a circuit's strongest edges lie on a way from the input to the logits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from resval_lens.analyses.circuits.circuit import NamedCircuit

Arrows = dict[str, list[str]]


def least_sizes(circuit: NamedCircuit, weights: Mapping[str, float]) -> dict[str, int]:
    """Of each edge the least n with which it is kept if only the n strongest edges are.

    The n strongest have the largest |weight| (of equal ones the first in the model; an edge without
    a weight comes last). Of them those are kept that
    :meth:`~resval_lens.analyses.circuits.circuit.Circuit.pruned` keeps; of all edges, all. An edge
    that is kept stays where n grows, so that one number says it all.
    """
    order = sorted(circuit.edges, key=lambda edge: -abs(weights.get(edge, 0.0)))
    after: Arrows = defaultdict(list)
    before: Arrows = defaultdict(list)
    for edge in circuit.edges:
        for source, target in _inside(circuit, edge):
            after[source].append(target)
            before[target].append(source)
    found = dict.fromkeys(circuit.edges, len(order))
    waiting: dict[str, None] = {}
    below: set[str] = set()
    above: set[str] = set()
    _spread(below, after, "input")
    _spread(above, before, "logits")
    for n, edge in enumerate(order[:-1], 1):
        source, target = _ends(circuit, edge)
        after[source].append(target)
        before[target].append(source)
        known = len(below) + len(above)
        if source in below:
            _spread(below, after, target)
        if target in above:
            _spread(above, before, source)
        waiting[edge] = None
        for each in list(waiting) if len(below) + len(above) > known else [edge]:
            if _on_way(circuit, each, below, above):
                del waiting[each]
                found[each] = n
    return found


def _on_way(circuit: NamedCircuit, edge: str, below: set[str], above: set[str]) -> bool:
    """Whether both ends lie on a way; of a gated link the end where the gate is."""
    source, target = _ends(circuit, edge)
    gated = edge in circuit.links and target[-3] in (circuit.gated or "")
    return target in below & above and (gated or source in below & above)


def _ends(circuit: NamedCircuit, edge: str) -> tuple[str, str]:
    """The nodes of ``Graph.flow`` that an edge leads between."""
    source, target = edge.split("->")
    if edge not in circuit.links:
        return source, target
    passes_own = source.startswith("t.") or source[-2] in (circuit.raw or "")
    return source if passes_own else f"{source}+", f"{target}+"


def _inside(circuit: NamedCircuit, edge: str) -> Iterator[tuple[str, str]]:
    """What leads on inside the heads that an edge leads between."""
    for port in edge.split("->"):
        if port.startswith("t."):
            yield "input", port
        elif port.endswith(">"):
            yield port, f"{port}+"
            for head in circuit.groups.get(port, (port.partition("<")[0],)):
                yield f"{port}+", head


def _spread(reached: set[str], arrows: Arrows, start: str) -> None:
    """Adds what can be reached from a node."""
    waiting = [start]
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += arrows.get(node, ())
