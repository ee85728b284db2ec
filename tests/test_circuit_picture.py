"""The picture of a circuit of a deep and wide model can be read."""

from collections.abc import Callable
from itertools import combinations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from resval_lens.analyses.circuits.circuit import Circuit, NamedCircuit
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.studies.circuit_figures import MOST_DRAWN, Drawing, side_by_side
from tests.helpers import tiny_config

LAYERS, HEADS = 20, 9


def circuit(heads_of: Callable[[int], range]) -> NamedCircuit:
    """Some heads of each layer, and every MLP."""
    graph = Graph(tiny_config(streams="", n_layers=LAYERS, n_heads=HEADS, attn_only=False))
    edges = [f"a{i}.h{head}->m{i}" for i in range(LAYERS) for head in heads_of(i)]
    edges += [f"m{i}->logits" for i in range(LAYERS)]
    edges += [f"input->a{i}.h{head}<q>" for i in range(LAYERS) for head in heads_of(i)]
    return Circuit.of(graph, edges).named()


def names(figure: Figure) -> dict[str, Bbox]:
    """Nodes' names, and where they stand; not the q, k and v beside them."""
    figure.canvas.draw()
    texts = [text for text in figure.axes[0].texts if len(text.get_text()) > 1]
    return {text.get_text(): text.get_window_extent() for text in texts}


def drawn(named: NamedCircuit) -> Figure:
    weights = {edge: 1 / (1 + place) for place, edge in enumerate(named.edges)}
    return side_by_side([Drawing("deep", named, weights, "worth")])


def test_no_name_covers_another() -> None:
    named = circuit(lambda layer: range(HEADS) if layer == 0 else range(2))
    assert len(named.edges) <= MOST_DRAWN
    figure = drawn(named)
    boxes = names(figure)
    assert set(boxes) == set(named.nodes)
    for (one, box), (other, own) in combinations(boxes.items(), 2):
        assert not box.overlaps(own), (one, other)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["residual stream"]  # there are no links
    plt.close(figure)


def test_nodes_are_those_of_the_edges_that_are_drawn() -> None:
    named = circuit(lambda layer: range(HEADS))
    figure = drawn(named)
    strongest = named.edges[:MOST_DRAWN]
    ends = {end.split("<")[0] for edge in strongest for end in edge.split("->")}
    assert set(names(figure)) == {*ends, "input", "logits"} < set(named.nodes)
    plt.close(figure)
