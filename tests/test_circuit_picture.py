"""The picture of a circuit of a deep and wide model can be read."""

from itertools import combinations

import matplotlib.pyplot as plt

from resval_lens.analyses.circuits.circuit import Circuit
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.studies.circuit_figures import Drawing, side_by_side
from tests.helpers import tiny_config


def test_no_name_covers_another() -> None:
    graph = Graph(tiny_config(streams="", n_layers=24, n_heads=12, d_head=2, attn_only=False))
    edges = ["input->a0.h0<q>"]
    for layer in range(24):
        edges += [f"a{layer}.h{head}->m{layer}" for head in range(0, 12, 1 + layer % 3)]
        edges += [f"a{layer}.h0->logits", f"m{layer}->logits"]
    named = Circuit.of(graph, edges).named()
    figure = side_by_side([Drawing("deep", named, dict.fromkeys(named.edges, 1.0), "worth")])
    figure.canvas.draw()
    boxes = {
        text.get_text(): text.get_window_extent()
        for text in figure.axes[0].texts
        if len(text.get_text()) > 1
    }
    assert len(boxes) > 150
    for (one, box), (other, own) in combinations(boxes.items(), 2):
        assert not box.overlaps(own), (one, other)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["residual stream"]  # there are no links
    plt.close(figure)
