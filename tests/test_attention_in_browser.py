"""The view of all heads in Chromium: numbers, order, filter, keyboard, themes; fast and small."""

# ruff: noqa: F811  # browser is a fixture

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resval_lens.analyses.attribution.sources import SourceNorms
from resval_lens.analyses.display import show_attention
from tests.browser import PHONE, browser, opened  # noqa: F401
from tests.drawn import patterns
from tests.test_displays_in_browser import BUILT, FRAMES

pytestmark = pytest.mark.browser

TOKENS = ["When", " Mary", " and", " John", " went", " to"]
WHOLE = [patterns(3, 6, seed) for seed in range(4)]
NORMS = SourceNorms(
    torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(0)),
    torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(1)),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attention")
    return show_attention(WHOLE, TOKENS, norms=NORMS).save(folder / "x.html")


def settled(page: Any) -> None:
    page.wait_for_function(BUILT)
    page.evaluate(FRAMES)


def said(page: Any) -> str:
    page.evaluate(FRAMES)
    return page.locator(".rv-said").text_content()


def head_of(page: Any) -> tuple[int, int]:
    """The layer and number of the large head."""
    name = page.locator(".rv-title").text_content()
    return int(name[1]), int(name[4])


def names(page: Any) -> list[str]:
    return page.locator(".rv-head").all_text_contents()


def written(weight: float) -> str:
    return f"{weight:.4f}".replace("0.", ".", 1)


def test_a_cell_says_its_weight_and_what_is_written_along_it(browser, path):
    with opened(browser, path) as page:
        settled(page)
        box = page.locator(".rv-square").bounding_box()
        layer, head = head_of(page)
        for query, key in ((5, 0), (3, 2), (4, 4), (1, 5)):
            page.mouse.move(box["x"] + (key + 0.5) * box["width"] / 6,
                            box["y"] + (query + 0.5) * box["height"] / 6)  # fmt: skip
            weight = WHOLE[layer][head, query, key].item()
            text = f"query {query} ‘{TOKENS[query].strip()}’ → key {key} ‘{TOKENS[key].strip()}’: "
            assert said(page).startswith(text + written(weight))
            numbers = re.findall(r"writes (\S+) of its own values, (\S+) of the link's", said(page))
            if key > query:
                assert numbers == []
                continue
            for number, norms in zip(map(float, numbers[0]), (NORMS.own, NORMS.link), strict=True):
                assert number == pytest.approx(weight * norms[layer, head, key].item(), abs=6e-4)
        page.mouse.move(1, 1)
        assert said(page).startswith("Point at a token")


def test_a_token_shows_its_row_and_its_column_in_every_head(browser, path):
    with opened(browser, path) as page:
        settled(page)
        layer, head = head_of(page)
        weights = WHOLE[layer][head].numpy()
        to, from_ = page.locator(".rv-strip").all()
        assert not from_.is_visible()
        means = [weights[k:, k].mean() for k in range(6)]
        shown = [float(f"0{text or '.0'}") for text in to.locator("small").all_text_contents()]
        assert np.allclose(shown, means, atol=0.0051)
        to.locator(".rv-token").nth(3).hover()
        page.evaluate(FRAMES)
        for strip, wanted in ((to, weights[3]), (from_, weights[:, 3])):
            texts = strip.locator("small").all_text_contents()
            shown = [float(text.replace("1.00", "1") or 0) for text in texts]
            assert np.allclose(shown, wanted, atol=0.0051)
        small = page.locator(".rv-head canvas").nth(5)
        rows = """canvas => [...canvas.getContext('2d').getImageData(0, 0, 6, 6).data]
          .filter((_, i) => i % 4 === 3)"""
        other = page.locator(".rv-head").nth(5).text_content()
        own = WHOLE[int(other[1])][int(other[4])].numpy()
        pixels = np.array(small.evaluate(rows)).reshape(6, 6) / 255
        assert np.allclose(pixels, np.sqrt(own[[3] * 6]), atol=0.01), "the row, in every head"
        page.mouse.move(1, 1)
        page.evaluate(FRAMES)
        pixels = np.array(small.evaluate(rows)).reshape(6, 6) / 255
        assert np.allclose(pixels, np.sqrt(own), atol=0.01), "the whole pattern again"
        to.locator(".rv-token").nth(2).click()
        page.mouse.move(1, 1)
        page.evaluate(FRAMES)
        assert page.get_by_label("Query token").input_value() == "2"
        page.get_by_label("Query token").select_option("")
        page.evaluate(FRAMES)
        assert not from_.is_visible()


def test_sources_are_weights_times_norms(browser, path):
    with opened(browser, path) as page:
        settled(page)
        for query in (None, 4):
            if query is not None:
                page.get_by_label("Query token").select_option(str(query))
                page.evaluate(FRAMES)
            layer, head = head_of(page)
            weights = WHOLE[layer][head].numpy()
            for key, line in enumerate(page.locator(".rv-source").all()):
                if query is not None and key > query:
                    assert not line.is_visible()
                    continue
                weight = weights[key:, key].mean() if query is None else weights[query, key]
                numbers = re.findall(r"own (\S+), link (\S+)", line.text_content())[0]
                for number, norms in zip(numbers, (NORMS.own, NORMS.link), strict=True):
                    wanted = weight * norms[layer, head, key].item()
                    assert float(number) == pytest.approx(wanted, abs=6e-4)


def test_heads_are_ordered_and_filtered(browser, path):
    with opened(browser, path) as page:
        settled(page)
        strongest = names(page)
        assert len(strongest) == 12
        assert page.locator(".rv-title").text_content().startswith(strongest[0])
        page.get_by_label("Order of heads").select_option("layer")
        assert names(page) == [f"a{layer}.h{head}" for layer in range(4) for head in range(3)]
        box = page.get_by_role("textbox")
        for text, wanted in (
            ("2", ["a2.h0", "a2.h1", "a2.h2"]), ("1.2, 3", ["a1.h2", "a3.h0", "a3.h1", "a3.h2"]),
            (".1", [f"a{layer}.h1" for layer in range(4)]), ("a0.h2 h9", ["a0.h2"]),
            ("0-1.0-1", ["a0.h0", "a0.h1", "a1.h0", "a1.h1"]), ("7", []),
        ):  # fmt: skip
            box.fill(text)
            assert names(page) == wanted, text
            assert f"{len(wanted)} of 12" in page.locator(".rv-count").text_content()
        box.fill("x")
        assert len(names(page)) == 12
        assert page.locator(".rv-count").text_content() == "no head is written so: 5, 1.2, .3"
        box.fill("")
        page.get_by_role("button", name="layer 3").click()
        assert names(page) == ["a3.h0", "a3.h1", "a3.h2"]
        assert page.locator(".rv-title").text_content().startswith("a3.")
        page.get_by_role("button", name="layer 3").click()
        assert len(names(page)) == 12
        page.get_by_role("button", name=".2", exact=True).click()
        assert names(page) == [f"a{layer}.h2" for layer in range(4)]


def test_the_keyboard_reaches_all(browser, path):
    with opened(browser, path) as page:
        settled(page)
        order = names(page)

        def focused() -> str:
            return page.evaluate(
                "document.activeElement.ariaLabel || document.activeElement.textContent"
            )

        stops = []
        for _ in range(7):
            page.keyboard.press("Tab")
            stops.append(focused())
        assert stops[0] == "Order of heads"
        assert stops[1].startswith("Heads: ")
        assert stops[2] == "Query token"
        assert stops[3] == order[0]
        assert stops[4].startswith(f"Weights of {order[0]}")
        assert stops[5].startswith("When")
        assert stops[6] == "What is written from each source token"
        for _ in range(3):
            page.keyboard.press("Shift+Tab")
        for key, at in (("ArrowRight", 1), ("End", 11), ("ArrowLeft", 10), ("Home", 0)):
            page.keyboard.press(key)
            page.evaluate(FRAMES)
            assert focused() == order[at]
            assert page.locator(".rv-title").text_content().startswith(order[at])
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowLeft")
        layer, head = head_of(page)
        assert said(page).startswith("query 5 ‘to’ → key 4 ‘went’: "
                                     + written(WHOLE[layer][head, 5, 4].item()))  # fmt: skip
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        assert said(page).startswith("2 ‘and’ attends to")
        page.keyboard.press("Tab")
        assert said(page).startswith("2 ‘and’ attends to"), "Enter keeps it"
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Escape")
        page.keyboard.press("Tab")
        assert said(page).startswith("Point at a token")


def ink(page: Any) -> np.ndarray:
    """The colour of the first weight, of the first head, which is 1."""
    return np.array(page.locator(".rv-square canvas").evaluate(
        "x => [...x.getContext('2d').getImageData(0, 0, 1, 1).data]"))  # fmt: skip


def test_colours_follow_the_theme(browser, path):
    with opened(browser, path, PHONE) as page:
        settled(page)
        light = ink(page)
        page.emulate_media(color_scheme="dark")
        settled(page)
        page.evaluate(FRAMES)
        dark = ink(page)
        assert dark[:3].sum() > light[:3].sum() + 100
        page.emulate_media(color_scheme="light", forced_colors="active")
        settled(page)
        page.evaluate(FRAMES)
        assert ink(page).tolist() == [0, 0, 0, 255]


def test_270_heads_of_40_tokens_answer_within_seconds(browser, tmp_path):
    tokens = [f" token{i}" for i in range(40)]
    shown = show_attention([patterns(9, 40, seed) for seed in range(30)], tokens)
    path = shown.save(tmp_path / "x.html")
    assert path.stat().st_size < 600_000
    began = time.monotonic()
    with opened(browser, path) as page:
        settled(page)
        page.locator(".rv-token").first.hover()
        assert said(page).startswith("0 ‘token0’ attends to")
        assert time.monotonic() - began < 10  # 1 s on a quiet machine
        assert page.locator(".rv-head").count() == 270
