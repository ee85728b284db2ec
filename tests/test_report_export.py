"""Pages of results: figures and tables saved as files, permalinks, what is folded."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pytest
from PIL import Image
from rich.table import Table
from typer.testing import CliRunner

from resval_lens.analyses.cli.app import app
from resval_lens.analyses.display.page import told_apart
from resval_lens.analyses.display.tables import LONG, html_table
from resval_lens.analyses.drawing.marks import tip
from resval_lens.analyses.report.result_page import drawn_figure, sections_page
from resval_lens.analyses.results.tables import as_csv, table
from tests.browser import DESKTOP, PHONE, browser, opened  # noqa: F401

SVG = "{http://www.w3.org/2000/svg}"


def figure() -> Any:
    drawn, axes = plt.subplots(figsize=(4, 2))
    (bar,) = axes.bar([0], [0.5], color="#0072B2")
    tip(bar, "a bar: 0.5")
    axes.set_ylabel("ein Maß — α")
    return drawn


def long_table() -> Table:
    rows = [("[bold]group one[/bold]", ""), *((f"row {i}", f"{-i / 7:.3f}") for i in range(LONG))]
    return table("Many rows\nand a second line", ("name",), ("value",), rows)


def short_table() -> Table:
    return table(
        "Few, of <b>",
        ("name",),
        ("value",),
        [("a", "1,024"), ("b \N{GREEK SMALL LETTER ALPHA}", "−2")],
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    sections = {
        "First part": f"<h3>A &amp; B</h3>{drawn_figure(figure(), 'The bar', 'below')}",
        "Second part": drawn_figure(figure(), "The bar", "again"),
        "Empty": "",
        "Tables": html_table(long_table()) + html_table(short_table()),
    }
    path.write_text(sections_page("A page", "<p>lead</p>", sections))
    return path


def test_places_have_names_of_their_own(written: Path) -> None:
    html = written.read_text()
    ids = re.findall(r'class="rv-permalink" id="([^"]+)" href="#([^"]+)"', html)
    assert [own for own, _ in ids] == [
        "first-part", "first-part-a-b", "figure-the-bar", "second-part", "figure-the-bar-2",
        "tables", "table-many-rows", "table-few-of-b",
    ]  # fmt: skip
    assert all(own == to for own, to in ids)
    every = re.findall(r'\bid="([^"]+)"', html)
    assert len(every) == len(set(every))
    contents = re.search(r"<nav.*?</nav>", html, re.DOTALL)
    assert contents is not None
    assert re.findall(r'href="#([^"]+)"', contents[0]) == ["first-part", "second-part", "tables"]


def test_a_number_is_added_until_the_name_is_free() -> None:
    places = "".join(f'<a id="{name}" href="#{name}">' for name in ("a", "a-2", "a", "a"))
    assert re.findall(r'id="([^"]+)" href="#\1"', told_apart(places)) == ["a", "a-2", "a-3", "a-4"]


def test_a_table_holds_its_csv(written: Path) -> None:
    held = re.findall(
        r'<script type="application/json" class="rv-csv">(.*?)</script>', written.read_text()
    )
    assert [json.loads(each) for each in held] == [as_csv(long_table()), as_csv(short_table())]


def saved(page: Any, button: str) -> bytes:
    with page.expect_download() as waited:
        page.get_by_role("button", name=button, exact=True).first.click()
    return Path(waited.value.path()).read_bytes()


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_figure_is_saved_as_svg_and_png(browser, written, dark) -> None:  # noqa: F811
    with opened(browser, written, dark=dark) as page:
        text = saved(page, "SVG of The bar")
        png = Image.open(io.BytesIO(saved(page, "PNG of The bar")))
    root = ElementTree.fromstring(text)
    assert "ein Maß — α" in [each.text for each in root.iter(f"{SVG}text")]
    titles = [each.text for each in root.iter(f"{SVG}title")]
    assert titles == ["The bar", "a bar: 0.5"]
    assert b"var(" not in text  # every colour is said
    assert b"rgb(0, 114, 178)" in text  # the light page's blue, whatever the page is
    width, height = (float(root.get(side)) for side in ("width", "height"))
    assert png.size == pytest.approx((3 * width, 3 * height), abs=1.1)
    colours = {colour for _, colour in png.convert("RGB").getcolors(1 << 20)}
    assert {(255, 255, 255), (0, 114, 178)} <= colours
    assert png.getpixel((0, 0))[:3] == (255, 255, 255)


@pytest.mark.browser
def test_a_pdf_is_printed_of_the_figure_alone(browser, written) -> None:  # noqa: F811
    with opened(browser, written) as page:
        page.evaluate("window.print = () => { window.printed = true; }")
        page.get_by_role("button", name="PDF of The bar", exact=True).first.click()
        assert page.evaluate("window.printed")
        page.emulate_media(media="print")
        assert page.locator("main").is_hidden()
        assert page.locator(".rv-printed svg").is_visible()
        pdf = page.pdf(prefer_css_page_size=True)
        assert len(re.findall(rb"/Type /Page\b", pdf)) == 1
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert page.locator("main").is_visible()
        assert page.locator(".rv-printed").count() == 0
        page.emulate_media(media="screen")


@pytest.mark.browser
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_csv_has_the_cells_that_are_shown(browser, written, size) -> None:  # noqa: F811
    with opened(browser, written, size) as page:
        rows = list(csv.reader(io.StringIO(saved(page, "CSV of Few, of <b>").decode())))
        shown = page.eval_on_selector_all(
            'table[aria-label^="Few"] tr',
            "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))",
        )
        assert rows == shown
        long = saved(page, "CSV of Many rows").decode()
        assert long == as_csv(long_table())


@pytest.mark.browser
def test_a_long_table_is_folded_until_it_is_wanted(browser, written) -> None:  # noqa: F811
    with opened(browser, written) as page:
        rows = page.locator('table[aria-label^="Many rows"]')
        assert rows.is_hidden()
        page.locator("summary").focus()
        page.keyboard.press("Enter")
        assert rows.is_visible()
        page.keyboard.press("Enter")
        page.evaluate("location.hash = 'table-many-rows'")
        rows.wait_for(state="visible")
        page.locator("summary").click()
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert rows.is_visible()
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert rows.is_hidden()


@pytest.mark.browser
def test_permalinks_are_reached_by_pointer_and_keyboard(browser, written) -> None:  # noqa: F811
    with opened(browser, written) as page:
        link = page.get_by_role("link", name="Link to Second part", exact=True)
        assert link.evaluate("a => getComputedStyle(a).opacity") == "0"
        page.locator("h2", has_text="Second part").hover()
        assert link.evaluate("a => getComputedStyle(a).opacity") == "1"
        page.mouse.move(0, 0)
        link.focus()
        assert link.evaluate("a => getComputedStyle(a).opacity") == "1"
        page.keyboard.press("Enter")
        assert page.evaluate("location.hash") == "#second-part"
        assert page.url.endswith("#second-part")


def test_any_command_writes_a_page_where_it_is_asked_for(tmp_path: Path) -> None:
    command = ["patch", "stories-small-values", "--prompts", "2", "--quiet", "--out"]
    without = CliRunner().invoke(app, [*command, str(tmp_path / "without")])
    done = CliRunner().invoke(app, [*command, str(tmp_path / "with"), "--page"])
    assert (without.exit_code, done.exit_code) == (0, 0), done.output
    names = {path.name for path in (tmp_path / "without").iterdir()}
    assert {path.name for path in (tmp_path / "with").iterdir()} == names | {"patch.html"}
    html = (tmp_path / "with" / "patch.html").read_text()
    assert "<h1>Patch: stories-small-values, indirect objects, random-S2 corrupted</h1>" in html
    assert "<p>Patch activations: which layers, heads and positions carry the answer?</p>" in html
    assert html.count('class="rv-figure"') == 1
    held = [json.loads(each) for each in re.findall('class="rv-csv">(.*?)</script>', html)]
    assert held == [(tmp_path / "with" / "patch.csv").read_text()]
    found = json.loads((tmp_path / "with" / "patch.json").read_text())
    share = found["recovered"][1][2]
    assert f"layer 1, head 2: {share:.3f}" in html
