"""A circuit's page in Chromium: slider, folded layers, a pinned node, tips, keyboard, address."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from resval_lens.analyses.circuits.circuit import Circuit, top_n
from resval_lens.analyses.circuits.graph import Graph
from resval_lens.analyses.circuits.scores import EdgeScores
from resval_lens.analyses.display import show_circuit
from tests.browser import DESKTOP, PHONE, browser, opened  # noqa: F401  # browser is a fixture
from tests.drawn import evaluated_circuit
from tests.helpers import tiny_config

pytestmark = pytest.mark.browser

ROLES = {"a1.h0": "name mover", "a2.h1": ["backup", "negative"]}
EDGES = ".rv-edge[data-line]:not(.rv-legend *)"


def scored() -> tuple[Circuit, EdgeScores]:
    """Forty edges of three layers whose values flow, most of them near the input."""
    of = Graph(tiny_config(streams="v", n_layers=3, attn_only=False))
    scores = torch.randn(len(of), generator=torch.Generator().manual_seed(3))
    near = [edge.source in ("input", "a0.h0", "a0.h0<v>", "m0", "a1.h0") for edge in of.edges]
    scores *= torch.tensor(near).float() * 0.9 + 0.1
    return top_n(of, scores, 40), EdgeScores(of, scores, "eap", None, 8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    circuit, scores = scored()
    folder = tmp_path_factory.mktemp("circuit")
    return show_circuit(circuit, scores, "mine", roles=ROLES).save(folder / "circuit.html")


def held(path: Path) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', path.read_text())
    return json.loads(text)


def labels(page: Any, what: str = EDGES) -> list[str]:
    return page.locator(what).evaluate_all("all => all.map(e => e.getAttribute('aria-label'))")


def nodes(page: Any) -> list[str]:
    return page.locator("[data-node]").evaluate_all("all => all.map(e => e.dataset.node)")


def slide(page: Any, n: int) -> None:
    page.locator("input[type=range]").evaluate(
        "(e, n) => { e.value = n; e.dispatchEvent(new Event('input')); }", n
    )


def focused(page: Any) -> str | None:
    return page.evaluate("document.activeElement.dataset.node ?? null")


def check_boxes(page: Any) -> None:
    """None covers another, and none leaves the picture."""
    boxes = page.locator(".rv-node").evaluate_all(
        "all => all.map(e => { const { left, top, right, bottom } ="
        " e.querySelector('rect').getBoundingClientRect(); return [left, top, right, bottom]; })"
    )
    left, top, right, bottom = page.locator(".rv-graph").evaluate(
        "e => { const { left, top, right, bottom } = e.getBoundingClientRect();"
        " return [left, top, right, bottom]; }"
    )
    for one in boxes:
        assert left <= one[0] < one[2] <= right
        assert top <= one[1] < one[3] <= bottom
    for one, other in combinations(boxes, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)


def test_the_slider_leaves_what_pruned_keeps_of_the_strongest(browser, saved):  # noqa: F811
    circuit, scores = scored()
    order = sorted(circuit.edges, key=lambda edge: -abs(scores[edge]))
    with opened(browser, saved) as page:
        assert {text.partition(" (")[0] for text in labels(page)} == set(circuit.edges)
        assert "all 40 edges" in page.locator("output").text_content()
        check_boxes(page)
        for n in (39, 25, 12, 5):
            slide(page, n)
            kept = Circuit.of(circuit.graph, order[:n]).pruned()
            assert {text.partition(" (")[0] for text in labels(page)} == set(kept.edges)
            assert set(nodes(page)) == {*kept.nodes, "input", "logits"}
            said = page.locator("output").text_content()
            assert said.startswith(f"{len(kept)} edge")
            assert f"of the strongest {n} " in said
            check_boxes(page)


def test_a_node_is_pinned_by_click_and_freed_by_escape(browser, saved):  # noqa: F811
    with opened(browser, saved) as page:
        own = [text for text in labels(page) if re.search(r"\ba1\.h0\b", text)]
        page.locator("[data-node='a1.h0']").click()
        faded = labels(page, f"{EDGES}.rv-faded")
        assert sorted(labels(page, f"{EDGES}:not(.rv-faded)")) == sorted(own)
        assert len(faded) == len(labels(page)) - len(own)
        assert sorted(page.locator(".rv-pinned-edges li").all_text_contents()) == sorted(own)
        assert page.locator("[data-node='a1.h0']").get_attribute("aria-pressed") == "true"
        assert page.locator("button").text_content() == "Unpin a1.h0"
        page.keyboard.press("Escape")
        assert labels(page, f"{EDGES}.rv-faded") == []
        assert page.locator(".rv-pinned-edges").is_hidden()
        page.locator("[data-node='a1.h0']").click()
        page.locator("button").click()
        assert labels(page, f"{EDGES}.rv-faded") == []


def test_edges_and_boxes_say_what_they_are(browser, saved):  # noqa: F811
    with opened(browser, saved) as page:
        page.locator("[data-node='a1.h0']").hover()
        assert page.locator(".rv-tip").text_content().startswith("a1.h0 (name mover): ")
        slide(page, 3)
        for line in page.locator(EDGES).all():
            x, y = line.evaluate("""line => {
              const at = line.getPointAtLength(line.getTotalLength() / 2);
              const { x, y } = at.matrixTransform(line.getScreenCTM());
              return [x, y];
            }""")
            page.mouse.move(x, y)
            assert page.locator(".rv-tip").text_content() == line.get_attribute("aria-label")


def test_layers_fold_and_open(browser, saved):  # noqa: F811
    with opened(browser, saved) as page:
        whole = nodes(page)
        heads = [name for name in whole if name.startswith("a1.")]
        assert len(heads) > 1
        page.locator("input[type=checkbox]").check()
        assert not set(heads) & set(nodes(page))
        box = page.locator("[data-node='layer 1']")
        assert box.text_content().startswith(f"{len(heads)} heads, ")
        edges = {e["edge"] for e in held(saved)["lines"]
                 if any(head in heads for head in (e["source"], e["target"]))}  # fmt: skip
        assert box.text_content().endswith(f" {len(edges)} edges")
        check_boxes(page)
        box.click()
        assert set(heads) < set(nodes(page))
        assert "layer 0" in nodes(page)
        check_boxes(page)
        page.locator("[data-node='fold 1']").click()
        assert "layer 1" in nodes(page)
        page.locator("input[type=checkbox]").uncheck()
        assert nodes(page) == whole


def test_everything_is_reached_by_keyboard(browser, saved):  # noqa: F811
    with opened(browser, saved) as page:
        for _ in range(2):
            page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert focused(page) == "logits"
        assert page.locator(".rv-tip").text_content().startswith("logits: ")
        page.keyboard.press("Home")
        assert focused(page) == "input"
        page.keyboard.press("ArrowUp")
        first = focused(page)
        assert first.startswith("a0.")
        page.keyboard.press("ArrowRight")
        assert focused(page) > first
        page.keyboard.press("ArrowLeft")
        assert focused(page) == first
        page.keyboard.press("Enter")
        assert focused(page) == first
        assert labels(page, f"{EDGES}.rv-faded")
        page.keyboard.press("Shift+Tab")  # the edges of what is pinned come before the boxes
        said = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert re.search(rf"\b{re.escape(first)}\b", said)
        assert page.locator(".rv-tip").text_content() == said
        page.keyboard.press("Escape")
        assert labels(page, f"{EDGES}.rv-faded") == []


def test_the_address_keeps_what_is_shown(browser, saved):  # noqa: F811
    with opened(browser, saved) as page:
        slide(page, 25)
        page.locator("[data-node='input']").click()
        page.locator("input[type=checkbox]").check()
        assert page.evaluate("location.hash") == "#n=25&pin=input&group=1"
        before = (nodes(page), labels(page), labels(page, ".rv-faded"))
        page.reload()
        assert (nodes(page), labels(page), labels(page, ".rv-faded")) == before
        page.evaluate("location.hash = '#n=9999&pin=nobody'")
        page.wait_for_function("!document.querySelector('.rv-faded')")
        assert "all 40 edges" in page.locator("output").text_content()


def test_a_deep_circuit_opens_on_a_phone_and_scrolls_in_itself(
    browser, tmp_path  # noqa: F811
):  # fmt: skip
    of = Graph(tiny_config(streams="v", n_layers=12, n_heads=6, attn_only=False))
    scores = EdgeScores(of, torch.linspace(2, -1, len(of)), "eap", None, 1)
    step = len(of) // 300
    circuit = Circuit.of(of, range(0, 300 * step, step))
    path = show_circuit(circuit, scores).save(tmp_path / "x.html")
    for size, dark in ((PHONE, True), (DESKTOP, False)):
        with opened(browser, path, size, dark, touch=dark) as page:
            slide(page, 300)
            assert len(set(labels(page))) == 300
            check_boxes(page)
            page.locator("[data-node='input']").click()
            assert labels(page, f"{EDGES}.rv-faded")


def test_a_report_keeps_its_own_address_and_two_circuits_have_one_each(
    browser, tmp_path  # noqa: F811
):  # fmt: skip
    both = {"one": evaluated_circuit(), "two": evaluated_circuit()}
    path = show_circuit(both).save(tmp_path / "two.html")
    with opened(browser, path) as page:
        page.locator("[data-node='a0.h0']").nth(1).click()
        assert page.evaluate("location.hash") == "#pin1=a0.h0"
        assert page.locator(".rv-pinned").count() == 1
    text = path.read_text().replace("<main>", "<main><section>").replace("</main>", "</section>")
    path.write_text(text)
    with opened(browser, path) as page:
        page.locator("[data-node='a0.h0']").nth(1).click()
        assert page.evaluate("location.hash") == ""
