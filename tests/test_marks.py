"""Figures speak: every mark says the number of the data it stands for, and stands where it should.

The references are computed here from each figure's input; colours and places are read from the SVG.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from resval_lens.analyses.attribution.heads import HeadScores
from resval_lens.analyses.comparison import figures
from resval_lens.analyses.comparison.circuit_findings import TaskCircuit
from resval_lens.analyses.comparison.icl import AttentionStudy
from resval_lens.analyses.comparison.icl_curves import icl_curves
from resval_lens.analyses.comparison.link_in_training import LinkInTraining, LinkSnapshot
from resval_lens.analyses.display.svg import svg
from resval_lens.analyses.drawing import marks
from resval_lens.analyses.studies import circuit_figures, intervention_figures
from resval_lens.analyses.studies.ablation import AblationRow
from resval_lens.analyses.studies.induction import TITLES
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import RecordedRun
from tests.drawn import (
    CIRCUIT,
    SVG,
    TASKS,
    XLINK,
    Marks,
    ablation,
    circuit_study,
    corners,
    evaluated_circuit,
    fill,
    found,
    icl_runs,
    kind_of_edge,
    link_study,
    luminance,
    marks_of,
    patch_result,
    patterns,
    root_of,
    said,
    signed,
    straight,
    value,
)
from tests.helpers import tiny_config

NAMES = {"test": "Test", "ic": "IC", "ic2": "IC2", "iw": "IW"}

FIGURES: dict[str, Callable[[], Figure]] = {
    "heat map": lambda: found({"layer": 2, "head": 4}).figure(),
    "long heat map": lambda: found({"layer": 4, "position": 30}).figure(),
    "heat maps": lambda: found({"layer": 2, "position": 5, "head": 3}).figure(),
    "bars of edits": lambda: intervention_figures.ablated(ablation([0.5])),
    "curves of edits": lambda: intervention_figures.ablation_curves(ablation([0.0, 0.5, 1.0])),
    "circuit": lambda: circuit_figures.circuits({"t": evaluated_circuit()}),
    "link edits": lambda: figures.link_edits({"values": link_study()}),
    "emergence": lambda: icl_curves(icl_runs()).figure(),
}
each_figure = pytest.mark.parametrize("name", FIGURES)


@cache
def written(name: str, prefix: str = "one") -> str:
    """The figure as ``svg`` writes it, once for several tests."""
    figure = FIGURES[name]()
    text = svg(figure, 'a "name" & more', prefix)
    plt.close(figure)
    return text


# --- the SVG ------------------------------------------------------------------------------------


@each_figure
def test_references_stay_within_an_svg_and_two_share_no_id(name):
    several = []
    for prefix in ("one", "two"):
        root = ElementTree.fromstring(written(name, prefix))
        ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
        assert len(set(ids)) == len(ids)
        used = []
        for element in root.iter():
            for attribute, text in element.attrib.items():
                used += re.findall(r"url\(#([^)]*)\)", text)
                if attribute in ("href", f"{XLINK}href"):
                    assert text.startswith(("#", "data:")), text
                    used += [text[1:]] * text.startswith("#")
        assert used
        assert set(used) <= set(ids)
        several.append(set(ids))
    assert not several[0] & several[1]


@each_figure
def test_an_svg_is_named_scales_and_brings_no_style_or_address(name):
    text = written(name)
    root = ElementTree.fromstring(text)
    assert root.get("aria-label") == 'a "name" & more'
    assert root.get("role") == "group"
    assert "width" not in root.attrib
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    assert (left, top) == (0, 0)
    assert min(width, height) > 50
    assert {e.tag for e in root.iter()}.isdisjoint({f"{SVG}style", f"{SVG}script"})
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"\w+://[^\s\"'<]+", text)) <= namespaces


@each_figure
def test_one_mark_is_reached_with_tab_and_all_say_something(name):
    found_marks = marks_of(ElementTree.fromstring(written(name)))
    assert len(found_marks) > 4
    for text, mark in found_marks.items():
        assert text.strip() == text
        assert mark.get("role") == "img"
        assert re.search(r"\d\.\d\d\d", text)
        assert "id" not in mark.attrib
    assert [mark.get("tabindex") for mark in found_marks.values()] == [
        "0",
        *["-1"] * (len(found_marks) - 1),
    ]


@each_figure
def test_words_are_in_the_ink_of_the_page_or_stand_out_on_their_cell(name):
    root = ElementTree.fromstring(written(name))
    assert "#1a1a1a" not in ElementTree.tostring(root, encoding="unicode").lower()
    cells = [
        (corners(m), fill(m)) for text, m in marks_of(root).items() if re.search(r"layer \d", text)
    ]
    words = list(root.iter(f"{SVG}text"))
    assert words
    for word in words:
        ink = re.search(r"(?:^|; )fill: ([^;]+)", word.attrib["style"])
        assert re.search(r"font[^;]*: [^;]*inherit", word.attrib["style"])
        if ink and ink[1].startswith(("currentColor", "var(--rv-")):
            continue
        x, y = float(word.attrib["x"]), float(word.attrib["y"])
        under = [shade for (l, t, r, b), shade in cells if l < x < r and t < y < b]  # noqa: E741
        assert len(under) == 1, f"{word.text!r} in {ink and ink[1]} on the page itself"
        one, other = sorted((luminance(under[0]), luminance(ink[1] if ink else "#000000")))
        assert (other + 0.05) / (one + 0.05) >= 4.5, f"{word.text} on {under[0]}"


def test_numbers_stand_out_on_every_shade():
    values = np.linspace(-1, 1, 40).reshape(2, 20)
    given = replace(found({"layer": 2, "head": 20}), recovered=torch.tensor(values))
    drawn = marks_of(root := root_of(given.figure()))
    cells = [(corners(mark), luminance(fill(mark))) for mark in drawn.values()]
    written = 0
    for word in root.iter(f"{SVG}text"):
        if re.fullmatch(r"−?\d\.\d\d", "".join(word.itertext())):
            ink = 1.0 if "fill: #ffffff" in word.attrib["style"] else 0.0
            x, y = float(word.attrib["x"]), float(word.attrib["y"])
            for (left, top, right, bottom), shade in cells:
                if left < x < right and top < y < bottom:
                    one, other = sorted((shade, ink))
                    assert (other + 0.05) / (one + 0.05) >= 4.5, word.text
                    written += 1
    assert written == values.size


# --- heat maps ----------------------------------------------------------------------------------

SHAPES = {
    "one axis": {"layer": 4},
    "lying": {"layer": 3, "head": 5},
    "standing": {"position": 6, "head": 2},
    "square": {"head": 3, "layer": 3},
    "a map for each head": {"layer": 2, "position": 5, "head": 3},
    "heads first, layers longer": {"head": 2, "layer": 5, "position": 3},
    "more than are written in": {"layer": 8, "head": 16},
}


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_each_cell_is_where_its_value_belongs_and_says_it(sizes, direction):
    """The longer of a map's two axes lies, its labels rising to the right; row 0 is on top."""
    result = patch_result(sizes, direction)
    shares = (result.values.numpy() + 1.5) / 4
    figure = found(sizes, direction=direction).figure()
    drawn = marks_of(root_of(figure))
    assert len(drawn) == shares.size
    most = max(1, np.abs(shares).max())
    columns: dict[tuple, set] = {}
    lefts: dict[tuple, list] = {}
    panels = {"head": sizes["head"]} if len(sizes) == 3 else {}
    plane = {name: size for name, size in sizes.items() if name not in panels}
    lying = max(plane, key=lambda name: (plane[name], list(plane).index(name)))
    for index in np.ndindex(shares.shape):
        at = dict(zip(sizes, index, strict=True))
        (text,) = [
            text for text in drawn
            if {*re.findall(r"(\w+) (\d+)", text)} == {(name, str(i)) for name, i in at.items()}
        ]  # fmt: skip
        assert text.endswith(f": {signed(shares[index])}")
        shade = plt.get_cmap("RdBu")((shares[index] / most + 1) / 2)
        assert fill(drawn[text]) == to_hex(shade)
        left, top, right, bottom = corners(drawn[text])
        panel = tuple(at[name] for name in panels)
        columns.setdefault((panel, at[lying]), set()).add(round(left, 3))
        upright = tuple(i for name, i in at.items() if name not in (*panels, lying))
        lefts.setdefault((panel, upright), []).append((at[lying], left, top))
        assert right > left
        assert bottom > top
    assert all(len(places) == 1 for places in columns.values()), "a column is one place"
    for line in lefts.values():
        across = [left for _, left, _ in sorted(line)]
        assert all(b > a for a, b in pairwise(across))
        assert len({round(top, 3) for *_, top in line}) == 1
    for panel in {panel for panel, _ in lefts}:
        tops = [line[0][2] for (own, _), line in sorted(lefts.items()) if own == panel]
        assert tops == sorted(tops), "row 0 is on top"


def test_recovered_shares_are_signed_by_colour():
    given = replace(found({"layer": 1, "head": 3}), recovered=torch.tensor([[-1.0, 0.0, 1.0]]))
    low, zero, high = map(fill, marks_of(root_of(given.figure())).values())
    red, _, blue = (int(low[i : i + 2], 16) for i in (1, 3, 5))
    assert red > 2 * blue
    red, _, blue = (int(high[i : i + 2], 16) for i in (1, 3, 5))
    assert blue > 2 * red
    assert luminance(zero) > 0.85


def test_cells_of_a_heat_map_from_a_plain_array():
    figure, axes = plt.subplots()
    values = np.array([[0.0, 0.5], [0.25, 1.0], [0.1, 0.9]])
    texts = [[f"{i} {j} is {values[i, j]:.3f}" for j in range(2)] for i in range(3)]
    bar = marks.cells(axes, values, texts, plt.get_cmap("viridis"), plt.Normalize(0, 2))
    assert bar.get_clim() == (0, 2)
    drawn = marks_of(root_of(figure))
    for (i, j), x in np.ndenumerate(values):
        mark = drawn[texts[i][j]]
        assert fill(mark) == to_hex(plt.get_cmap("viridis")(x / 2))
        left, top, *_ = corners(mark)
        assert left == corners(drawn[texts[0][j]])[0]
        assert top == corners(drawn[texts[i][0]])[1]
    assert corners(drawn[texts[0][0]])[1] < corners(drawn[texts[2][0]])[1]


def test_attention_and_head_scores_say_their_weights():
    pattern = patterns(2, 17).tolist()
    study = {"values": AttentionStudy("ic", {"ila1_labels": 0.5, "tila2": 0.25}, pattern)}
    drawn = [mark for mark in root_of(figures.attention(study)).iter() if mark.get("role") == "img"]
    expected = [
        f"{'q' if i == 16 else 'ol'[i % 2]} {i} to {'q' if j == 16 else 'ol'[j % 2]} {j}: "
        f"{pattern[layer][i][j]:.3f}"
        for layer in range(2) for i in range(17) for j in range(17)
    ]  # fmt: skip
    assert [mark.get("aria-label") for mark in drawn] == expected
    scores = np.random.default_rng(0).random((3, 2, 3))
    figure = intervention_figures.head_scores(HeadScores(*scores.tolist()), TITLES)
    assert said(figure) == [
        f"{title}, layer {layer}, head {head}: {signed(scores[i, layer, head])}"
        for i, title in enumerate(TITLES) for layer in range(2) for head in range(3)
    ]  # fmt: skip


# --- curves and bars ----------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "most"), [(1, 40), (7, 40), (40, 40), (41, 40), (1000, 7)])
def test_points_are_spread_evenly_and_hold_the_last(length, most):
    figure, axes = plt.subplots()
    texts = [f"at {i} is {i * i:.3f}" for i in range(length)]
    squares = [float(i * i) for i in range(length)]
    marks.points(axes, [float(i) for i in range(length)], squares, texts, "#0072B2", most)
    chosen = [texts.index(text) for text in said(figure)]
    assert len(chosen) == min(length, most)
    assert chosen[-1] == length - 1
    assert chosen == sorted(chosen)
    gaps = np.diff(chosen)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_emergence_says_means_over_seeds_and_stands_where_they_are():
    runs = icl_runs()
    drawn = marks_of(root_of(only_first_axes(icl_curves(runs).figure())))
    expected = []
    for name, shortest in (("classic", 7), ("values", 6)):
        both = [run for run in runs if run.run.name == name]
        for i in range(shortest):
            total = sum(run.metrics[i]["test"]["accuracy"] for run in both)
            expected.append(f"{name}, step {500 * (i + 1):,}: {total / 2:.3f}")
    assert list(drawn) == expected
    assert straight([corners(m)[1] for m in drawn.values()], [value(text) for text in drawn])
    steps = [float(re.search(r"step ([\d,]+)", text)[1].replace(",", "")) for text in drawn]
    assert straight([corners(m)[0] for m in drawn.values()], (np.array(steps) / 500).tolist())


def only_first_axes(figure: Figure) -> Figure:
    for axes in figure.axes[1:]:
        axes.remove()
    return figure


def test_language_models_say_means_over_the_steps_that_all_have():
    drawn = np.random.default_rng(1)

    def recorded(streams: str, seed: int, steps: list[int]) -> RecordedRun[LMRun]:
        run = LMRun("x", tiny_config(streams=streams).to_json(), "text", seed)
        return RecordedRun(
            run, [], [{"step": s, "valid_loss": drawn.random() + 1} for s in steps], Path("x")
        )

    runs = [recorded("", 0, [0, 10, 20, 30]), recorded("", 1, [0, 10, 30]),
            recorded("v", 0, [0, 10, 20])]  # fmt: skip
    loss = [{line["step"]: line["valid_loss"] for line in run.metrics} for run in runs]
    assert said(figures.training(runs)) == [
        *(f"classic, step {s}: {(loss[0][s] + loss[1][s]) / 2:.3f}" for s in (10, 30)),
        *(f"values, step {s}: {loss[2][s]:.3f}" for s in (10, 20)),
    ]


def test_curves_of_scaled_links_say_and_show_their_values():
    study = link_study()
    texts = list(drawn := marks_of(root_of(figures.link_edits({"values": study}))))
    expected = []
    for task in TASKS:
        expected += [
            f"values, links scaled by {signed(c, 1).removesuffix('.0')}: "
            f"{NAMES[task]} {signed(accuracies[task])}"
            for c, accuracies in study.scale.items()
        ]
        expected.append(f"values, links mean-ablated: {NAMES[task]} {signed(study.mean[task])}")
    assert texts == expected
    assert straight([corners(drawn[text])[1] for text in texts], [value(text) for text in texts])


def test_ablation_curves_say_the_first_measure_of_whole_groups():
    study = ablation([0.0, 0.5, 2.0])
    of = {(r.links, r.edit): r.measures["logit difference"] for r in study.rows}
    drawn = marks_of(root_of(intervention_figures.ablation_curves(study)))
    expected = []
    for links in ("all", "v1", "v2"):
        for c in (0.0, 0.5, 2.0):
            y = of[links, f"scale {c:g}"]
            expected.append(f"links {links} scaled by {c:g}: logit difference {signed(y)}")
        for edit in ("mean", "resample"):
            expected.append(f"links {links}, {edit}: logit difference {signed(of[links, edit])}")
    assert list(drawn) == expected
    assert straight([corners(m)[1] for m in drawn.values()], [value(text) for text in drawn])


@pytest.mark.parametrize("heads", [0, 9])
def test_many_links_are_heat_maps_of_what_changes(heads: int):
    drawn = np.random.default_rng(1)
    layers = range(1, 30)
    names = ["all", *(f"v{layer}" for layer in layers)]
    names += [f"v{layer}.h{head}" for layer in layers for head in range(heads)]
    rows = [
        AblationRow(name, 1, edit, {"logit difference": drawn.normal()})
        for name in names for edit in ("zero", "mean")
    ]  # fmt: skip
    study = replace(ablation(), measures=["logit difference"], rows=rows)
    figure = intervention_figures.ablated(study)
    clean = study.clean["logit difference"]
    expected = set()
    for row in rows[2:]:
        group, change = row.links, signed(row.measures["logit difference"] - clean)
        layer, _, head = group.removeprefix("v").partition(".h")
        where = f"head {head}" if head else "all heads" if heads else ""
        expected.add(f"{', '.join(filter(None, [row.edit, where]))}, layer {layer}: {change}")
    marks = [mark.get_gid().removeprefix("tip:") for mark in figure.findobj(Rectangle)
             if mark.get_gid()]  # fmt: skip
    assert len(marks) == len(rows) - 2
    assert set(marks) == expected
    assert max(figure.get_size_inches()) < 14
    at_once = signed(rows[0].measures["logit difference"] - clean)
    assert f"all links at once: zero {at_once}" in figure.get_suptitle()
    plt.close(figure)


def lengths(drawn: Marks, side: int) -> list[float]:
    return [corners(mark)[side + 2] - corners(mark)[side] for mark in drawn.values()]


def test_bars_say_what_they_are_as_long_as():
    study = ablation([0.5])
    drawn = marks_of(root_of(intervention_figures.ablated(study)))
    of = {(r.links, r.edit): r.measures["logit difference"] for r in study.rows}
    edits, links = ("zero", "mean", "resample", "scale 0.5"), ("all", "v1", "v2", "v1.0", "v2.3")
    assert list(drawn) == [
        f"links {link}, {edit}: logit difference {signed(of[link, edit])}"
        for edit in edits for link in links
    ]  # fmt: skip
    assert straight(lengths(drawn, 0), [abs(value(text)) for text in drawn])
    models = {
        name: {task: 0.1 * i + 0.2 * j for j, task in enumerate(TASKS)}
        for i, name in enumerate(("classic", "values"))
    }
    drawn = marks_of(root_of(figures.bars(models)))
    assert [text[-6:] for text in drawn] == [
        f"{0.1 * i + 0.2 * j:.4f}" for i in range(2) for j in range(4)
    ]
    assert "values, IC2 (known classes, new labels): 0.5000" in drawn
    assert straight(lengths(drawn, 1), [value(text) for text in drawn])


def test_attribution_says_the_sixteen_largest_shares():
    shares = {f"a0.h{i}": (-1) ** i * 0.1 * i for i in range(1, 20)} | {"v from a0": 5.0}
    figure = circuit_figures.attribution("t", shares)
    drawn = marks_of(root_of(figure))
    largest = [f"a0.h{i}: {signed(shares[f'a0.h{i}'])}" for i in range(5, 20)]
    assert list(drawn) == [*largest, "v from a0: 5.000"]
    assert straight(lengths(drawn, 0), [abs(value(text)) for text in drawn])


def test_faithfulness_and_links_in_training_say_their_curves():
    study = circuit_study([1, 12, 1200], [-0.05, 0.5, 1.1])
    entry = TaskCircuit("t", "margin", "values", 0, "v0", study)
    assert said(figures.faithfulness([entry])) == [
        "v0: edges 1, faithfulness −0.050",
        "v0: edges 12, faithfulness 0.500",
        "v0: edges 1,200, faithfulness 1.100",
    ]
    drawn = np.random.default_rng(2)
    rows = [
        LinkSnapshot(s, *(dict(zip(TASKS, drawn.random(4), strict=True)) for _ in range(2)), {})
        for s in (500, 1000)
    ]
    study = LinkInTraining(ICLRun("values"), [], 1, 1, tuple(rows))
    assert said(study.figures()["link-in-training.png"]) == [
        f"step {row.step:,}, {how}: {NAMES[task]} {accuracies[task]:.3f}"
        for task in TASKS
        for place, how in enumerate(("as trained", "links cut"))
        for row in rows
        for accuracies in [(row.trained, row.cut)[place]]
    ]


# --- circuits -----------------------------------------------------------------------------------


def test_edges_say_their_losses_and_links_their_kind():
    circuit = evaluated_circuit()
    drawn = marks_of(ElementTree.fromstring(written("circuit")))
    assert len(drawn) == len(CIRCUIT)
    for edge, loss in circuit.minimality.items():
        worth = f"the metric's loss without it {signed(loss)}"
        assert f"{edge} ({kind_of_edge(edge)}): {worth}" in drawn


def test_what_no_document_may_hold_is_replaced():
    for token in ("\x01", "\uffff", "$a$", "$"):
        figure = intervention_figures.patched(
            np.array([[0.5]]), {"layer": [0], "position": [0]}, "z", "denoise", tokens=[token],
            model="m$",
        )  # fmt: skip
        ElementTree.fromstring(svg(figure, "x", "p"))
        plt.close(figure)


def test_a_name_with_dollars_is_a_name():
    study = ablation([-1.0, 0.0, 1.0])
    for draw in (intervention_figures.ablated, intervention_figures.ablation_curves):
        assert "w$\\q$" in svg(draw(study, "w$\\q$"), "x", "p")
    assert "w$\\q$" in svg(figures.link_edits({"w$\\q$": link_study()}), "x", "p")
    plt.close("all")
