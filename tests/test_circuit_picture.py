"""Where a circuit's boxes stand, and that its picture can be read however large it is."""

from itertools import combinations, pairwise

import matplotlib.pyplot as plt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from resval_lens.analyses.circuits.circuit import Circuit, NamedCircuit
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.drawing.circuit_layout import HEIGHT, Layout, curve, layout
from resval_lens.analyses.drawing.marks import TIP
from resval_lens.analyses.studies.circuit_drawing import Drawing, lines
from resval_lens.analyses.studies.circuit_figures import MOST_DRAWN, WIDEST, side_by_side
from tests.drawn import evaluated_circuit, graph, kind_of_edge, scored_circuit, signed
from tests.helpers import tiny_config

LAYERS, HEADS = 20, 9

# --- where boxes stand --------------------------------------------------------------------------

layers, heads = st.integers(0, 40), st.integers(0, 40)
names = (
    st.builds("a{}.h{}".format, layers, heads)
    | st.builds("m{}".format, layers)
    | st.builds("t.h{}".format, heads)
)


def corners(of: Layout) -> dict[str, tuple[float, float, float, float]]:
    """Left, top, right and bottom of each box."""
    found = {}
    for name, box in of.boxes.items():
        y = of.y(box.row, box.raised)
        sides = box.x - box.width / 2, box.x + box.width / 2
        found[name] = sides[0], y - HEIGHT / 2, sides[1], y + HEIGHT / 2
    return found


@given(nodes=st.lists(names, unique=True, max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_box_covers_another_and_all_lie_on_the_canvas(nodes: list[str]) -> None:
    of = layout(["input", *nodes, "logits"])
    boxes = corners(of)
    assert set(boxes) == {"input", "logits", *nodes}
    for left, top, right, bottom in boxes.values():
        assert 0 <= left < right <= of.width
        assert 0 <= top < bottom <= of.height
    for one, other in combinations(boxes.values(), 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)


@given(nodes=st.lists(names, unique=True, max_size=60))
@settings(max_examples=100, deadline=None)
def test_what_is_computed_later_stands_higher(nodes: list[str]) -> None:
    of = layout(nodes)

    def time(name: str) -> tuple[int, bool]:
        if name in ("input", "logits"):
            return (-2, False) if name == "input" else (10_000, False)
        return (-1 if name[0] == "t" else int(name[1:].split(".")[0])), name[0] == "m"

    order = sorted(of.boxes, key=time)
    for one, other in pairwise(order):
        below, above = (of.boxes[name] for name in (one, other))
        assert (of.y(below.row, below.raised) > of.y(above.row, above.raised)) == (
            time(one) < time(other)
        )
    for one, other in combinations([name for name in nodes if name[0] != "m"], 2):
        start, end = sorted((one, other), key=time)
        if time(start) < time(end):
            points = curve(of, start, end, "v")
            box, to = of.boxes[start], of.boxes[end]
            assert points[0] == (box.x, of.y(box.row) - HEIGHT / 2)
            assert points[3] == pytest.approx((to.x + 0.3 * to.width, of.y(to.row) + HEIGHT / 2))


def test_a_link_from_head_to_head_is_nearly_upright() -> None:
    of = layout(["a0.h1", "a0.h3", "a1.h3", "a2.h0", "m0"])
    assert of.boxes["a0.h3"].x == of.boxes["a1.h3"].x > of.boxes["a0.h1"].x > of.boxes["a2.h0"].x
    assert of.boxes["m0"].x > of.boxes["a1.h3"].x


def test_a_line_over_boxes_of_its_column_runs_beside_them() -> None:
    of = layout([f"a{i}.h0" for i in range(4)])
    points = curve(of, "a0.h0", "a3.h0", "q")
    middle = sum(share * x for share, (x, _) in zip((1, 3, 3, 1), points, strict=True)) / 8
    left = corners(of)["a1.h0"][0]
    assert middle < left


@pytest.mark.parametrize("name", ["a1", "m1.h0", "t", "b1.h0", "a1.h2<q>"])
def test_what_is_no_node_is_refused(name: str) -> None:
    said = f"a circuit has no node {name!r}; expected one like a1.h2, m1 or t.h2"
    with pytest.raises(ValueError, match=said):
        layout([name])


# --- lines --------------------------------------------------------------------------------------


def test_lines_say_ends_kind_score_and_sd() -> None:
    circuit, scores = scored_circuit(graph(n_key_value_heads=2))
    weights = {edge: scores[edge] for edge in circuit.edges}
    sds = dict.fromkeys(circuit.edges, 0.25)
    drawing = Drawing("t", circuit.named(), weights, "score", -1, sds, 7)
    drawn = lines(drawing)
    assert {line.text for line in drawn} == {
        f"{edge} ({kind_of_edge(edge)}): score {signed(weights[edge])}, sd 0.250 over 7 prompts"
        for edge in circuit.edges
    }
    assert [(line.source, line.target) for line in drawn if line.link] == [
        ("a0.h0", "a1.h0"), ("a0.h1", "a1.h1")
    ]  # fmt: skip
    largest = max(map(abs, weights.values()))
    for line in drawn:
        assert line.strength == pytest.approx(abs(weights[line.edge]) / largest)
        assert line.hurts == (weights[line.edge] > 0)


def test_an_edge_that_was_not_tried_says_so() -> None:
    circuit, _ = scored_circuit()
    (line,) = [x for x in lines(Drawing("", circuit.named(), {}, "loss")) if x.source == "m0"]
    assert line.text == "m0->a1.h1<q> (query, residual stream): not tried alone"
    assert line.strength == 0


# --- the still picture --------------------------------------------------------------------------


def deep(heads_of: int) -> NamedCircuit:
    """Some heads of each layer, and every MLP."""
    of = Graph(tiny_config(streams="", n_layers=LAYERS, n_heads=HEADS, attn_only=False))
    edges = [f"a{i}.h{head}->m{i}" for i in range(LAYERS) for head in range(heads_of)]
    edges += [f"m{i}->logits" for i in range(LAYERS)]
    edges += [f"input->a{i}.h{head}<q>" for i in range(LAYERS) for head in range(heads_of)]
    return Circuit.of(of, edges).named()


def boxes_of(figure: Figure) -> dict[str, Bbox]:
    """Nodes' names, and where they stand."""
    figure.canvas.draw()
    texts = [text for text in figure.axes[0].texts if not text.get_text().startswith("layer")]
    return {text.get_text(): text.get_window_extent() for text in texts}


def drawn(named: NamedCircuit) -> Figure:
    weights = {edge: 1 / (1 + place) for place, edge in enumerate(named.edges)}
    return side_by_side([Drawing("deep", named, weights, "worth")])


def test_no_name_covers_another_and_none_is_tiny() -> None:
    named = deep(2)
    assert len(named.edges) <= MOST_DRAWN
    figure = drawn(named)
    boxes = boxes_of(figure)
    assert set(boxes) == set(named.nodes)
    for (one, box), (other, own) in combinations(boxes.items(), 2):
        assert not box.overlaps(own), (one, other)
    assert min(text.get_fontsize() for text in figure.axes[0].texts) >= 11
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["residual stream", "into queries (at the left)"]  # there are no links
    plt.close(figure)


def test_nodes_are_those_of_the_edges_that_are_drawn() -> None:
    named = deep(HEADS)
    figure = drawn(named)
    strongest = named.edges[:MOST_DRAWN]
    ends = {end.split("<")[0] for edge in strongest for end in edge.split("->")}
    assert set(boxes_of(figure)) == {*ends, "input", "logits"} < set(named.nodes)
    tips = {str(line.get_gid()).removeprefix(TIP) for line in figure.axes[0].patches}
    assert {text.partition(" (")[0] for text in tips if "(" in text} == set(strongest)
    plt.close(figure)


def test_pictures_that_are_too_wide_for_one_row_stand_in_several() -> None:
    named = evaluated_circuit()
    few, many = (
        side_by_side([Drawing(str(i), named, named.minimality, "loss") for i in range(n)])
        for n in (2, 7)
    )
    for figure in (few, many):
        assert figure.get_figwidth() * 72 <= WIDEST
    assert many.get_figheight() > 2 * few.get_figheight()
    assert len({axes.get_position().y0 for axes in many.axes}) > 1
    plt.close("all")


def test_roles_are_colours_with_a_legend() -> None:
    named = evaluated_circuit()
    roles = {"a1.h0": ["name mover", "backup"], "a9.h9": ["negative"]}
    figure = side_by_side([Drawing("", named, named.minimality, "loss", roles=roles)])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "name mover" in legend
    assert not {"backup", "negative"} & set(legend)
    plt.close(figure)
