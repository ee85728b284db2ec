"""The page of ``compare --report``: all of it, true to compare.json, in a browser without a net."""

import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from resval_lens.analyses.cli import compare as compare_command
from resval_lens.analyses.cli.app import app
from resval_lens.analyses.cli.reporting import report
from resval_lens.analyses.comparison.circuit_compare import (
    ComparedCircuits,
    ComparedModel,
    compared_models,
)
from resval_lens.analyses.comparison.compare_parts import Comparison, Sizes, compare_all
from resval_lens.analyses.comparison.icl_emergence import paper_runs
from resval_lens.analyses.comparison.lm_compare import (
    GRAFTED,
    AttentionOnPrompt,
    ComparedLanguageModels,
    NotCompared,
    compare_language_models,
)
from resval_lens.analyses.report.compare_page import compare_page
from resval_lens.analyses.results.result import plain
from resval_lens.analyses.studies.ioi import ioi_scores
from resval_lens.analyses.tasks import TASKS, Asked
from resval_lens.load import Loaded
from resval_lens.tasks.ioi import encode
from resval_lens.tasks.stories import ioi_prompts
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import load_runs
from tests.browser import PHONE, browser, opened  # noqa: F401
from tests.drawn import heads_shown, kind_of_edge, signed
from tests.drawn import value as number_in

FEW = ("--sequences=40", "--link-sequences=20", "--circuit-sequences=8", "--prompts=4")
DRAWN = "document.querySelectorAll('.rv-heads[data-ready]').length == 4"
VOID = {"meta", "link", "br", "img", "input", "hr"}


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> tuple[Path, Comparison]:
    """What ``compare --report`` writes, and its output; and what it reports."""
    to, studies = tmp_path_factory.mktemp("compare"), []

    def kept(study: Comparison, *args: Any, **options: Any) -> None:
        studies.append(study)
        report(study, *args, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compare_command, "report", kept)
        done = CliRunner().invoke(app, ["compare", *FEW, "--report", str(to), "--quiet"])
    assert done.exit_code == 0, done.output
    (to / "stdout.txt").write_text(done.stdout)
    return to, studies[0]


@pytest.fixture(scope="module")
def folder(reported: tuple[Path, Comparison]) -> Path:
    return reported[0]


@pytest.fixture(scope="module")
def study(reported: tuple[Path, Comparison]) -> Comparison:
    return reported[1]


@pytest.fixture(scope="module")
def data(folder: Path) -> dict:
    return json.loads((folder / "compare.json").read_text())


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return (folder / "report.html").read_text()


class Reader(HTMLParser):
    """Checks that tags close in order, and gathers ids, links and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.labels: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" and "id" not in given else []
        self.labels += [given["aria-label"]] if given.get("class") == "rv-mark" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not set(self.open) & {"script", "style"}:
            self.text += data


@pytest.fixture(scope="module")
def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


def test_every_section_is_there_and_the_contents_lead_to_it(read: Reader):
    headings = ("What was compared", "Accuracy and emergence", "Attention",
                "Links ablated", "Activations patched", "Circuits", "What links carry",
                "The four cells", "What else was found", "Provenance")  # fmt: skip
    assert [link.removeprefix("#") for link in read.links] == [
        heading.lower().replace(" ", "-") for heading in headings
    ]
    assert {link.removeprefix("#") for link in read.links} <= set(read.ids)
    assert len(read.ids) == len(set(read.ids))


def test_what_was_found_is_said_and_three_of_it_lead(read: Reader, data: dict, html: str):
    for sentence in data["found"]:
        assert sentence in read.text
    before_contents = read.text.split("What was compared")[0]
    after_figures = read.text.split("What else was found")[-1]
    for number, sentence in enumerate(data["found"]):
        assert sentence in (before_contents if number < 3 else after_figures)
    assert html.split("<nav")[0].count('class="rv-figure"') == 3
    for sentence, what in zip(
        data["found"][:3],
        ("fewer training steps", "with every link corrupted", "change the logit difference by"),
        strict=True,
    ):
        assert what in sentence
        assert re.search(r"\d", sentence)
    assert len(data["found"]) == len(set(data["found"]))


def test_nothing_is_fetched_and_the_page_is_small(html: str):
    assert len(html.encode()) < 8_000_000
    assert "window.CircuitsVis ??=" not in html
    outside = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert set(re.findall(r"https?://[^\s\"'<>)]+", outside)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "default-src 'none'" in html
    assert not re.search(r'<(script|img|link|iframe)[^>]+src=(?!"data:image/png;base64,)', outside)


def test_heat_maps_say_the_numbers_of_the_data(read: Reader, data: dict):
    for found in data["language_models"]["patched"]:
        one, other = found["axes"]
        expected = {
            f"{one} {row}, {other} {column}: {signed(value)}"
            for row, line in zip(found["axes"][one], found["recovered"], strict=True)
            for column, value in zip(found["axes"][other], line, strict=True)
        }
        assert expected <= set(read.labels), found["site"]


def held(html: str) -> list[Any]:
    """What scripts draw, in the order of the page."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', html)
    return list(map(json.loads, found))


def test_circuits_say_the_weights_of_their_edges(html: str, data: dict):
    shown = [each for each in held(html) if "lines" in each]
    assert len(shown) == len(data["circuits"]["drawn"])
    for each, entry in zip(shown, data["circuits"]["drawn"], strict=True):
        circuit, texts = entry["circuit"], {line["text"] for line in each["lines"]}
        assert f"<h4>{entry['title']}</h4>" in html
        assert len(texts) == len(circuit["edges"])
        for edge in circuit["edges"]:
            weight = circuit["minimality"][edge]
            assert any(
                text.startswith(f"{edge} ({kind_of_edge(edge)})")
                and number_in(text) == pytest.approx(weight, rel=0.05, abs=6e-4)
                for text in texts
            ), edge


def test_attention_is_the_models_own(html: str, data: dict):
    shown = heads_shown(html)
    assert len(shown) == 4
    for each, name in zip(shown, ("classic", "values"), strict=False):
        assert np.allclose(each["weights"], data["attention"][name]["mean_pattern"], atol=6e-5)
        assert each["names"] == ["layer 0", "layer 1"]
    for each, models in zip(shown[2:], compared_models(), strict=True):
        chosen = TASKS["ioi"].draw(Loaded(models.name, models.model), 1, Asked(0))
        end = int(chosen.pairs.answers[0]) + 1
        _, cache = models.model.run_with_cache(chosen.pairs.clean[:, :end])
        own = torch.cat([cache["pattern", layer][0] for layer in range(4)])
        assert np.allclose(each["weights"], own, atol=1e-4)
        assert len(each["tokens"]) == end


def test_provenance_is_shown_whole(read: Reader, data: dict):
    text = read.text.split("Provenance")[-1]
    for value in (data["provenance"]["command"], data["provenance"]["created"],
                  *data["provenance"]["versions"].values()):  # fmt: skip
        assert value in text
    for name, value in data["settings"].items():
        assert f"{name}{value}" in text


def test_paths_of_all_files_are_printed(folder: Path):
    said = (folder / "stdout.txt").read_text().replace("\n", "")
    for name in ("report.html", "compare.json", "circuits.png"):
        assert str(folder / name) in said


def test_every_table_is_whole_in_a_terminal_of_80_columns(folder: Path):
    tables = (folder / "stdout.txt").read_text().split("•")[0]
    assert "Circuits:" in tables
    assert "…" not in tables
    assert all(len(line) <= 80 for line in tables.splitlines())


def test_text_of_models_cannot_break_the_page(study: Comparison, data: dict):
    name = "</script><b>&\"'\u202e\ud800\x00[/]$"
    shown = "</script><b>&\"'���[/]$"
    models = study.language_models
    changed = replace(
        models,
        scores={name: next(iter(models.scores.values()))},
        attention=replace(
            models.attention, models={name: next(iter(models.attention.models.values()))}
        ),
        links={name: next(iter(models.links.values()))},
    )
    found = [f"<i>{name}", *data["found"]]
    made = data["provenance"] | {"command": f"command {name}", "machine": name}
    page = compare_page(
        replace(study, language_models=changed),
        data | {"found": found, "provenance": made},
        paper_runs(load_runs(ICLRun)),
        load_runs(LMRun),
    )
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    page.encode()
    assert f"<i>{shown}" in unescape(reader.text)
    assert f"command {shown}" in unescape(reader.text)
    assert not set("\u202e\ud800\x00") & set(page)
    assert "<b>" not in page


def test_models_without_links_or_sentences_make_a_page(study: Comparison, data: dict):
    """What is not there is said, not stumbled over."""
    of_classifiers = [each for each in study.circuits.circuits if each.task.startswith("IC")]
    few = replace(
        study,
        classifiers=replace(study.classifiers, links={}, four_cells=None),
        language_models=replace(
            study.language_models,
            scores={},
            links={},
            patched=[],
            four_cells=[],
            attention=AttentionOnPrompt(None, {}),
        ),
        lm_emergence=NotCompared("they differ"),
        circuits=ComparedCircuits(tuple(of_classifiers), (), ()),
    )
    page = compare_page(few, {"provenance": data["provenance"]}, paper_runs(load_runs(ICLRun)), [])
    assert "None of these models has links." in page
    assert "are not drawn: they differ." in page
    Reader().feed(page)


# The numbers themselves, found another way.


@pytest.fixture(scope="module")
def compared() -> ComparedLanguageModels:
    return compare_language_models(compared_models(), prompts=6, seed=3)


def test_cutting_every_link_is_running_without_the_stream(compared: ComparedLanguageModels):
    cells = compared.four_cells[0].found.cells
    for name, without, whole in (
        ("stories-small-values", cells.removed, cells.stream),
        (f"stories-small-classic{GRAFTED}", cells.classic, cells.grafted),
    ):
        study = compared.links[name].study
        (cut,) = (
            row.measures["logit difference"]
            for row in study.rows
            if row.links == "all" and row.edit == "zero"
        )
        assert cut == pytest.approx(without.logit_difference, abs=1e-4)
        clean = study.clean["logit difference"]
        assert clean == pytest.approx(whole.logit_difference, abs=1e-4)


def test_a_patched_head_is_a_plain_hook(compared: ComparedLanguageModels):
    for each in compared_models():
        (found,) = (
            entry for entry in compared.patched
            if entry.facts.model == each.name and entry.site == "z"
        )  # fmt: skip
        pairs = TASKS["ioi"].draw(Loaded(each.name, each.model), 6, Asked(3)).pairs
        rows = torch.arange(len(pairs))
        with torch.no_grad():
            _, clean = each.model.run_with_cache(pairs.clean)

            def take(z, hook, layer=1, head=2, clean=clean):
                z[:, :, head] = clean["z", layer][:, :, head]
                return z

            hooked = each.model.run_with_hooks(
                pairs.corrupted, fwd_hooks=[("blocks.1.attn.hook_z", take)]
            )
        last = hooked[rows, pairs.answers]
        io, subject = pairs.labels.T
        metric = (last[rows, io] - last[rows, subject]).mean().item()
        expected = (metric - found.base) / (found.source - found.base)
        assert found.recovered[1, 2].item() == pytest.approx(expected, abs=2e-4)


def test_scores_are_those_of_the_prompts(compared: ComparedLanguageModels):
    drawn = ioi_prompts(6, 3, "unseen", "unseen", "unseen")
    for each in compared_models():
        tokenizer = each.model.tokenizer
        expected = ioi_scores(each.model, encode(drawn, tokenizer, tokenizer.eos_token_id))
        own = compared.scores[each.name].scores
        assert plain(own) == pytest.approx(plain(expected), abs=1e-5)


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="prompts must be 1 or more; got 0"):
        compare_language_models(compared_models(), prompts=0)


def test_links_of_queries_are_patched_and_kinds_stay_apart(study: Comparison, data: dict):
    """Models with other streams: each with its own links, cells and name."""
    classic = compared_models()[0]
    models = [classic] + [
        ComparedModel(f"mine-{streams}", 0, classic.model.with_streams(streams))
        for streams in ("q", "qv")
    ]
    found = compare_language_models(models, prompts=4)
    sites = {(each.facts.model, each.site) for each in found.patched}
    assert {("mine-q", "q_link"), ("mine-qv", "q_link"), ("mine-qv", "v_link")} <= sites
    assert not any(site.endswith("_link") for name, site in sites if name == classic.name)
    assert [pair.architecture for pair in found.four_cells] == ["queries", "qv"]
    runs = paper_runs(load_runs(ICLRun))
    page = compare_page(replace(study, language_models=found), data, runs, [])
    for kind in ("queries", "qv"):
        assert f"Language models, classic and {kind}: the same weights" in page
    assert "what arrives over the query links" in page


def test_classifiers_of_other_streams_alone_are_compared():
    runs = [each for each in load_runs(ICLRun) if each.run.name == "queries" and each.has_model]
    circuits = compare_all(runs, [], Sizes(20, 20, 8, 4, 0)).circuits
    assert circuits.circuits == ()
    assert circuits.drawn == {}
    assert circuits.sentences() == []


def test_circuits_name_their_own_task(html: str, data: dict):
    drawn = [each["title"] for each in data["circuits"]["drawn"]]
    assert {title.split(": ")[1] for title in drawn} == {"IOI (ABC)", "IOI (random-S2)"}
    for title in drawn:
        assert html.count(f'aria-label="Circuits: {title}"') == 2  # the part, and its picture
    assert "faithfulness of 0.85 by log P(IO)" in html.split('class="rv-circuits"')[1]


def test_every_figure_speaks_and_every_table_is_the_file_beside_it(html: str, folder: Path):
    figures = re.findall(r'<svg[^>]*class="rv-figure".*?</svg>', html, re.DOTALL)
    assert len(figures) == html.count('<div class="rv-tools" data-of=') - html.count("<table")
    for figure in figures:
        assert figure.count('class="rv-mark"') > 1, re.findall('aria-label="[^"]*"', figure)[0]
    held = [json.loads(each) for each in re.findall('class="rv-csv">(.*?)</script>', html)]
    assert len(held) == html.count("<table")
    beside = {path.read_text() for path in folder.glob("compare-*.csv")}
    assert beside <= set(held)


@pytest.mark.browser
@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
def test_a_browser_draws_every_figure(browser, folder, html, phone):  # noqa: F811
    size = {"size": PHONE} if phone else {}
    with opened(browser, folder / "report.html", dark=phone, **size) as page:
        figures = page.locator(".rv-figure")
        assert figures.count() == html.count('class="rv-figure"') >= 12
        for number in range(figures.count()):
            box = figures.nth(number).bounding_box()
            assert box["width"] > 200
            assert box["height"] > 80
            assert figures.nth(number).get_attribute("aria-label")
        page.wait_for_function(DRAWN)
        names = page.eval_on_selector_all(
            "[role=region], canvas, select", "all => all.map(x => x.getAttribute('aria-label'))"
        )
        assert all(names)


@pytest.mark.browser
def test_hovering_says_the_numbers(browser, folder, data):  # noqa: F811
    found = data["language_models"]["patched"][0]
    one, other = found["axes"]
    row, column = found["axes"][one][1], found["axes"][other][-1]
    said = f"{one} {row}, {other} {column}: {signed(found['recovered'][1][-1])}"
    entry = next(each for each in data["circuits"]["drawn"] if each["circuit"]["links"])
    link = entry["circuit"]["links"][0]
    with opened(browser, folder / "report.html") as page:
        page.wait_for_function(DRAWN)  # until then what is below moves
        figure = page.locator(f'.rv-figure[aria-label^="{found["model"]}"][aria-label$="patched"]')
        figure = figure.first
        figure.locator(f'.rv-mark[aria-label="{said}"]').hover()
        assert page.locator(".rv-tip").text_content() == said
        mark = page.locator(f'.rv-mark[aria-label^="{link} (value link)"]').first
        mark.focus()
        mark.press("End")
        mark.press("Home")
        assert page.locator(".rv-tip").count() == 1
