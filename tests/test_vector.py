"""Figures as SVG files: words are text, colours follow the theme; and plain ticks of log axes."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pytest

from resval_lens.analyses.display.svg import inlined
from resval_lens.analyses.drawing.figures import STYLE, logarithmic, save
from resval_lens.analyses.drawing.marks import points
from resval_lens.analyses.drawing.vector import INKS, PAPER, vector
from tests.browser import browser  # noqa: F401

SVG = "{http://www.w3.org/2000/svg}"
CSS = Path(__file__).parent.parent / "analyses" / "display" / "page.css"


def figure():
    with plt.rc_context(STYLE):
        drawn, axes = plt.subplots()
        axes.plot([0, 1], [0, 1 / 3], color="#0072B2", label="one")
        points(axes, [0, 1], [0, 1 / 3], ["first: 0.000", "last: 0.333"], "#0072B2")
        axes.set(title="A title", xlabel="steps")
        return drawn


def closed(make=figure):
    drawn = make()
    text = vector(drawn)
    plt.close(drawn)
    return text


def test_a_file_is_the_same_each_time_and_its_words_are_text(tmp_path):
    path = save(figure(), tmp_path / "x.svg")
    assert path.read_text() == closed()
    root = ElementTree.parse(path).getroot()
    assert {"A title", "steps"} <= {text.text for text in root.iter(f"{SVG}text")}
    assert not re.search(r' d="[^"]*\.\d{3}', path.read_text())


def test_rounding_moves_nothing_by_more_than_a_hundredth():
    exact = figure()
    exact.canvas.draw()
    (line,) = [each for each in exact.axes[0].get_lines() if each.get_label() == "one"]
    places = exact.axes[0].transData.transform(line.get_xydata()) * 72 / exact.dpi
    plt.close(exact)
    drawn = re.search(r'<path d="M ([\d. ]+)\nL ([\d. ]+)\n" [^>]*stroke: #0072b2', closed())
    (x, y), (right, top) = ([float(each) for each in drawn[i].split()] for i in (1, 2))
    assert right - x == pytest.approx(places[1, 0] - places[0, 0], abs=0.01)
    assert y - top == pytest.approx(places[1, 1] - places[0, 1], abs=0.01)


def test_a_file_in_a_page_has_marks_and_neither_style_nor_ground():
    drawing = inlined(closed(), "a name", "p")
    root = ElementTree.fromstring(drawing)
    marks = [each.get("aria-label") for each in root.iter() if each.get("class") == "rv-mark"]
    assert marks == ["first: 0.000", "last: 0.333"]
    assert f"{SVG}style" not in {each.tag for each in root.iter()}
    assert not re.search(r'id="p-patch_1"|fill: #ffffff(?!; opacity: 0)', drawing)
    assert "var(--rv-blue, #0072b2)" in drawing


def test_the_dark_colours_are_those_of_pages():
    light, dark = re.findall(r"--rv-paper: #.*?}", CSS.read_text(), re.DOTALL)[:2]
    for name, shade in {*INKS.values(), ("paper", PAPER)}:
        assert f"--rv-{name or 'ink'}: {shade};" in dark
    for colour, (name, _) in INKS.items():
        if colour not in ("#000000", "#333333", "#666666", "#999999"):  # near to another
            assert f"--rv-{name or 'ink'}: {colour};" in light


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "words", "ground"), [
    ("light", "rgb(26, 26, 26)", "rgb(255, 255, 255)"),
    ("dark", "rgb(230, 230, 230)", "rgb(22, 25, 29)"),
])  # fmt: skip
def test_a_file_follows_the_theme(browser, tmp_path, scheme, words, ground):  # noqa: F811
    path = save(figure(), tmp_path / "x.svg")
    with browser.new_context(color_scheme=scheme) as context:
        page = context.new_page()
        page.goto(path.as_uri())
        fill = "(found) => getComputedStyle(found).fill"
        assert page.locator("text").first.evaluate(fill) == words
        assert page.locator("#patch_1 path").evaluate(fill) == ground


@pytest.mark.parametrize(
    ("data", "at", "ticks"),
    [
        ([1, 479], None, ["1", "10", "100"]),
        ([8, 2_500], None, ["10", "100", "1,000"]),
        ([20, 70], None, ["20", "50"]),
        ([0.001, 0.9], None, ["0.001", "0.01", "0.1", "1"]),
        ([128, 2_048], [128, 256, 2_048], ["128", "256", "2,048"]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_plain(data, at, ticks):
    drawn, axes = plt.subplots()
    axes.plot(data, data)
    logarithmic(axes, "x", "y", at=at)
    drawn.canvas.draw()
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        assert axis.get_scale() == "log"
        shown = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        assert [label.get_text() for place, label in shown if low <= place <= high] == ticks
        assert not any(label.get_text() for label in axis.get_minorticklabels())
    plt.close(drawn)


@pytest.mark.parametrize(
    ("chosen", "kept"), [("matplotlib.use('pdf'); ", "pdf"), ("import matplotlib.pyplot; ", "agg")]
)
def test_a_backend_that_was_chosen_before_stays(chosen: str, kept: str) -> None:
    """So that figures of one's own still show in a notebook."""
    code = f"import matplotlib; {chosen}import resval_lens.analyses.studies.circuit_figures; "
    code += "print(matplotlib.get_backend())"
    environment = {name: x for name, x in os.environ.items() if name != "MPLBACKEND"}
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True,
        env=environment, check=True,
    )  # fmt: skip
    assert found.stdout.strip().lower() == kept
