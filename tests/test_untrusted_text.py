"""Words that are not ours, in pages, figures and scripts: shown as they are, and nothing else."""

import json
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.markup import escape as markup
from rich.table import Table

from resval_lens.analyses.display import (
    Display,
    page,
    show_attention,
    show_circuit,
    show_link_ablation,
    show_patching,
)
from resval_lens.analyses.display.display import figure_html
from resval_lens.analyses.display.tables import html_table
from resval_lens.analyses.results.tables import as_csv
from resval_lens.analyses.studies.intervention_figures import ablated
from tests.drawn import (
    ablation,
    evaluated_circuit,
    link_study,
    named_ablation,
    patch_result,
    patterns,
)

PIECES = (
    "</script>", "<script>", "<!--", "-->", "]]>", "<![CDATA[", '<img src=x onerror="hit()">',
    "javascript:hit()", "'", '"', "&amp;", "&", "`", "${hit()}", "$", "$x$", "\\", "\\frac{",
    "\u2028", "\u2029", "\ud800", "\udfff", "\x00", "\x1b[31m", "\ufffe", "\u202e", "\u2066",
    "\n", "\t", "[bold]", "[/]", "=cmd|' /C calc'!A0", "</style>", "</svg>",
    "tip:", " ", "a", "<b", "\x85",
)  # fmt: skip
nasty = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=4).map("".join)
anything = st.text(st.characters(), max_size=20) | nasty  # lone surrogates, too
# What no document may hold, and what turns words around, by Unicode's own names of them.
FORBIDDEN = {
    *map(chr, (*range(9), 11, 12, *range(14, 32), *range(0x7F, 0xA0), 0xFFFE, 0xFFFF)),
    *map(chr, (*range(0xD800, 0xE000), *range(0x202A, 0x202F), *range(0x2066, 0x206A))),
}
TAGS = {
    "a", "b", "body", "br", "button", "circle", "clippath", "defs", "div", "figcaption", "figure",
    "g", "h4", "h5", "head", "html", "image", "img", "input", "label", "li", "link", "main", "meta",
    "noscript", "output", "p", "path", "rect", "script", "section", "span", "style", "svg", "table",
    "tbody", "td", "text", "th", "thead", "title", "tr", "tspan", "ul", "use",
} - {"a", "b"}  # fmt: skip


def shown(text: str) -> str:
    """What is left of a text: a sign for each character that may not be."""
    return "".join("\N{REPLACEMENT CHARACTER}" if c in FORBIDDEN else c for c in text)


class Seen(HTMLParser):
    """A document as a browser splits it: tags, attributes, scripts and words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self.words = ""
        self.comments = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.scripts += [""] * (tag == "script")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem is None:
            self.words += data

    def handle_comment(self, _: str) -> None:
        self.comments += 1


def assert_harmless(html: str, *others: str) -> Seen:
    html.encode()  # it can be written
    assert not FORBIDDEN & set(html)
    seen = Seen(html)
    assert seen.tags <= TAGS | {*others}
    assert seen.comments == 0
    for name, value in seen.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,")) or value == "data:,"
    return seen


@given(text=anything)
@settings(max_examples=300, deadline=None)
def test_words_are_themselves_in_an_element_and_in_an_attribute(text: str):
    safe = page.words(text)
    seen = assert_harmless(f"<p title=\"{safe}\" class='{safe}'>{safe}</p>")
    assert [value for _, value in seen.attributes] == [shown(text)] * 2
    assert seen.words == shown(text)
    root = ElementTree.fromstring(f"<p>{safe}</p>")
    assert (root.text or "").replace("\r", "\n") == shown(text).replace("\r\n", "\n").replace(
        "\r", "\n"
    )


@given(content=st.lists(anything) | st.dictionaries(anything, st.lists(anything)))
@settings(max_examples=200, deadline=None)
def test_data_in_a_script_are_one_script_and_themselves(content: Any):
    seen = assert_harmless(page.data(content))
    (script,) = seen.scripts
    # JSON does not tell the two halves of a letter, escaped one by one, from the letter.
    assert json.loads(script) == json.loads(json.dumps(content))
    assert seen.words == ""
    assert not re.search(r"[<\u2028\u2029]", script)


@example(cells=["<i>", '<img src=x onerror="hit()">', "</td><b>"], heading="<s>")
@given(cells=st.lists(anything, min_size=3, max_size=3), heading=anything)
@settings(max_examples=100, deadline=None)
def test_cells_of_a_table_are_words(cells: list[str], heading: str):
    table = Table(title=markup(heading))
    for text in ("first", "second", heading):
        table.add_column(markup(text))
    table.add_row(*map(markup, cells))
    seen = assert_harmless(html_table(table), "a")
    assert {name for name, _ in seen.attributes} <= {
        "class", "role", "tabindex", "aria-label", "scope", "id", "href", "data-of", "type"
    }  # fmt: skip
    assert json.loads(seen.scripts[0]) == as_csv(table)


SHOWN = {
    "attention": lambda t: show_attention({t: patterns(2, 3)}, [t, "b", t], [t, "y"]),
    "circuitsvis": lambda t: show_attention(
        {t: patterns(2, 3)}, [t, "b", t], [t, "y"], view="circuitsvis"
    ),
    "patching": lambda t: show_patching(
        patch_result({"layer": 2, "position": 2}), tokens=[t, "b"], model=t
    ),
    "circuit": lambda t: show_circuit({t: evaluated_circuit()}, roles={"a1.h0": [t]}),
    "bars": lambda t: show_link_ablation(named_ablation(t)),
    "curves": lambda t: show_link_ablation({t: link_study()}),
}


@pytest.mark.filterwarnings("ignore:Glyph ")  # a font has not every character
@pytest.mark.parametrize("name", SHOWN)
@given(text=nasty)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_displays_show_words_and_write_every_format(name: str, text: str, tmp_path):
    display: Display = SHOWN[name](text)
    for html in (display.body, display._repr_html_()):
        bundle = r"<script>window\.CircuitsVis .*?</script>"
        seen = assert_harmless(re.sub(bundle, "", html, flags=re.DOTALL))
        for script in seen.scripts:
            if script.startswith('"'):  # a figure, which comes later
                assert_harmless(json.loads(script))
    text_of_page = display.save(tmp_path / "x.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text_of_page.split("<title>")[0]
    ElementTree.parse(display.save(tmp_path / "x.svg"))
    display.save(tmp_path / "x.pdf")
    display.save(tmp_path / "x.png")


@pytest.mark.filterwarnings("ignore:Glyph ")
@pytest.mark.parametrize("text", PIECES)
def test_every_nasty_piece_is_a_caption_and_a_name(text: str):
    figure = ablated(ablation(), text)
    plt.close(figure)
    html = figure_html(figure, text, text)
    seen = assert_harmless(html)
    assert ("aria-label", shown(text)) in [
        (name, value.replace("&#10;", "\n")) for name, value in seen.attributes
    ]
    assert re.search(r"<figcaption>(.*?)</figcaption>", html, re.DOTALL)
    assert shown(text) in seen.words
