"""Outputs of notebooks: how large they are, that CircuitsVis stands once, and what is drawn when.

In Chromium: every theme, JupyterLab's own rules, outputs that come late or whose scripts are gone.
"""

# ruff: noqa: F811  # browser is a fixture

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resval_lens.analyses.display import (
    Display,
    notebook,
    show,
    show_attention,
    show_circuit,
    show_link_ablation,
    show_patching,
)
from tests.browser import DESKTOP, PHONE, browser, opened  # noqa: F401
from tests.drawn import ablation, evaluated_circuit, patch_result, patterns
from tests.helpers import tiny_model
from tests.test_displays_in_browser import BUILT, DRAWN, FAINT

BUNDLE = "window.CircuitsVis ??="


class Kernel:
    """A kernel as far as outputs see it: the request that it answers."""

    def __init__(self) -> None:
        self.shell = SimpleNamespace(parent_header={})
        self.runs = 0

    def run(self, cell: str | None = None, code: str | None = None) -> str:
        """What ``show_attention`` puts into a notebook in a new run of this cell."""
        self.runs += 1
        self.shell.parent_header = {
            "header": {"msg_id": str(self.runs)},
            "metadata": {} if cell is None else {"cellId": cell},
            "content": {} if code is None else {"code": code},
        }
        return self.more()

    def more(self) -> str:
        """Another output of the same run."""
        return show_attention(patterns(2), list("abcde"), view="circuitsvis")._repr_html_()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(notebook, "_shell", lambda: made.shell)
    monkeypatch.setattr(notebook, "_holder", notebook._Holder())
    return made


def held(outputs: list[str]) -> list[bool]:
    return [BUNDLE in output for output in outputs]


def test_the_script_stands_once_in_a_notebook_and_again_when_its_cell_runs_again(kernel: Kernel):
    outputs = [kernel.run("a", "x"), kernel.more(), kernel.run("b", "y"), kernel.run("b", "y")]
    assert held(outputs) == [True, False, False, False]
    again = [kernel.run("a", "changed"), kernel.more(), kernel.run("b", "y")]
    assert held(again) == [True, False, False]
    assert all(len(output) < 30_000 for output in (*outputs[1:], *again[1:]))


def test_where_cells_have_no_ids_their_source_tells_them_apart(kernel: Kernel):
    assert held([kernel.run(code=code) for code in "xyyxy"]) == [True, False, False, True, False]


def test_a_callback_holds_the_script_only_where_no_cell_does(kernel: Kernel):
    """A slider's output is not kept."""
    assert held([kernel.run(), kernel.run(), kernel.run("a"), kernel.run()]) == [
        True, True, True, False
    ]  # fmt: skip


def test_outputs_that_are_pages_of_their_own_hold_the_script_each(kernel, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    assert held([kernel.run("a"), kernel.run("b")]) == [True, True]


def test_outside_of_notebooks_html_stands_alone():
    shown = show_attention(patterns(2), list("abcde"), view="circuitsvis")
    assert held([shown._repr_html_() for _ in "12"]) == [True, True]
    assert BUNDLE not in show_attention(patterns(2), list("abcde"))._repr_html_()


@pytest.mark.parametrize(("heads", "length", "most"), [(4, 16, 45), (12, 100, 200), (270, 20, 300)])
def test_an_output_is_as_small_as_its_weights_and_draws_no_image_to_save(
    kernel, monkeypatch, heads, length, most
):
    """Thousands of bytes; the image with its tokens is drawn by ``save`` alone."""
    kernel.run("a")
    tokens = [f" token{i}" for i in range(length)]
    drawn = []

    def figure(patterns: Any, tokens: Any, heads: Any) -> Any:
        drawn.append(tokens)
        raise RuntimeError

    monkeypatch.setattr(show, "attention_figure", figure)
    shown = show_attention(patterns(heads, length), tokens)
    assert len(shown._repr_html_()) < 1000 * most
    assert len(shown._repr_png_()) < 120_000
    assert drawn == []
    with pytest.raises(RuntimeError):
        shown.save("x.png")
    assert drawn == [tokens]


def test_circuits_and_heat_maps_bring_a_small_image():
    for shown in (show_patching(patch_result({"layer": 4, "head": 8})),
                  show_circuit({"a circuit": evaluated_circuit()})):  # fmt: skip
        assert len(shown._repr_png_()) < 40_000
        assert len(shown._repr_html_()) < 250_000


# --- in a browser -------------------------------------------------------------------------------

# Attributes of <html> and <body>, the page's and the words' colours.
THEMES = {
    "JupyterLab": ("", 'data-jp-theme-light="true"', "#ffffff", "#000000"),
    "JupyterLab dark": ("", 'data-jp-theme-light="false"', "#111111", "#ffffff"),
    "VS Code": ("", 'class="vscode-light"', "#ffffff", "#3b3b3b"),
    "VS Code dark": ("", 'class="vscode-dark"', "#1e1e1e", "#cccccc"),
    "VS Code high contrast": ("", 'class="vscode-high-contrast"', "#000000", "#ffffff"),
    "VS Code high contrast light": (
        "", 'class="vscode-high-contrast vscode-high-contrast-light"', "#ffffff", "#292929",
    ),
    "Colab": ("", "", "#ffffff", "#212121"),
    "Colab dark": ('theme="dark"', "", "#383838", "#d5d5d5"),
    "another dark one": ("", "", "#002b36", "#eee8d5"),
}  # fmt: skip

# JupyterLab's rules for what outputs hold.
RULES = """.jp-RenderedHTMLCommon { line-height: 1.5; padding-right: 20px; }
.jp-RenderedHTMLCommon svg, .jp-RenderedHTMLCommon img { max-width: 100%; height: auto; }
.jp-RenderedHTMLCommon h4 { font-weight: 500; margin: 1em 0 .5em; }
.jp-RenderedHTMLCommon table { border-collapse: collapse; table-layout: fixed; margin: 0 auto; }
.jp-RenderedHTMLCommon tbody tr:hover { background: #42a5f533; }"""

# What JupyterLab's sanitizer and GitHub's leave of an output that they do not trust.
SANITIZED = """() => {
  for (const part of document.querySelectorAll("script, style")) part.remove();
  for (const part of document.querySelectorAll("svg, canvas")) part.replaceWith(part.textContent);
}"""


@pytest.fixture(scope="module")
def outputs() -> dict[str, str]:
    one, other = patterns(4, 5), patterns(4, 5, seed=1)
    shown: dict[str, Any] = {
        "heat map": show_patching(patch_result({"layer": 2, "head": 4})),
        "circuit": show_circuit({"a circuit": evaluated_circuit()}),
        "bars": show_link_ablation(ablation()),
        "attention": show_attention({"classic": one, "values": other}, list("abcde")),
        "circuitsvis": show_attention(
            {"classic": one, "values": other}, list("abcde"), view="circuitsvis"
        ),
        "model": tiny_model("v"),
    }
    return {name: each._repr_html_() for name, each in shown.items()}


def laid_out(to: Path, cells: list[str], theme: str = "JupyterLab", scripts: bool = True) -> Path:
    """A notebook's page with these outputs, which it adds one after the other."""
    html, body, page, ink = THEMES[theme]
    put = """for (const html of CELLS) {
      const output = document.createElement("div");
      output.className = "jp-RenderedHTMLCommon";
      document.body.append(output);
      output.innerHTML = html;
      for (const inert of SCRIPTS ? output.querySelectorAll("script") : []) {
        const script = document.createElement("script");
        for (const { name, value } of inert.attributes) script.setAttribute(name, value);
        script.textContent = inert.textContent;
        inert.replaceWith(script);
      }
    }"""
    put = put.replace("CELLS", json.dumps(cells).replace("</", "<\\/"))
    to.write_text(
        f'<!doctype html><html {html}><meta charset="utf-8"><link rel="icon" href="data:,">'
        f"<style>{RULES} body {{ background: {page}; color: {ink}; font-family: sans-serif }}"
        f"</style><body {body}><script>{put.replace('SCRIPTS', json.dumps(scripts))}</script>"
        "</body></html>"
    )
    return to


@pytest.mark.browser
@pytest.mark.parametrize("theme", THEMES)
def test_words_stand_out_in_every_theme(browser, outputs, tmp_path, theme):
    path = laid_out(tmp_path / "x.html", list(outputs.values()), theme)
    for size in (DESKTOP, PHONE):
        with opened(browser, path, size) as page:
            page.wait_for_function(DRAWN)
            words, faint = page.evaluate(FAINT)
            assert words > 60
            assert faint == []


@pytest.mark.browser
def test_words_stand_out_when_the_theme_changes(browser, outputs, tmp_path):
    path = laid_out(tmp_path / "x.html", [outputs["circuit"]], "another dark one")
    with opened(browser, path) as page:
        page.evaluate("""() => {
          document.body.style.cssText = "background: #ffffff; color: #000000";
          document.documentElement.className = "light";
        }""")
        page.wait_for_function("!document.querySelector('.rv[data-light-ink]')")
        assert page.evaluate(FAINT)[1] == []


@pytest.mark.browser
def test_figures_keep_their_size_against_the_rules_of_a_notebook(
    browser,
    outputs,
    tmp_path,
):
    path = laid_out(tmp_path / "x.html", [outputs["heat map"], outputs["circuit"]])
    with opened(browser, path) as page:
        for figure in page.locator(".rv-figure").all():
            own = float(figure.evaluate("x => x.style.getPropertyValue('--rv-width')")[:-2])
            width = figure.bounding_box()["width"]
            assert own - 1 <= width <= 1.25 * own + 1
            assert width < 700 < DESKTOP[0]


@pytest.mark.browser
def test_without_scripts_an_image_stands_for_each_picture(
    browser,
    outputs,
    tmp_path,
):
    """Nothing but images and titles: no word of a figure or of a script is left over."""
    chosen = [outputs[name] for name in ("heat map", "circuit", "circuitsvis", "attention")]
    path = laid_out(tmp_path / "x.html", chosen, scripts=False)
    with opened(browser, path) as page:
        page.evaluate(SANITIZED)
        images = page.locator("img")
        assert images.count() == 5
        for image in images.all():
            assert image.get_attribute("alt")
            assert image.is_visible()
            assert image.evaluate("x => x.complete && x.naturalWidth") > 100
        assert page.evaluate("document.body.innerText").split() == ["classic", "values"]


@pytest.mark.browser
def test_with_scripts_no_image_is_left(browser, outputs, tmp_path):
    path = laid_out(tmp_path / "x.html", list(outputs.values()))
    with opened(browser, path) as page:
        page.wait_for_function(DRAWN)
        page.wait_for_function(BUILT)
        assert page.locator("img").count() == 6
        assert page.locator("img:visible").count() == 0


@pytest.mark.browser
def test_the_script_may_come_after_those_that_need_it_or_never(
    browser,
    outputs,
    tmp_path,
):
    """A notebook that is scrolled to its end may put its first outputs on the page last."""
    first = outputs["circuitsvis"]
    later = re.sub(rf"<script>{re.escape(BUNDLE)}.*?</script>", "", first, flags=re.DOTALL)
    assert len(later) < 60_000 < len(first)
    with opened(browser, laid_out(tmp_path / "x.html", [later, first])) as page:
        page.wait_for_function(DRAWN)
        places = page.locator(".rv-circuitsvis")
        assert [places.nth(i).locator("canvas").count() for i in range(4)] == [5] * 4
    with opened(browser, laid_out(tmp_path / "y.html", [later, later])) as page:
        assert page.locator("img:visible").count() == 4
        assert page.locator(".rv-circuitsvis:visible").count() == 0


def test_all_of_a_display_is_drawn_when_it_is_asked_for():
    asked: list[str] = []

    def draw(kind: str) -> bytes:
        asked.append(kind)
        return b"drawn"

    def small() -> bytes:
        asked.append("small")
        return b"small"

    display = Display("x", "<p>y</p>", draw, small)
    assert asked == []
    display._repr_html_()
    display._repr_png_()
    assert asked == ["small"]
