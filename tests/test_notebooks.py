"""Notebooks run from the first cell to the last, quietly and offline, and keep their outputs."""

import os
import re

import nbformat
import pytest

from tests.notebooks import INSTALL, NOTEBOOKS, code, executed, kept, read
from tests.pretrained import needs_pretrained

# Long ones first: two workers share them.
NAMES = (
    "5_circuits", "3_links", "4_ioi_patching", "2_train", "6_memory", "1_build",
    "7_bring_your_own", "8_your_model_your_task",
)  # fmt: skip
PRETRAINED = "8_your_model_your_task"
RUN = [pytest.param(name, marks=needs_pretrained if name == PRETRAINED else ()) for name in NAMES]
MOST_BYTES = 800_000
MOST_LINES = 15
UNAVOIDABLE_WARNINGS = (
    "ignore:IProgress not found",  # tqdm, where there are no ipywidgets
    "ignore:For consistency across implementations",  # ipykernel, of itself, when it ends
)

SAID = {
    "1_build": {r"loss ([\d.]+) nats": 4.92, r"without links ([\d.]+)": 4.86},
    "2_train": {r"test +live ([\d.]+) nats": 3.466, r"test .*recorded ([\d.]+)": 3.466},
    "3_links": {
        r"own values +mean norm ([\d.]+)": 2.49, r"link +mean norm ([\d.]+)": 2.03,
        r"as trained .*ic ([\d.]+)  ic2": 0.991, r"link cut .*ic ([\d.]+)  ic2": 0.960,
        r"mean on IC instead +ic ([\d.]+)": 0.960, r"scaled by -1 .*ic ([\d.]+)  ic2": 0.764,
        r"grafted on .*ic ([\d.]+)  ic2": 0.971, r"queries +link cut: .*'ic': ([\d.]+)": 0.739,
        r"step 20,000, as trained: .*'ic': ([\d.]+)": 0.779,
        r"step 20,000, link cut: .*'ic': ([\d.]+)": 0.466, r"layer 1 cut: P\(IO\) (.*)": 0.176,
    },
    "4_ioi_patching": {
        r"classic +prompts +P\(IO\) +([\d.]+)": 0.940, r"values +prompts +P\(IO\) +([\d.]+)": 0.996,
        r"arrives along v1.h2: +([\d.]+)": 1.08, r"a1.h2 computes itself: +([\d.]+)": 0.02,
        r"a1.h2 → logits: (.*)": -18.20, r"v1.h2 → logits: (.*)": -17.93,
        r"links frozen: (.*)": -0.33, r"links through: (.*)": -16.83,
    },
    "5_circuits": {
        r"classic: (\d+) of 479": 7, r"values: (\d+) of 491": 7,
        r"v1.h2 +{'token': ([-\d.]+)": -2.08,
        r"logit difference: ([\d.]+)": 15.9, r"'rank_of_size': ([\d.]+)": 0.95,
        r"<v> estimated .*, exact (.*)": -16.1,
    },
    "6_memory": {
        r"where the context tells: (.*)": 0.995, r"keeps 89%.* ([\d.]+) at 1,024": 0.866,
        r"as trained +([\d.]+)": 0.974, r"link cut +([\d.]+)": 0.723,
        r"layer 0 silenced (.*)": 0.144, r"a = 1.25: ([\d.]+)": 0.895,
    },
    "7_bring_your_own": {
        r"0.0 · carried: loss ([\d.]+)": 0.720, r"1.0 · carried: loss ([\d.]+)": 0.776,
        r"as trained +(\d[\d.]+)": 13.1, r"v1 reversed +(.*)": -8.6,
        r"the prompt before: (.*)": -2.3, r"subject's name only: +(.*)": -2.5,
    },
    "8_your_model_your_task": {
        r"prompts +logit difference ([\d.]+)": 8.60, r"answer until layer (\d+)": 22,
        r"the end from layer (\d+)": 24, r"a25.h7 recovers ([\d.]+)": 0.16,
        r"a25.h7 +\+([\d.]+)": 1.52, r"the layer before's values: ([\d.]+)": 7.17,
        r"without any: ([\d.]+)": 8.60,
    },
}  # fmt: skip
"""Numbers that the words of a notebook tell, and where it prints them."""

FETCHED = re.compile(
    r"<script[^>]+src\s*=|<link[^>]+href\s*=|<(?:img|iframe)[^>]+src\s*=\s*[\"']?(?:https?:)?//"
    r"|\bfrom\s*[\"']https?:|\bimport\s*\(?\s*[\"']https?:|@import|url\(\s*[\"']?(?:https?:)?//",
    re.IGNORECASE,
)
"""What would make a page load something from elsewhere."""


def test_every_notebook_is_tested():
    assert {path.stem for path in NOTEBOOKS.iterdir() if path.suffix == ".ipynb"} == set(NAMES)


@pytest.mark.parametrize("name", RUN)
def test_a_notebook_runs(name, tmp_path):
    before = sorted(NOTEBOOKS.iterdir())
    strict = os.environ | {"PYTHONWARNINGS": ",".join(("error", *UNAVOIDABLE_WARNINGS))}
    notebook = executed(name, tmp_path, strict)

    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert [x.text for x in outputs if x.output_type == "stream" and x.name == "stderr"] == []
    says_its_numbers(notebook, name)
    rich = [output.data for output in outputs if "data" in output]
    assert any("text/html" in data or "image/png" in data for data in rich)
    for data in rich:
        assert not FETCHED.search(data.get("text/html", ""))
    assert sorted(NOTEBOOKS.iterdir()) == before  # what they write goes to a temporary folder


def says_its_numbers(notebook: nbformat.NotebookNode, name: str) -> None:
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    printed = "".join(x.text for x in outputs if x.output_type == "stream")
    for pattern, value in SAID[name].items():
        (found,) = re.findall(pattern, printed)
        assert float(found) == pytest.approx(value, rel=0.02, abs=0.006), pattern


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_with_its_outputs_and_as_nbformat_writes_it(name):
    path, notebook = NOTEBOOKS / f"{name}.ipynb", read(name)
    says_its_numbers(notebook, name)
    for number, cell in enumerate(code(notebook), start=1):
        assert cell.execution_count == number
        assert cell.metadata == {}
        assert cell.source.count("\n") < MOST_LINES, cell.source
    assert code(notebook)[0].source == INSTALL
    assert [cell.id for cell in notebook.cells] == [
        f"{name.partition('_')[0]}-{i:02}" for i in range(len(notebook.cells))
    ]
    assert notebook.metadata.kernelspec.name == "python3"
    text = path.read_text(encoding="utf-8")
    assert text == nbformat.writes(kept(read(name))) + "\n"
    assert len(text) < MOST_BYTES
    assert not re.search(r"/(work|root|home|tmp|Users)/", text)


@pytest.mark.parametrize("name", NAMES)
def test_links_of_a_notebook_lead_somewhere(name):
    text = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (NOTEBOOKS / target).exists(), target


@pytest.mark.parametrize(
    "fetching",
    [
        '<script src="https://x.org/a.js">', '<link rel="stylesheet" href="a.css">',
        '<img src="//x.org/a.png">', 'import { a } from "https://esm.sh/a"',
        'await import("https://x.org/a.js")', "@import 'a.css'", "url(https://x.org/a.woff)",
    ],
)  # fmt: skip
def test_what_is_fetched_is_recognised(fetching):
    assert FETCHED.search(fetching)


def test_what_is_inside_is_not_taken_for_fetched():
    page = '<a href="https://x.org">x</a><img src="data:image/png;base64,AA=="><script>1</script>'
    assert not FETCHED.search(page)
