"""Saved pages and notebook outputs in Chromium: offline, light and dark, wide and narrow."""

import io
import json
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from resval_lens.analyses.display import (
    Display,
    show_attention,
    show_circuit,
    show_link_ablation,
    show_patching,
)
from tests.browser import DESKTOP, PHONE, browser, opened  # noqa: F401  # browser is a fixture
from tests.drawn import NASTY, ablation, evaluated_circuit, patch_result, patterns

pytestmark = pytest.mark.browser

# Blank canvases are of one colour.
DRAWN = """() => {
  const canvases = [...document.querySelectorAll('.rv-circuitsvis canvas')];
  return canvases.length > 0 && canvases.every((canvas) => {
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    return new Set(new Uint32Array(data.buffer)).size > 1;
  });
}"""

# Words that stand out less than 4.5 : 1 from what is painted under them. (WCAG 2.2, 1.4.3)
FAINT = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => {
    const [r, g, b] = numbers(colour).slice(0, 3).map((c) => c / 255)
      .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const page = getComputedStyle(document.body).backgroundColor;
  const under = (text) => {
    const { left, top, width, height } = text.getBoundingClientRect();
    const [x, y] = [left + width / 2, top + height / 2];
    let shade = page;
    for (const path of text.closest('svg').querySelectorAll('path')) {
      if (path.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_PRECEDING) continue;
      const { fill, opacity, fillOpacity } = getComputedStyle(path);
      const at = new DOMPoint(x, y).matrixTransform(path.getScreenCTM().inverse());
      const inside = path.isPointInFill(at);
      if (inside && fill !== 'none' && opacity * fillOpacity > 0.5) shade = fill;
    }
    return shade;
  };
  const faint = [], seen = [];
  for (const word of document.querySelectorAll('body *:not(script, style)')) {
    const own = [...word.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || word.matches('.rv-circuitsvis button')) continue;  // tokens: in its colours
    const style = getComputedStyle(word);
    const view = word.closest('.rv-circuitsvis');
    const paper = view ? getComputedStyle(view).backgroundColor : page;
    const ratio = word.closest('svg')
      ? contrast(style.fill, under(word)) : contrast(style.color, paper);
    seen.push(ratio);
    if (ratio < 4.5) faint.push(`${word.textContent}: ${ratio.toFixed(2)}`);
  }
  return [seen.length, faint];
}"""

ATTENTION = ("attention", "whole model")
BUILT = """document.querySelector('.rv-heads')
  && !document.querySelector('.rv-heads:not([data-ready])')"""
FRAMES = "() => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))"

NAMELESS = """() => [...document.querySelectorAll(
    'svg:not([aria-hidden]), canvas, select, button, [role=region], [role=img], [role=button], '
    + '[role=group]')]
  .filter((element) => !element.getAttribute('aria-label')?.trim()
    && !(element.tagName === 'BUTTON' && element.textContent.trim()))
  .map((element) => element.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def displays() -> dict[str, Display]:
    one, other = patterns(4, 5), patterns(4, 5, seed=1)
    return {
        "small": show_patching(patch_result({"layer": 2, "head": 4})),
        "wide": show_patching(patch_result({"layer": 3, "position": 30}), tokens=["word"] * 30),
        "circuit": show_circuit({"a circuit": evaluated_circuit()}),
        "curves": show_link_ablation(ablation([0.0, 0.5, 1.0])),
        "bars": show_link_ablation(ablation()),
        "attention": show_attention({"classic": one, "values": other}, list("abcde")),
        "whole model": show_attention([patterns(9, 5, seed) for seed in range(5)], list("abcde")),
        "circuitsvis": show_attention(
            {"classic": one, "values": other}, list("abcde"), view="circuitsvis"
        ),
    }


@pytest.fixture(scope="module")
def pages(
    displays: dict[str, Display], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {name: display.save(folder / f"{name}.html") for name, display in displays.items()}


def tip(page: Any) -> str | None:
    """What the tip says; None if there is none."""
    tips = page.locator(".rv-tip").all_text_contents()
    assert len(tips) <= 1
    return tips[0] if tips else None


def focused(page: Any) -> str | None:
    return page.evaluate("document.activeElement.getAttribute('aria-label')")


def middle(page: Any, label: str, nth: int = 0) -> tuple[float, float]:
    """The middle of a mark, scrolled into view."""
    mark = page.get_by_label(label, exact=True).nth(nth)
    mark.scroll_into_view_if_needed()
    page.evaluate(FRAMES)  # a scroll's own event comes with the next
    box = mark.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def labels(page: Any) -> list[str]:
    return page.locator(".rv-mark").evaluate_all("all => all.map(m => m.ariaLabel)")


def pixels(picture: Any) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(picture.screenshot()))


def redrawn(page: Any, picture: Any, before: np.ndarray) -> np.ndarray:
    """The picture as soon as it is another than before."""
    for _ in range(50):
        now = pixels(picture)
        if (now != before).any():
            return now
        page.wait_for_timeout(100)
    raise AssertionError("nothing changed within five seconds")


def colours(picture: Any) -> int:
    drawn = pixels(picture)
    return len(np.unique(drawn.reshape(-1, drawn.shape[-1]), axis=0))


@pytest.mark.parametrize(
    "name",
    ["small", "wide", "circuit", "curves", "bars", "attention", "whole model", "circuitsvis"],
)
def test_a_saved_page_opens_offline_wide_and_narrow(browser, pages, name):  # noqa: F811
    """No errors, no requests, no sideways overflow; all is named; words stand out in the dark."""
    for size, dark in ((DESKTOP, False), (PHONE, True)):
        with opened(browser, pages[name], size, dark, touch=dark) as page:
            if name in ATTENTION:
                page.wait_for_function(BUILT)
            elif name == "circuitsvis":
                page.wait_for_function(DRAWN)
            assert page.title()
            assert page.evaluate(NAMELESS) == []
            words, faint = page.evaluate(FAINT)
            assert words >= (2 if name == "circuitsvis" else 6)
            assert faint == []
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", paper))) < 150) == dark


def test_pointing_at_the_middle_of_a_cell_says_its_value(browser, pages):  # noqa: F811
    with opened(browser, pages["small"]) as page:
        all_labels = labels(page)
        assert len(all_labels) == 8
        for label in all_labels:
            page.mouse.move(*middle(page, label))
            assert tip(page) == label
            box = page.locator(".rv-tip").bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= DESKTOP[0]
            assert page.locator(".rv-tip").get_attribute("role") == "tooltip"
        page.mouse.move(2, 2)
        assert tip(page) is None


def test_marks_are_reached_and_left_by_keyboard(browser, pages):  # noqa: F811
    with opened(browser, pages["small"]) as page:
        all_labels = labels(page)
        page.keyboard.press("Tab")
        assert focused(page) == tip(page) == all_labels[0]
        for key, at in (
            ("ArrowLeft", 0), ("ArrowRight", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("End", 7),
            ("ArrowRight", 7), ("ArrowLeft", 6), ("Home", 0), ("ArrowRight", 1),
        ):  # fmt: skip
            page.keyboard.press(key)
            assert focused(page) == tip(page) == all_labels[at]
            assert page.locator(".rv-mark[tabindex='0']").count() == 1
        page.keyboard.press("Escape")
        assert tip(page) is None
        assert focused(page) == all_labels[1]
        page.keyboard.press("ArrowRight")
        assert tip(page) == all_labels[2]
        page.keyboard.press("Tab")
        assert tip(page) is None
        page.keyboard.press("Shift+Tab")
        assert focused(page) == all_labels[2], "the figure is entered where it was left"


def test_a_mark_off_a_narrow_screen_is_scrolled_to_and_keeps_its_tip(browser, pages):  # noqa: F811
    with opened(browser, pages["wide"], PHONE) as page:
        page.keyboard.press("Tab")
        page.keyboard.press("End")
        page.wait_for_function("document.querySelector('.rv-scroll').scrollLeft > 100")
        page.evaluate(FRAMES)
        assert tip(page) == focused(page) == labels(page)[-1]
        for box in (page.locator(".rv-tip").bounding_box(),
                    page.locator(".rv-mark:focus").bounding_box()):  # fmt: skip
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= PHONE[0]
        page.locator(".rv-scroll").evaluate("place => { place.scrollLeft = 0; }")
        page.keyboard.press("Escape")
        page.evaluate(FRAMES)
        assert tip(page) is None


def test_a_touch_says_the_value_and_another_takes_it_away(browser, pages):  # noqa: F811
    with opened(browser, pages["wide"], PHONE, touch=True) as page:
        for label in (labels(page)[3], labels(page)[40]):
            page.touchscreen.tap(*middle(page, label))
            assert tip(page) == label
        page.touchscreen.tap(PHONE[0] / 2, PHONE[1] - 20)
        assert tip(page) is None


def test_edges_of_a_circuit_say_their_weights(browser, pages):  # noqa: F811
    with opened(browser, pages["circuit"]) as page:
        edges = [label for label in labels(page) if "->" in label]
        assert len(edges) == len(evaluated_circuit().edges)
        for label in edges:
            # The middle of the line itself, wherever it bends.
            x, y = page.get_by_label(label, exact=True).evaluate(
                """path => {
                  const at = path.getPointAtLength(path.getTotalLength() / 2);
                  const { x, y } = at.matrixTransform(path.getScreenCTM());
                  return [x, y];
                }"""
            )
            page.mouse.move(x, y)
            assert tip(page) == label
        assert any("(value link): the metric's loss without it" in label for label in labels(page))


def test_a_point_on_a_curve_appears_when_it_is_pointed_at(browser, pages):  # noqa: F811
    with opened(browser, pages["curves"]) as page:
        figure = page.locator(".rv-figure")
        label = next(text for text in labels(page) if "scaled by 0.5" in text)
        at = middle(page, label)
        box = figure.bounding_box()
        x, y = (round(at[0] - box["x"]), round(at[1] - box["y"]))
        before = pixels(figure)
        page.mouse.move(*at)
        assert tip(page) == label
        page.locator(".rv-tip").evaluate("box => { box.style.visibility = 'hidden'; }")
        after = pixels(figure)
        changed = np.argwhere((before != after).any(-1))
        assert len(changed) > 20
        assert np.abs(changed - [y, x]).max() < 15


def test_circuitsvis_draws_and_its_heads_lock_by_keyboard(browser, pages):  # noqa: F811
    with opened(browser, pages["circuitsvis"]) as page:
        page.wait_for_function(DRAWN)
        places = page.locator(".rv-circuitsvis")
        assert places.count() == 2
        for i, name in enumerate(("classic", "values")):
            assert places.nth(i).get_attribute("aria-label") == f"Attention patterns {name}"
            canvases = places.nth(i).locator("canvas")
            assert canvases.count() == 5
            assert all(colours(canvases.nth(n)) > 4 for n in range(5))
        for _ in range(20):
            page.keyboard.press("Tab")
            if (focused(page) or "").startswith("Head"):
                break
        assert re.fullmatch(r"Head .*0", focused(page))
        large = places.first.locator("canvas").first
        before = pixels(large)
        page.keyboard.press("Enter")
        locked = redrawn(page, large, before)
        page.keyboard.press("Tab")
        assert re.fullmatch(r"Head .*1", focused(page))
        page.wait_for_timeout(100)
        assert (pixels(large) == locked).all(), "it stays locked as the focus goes on"
        page.keyboard.press(" ")
        other = redrawn(page, large, locked)
        assert (other != before).any()
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")
        assert (redrawn(page, large, other) == locked).all(), "the head that was locked first"


def test_tokens_are_shown_as_they_are_and_run_nothing(browser, tmp_path):  # noqa: F811
    tokens = [*NASTY, "<s>", "&amp;", '<img src=x onerror="window.hit = 1">']
    given = patterns(4, len(tokens))
    title = "<script>window.hit = 2</script>"
    names = ["</script><i>first</i>", "<!--", "$$", "<script>"]
    shown = show_attention({title: given}, tokens, names, view="circuitsvis")
    with opened(browser, shown.save(tmp_path / "x.html")) as page:
        page.wait_for_function(DRAWN)
        assert page.locator("h4").first.text_content() == title
        assert page.locator(".rv-circuitsvis button").all_text_contents() == [
            token.replace(" ", "\xa0", 1) for token in tokens
        ]
        assert page.locator("figcaption").all_text_contents() == names
        assert page.locator("main b, main s, main i, main img:not(.rv-still)").count() == 0
        assert page.evaluate("window.hit") is None
    path = show_attention({title: given}, tokens, names).save(tmp_path / "y.html")
    with opened(browser, path) as page:
        page.wait_for_function(BUILT)
        assert page.locator("h4").first.text_content() == title
        assert page.locator("button .rv-word").all_text_contents() == tokens
        assert page.locator(".rv-head").all_text_contents() == names
        assert page.locator("main b, main s, main i, main img").count() == 0
        assert page.evaluate("window.hit") is None


NOTEBOOK = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<body data-jp-theme-light="false" style="background: #111111; color: #e0e0e0"><script>
for (const html of OUTPUTS) {
  const output = document.createElement("div");
  document.body.append(output);
  output.innerHTML = html;
  for (const inert of output.querySelectorAll("script")) {
    const script = document.createElement("script");
    for (const { name, value } of inert.attributes) script.setAttribute(name, value);
    script.textContent = inert.textContent;
    inert.replaceWith(script);
  }
}
</script></body>"""
"""Outputs of cells as JupyterLab puts them on its page, in its dark theme."""


def test_outputs_in_a_notebook_work_even_twice(browser, displays, tmp_path):  # noqa: F811
    several = [
        displays[name]._repr_html_() for name in ("small", "small", "circuitsvis", "circuitsvis")
    ]
    path = tmp_path / "notebook.html"
    path.write_text(NOTEBOOK.replace("OUTPUTS", json.dumps(several).replace("</", "<\\/")))
    with opened(browser, path) as page:
        page.wait_for_function(DRAWN)
        places = page.locator(".rv-circuitsvis")
        assert [places.nth(i).locator("canvas").count() for i in range(4)] == [5] * 4
        ids = page.evaluate("[...document.querySelectorAll('.rv-circuitsvis')].map(x => x.id)")
        assert len(set(ids)) == 4
        assert page.locator(".rv-circuitsvis figure[role=button]").count() == 16
        all_labels = labels(page)
        assert all_labels[:8] == all_labels[8:]
        page.mouse.move(*middle(page, all_labels[5], nth=1))
        assert tip(page) == all_labels[5]
        page.mouse.move(*middle(page, all_labels[2]))
        assert tip(page) == all_labels[2]
        page.mouse.move(1, 1)
        page.evaluate("window.scrollTo(0, 0)")
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowRight")
        assert focused(page) == tip(page) == all_labels[1], "one step for one key"
        words = page.locator(".rv-figure text").first
        ink = words.evaluate("word => getComputedStyle(word).fill")
        assert ink == "rgb(224, 224, 224)", "the notebook's own"
        assert page.evaluate(FAINT)[1] == []
