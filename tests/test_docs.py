"""The documentation: its code runs, its tables are the records', its reference is whole."""

import importlib.util
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import griffe
import matplotlib
import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from resval_lens.analyses.circuits.methods import METHODS
from resval_lens.analyses.circuits.scores import score_edges
from resval_lens.analyses.circuits.selection import SELECTIONS
from resval_lens.analyses.comparison.link_moments import MOMENTS
from resval_lens.analyses.comparison.link_over_seeds import RECORDED, link_over_seeds, link_studies
from resval_lens.analyses.report import results_page
from resval_lens.analyses.report.findings import AT_ONCE, FINDINGS
from resval_lens.analyses.report.gain import recorded_gain
from resval_lens.analyses.report.language_models import four_cells, recorded_language_models
from resval_lens.analyses.results.seeds import holm, spread
from resval_lens.analyses.results.tables import p_cell, p_told
from resval_lens.analyses.studies.ablations import ABLATIONS
from resval_lens.analyses.tasks import TASKS
from resval_lens.analyses.tasks.problem import pose
from resval_lens.hooks.answers import answer_logits
from resval_lens.load import load_model
from tests.examples import DOCS, EXAMPLES, page, run_example
from tests.hand_built import LINKED_CIRCUIT, linked_model, linked_pairs
from tests.helpers import reached
from tests.test_x_transformers import needs_package

matplotlib.use("Agg")
ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in DOCS.rglob("*.md"))


def hook(name: str) -> Any:
    """A module of docs/_hooks, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "_hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    return config


# Examples


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs an example in an empty folder, with some of its numbers made smaller."""
    monkeypatch.chdir(tmp_path)

    return run_example


def test_start(run, capsys, tmp_path):
    found = run(
        "start",
        tests=("draw_world(recorded.run)", "draw_world(ICLRun(**{**vars(recorded.run), "
               "'test_size': 1_000}))"),
        imports=("from pathlib import Path\n", "from pathlib import Path\n"
                 "from resval_lens.training import ICLRun\n"),
        steps=("steps=2_000", "steps=20, test_size=200"),
    )  # fmt: skip
    told = capsys.readouterr().out
    whole, cut = (float(x) for x in re.findall(r"(?:trained|cut):\s+([\d.]+)", told))
    said = re.search(r"goes from (\.\d+) to (\.\d+)", page("start"))
    assert said is not None
    assert whole == pytest.approx(float(said[1]), abs=0.01)
    assert cut == pytest.approx(float(said[2]), abs=0.015)
    assert "v1.h0" in told
    assert (tmp_path / "attention.html").is_file()
    assert not found["without"].cfg.streams


def test_language_models(run, tmp_path):
    found = run(
        "language_models",
        stories=('Path("runs/text/stories")', 'Path("runs/text/stories"), n_stories=300'),
        steps=('"steps": 500, "lr": 3e-3, "warmup": 100', '"steps": 2, "batch": 2'),
    )
    assert found["model"].cfg.streams
    assert (tmp_path / "runs" / "mine" / "model" / "tokenizer.json").is_file()


def test_grafting(run, capsys):
    found = run(
        "graft",
        stories=("n_stories=2_000", "n_stories=200"),
        steps=("steps=40, length=128, held_out=16", "steps=5, length=64, held_out=16"),
        rows=('data.rows("packed", 128)', 'data.rows("packed", 64)'),
    )
    before, after = map(float, capsys.readouterr().out.split()[-2:])
    assert abs(before - after) < 0.1
    assert found["model"].cfg.streams[0].mix == "head"


def test_tables(run):
    found = run("tables")
    assert found["cache"]["v_table", 3].shape == (2, 32, 4, 16)


def test_looking_into_a_nanochat(run, capsys):
    found = run("nanochat")
    told = capsys.readouterr().out
    assert re.findall(r"without the table of layer (\d)", told) == ["1", "3", "5"]
    losses = [float(x) for x in re.findall(r": (\d+\.\d{3})", told)]
    assert len(set(losses[:4])) == 4
    assert found["weights"].shape == (7, 7)


def test_circuits(run, capsys):
    found = run("circuits")
    assert list(map(str, found["circuit"].links)) == ["a0.h2<v>->a1.h2<v>"]
    assert capsys.readouterr().out.count("Faithfulness(") == 2
    text = page("how-to/find-circuits")
    circuit, edges = found["circuit"], len(found["runs"].graph.edges)
    assert len(circuit) == 7
    assert (
        f"Seven edges of {edges} keep {found['found'].faithfulness:.0%} of the logit difference"
        in text
    )
    shares = found["shares"]
    own, linked = (shares[name].mean().item() for name in ("a1.h2", "a1.h2 from 0"))
    assert f"writes {own:.1f}".replace("0.", ".") in text
    assert f"{linked:.1f} with layer 0’s" in text


def test_associative_memory(run, capsys):
    found = run("associative_memory")
    assert (found["logits"] - found["closed"].logits).abs().max() < 1e-11
    assert "tensor(1.)" in capsys.readouterr().out


def test_ablating_links(run, capsys):
    found = run("ablate_links")
    told = dict(re.findall(r"^(.+?) (-?[\d.]+)$", capsys.readouterr().out, re.MULTILINE))
    text = page("how-to/ablate-links")
    trained, cut = float(told["as trained"]), float(told["V0 → V1 cut"])
    assert f"from {trained:.1f} to {cut:.1f}".replace(" 0.", " .") in text
    alone = f"to {float(told['v1.h2 cut']):.1f} when the link of one head"
    assert alone.replace("-0.", "−.") in text
    assert min(float(told[f"V{i} → V{i + 1} cut"]) for i in (1, 2)) > 0.95 * trained
    assert {"mean", "resampled", "from the corrupted prompt"} < set(told)
    assert len(found["study"].rows) == 3 * (1 + 3 + 12)  # edits of all, of layers, of each


def test_patching(run):
    found = run("patch")
    text = page("how-to/patch")
    assert f"falls from {found['noised'].base:.1f} to {found['noised'].values[0]:.1f}" in text
    held, through = (found[name].effect.mean().item() for name in ("held", "through"))
    assert f"is {held:.1f} through".replace("-0", "−") in text
    assert f"and {through:.1f} when".replace("-", "−") in text


def test_adding_a_stream(run):
    """The page's own assertion is the test: hook points hold the variant's formula."""
    assert len(run("add_a_stream")["models"]) == 3


def test_bringing_a_model(run):
    found = run("your_model")
    llama, tokens = found["llama"], torch.arange(20)[None]
    with torch.no_grad():
        wanted = llama(tokens).logits
        assert torch.allclose(found["grafted"](tokens), wanted, atol=1e-5)
        assert torch.equal(found["again"](tokens), found["model"](tokens))
    assert found["folded"].cfg.normalization_type == "RMSPre"


@needs_package
def test_bringing_a_model_of_x_transformers(run):
    with warnings.catch_warnings():  # it uses what torch has deprecated
        warnings.simplefilter("ignore")
        found = run("x_transformers_model")
    tokens = torch.arange(20)[None]
    loaded = load_model(found["folder"]).model
    with torch.no_grad():
        assert torch.allclose(loaded(tokens), found["wrapper"](tokens), atol=1e-5)
        assert torch.equal(loaded(tokens), found["model"](tokens))


def test_bringing_a_task(run):
    found = run("your_task")
    shares = found["found"].recovered()
    assert shares[0, 0] == pytest.approx(1, abs=1e-4)  # the subject is all that differs
    assert tuple(found["where"]) == ("S2", "end")


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.csv", "prompts.yaml"])
def test_files_of_prompts_on_the_page_are_tasks(name, tmp_path):
    text = (DOCS / "how-to" / "your-task.md").read_text()
    (content,) = re.findall(rf'^``` {{ \.\w+ title="{name}" }}\n(.*?)^```$', text, re.M | re.S)
    (tmp_path / name).write_text(content)
    problem = pose("stories-small-values", 2, task=tmp_path / name)
    assert len(problem.pairs) == 2
    clean, corrupted = (
        problem.pairs.metric(logits, problem.pairs.labels).mean()
        for logits in (
            answer_logits(problem.model, rows, problem.pairs.answers)
            for rows in (problem.pairs.clean, problem.pairs.corrupted)
        )
    )
    assert clean > max(corrupted, 0) + 1


def test_the_table_of_tasks_is_on_its_page():
    where = SimpleNamespace(file=SimpleNamespace(src_uri="how-to/your-task.md"))
    text = (DOCS / "how-to" / "your-task.md").read_text()
    text = hook("generated").on_page_markdown(text, where)
    for name, task in TASKS.items():
        (row,) = re.findall(rf"^\| `{re.escape(name)}` \| .*$", text, re.M)
        assert task.title in row
        assert all(f"`{each}`" in row for each in (*task.corruptions, *task.positions))


def test_adding_a_method(run, capsys, monkeypatch):
    found = run("add_a_method")
    text = page("how-to/add-a-method")
    told = dict(line.split() for line in capsys.readouterr().out.splitlines())
    ours, eap, integrated = (
        f"{float(told[name]):.2f}".lstrip("0") for name in ("eap-trapezoid", "eap", "eap-ig")
    )
    assert f"all {len(found['exact'].graph)} edges correlate with exact ones by {ours};" in text
    assert f"those of `eap` by {eap}, of `eap-ig`" in text
    assert f"backward passes, by {integrated}." in text
    assert "eap-trapezoid" not in METHODS
    monkeypatch.setitem(METHODS, "eap-trapezoid", found["Trapezoid"]())
    model, pairs = linked_model(), linked_pairs()
    scores, back = (score_edges(model, each, "eap-trapezoid") for each in (pairs, pairs.flipped()))
    assert scores.values.equal(-back.values)
    assert {edge for edge, value in scores.top(3) if value} == LINKED_CIRCUIT


def test_a_method_is_one_class_and_one_line():
    """Registered before anything else is imported, it is in the help, in completion, in the table
    and in the tests' sweeps; none of these needs torch."""
    example = (EXAMPLES / "add_a_method.py").read_text()
    code = example.split("[start:method]")[1].split("# --8<-- [end:method]")[0]
    script = (
        f"#{code}"
        "import os, sys\n"
        "sys.path += ['docs/_hooks', '.']\n"
        "from resval_lens.analyses.cli.app import app\n"
        "from tests.methods import each_method\n"
        "import generated\n"
        "print(generated.methods(), generated.commands(), list(each_method.args[1]), sep='\\n')\n"
        "os.environ.update(_RESVAL_LENS_COMPLETE='complete_bash', COMP_CWORD='3',\n"
        "                  COMP_WORDS='resval-lens circuit --method eap-t')\n"
        "try: app(prog_name='resval-lens')\n"
        "except SystemExit: pass\n"
        "print(*sorted({'torch'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert lines[-2:] == ["eap-trapezoid", ""], done.stderr
    assert str([*METHODS, "eap-trapezoid"]) in lines
    assert any(line.startswith("| `eap-trapezoid` | difference × mean") for line in lines)
    of_circuit, of_plan = (line for line in lines if line.startswith("| `--method` |"))
    assert of_circuit.endswith(f"{', '.join(METHODS)}, eap-trapezoid. | `eap-ig` |")
    assert of_plan == of_circuit


def test_the_table_of_methods_is_on_its_page():
    where = SimpleNamespace(file=SimpleNamespace(src_uri="circuits.md"))
    text = hook("generated").on_page_markdown((DOCS / "circuits.md").read_text(), where)
    for name, method in METHODS.items():
        assert text.count(f"\n| `{name}` | {method.what} | {method.cost} |\n") == 1


def test_the_table_of_selections_is_on_its_page():
    where = SimpleNamespace(file=SimpleNamespace(src_uri="circuits.md"))
    text = hook("generated").on_page_markdown((DOCS / "circuits.md").read_text(), where)
    for name, each in SELECTIONS.items():
        what = each.what.replace("|", r"\|")
        assert text.count(f"\n| `{name}` | {what} |\n") == 1


def test_adding_a_task(run):
    found = run("add_a_task", steps=("range(2_000)", "range(20)"))
    batch = found["test"]
    for tokens, target in zip(batch.inputs[:50].tolist(), batch.targets.tolist(), strict=False):
        pairs = dict(zip(tokens[:-1:2], tokens[1::2], strict=True))
        assert pairs[tokens[-1]] == target
    with pytest.raises(ValueError, match="pairs must lie between 1 and n=3; got 4"):
        found["Recall"](n=3, pairs=4)


def test_every_section_of_an_example_is_on_a_page_and_every_page_finds_its_sections():
    asked = {
        name for path in PAGES for name in re.findall(r'^--8<-- "(.+)"$', path.read_text(), re.M)
    }
    there = {
        f"{path.name}:{section}"
        for path in EXAMPLES.glob("*.py")
        for section in re.findall(r"^# --8<-- \[start:(.+)\]$", path.read_text(), re.M)
    }
    wholes = {name for name in there if name in ("circuits.py:patch",)}  # a part of :all alone
    assert asked - {"value-stream.svg"} == there - wholes
    run_here = {path.stem for path in EXAMPLES.glob("*.py")}
    own = "".join(path.read_text() for path in (ROOT / "tests").glob("test_docs*.py"))
    assert all(f'"{name}"' in own for name in run_here)


def test_pages_hold_no_python_that_is_not_run():
    """Python stands in docs/examples; what is shown in place is shells, formulas and diffs."""
    for path in PAGES:
        assert "```python" not in path.read_text(), path


# Results


def lines(folder: str) -> list[dict[str, Any]]:
    path = ROOT / "resval_lens" / "data" / folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def seeds_of(variant: str) -> list[str]:
    """Folders of a variant's recorded classifiers."""
    folders = (ROOT / "resval_lens" / "data" / "icl").glob(f"{variant}-seed*")
    return sorted(f"icl/{folder.name}" for folder in folders)


def rows(table: str) -> list[list[str]]:
    """The rows of a part's tables, without the first's heads."""
    found = [line for line in table.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found]
    return cells[2:]


@pytest.mark.parametrize(("name", "above"), [("table-1", 0.95), ("table-5", 0.5), ("table-6", 0.9)])
def test_the_tables_of_emergence_are_those_of_the_metrics(name, above):
    part = results_page.section(name, DOCS)
    firsts: dict[str, list[float]] = {}
    for variant in ("classic", "queries", "keys", "values"):
        for run in map(lines, seeds_of(variant)):
            step = next(line["step"] for line in run if line["ic"]["accuracy"] > above)
            firsts.setdefault(variant, []).append(step / 500)
    shown = {row[1]: row for row in rows(part) if row[0] == "IC" and len(row) == 6}
    saved = {}
    for variant, numbers in firsts.items():
        assert shown[variant][2] == str(len(numbers))
        assert shown[variant][3] == f"{np.mean(numbers):.2f} ± {np.std(numbers):.2f}"
        classic = np.mean(firsts["classic"][: len(numbers)])  # the seeds of both
        saved[variant] = f"{1 - np.mean(numbers) / classic:.0%}"
        assert shown[variant][5] in ("", saved[variant])
    assert f"after {saved['values']} fewer steps" in part


def test_published_numbers_are_the_papers():
    part = results_page.section("table-1", DOCS)
    published = {row[1]: row[4] for row in rows(part)[:4]}
    assert published == {
        "classic": "64.50 ± 5.12",
        "queries": "52.50 ± 1.50",
        "keys": "61.75 ± 0.83",
        "values": "49.00 ± 2.12",
    }
    table_2 = results_page.section("published-table-2", DOCS)
    assert "| values | 42.89 ± 10.58 | 5.68 ± 3.76 |" in table_2
    assert "| classic | 1.54 ± 2.31 | 4.86 ± 8.35 |" in table_2
    assert r"\* gave the bag" in table_2


def test_final_accuracies():
    found = {row[0]: row for row in rows(results_page.section("final-accuracy", DOCS))}
    ends = [lines(folder)[-1]["iw"]["accuracy"] for folder in seeds_of("values")]
    assert found["values"][6] == f"{np.mean(ends):.3f} ± {np.std(ends):.3f}"
    folders = (ROOT / "resval_lens" / "data" / "icl").glob("*/run.json")
    assert set(found) == {path.parent.name.rpartition("-seed")[0] for path in folders}


SOURCES = ("v-first", "v-first-norm-matched", "v-sum")


def stories_losses(name):
    """The evaluations of seeds 0 to 2, by run."""
    runs = (lines(f"lm/stories-small-{name}-seed{seed}") for seed in range(3))
    return [[each for each in run if "valid_loss" in each] for run in runs]


def steps_to(name, loss):
    return np.array([reached(run, loss) for run in stories_losses(name)])


def lm_test(name, measure, prompts=""):
    (found,) = (
        each
        for each in recorded_language_models().compared.tests
        if (each.first, each.measure, each.prompts) == (name, measure, prompts)
    )
    return found


def bare(p):
    return p_told(p).removeprefix("p = ")


def test_the_first_layers_values_save_more_than_the_layer_belows():
    page = " ".join((DOCS / "findings.md").read_text().split())
    readme = " ".join((ROOT / "README.md").read_text().split())
    saved = {
        (name, loss): 1 - steps_to(name, loss).mean() / steps_to("classic", loss).mean()
        for name in (*SOURCES, "v-raw")
        for loss in (1.5, 1.2, 1.1)
    }
    late = 1 - steps_to("v-first", 1.05).mean() / steps_to("classic", 1.05).mean()
    first, matched, formula = (f"{saved[name, 1.2]:.0%}" for name in SOURCES)
    early = [lm_test(name, "step: loss ≤ 1.2") for name in SOURCES]
    assert all(each.tests.p_paired_holm > 0.05 for each in early)
    p = [bare(each.tests.p_holm) for each in early]
    assert f"steps to 1.2 they save {first} [22, 39] (p = {p[0]}), at constant norm" in readme
    assert f"at constant norm {matched} [23, 44] (p = {p[1]}); the paper's formula" in readme
    assert f"values, too, {formula} [32, 35] (p = {p[2]})." in readme
    assert f"of the others, *v-raw* saves {saved['v-raw', 1.1]:.0%} to 1.1." in page
    times = [saved[name, 1.1] / saved["v-raw", 1.1] for name in SOURCES]
    assert f"{times[0]:.1f} times as many steps are saved to a loss of 1.1" in page
    assert f"(*v-sum*), saves {times[2]:.1f} times as many; that lead is not shown" in page
    assert f"to 1.5 ({saved['v-first', 1.5]:.0%}, the formula {saved['v-sum', 1.5]:.0%})" in page
    assert f"the first layer’s values save {late:.0%} to 1.05" in page


def test_what_kinds_of_links_save_is_a_table():
    """Every cell: the saving with its interval, and p by Holm of independent runs."""
    page, study, cells = (DOCS / "findings.md").read_text(), recorded_language_models(), {}
    for each in (*study.compared.tests, *study.direct):
        if each.second in ("classic", "v-raw") and each.measure.startswith("step: loss ≤ 1."):
            told = f"{each.saving.percent()}, {p_told(each.tests.p_holm)}"
            cells[each.first, each.second, each.measure[-3:]] = told
            assert each.first not in (*SOURCES, "v-raw") or each.tests.p_paired_holm > 0.05
    found = {
        name: [cell.strip() for cell in row.split("|")[1:]]
        for name, row in re.findall(r"^\| \*(v-[a-z-]+)\*: (.+)\|$", page, re.M)
    }
    columns = (("classic", "1.2"), ("classic", "1.1"), ("v-raw", "1.1"))
    assert found == {
        name: [cells.get((name, *column), "") for column in columns] for name in (*SOURCES, "v-raw")
    }


def test_the_first_layers_values_are_held_against_the_stream_directly():
    page = " ".join((DOCS / "findings.md").read_text().split())
    readme = " ".join((ROOT / "README.md").read_text().split())
    sources = results_page.section("finding-sources", DOCS)
    assert "v-first 35% \\[30, 38]" in results_page.section("finding-language-models", DOCS)
    direct = {
        (each.first, each.second, each.measure.removeprefix("step: loss ≤ ")): each
        for each in recorded_language_models().direct
    }
    ends = ("[13, 24]", "[10, 27]", "[0, 28]")
    stream, own = steps_to("v-raw", 1.1), {name: steps_to(name, 1.1) for name in SOURCES}
    for name, interval in zip(SOURCES, ends, strict=True):
        tests = direct[name, "v-raw", "1.1"].tests
        share = f"{1 - own[name].mean() / stream.mean():.0%} {interval}"
        assert tests.p_paired == pytest.approx(stats.ttest_rel(own[name], stream).pvalue)
        assert (tests.p_holm < 0.05) == (name != "v-sum")
        assert tests.p_paired_holm > 0.05
        assert f"{share} ({p_told(tests.p_holm)}" in readme
        told = f"{name} {share} (independent {p_told(tests.p_holm)}"
        assert told.replace("[", "\\[") in sources
        assert direct[name, "v-raw", "1.2"].tests.p_holm > 0.05
        assert name == "v-sum" or direct[name, "v-sum", "1.1"].tests.p_holm > 0.05
    later = [f"{1 - x:.0%}" for x in (own["v-first"] / stream)[1:]]
    assert f"seeds 1 and 2 alone give {later[0]} and {later[1]}" in page
    both = own["v-first-norm-matched"], steps_to("v-norm-matched", 1.1)
    p = p_told(stats.ttest_rel(*both).pvalue)
    share = f"{1 - both[0].mean() / both[1].mean():.0%} [17, 25]"
    assert f"save {share} of the steps to 1.1 of the code’s stream (paired {p}, uncorr" in page
    called = dict(zip((*SOURCES, "v-raw"), ("first layer", "at constant norm", "formula", "code"),
                      strict=True))  # fmt: skip
    at = {name: np.mean([run[25]["valid_loss"] for run in stories_losses(name)])
          for name in (*called, "classic")}  # fmt: skip
    assert all(run[25]["step"] == 2500 for name in at for run in stories_losses(name))
    told = ", ".join(f"{at[name]:.3f} ({called[name]})" for name in called)
    assert f"{told} and {at['classic']:.3f} (classic" in page
    last = [np.mean([run[-1]["valid_loss"] for run in stories_losses(name)])
            for name in ("classic", "v-raw")]  # fmt: skip
    left = (last[0] - last[1]) / (at["classic"] - at["v-raw"])
    assert left == pytest.approx(1 / 3, abs=0.05)


def test_by_the_papers_formula_models_name_sooner():
    """P(IO) above .9 on seen prompts, which stands as independent runs; of others it does not."""
    page = " ".join((DOCS / "findings.md").read_text().split())
    compared = recorded_language_models().compared
    named = [
        (each.first, each.measure, each.prompts)
        for each in compared.tests
        if "P(IO)" in each.measure or "top-1" in each.measure
        if min(each.tests.p_holm or 1, each.tests.p_paired_holm or 1) < 0.05
    ]
    assert named == [("v-sum", "step: P(IO) > 0.9", "seen")]
    formula, matched = (lm_test(x, "step: P(IO) > 0.9", "seen") for x in SOURCES[:0:-1])
    told = "P(IO) passes .9 on seen prompts in {} fewer steps than classic’s ({} by Holm"
    assert told.format(formula.saving.percent(), p_told(formula.tests.p_holm)) in page
    told = "the first layer’s values at constant norm in {:.0%} ({}). The"
    assert told.format(matched.saving.share, p_told(matched.tests.p_holm)) in page
    never = [
        (row.architecture, list(row.spread.by_seed.values()).count(None))
        for row in compared.rows
        if (row.prompts, row.measure) == ("unseen", "step: P(IO) > 0.9")
        if None in row.spread.by_seed.values()
    ]
    assert never == [("own-2", 3), ("own-root-2", 1), ("v-first", 1)]


def test_what_is_shown_of_the_stream_in_language_models():
    page = " ".join((DOCS / "findings.md").read_text().split())
    p = [bare(lm_test("v-raw", f"step: loss ≤ {loss}").tests.p_holm) for loss in (1.2, 1.1)]
    assert f"not shown against classic (p = {p[0]} and {p[1]}); at constant norm" in page
    p = p_told(lm_test("v-norm-matched", "step: loss ≤ 1.2").tests.p_holm)
    assert f"at constant norm it is, to 1.2 ({p}), and" in page
    (direct,) = (
        each
        for each in recorded_language_models().direct
        if (each.first, each.second, each.measure) == ("v-raw", "own-root-2", "step: loss ≤ 1.1")
    )
    assert f"against values × √2, to 1.1 ({p_told(direct.tests.p_holm)})." in page
    near = lm_test("v-raw", "step: accuracy > 0.95", "paper")
    before = [
        each.tests.p
        for each in recorded_language_models().compared.tests
        if each.first not in SOURCES[1:]
    ]
    (was,) = (p for p, own in zip(holm(before), before, strict=True) if own == near.tests.p)
    told = f"{near.saving.share:.0%} sooner ({p_told(near.tests.p_holm)}; {bare(was)} before"
    assert told in page
    assert f"({p_told(near.tests.p_holm)})." in " ".join((DOCS / "limits.md").read_text().split())


def test_sizes_are_those_recorded():
    found = {tuple(row[:2]): row[2:] for row in rows(results_page.section("sizes", DOCS))}
    savings, steps, lowest = [], {}, {}
    for size in ("2x64", "4x64", "2x128"):
        runs = [lines(f"lm-scaling/{size}-{name}-seed0") for name in ("classic", "values")]
        evaluated = [[each for each in run if "valid_loss" in each] for run in runs]
        shown = size.replace("x", " × ")
        assert found[shown, "loss at step 2,500"][:2] == [
            f"{run[-1]['valid_loss']:.3f}" for run in evaluated
        ]
        firsts = [reached(run, 1.2) for run in evaluated]
        assert found[shown, "step: loss ≤ 1.2"][:2] == [f"{step:,.0f}" for step in firsts]
        savings.append(f"{1 - firsts[1] / firsts[0]:.0%}")
        last = [reached(run, 1.13) for run in evaluated]
        lowest[size] = f"{1 - last[1] / last[0]:.0%}"
        steps[size] = [
            next((x["step"] for x in run if x["ioi"]["unseen"]["p_io"] > 0.5), 10**4)
            for run in evaluated
        ]
    page = " ".join((DOCS / "findings.md").read_text().split())
    assert f"{min(savings)} to {max(savings)} of the steps to a loss of 1.2" in page
    assert f"it saves {lowest['2x64']} (2 layers) and {lowest['4x64']} (4 layers)" in page
    later = {size: values > classic for size, (classic, values) in steps.items()}
    assert later == {"2x64": True, "4x64": True, "2x128": False}


def test_models_of_real_stories_are_those_recorded():
    found = {row[1]: row[2:4] for row in rows(results_page.section("real-text", DOCS))}
    names = ("classic", "values", "sum")
    runs = [lines(f"lm-real-text/4x128-{name}-seed0") for name in names]
    evaluated = [[each for each in run if "valid_loss" in each] for run in runs]
    studies = [
        json.loads(
            (
                results_page.SHIPPED / "lm-real-text" / f"4x128-{name}-seed0/induction.json"
            ).read_text()
        )
        for name in names
    ]
    natural = [study["natural"]["loss"] for study in studies]
    measured = {
        "loss at step 2,500": [run[-1]["valid_loss"] for run in evaluated],
        "in-context score": [study["icl"]["score"] for study in studies],
        "loss of repeated tokens": [of["repeated"] for of in natural],
        "loss of new tokens": [of["new"] for of in natural],
    }
    page = " ".join((DOCS / "results.md").read_text().split())
    finding = " ".join((DOCS / "findings.md").read_text().split())
    told = {}
    for measure, numbers in measured.items():
        told[measure] = [f"{x:.3f}".replace("-", "−") for x in numbers]
        for name, value in zip(names[1:], told[measure][1:], strict=True):
            assert found[f"{measure}, {name}"] == [told[measure][0], value]
    ends, scores, repeated, _ = told.values()
    assert (
        f"in the end {ends[2]} against {ends[0]}, tokens that come again cost {repeated[2]}" in page
    )
    assert (
        f"instead of {repeated[0]}, and the in-context score is {scores[2]} instead of {scores[0]}"
        in page
    )
    classic, _, formula = (reached(run, 2.45) for run in evaluated)
    saved = f"{1 - formula / classic:.0%}"
    assert f"The formula saves {saved} of the steps to 2.45, and ends at {ends[2]}" in finding
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"the formula {saved} of the steps to 2.45 (one seed each)" in readme
    assert {(study["natural"]["rows"], study["natural"]["length"]) for study in studies} == {
        (512, 128)
    }
    studies = studies[:2]
    rises = [[each["rise"] for each in study["natural"]["without"]] for study in studies]
    best, new = (
        [f"{own[0][kind]['value']:.2f}".removeprefix("0") for own in rises]
        for kind in ("repeated", "new")
    )
    others = [each for own in rises for each in own[1:]]
    most = f"{max(each['repeated']['value'] for each in others):.2f}".removeprefix("0")
    page = " ".join((DOCS / "results.md").read_text().split())
    assert (
        f"repeated tokens cost {best[0]} (classic) and {best[1]} nats (values) more, with five "
        f"other heads at most {most}; new tokens cost {new[0]} and {new[1]} more" in page
    )
    assert all(
        each["new"]["value"] > max(own[0]["new"]["value"] for own in rises) for each in others
    )


def test_classifiers_of_the_papers_text_do_not_learn_in_context():
    found = {row[0]: row for row in rows(results_page.section("papers-text", DOCS))}
    page = (DOCS / "results.md").read_text()
    for name in ("classic", "values"):
        snapshots = lines(f"icl-paper/{name}-seed0")
        last = snapshots[-1]
        ends = [f"{last[task]['accuracy']:.3f}" for task in ("test", "ic", "ic2", "iw")]
        assert found[name][1:] == ["1", "75,000", *ends]
        assert max(each["ic"]["accuracy"] for each in snapshots) < 0.25
        strength = f"{last['attention']['induction_strength']:.4f}".removeprefix("0")
        assert f"{strength} ({name})" in page
        code = lines(f"icl/{name}-seed0")[-1]["attention"]["induction_strength"]
        assert f"{code:.1f}" == "0.3"


def test_without_values_of_its_own_layer_1_is_soon_and_then_late():
    page, told = " ".join((DOCS / "results.md").read_text().split()), []
    snapshots = {
        name: [lines(f"icl/{name}-seed{seed}") for seed in (0, 1)]
        for name in ("classic", "values-no-own")
    }
    for level in (0.5, 0.9, 0.95):
        classic, alone = (
            sum(next(x["step"] for x in run if x["ic"]["accuracy"] > level) for run in runs)
            for runs in snapshots.values()
        )
        told.append(round(100 * (1 - alone / classic)))
    ends = {
        (name, task): f"{np.mean([run[-1][task]['accuracy'] for run in runs]):.2f}"[1:]
        for name, runs in snapshots.items()
        for task in ("ic", "iw")
    }
    early, middle, late = told
    assert f".5 in {early}% fewer steps than classic, .9 in {middle}% fewer" in page
    assert f"and .95 in {-late}% more. At the end IC is {ends['values-no-own', 'ic']}" in page
    assert f"(classic {ends['classic', 'ic']}) and IW, memory, " in page
    assert f"{ends['values-no-own', 'iw']} ({ends['classic', 'iw']})" in page
    findings = " ".join((DOCS / "findings.md").read_text().split())
    assert f"saves {early}% to .5 and costs {-late}% more steps to .95" in findings


def test_further_variants_have_no_published_column():
    found = rows(results_page.section("further-variants", DOCS))
    assert {row[1] for row in found}.isdisjoint({"classic", "values"})
    half = next(row for row in found if row[:2] == ["IC", "values-half"])
    assert half[-1].startswith("−")  # slower than classic


def test_links_cut_in_training():
    part = results_page.section("link-in-training", DOCS)
    study = json.loads((DOCS / "link-in-training.json").read_text())
    by_step = {line["step"]: line for line in study["snapshots"]}
    for row in rows(part):
        line = by_step[int(row[0].replace(",", ""))]
        assert row[2] == f"{line['trained']['ic']:.3f} → {line['cut']['ic']:.3f}"
    costs = {step: line["trained"]["ic"] - line["cut"]["ic"] for step, line in by_step.items()}
    assert f"most at step {max(costs, key=costs.__getitem__):,}:" in part
    assert study["provenance"]["git_commit"][:7] in part


def test_the_link_over_seeds():
    part = results_page.section("link-over-seeds", DOCS)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for path in (ROOT / "resval_lens" / "data" / "icl-snapshots").glob("*/link-in-training.json"):
        study = json.loads(path.read_text())
        kinds.setdefault(study["run"]["name"], []).append(study)
    assert {name: len(own) for name, own in kinds.items()} == {
        "values": 4, "own-2": 4, "classic": 4
    }  # fmt: skip
    shown = [row for row in rows(part) if len(row) == 11]
    edits = {tuple(row[:2]): row for row in shown if "→" not in "".join(row)}
    for name, own in kinds.items():
        own.sort(key=lambda study: study["run"]["seed"])
        for edit in own[0]["moments"][0]["edits"]:
            for place, at in enumerate(("IC > .5", "IC > .95", "last")):
                for column, task in ((2, "ic"), (5, "ic2"), (8, "iw")):
                    numbers = [
                        moment["edits"][edit][task]
                        for study in own
                        for moment in study["moments"]
                        if moment["name"] == at
                    ]
                    assert edits[name, edit][column + place] == (
                        f"{np.mean(numbers):.3f} ± {np.std(numbers):.3f}"
                    )
    last = [study["moments"][-1]["edits"] for study in kinds["values"]]
    trained, cut = ([own[edit]["ic"] for own in last] for edit in ("as trained", "links cut"))
    t, p = stats.ttest_rel(trained, cut)
    difference = f"{np.mean(np.subtract(trained, cut)):+.3f}"
    (row,) = (row for row in rows(part) if row[:4] == ["last", "values", "as trained", "links cut"])
    assert row[5].startswith(difference)
    assert row[6:8] == [f"{t:.1f}", p_cell(p)]
    drop = [study["moments"][-1]["grading"]["link"]["iw"] for study in kinds["values"]]
    slopes = [np.polyfit(np.linspace(1, 0, 11), curve, 1)[0] for curve in drop]
    (row,) = (row for row in rows(part) if row[:4] == ["values", "link", "last", "IW"])
    assert row[-2] == f"{np.mean(slopes):+.3f} ± {np.std(slopes):.3f}"


def test_language_models_over_seeds():
    found = {tuple(row[:3]): row for row in rows(results_page.section("language-models", DOCS))}
    folders = (results_page.SHIPPED / "lm").glob("stories-small-v-raw-seed*")
    firsts = []
    for folder in folders:
        run = lines(f"lm/{folder.name}")
        scores = [line for line in run if "ioi" in line]
        firsts.append(
            next(x["step"] for x in scores if x["ioi"]["unseen"]["accuracy"] > 0.95)
        )  # fmt: skip
    shown = found["unseen", "step: accuracy > 0.95", "v-raw"]
    assert shown[3] == f"{np.mean(firsts):,.0f} ± {np.std(firsts):,.0f}"


def test_four_cells_have_the_models_answers():
    classic, grafted, cut, values = rows(four_cells(prompts=24))
    assert [row[0] for row in (classic, grafted, cut, values)] == ["trained classic"] * 2 + [
        "trained with stream"
    ] * 2
    assert float(values[3]) > 0.9 > 0.3 > float(cut[3])
    assert float(classic[3]) == pytest.approx(float(grafted[3]), abs=0.1)


def test_circuits_over_seeds():
    part = results_page.section("circuits", DOCS)
    report = json.loads((DOCS / "circuits.json").read_text())
    report = report.get("circuits", report) if "over_seeds" not in report else report
    own = [
        entry["study"]["circuit"]["n_edges"]
        for entry in report["circuits"]
        if (entry["task"], entry["architecture"]) == ("IOI (ABC)", "values")
    ]
    shown = next(row for row in rows(part) if row[0:3:2] == ["IOI (ABC)", "values"])
    assert shown[1] == "IO − S"
    assert shown[4] == f"{np.mean(own):.1f} ± {np.std(own):.1f}"
    assert f"- {report['found'][0]}" in part
    assert "of the task" not in part


def test_circuits_by_metric():
    part = results_page.section("circuits-by-metric", DOCS)
    report = json.loads((DOCS / "circuits-by-metric.json").read_text())
    found = {tuple(row[:2]): row for row in rows(part)}
    assert len(found) == 8
    for matrix in report["matrices"]:
        for circuit in matrix["circuits"]:
            row = found[matrix["architecture"], circuit["by"]]
            p_io = circuit["measured"]["P(IO)"]
            assert row[2] == str(circuit["n_edges"]) == str(len(circuit["edges"]))
            told = f"{p_io['resample']['circuit']:.3f} of {p_io['clean']:.3f}"
            assert row[-1] == told
            if circuit["by"] == "IO − S":
                assert told.replace("0.", ".", 2) in (DOCS / "results.md").read_text()


def test_selections_are_those_recorded():
    part = results_page.section("selections", DOCS)
    report = json.loads((DOCS / "selections.json").read_text())
    found = rows(part)
    for study in report["studies"]:
        assert f"**{study['model']}**, {study['n_edges_of_model']:,} edges" in part
        assert f"`{study['provenance']['command']}`" in part
        for curve in study["curves"]:
            name = f"`{curve['select']}`" + ", stable first" * curve["bootstrapped"]
            for area, better in (("cpr", 1), ("cmd", -1)):
                own = curve[area]
                cell = f"{own['value']:.3f} [{own['low']:.3f}, {own['high']:.3f}]"
                difference = curve.get(f"{area}_difference", {"low": 0, "high": 0})
                if difference["low"] > 0 or difference["high"] < 0:
                    mark = "**" if better * difference["low"] > 0 else "*"
                    cell = f"{mark}{cell}{mark}"
                assert any(row[0] == name and cell in row for row in found), (name, cell)


def test_roles_of_a_pretrained_model_are_those_recorded():
    part = results_page.section("roles", DOCS)
    report = json.loads((DOCS / "roles.json").read_text())
    found = {tuple(row[:2]): row[2:] for row in rows(part)}
    for role in report["knockouts"]["resample"]["roles"]:
        heads = [head["head"] for head in report["roles"]["roles"][role["role"]]]
        assert role["heads"] == heads
        for metric, effect in role["effects"].items():
            change = effect["change"]
            told = "{value:+z.2f} [{low:+z.2f}, {high:+z.2f}]".format(**change)
            assert found[metric, role["role"]][0] == told.replace("-", "−")
    for ablation, own in report["knockouts"].items():
        for metric, kept in own["circuit"].items():
            gap = kept["clean"] - kept["corrupted"]
            f = (kept["circuit"] - kept["corrupted"]) / gap
            assert found[ablation, metric][3] == f"{f:.2f}".replace("-", "−")
    path = report["paths"][0]
    assert path["receivers"] == ["logits"]
    told = "{value:+z.2f} [{low:+z.2f}, {high:+z.2f}]".format(**path["effect"]["change"])
    assert f"by {told.replace('-', '−')}; other heads of these layers" in part
    assert f"`{report['provenance']['command']}`" in part


@pytest.mark.parametrize(
    ("name", "file"), [("movers", "greater-than"), ("naming-movers", "naming-movers")]
)
def test_movers_of_a_pretrained_model_are_those_recorded(name, file):
    part = results_page.section(name, DOCS)
    report = json.loads((DOCS / f"{file}.json").read_text())
    found = {tuple(row[:2]): row[2:] for row in rows(part)}
    nodes = {row[0]: row for row in rows(part) if "head" in row[0] or "MLP" in row[0]}
    for role, movers in report["movers"].items():
        if movers:
            assert nodes[role][-1] == str(len(movers))
            assert nodes[role][-2].startswith(f"{movers[0]['node']} {movers[0]['effect']:+.2f}")
    resample, mean = (report["knockouts"][a]["roles"] for a in ("resample", "mean"))
    for one, other in zip(resample, mean, strict=True):
        assert one["heads"] == [each["node"] for each in report["movers"][one["role"]]]
        for metric in one["effects"]:
            for cell, role in zip(found[metric, one["role"]][:3:2], (one, other), strict=True):
                change = role["effects"][metric]["change"]
                told = "{value:+z.2f} [{low:+z.2f}, {high:+z.2f}]".format(**change)
                assert cell == told.replace("-", "−")
    for ablation, own in report["knockouts"].items():
        for metric, kept in own["circuit"].items():
            f = (kept["circuit"] - kept["corrupted"]) / (kept["clean"] - kept["corrupted"])
            assert found[ablation, metric][3] == f"{f:.2f}".replace("-", "−")
    assert f"`{report['provenance']['command']}`" in part


def test_the_circuit_that_names_is_the_one_recorded():
    part = results_page.section("naming-circuit", DOCS)
    report = json.loads((DOCS / "naming-circuit.json").read_text())
    found = {tuple(row[:2]): row[2:] for row in rows(part)}
    for metric, own in report["measured"].items():
        for ablation, outside in (
            ("resample", "corrupted"),
            ("mean", "means"),
        ):
            kept = own[ablation]
            f = (kept["circuit"] - kept["corrupted"]) / (own["clean"] - kept["corrupted"])
            numbers = [f"{own['clean']:.3f}", f"{kept['corrupted']:.3f}", f"{kept['circuit']:.3f}"]
            said = [x.replace("-", "−") for x in (*numbers, f"{f:.2f}")]
            assert found[metric, outside] == said
    circuit = report["circuit"]
    assert len(circuit["edges"]) == circuit["n_edges"] == len(set(circuit["edges"]))
    assert f"f of the {circuit['n_edges']:,} edges" in part
    for drawn in ("connected", "permuted"):
        assert f"at most {circuit[drawn]['max']:.2g} (mean {circuit[drawn]['mean']:.2g})" in part
    roles = json.loads((DOCS / "roles.json").read_text())["roles"]["roles"]
    for line in report["strongest"]:
        head, _, reader = line["edge"].partition("->")
        if reader == "logits" and head.startswith("a"):
            own = [role for role, heads in roles.items() if head in [x["head"] for x in heads]]
            assert f"{head} {line['score']:+.2f} ({' and '.join(own) or 'none'})" in part
    assert f"`{report['provenance']['command']}`" in part


def test_repeats_in_text_are_those_recorded():
    part = results_page.section("repeats", DOCS)
    report = json.loads((DOCS / "repeats.json").read_text())
    natural = report["natural"]
    scores = np.array(natural["scores"])
    layer, head = np.unravel_index(scores.argmax(), scores.shape)
    assert f"the best head is a{layer}.h{head} with {scores.max():.3f}" in part
    losses = [f"{natural['loss'][kind]:.3f}" for kind in ("repeated", "misleading", "new")]
    assert ["as trained", *losses] in rows(part)
    best, *others = natural["without"]
    told = "{value:+z.3f} [{low:+z.3f}, {high:+z.3f}]".format(**best["rise"]["repeated"])
    assert f"repeated ones {told}" in part
    most = max(each["rise"]["repeated"]["value"] for each in others)
    assert f"repeated ones at most {most:+.3f} ({len(others)} draws)" in part
    assert f"`{report['provenance']['command']}`" in part


def test_four_ways_are_those_recorded():
    part = results_page.section("four-ways", DOCS)
    report = json.loads((DOCS / "four-ways.json").read_text())
    found = {row[0]: row[1:] for row in reversed(rows(part))}  # the first table's
    by_way = {
        way: [run for run in report["runs"] if run["way"] == way]
        for way in ("classic", "first", "tables", "values")
    }
    assert report["ways"] == list(by_way)
    assert {len(several) for several in by_way.values()} == {3}

    def told(of, form):
        every = [[of(run) for run in several] for several in by_way.values()]
        return [f"{np.mean(own):{form}} ± {np.std(own):{form}}" for own in every]

    steps = told(lambda run: run["emerged"]["P(IO) > 0.5, unseen"], ",.0f")
    assert found["step of P(IO) > 0.5, unseen"] == steps
    assert found["P(IO)"] == told(lambda run: run["clean"]["P(IO)"], ".3f")
    assert found["circuit: P(IO)"] == told(lambda run: run["circuit"]["p_io"], ".3f")
    alone = told(lambda run: run["cuts"][0]["measures"]["P(IO)"] if run["cuts"] else 0, ".3f")
    assert found["links cut: P(IO)"] == ["", *alone[1:]]
    for run in report["runs"]:
        links = run["circuit"]["strongest_links"]
        if links:
            said = ", ".join(f"`{link['edge']}` {link['score']:+.2f}" for link in links)
            assert f"| {run['way']} | {run['seed']} | {said} |" in part
    assert f"`{report['provenance']['command']}`" in part


def test_grafts_on_a_trained_model():
    part = rows(results_page.section("grafts", DOCS))
    savings: dict[str, list[float]] = {}
    for path in sorted((ROOT / "resval_lens" / "data" / "graft").glob("*/metrics.jsonl")):
        before, after = (
            np.mean(line["held_out_losses"])
            for line in lines(f"graft/{path.parent.name}")
            if "held_out_losses" in line
        )
        savings.setdefault(path.parent.name.partition("-seed")[0], []).append(before - after)
    assert {"link", "gain", "first", "next-head", "rank-1"} <= set(savings)
    for name, saved in savings.items():
        row = next(row for row in part if row[0] == name)
        assert row[2] == str(len(saved))
        assert row[5].startswith(f"{np.mean(saved):.4f} ")
    page = " ".join((DOCS / "findings.md").read_text().split())
    for alone, linked in (("gain", "both"), ("rank-1", "link-rank-1")):
        (base, *_), (saved,) = savings[alone], savings[linked]
        assert f"{saved - base:.3f}".removeprefix("0") in page
    assert f"{savings['rank-1'][0] / np.mean(savings['link']):.1f}" == "9.5"  # nearly ten times


def test_the_cut_beside_changes_of_gain():
    found = {tuple(row[:2]): row for row in rows(results_page.link_controls_table(200))}
    assert len(found) == 27
    ic = {edit: float(found["values", edit][2]) for edit in ("as trained", "links cut", "own cut")}
    doubled = float(found["values", "own × 2, links cut"][2])
    assert doubled == pytest.approx(ic["as trained"], abs=0.02)
    assert ic["own cut"] < 0.3 < ic["links cut"]


def test_at_equal_loss():
    part = results_page.section("loss-matched", DOCS)
    assert "Of 172 independent t-tests 21 have p < .05, and 2 after Holm's correction" in part
    assert "Of 172 paired t-tests 9 have p < .05, and 1 after Holm's correction: v-sum, acc" in part
    scores = {row[2]: row[3] for row in rows(part) if row[0:2] == ["seen", "accuracy at 1.132"]}
    formula, classic = (float(scores[name].split(" ±")[0]) for name in ("v-sum", "classic"))
    told = f"for {formula:.0%} of them instead of {classic:.0%} (both weak)"
    assert told in " ".join((DOCS / "limits.md").read_text().split())
    part = results_page.section("language-models", DOCS)
    assert "Of 124 paired t-tests" in part
    assert "1 after Holm's correction: own-2, step: loss ≤ 2 (text)." in part


def test_memories():
    found = {row[0]: row for row in rows(results_page.section("memory", DOCS))}
    runs = [lines(f"memory/relative-seed{seed}") for seed in range(3)]
    firsts = [next(x["step"] for x in run if x["trained"]["accuracy"] > 0.9) for run in runs]
    ends = [run[-1]["longer"]["accuracy"] for run in runs]
    assert found["relative"][6] == f"{np.mean(firsts):.0f} ± {np.std(firsts):.0f}"
    assert found["relative"][8] == f"{np.mean(ends):.3f} ± {np.std(ends):.3f}"
    assert found["one-layer"][6] == "never"


def test_amicl_beside_the_published_counts():
    found = rows(results_page.amicl(trials=200, points=2))
    assert [row[0] for row in found] == ["1", "1.25", "1.5", "1.75", "2"]
    assert [row[-1] for row in found] == ["0.321 to 0.342", "0.907", "0.994", "1.000", "1.000"]
    assert float(found[-1][1]) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("kind", "folder"),
    [("icl", "icl"), ("lm", "lm"), ("memory", "memory"), ("graft", "graft")],
    ids=str,
)
def test_provenance_names_every_start(kind, folder):
    starts = [
        start
        for path in (ROOT / "resval_lens" / "data" / folder).glob("*/run.json")
        for start in json.loads(path.read_text())["starts"]
    ]
    found = rows(results_page.section(f"provenance-{kind}", DOCS))
    assert {row[0].strip("`") for row in found} == {start["command"] for start in starts}
    assert {row[2].strip("`+") for row in found} == {start["git_commit"][:7] for start in starts}


def test_seeds_without_a_number_are_counted():
    for numbers, told in (
        ({0: 1.0, 1: None, 2: 3.0}, "2.0 ± 1.0 (2 of 3)"),
        ({0: None}, "never"),
        ({5: 2.0}, "2.0"),
    ):
        assert spread(numbers).told(".1f") == told


def test_findings_are_the_sentences_of_their_studies():
    page = (DOCS / "findings.md").read_text()
    asked = re.findall(r"^<!-- results: (.+) -->$", page, re.M)
    assert asked == list(FINDINGS)
    for name in FINDINGS:
        said = results_page.section(name, DOCS)
        at_once, _, folded = said.partition('\n\n??? note "The other sentences"\n\n')
        assert len(at_once.splitlines()) == AT_ONCE.get(name, 1), name
        lines = [*at_once.splitlines(), *(line[4:] for line in folded.splitlines())]
        assert all(line.startswith("- ") and line.endswith(".") for line in lines), name
        assert len(lines) == len(FINDINGS[name](DOCS)), name
    emergence, gain = (
        results_page.section(f"finding-{name}", DOCS) for name in ("emergence", "gain")
    )
    study = recorded_gain().rates[0]
    saving = study.compared("ic", 0.95, "values", "classic").saving
    assert f"To IC .95 the value stream takes {saving.share:.0%} " in emergence
    share = study.share("ic", 0.95, "own-2").ours
    assert f", own values × 2 without a link {share.share:.0%} " in gain
    models = results_page.section("finding-language-models", DOCS)
    compared = recorded_language_models().compared
    stand = [
        x for x in compared.tests if min(x.tests.p_paired_holm or 1, x.tests.p_holm or 1) < 0.05
    ]
    assert f"In training, {len(stand)} of " in models
    told = (x.measure.replace("step: ", "steps to ").replace(">", "&gt;") for x in stand)
    assert all(f"In training, {each}" in models for each in told)


def test_what_the_findings_say_of_sizes_is_measured():
    page = " ".join((DOCS / "findings.md").read_text().split())
    study = link_over_seeds(link_studies([RECORDED]))
    norms = (study.norms[at]["values"] for at in MOMENTS)
    early, late, end = (f"{own['total'].mean / own['own'].mean:.2f}" for own in norms)
    assert f"{early}, {late} and {end} in training (at IC > .5, > .95 and the end)" in page
    left = {
        part: [study.accuracy(at, f"{part} cut, norm kept").mean for at in MOMENTS]
        for part in ("own", "links")
    }
    more = [own < link for own, link in zip(left["own"], left["links"], strict=True)]
    assert more == [False, True, True]
    assert "they carry more than the link does from IC > .95 on" in page


def test_the_page_asks_for_parts_that_there_are():
    asked = re.findall(r"^<!-- results: (.+) -->$", (DOCS / "results.md").read_text(), re.M)
    assert len(asked) == len(set(asked)) == 30
    with pytest.raises(ValueError, match="no part 'table-2'; it has table-1"):
        results_page.section("table-2", DOCS)


# The site


def listed(nav: Any) -> list[str]:
    """The pages in (part of) mkdocs.yml's nav."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [name for part in parts for name in listed(part)]


def test_every_page_is_in_the_nav_once(site):
    tutorials = [f"tutorials/{name}.md" for name in hook("tutorials").names()]
    pages = [*(str(path.relative_to(DOCS)) for path in PAGES), *tutorials]
    assert sorted(listed(site["nav"])) == sorted(pages)


def test_tutorials_are_notebooks_with_what_they_showed():
    tutorials = hook("tutorials")
    page = tutorials.page("4_ioi_patching")
    assert page.startswith("# Patch activations: who receives?\n")
    assert 'by=("layer", "head")' in page
    assert "{ .text .output .no-copy }" in page
    assert "arrives along v1.h2" in page
    assert "](5_circuits.md)" in page
    assert "](../associative-memory.md)" in tutorials.page("6_memory")
    shown = tutorials.on_post_page(page)
    assert "data-output" not in shown
    assert shown.count('<div class="rv shown">') == page.count("data-output") > 5
    assert 'class=\\"rv-figure\\"' in shown  # a figure, which page.js puts in place of its image
    assert 'src="data:image/png;base64,' in shown


def test_every_public_module_is_on_one_page_of_the_reference():
    generated = hook("generated")
    shown = [name for names in generated.claims().values() for name in names]
    assert sorted(shown) == sorted(generated.public_modules())
    assert {"resval_lens.streams", "resval_lens.hooks.links", "resval_lens.analyses.circuits.acdc",
            "resval_lens.analyses.papers.memory.model",
            "resval_lens.analyses.cli.app"} <= set(shown)  # fmt: skip
    entry = generated.module_entry("resval_lens.hooks")
    assert 'identifier="resval_lens.hooks.ablate.cut_links"><code>cut_links</code>' in entry


def test_every_command_is_in_the_reference():
    text = hook("generated").commands()
    for name in ("compare", "train lm", "eval ioi", "memory one-step", "amicl sweep"):
        assert re.search(rf"^###? resval-lens {name}$", text, re.M), name
    assert "| `--quiet` |" in text


def test_links_in_pages_lead_somewhere():
    for path in PAGES:
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (path.parent / target).exists(), f"{path}: {target}"


def test_nothing_is_fetched(site):
    assert site["theme"]["font"] is False
    assert site["extra"]["polyfills"] == ["assets/iframe-worker.js"]
    assert "offline" in site["plugins"]
    for path in (DOCS / "assets").iterdir():
        assert "http" not in path.read_text(), path


def test_the_layout_holds_every_module_as_it_is_imported(tmp_path):
    hook("layout").lay_out(tmp_path)
    hook("layout").lay_out(tmp_path)  # again, over the old one
    for name, path in hook("generated").public_modules().items():
        parts = name.split(".")
        end = [*parts, "__init__.py"] if path.name == "__init__.py" else [*parts[:-1], path.name]
        assert tmp_path.joinpath(*end).resolve() == path.resolve()


# Pictures


def test_figures_stand_in_pages_with_their_marks_and_once_for_search():
    pictures = hook("pictures").with_pictures
    image = '<p><img alt="Accuracy &amp; loss" src="../figure-3.svg" /></p>'
    made = pictures(f"<h1>x</h1>{image}{image}", "how-to")
    assert made.count('<figure class="rv"><div class="rv-scroll"><svg') == 2
    assert 'aria-label="Accuracy &amp; loss"' in made
    assert made.count('class="rv-mark"') > 100
    ids = re.findall(r' id="([^"]*)"', made)
    assert len(ids) == len(set(ids))
    assert pictures('<p><img alt="x" src="circuits.png"></p>', "").endswith('circuits.png"></p>')


def test_every_picture_of_a_page_is_a_figure_that_follows_the_theme():
    shown = [
        path.parent / name
        for path in PAGES
        for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", path.read_text())
    ]
    drawings = [path for path in shown if path.suffix == ".svg"]
    assert len(drawings) > 15
    for path in drawings:
        assert "prefers-color-scheme: dark" in path.read_text(), path


# Formulas and docstrings


def test_formulas_become_mathml():
    with_mathml = hook("formulas").with_mathml
    inline = with_mathml(r'so <span class="arithmatex">\(V_l &lt; 2\)</span>.')
    assert inline.startswith("so <math")
    assert "<msub><mi>V</mi><mi>l</mi></msub>" in inline
    assert "arithmatex" not in inline
    block = with_mathml('<div class="arithmatex">\\[\nx^2\n\\]</div>')
    assert block.startswith('<div class="formula"><math')
    assert 'display="block"' in block


@pytest.mark.parametrize("latex", [r"a \nonsense b", r"\begin{aligned} a &= b \end{aligned}"])
def test_a_formula_without_mathml_is_refused(latex):
    with pytest.raises(ValueError, match="has no MathML"):
        hook("formulas").mathml(latex)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> griffe.Object:
    """The package as the reference reads it."""
    place = tmp_path_factory.mktemp("layout")
    hook("layout").lay_out(place)
    extensions = griffe.load_extensions(hook("docstrings").Docstrings)
    loaded = griffe.load(
        "resval_lens", search_paths=[place], extensions=extensions, allow_inspection=False,
        docstring_parser="google", try_relative_path=False,
    )  # fmt: skip
    assert isinstance(loaded, griffe.Object)
    return loaded


def documented(of: griffe.Object) -> list[griffe.Object]:
    """Everything that has a docstring."""
    own = [member for member in of.members.values() if isinstance(member, griffe.Object)]
    inner = [each for member in own for each in documented(member)]
    return inner if of.docstring is None else [of, *inner]


def test_no_docstring_has_a_raw_role_or_a_ruled_table_in_prose(package):
    every = documented(package)
    assert len(every) > 800
    for each in every:
        assert each.docstring is not None
        text = each.docstring.value
        assert not re.search(r":(func|class|meth|mod|attr|data|obj|exc):", text), each.path
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        assert not re.search(r"^\s*(=+ +=+|>>> )", prose, re.M), each.path


def test_references_in_docstrings_name_what_is_there(package):
    paths = {each.path for each in documented(package)}
    found = set()
    for each in documented(package):
        assert each.docstring is not None
        found |= set(re.findall(r"`\]\[(resval_lens[\w.]*)\]", each.docstring.value))
    assert len(found) > 50
    assert found <= paths


def test_a_role_is_found_in_the_scopes_around_it(package):
    def text(path: str) -> str:
        docstring = package[path].docstring
        assert docstring is not None
        return docstring.value

    assert "[`to_dict`][resval_lens.streams.AttentionStream.to_dict]" in text(
        "streams.AttentionStream.from_dict"
    )
    assert "[`link_activations`][resval_lens.hooks.ablate.link_activations]" in text(
        "hooks.ablate.freeze"
    )


def test_prose_is_escaped_and_code_is_not():
    blocks = hook("docstrings")._blocks
    text = "Of a1.h0<q> and ``a0<v>``:\n\n    a0<v> [x][y]\n\nArgs:\n    x: [batch] [pos], b<c\n"
    made = blocks(text)
    assert "a1.h0&lt;q> and ``a0<v>``" in made
    assert "    a0<v> [x][y]" in made
    assert r"x: [batch] \[pos], b&lt;c" in made
    assert blocks(">>> 1 + 1\n2\n\nafter").splitlines() == [
        "", "```pycon", ">>> 1 + 1", "2", "```", "", "after"
    ]  # fmt: skip


def test_a_constant_is_documented_by_its_comment(package):
    mixes = package["mixes.MIXES"].docstring
    assert mixes is not None
    assert mixes.value.startswith("Every mix by its name")


def test_every_ablation_has_its_row():
    names = re.findall(r"^\| `(\S+)` \| carries", hook("generated").ablations(), re.MULTILINE)
    assert names == list(ABLATIONS)
    assert "<!-- ablations -->" in (DOCS / "how-to" / "ablate-links.md").read_text()


def test_the_drawing_is_what_its_script_draws():
    spec = importlib.util.spec_from_file_location("v", DOCS / "_figures" / "value_stream.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kept = (DOCS / "_figures" / "value-stream.svg").read_text()
    drawn = module.draw()
    assert "currentColor" in kept
    assert not re.search(r"\n\s*\n", kept)  # a blank line would end it in Markdown
    words = re.compile(r">([^<>]*\w[^<>]*)</(?:text|tspan)>")
    assert words.findall(drawn) == words.findall(kept)


def test_examples_leave_torch_as_it_was(run):
    threads = torch.get_num_threads()
    run("add_a_stream")
    assert torch.get_num_threads() == threads


def test_a_role_over_two_lines_is_found_and_a_name_of_two_homes_is_not(package):
    docstrings = hook("docstrings")
    objects = {each.path: each for each in documented(package)}
    by_name: dict[str, list[str]] = {}
    for path in objects:
        by_name.setdefault(path.rsplit(".", 1)[-1], []).append(path)
    there = objects["resval_lens.hooks.ablate.freeze"]
    roles = docstrings._roles(
        "See :meth:`~resval_lens.streams.\n    AttentionStream.from_dict`.", there, objects, by_name
    )
    assert roles == "See [`from_dict`][resval_lens.streams.AttentionStream.from_dict]."
    assert len(by_name["from_dict"]) > 1
    assert docstrings._roles(":meth:`from_dict`", there, objects, by_name) == "`from_dict`"
