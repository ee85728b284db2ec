"""What is drawn of a circuit, in a picture or on a page: its edges as lines between boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from resval_lens.analyses.circuits.circuit import Circuit, NamedCircuit
from resval_lens.analyses.circuits.evaluation import EvaluatedCircuit
from resval_lens.analyses.circuits.scores import EdgeScores
from resval_lens.hooks.links import Link
from resval_lens.numbers import number

PORTS = {"q": "query", "k": "key", "v": "value"}
INTO = {"q": "into queries (at the left)", "k": "into keys", "v": "into values (at the right)"}
SHADES = (
    "#0072B2", "#E69F00", "#CC79A7", "#009E73", "#D55E00", "#56B4E9", "#7F6FBF", "#8C564B",
    "#B8A800", "#17A2A2",
)  # fmt: skip
"""Of roles, in their order."""
Roles = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Drawing:
    """A circuit, how strong its edges are drawn, and what these numbers are called.

    Attributes:
        weights: by edge; an edge without one is drawn thin.
        helps: the sign of weights of edges that help the metric.
        sds: standard deviations of weights over prompts.
        prompts: over how many.
        roles: of heads, by name.
    """

    title: str
    circuit: NamedCircuit
    weights: Mapping[str, float]
    weight: str
    helps: int = 1
    sds: Mapping[str, float] = field(default_factory=dict)
    prompts: int = 0
    roles: Roles = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """An edge as a line from one box to another; of a key-value head one for each of its heads.

    Attributes:
        port: ``"q"``, ``"k"`` or ``"v"`` of a head, else empty.
        link: whether it is a link.
        strength: |weight| as a share of the circuit's largest.
        hurts: whether it works against the metric.
        text: what it says of itself.
    """

    edge: str
    source: str
    target: str
    port: str
    link: bool
    strength: float
    hurts: bool
    text: str


def evaluated_drawings(
    named: Mapping[str, EvaluatedCircuit], roles: Roles | None = None
) -> list[Drawing]:
    """Circuits by title, each edge as strong as what the metric loses without it."""
    loss = "the metric's loss without it"
    return [
        Drawing(name, each, each.minimality, loss, roles=roles or {})
        for name, each in named.items()
    ]


def scored_drawing(
    title: str, circuit: Circuit, scores: EdgeScores, roles: Roles | None = None
) -> Drawing:
    """A circuit, each edge as strong as its score; below 0 it helps the metric."""
    weights = {edge: scores[edge] for edge in circuit.edges}
    sds: dict[str, float] = {}
    if scores.by_prompt is not None and scores.prompts > 1:
        spread = scores.by_prompt[:, circuit.numbers].double().std(0).tolist()
        sds = dict(zip(circuit.edges, spread, strict=True))
    return Drawing(
        title, circuit.named(), weights, f"{scores.method} score", -1, sds, scores.prompts,
        roles or {},
    )  # fmt: skip


def lines(drawing: Drawing) -> list[Line]:
    """Every edge of the circuit, in its order."""
    largest = max(map(abs, drawing.weights.values()), default=1.0) or 1.0
    found = []
    for edge in drawing.circuit.edges:
        weight = drawing.weights.get(edge)
        source, target = edge.split("->")
        # A key-value head is drawn as the heads that share it.
        groups = drawing.circuit.groups
        readers = groups.get(target, (target.split("<")[0],))
        writers = groups.get(source, (source.split("<")[0],))
        writers = writers if len(writers) == len(readers) else writers * len(readers)
        for writer, reader in zip(writers, readers, strict=True):
            found.append(
                Line(
                    edge,
                    writer,
                    reader,
                    target[-2] if target.endswith(">") else "",
                    edge in drawing.circuit.links,
                    abs(weight or 0.0) / largest,
                    (weight or 0.0) * drawing.helps < 0,
                    _text(drawing, edge, weight),
                )
            )
    return found


def _text(drawing: Drawing, edge: str, weight: float | None) -> str:
    kind = "residual stream"
    if edge in drawing.circuit.links:
        kind = f"{PORTS[Link.parse(edge).stream]} link"
    elif edge.endswith(">"):
        kind = f"{PORTS[edge[-2]]}, residual stream"
    if weight is None:
        return f"{edge} ({kind}): not tried alone"
    said = f"{edge} ({kind}): {drawing.weight} {shown(weight)}"
    if edge in drawing.sds:
        said += f", sd {shown(drawing.sds[edge])} over {drawing.prompts} prompts"
    return said


def shown(value: float) -> str:
    """A weight to three digits after the point; a small one to two digits that are not 0."""
    return number(value, "z.2g" if 0 < abs(value) < 0.01 else "z.3f")


def role_colours(drawings: Sequence[Drawing]) -> dict[str, str]:
    """A colour for each role that comes first of a node's, in the order of the nodes."""
    roles = dict.fromkeys(
        drawing.roles[node][0]
        for drawing in drawings
        for node in drawing.circuit.nodes
        if drawing.roles.get(node)
    )
    return {role: SHADES[i % len(SHADES)] for i, role in enumerate(roles)}
