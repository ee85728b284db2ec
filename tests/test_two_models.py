"""``resval-lens compare MODEL MODEL``: any two models on one task."""

import json
import re
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from resval_lens import ResValTransformer
from resval_lens.analyses.circuits.study import circuit_study
from resval_lens.analyses.cli.app import app
from resval_lens.analyses.comparison import two_models
from resval_lens.analyses.comparison.two_models import OneTask, compare_two, pose_alike
from resval_lens.analyses.comparison.two_models_report import ComparedModels
from resval_lens.analyses.report.two_models_page import two_models_page
from resval_lens.analyses.tasks import TASKS, Asked
from resval_lens.analyses.tasks.problem import Problem
from resval_lens.hooks import cut_links
from resval_lens.io.provenance import provenance
from resval_lens.numbers import number
from tests.helpers import tiny_model
from tests.pretrained import SMOLLM2, needs_pretrained, smollm2
from tests.test_nanochat import drawn, save
from tests.worded import worded

SHIPPED = ("stories-small-classic", "stories-small-values")
SENTENCE = "the {A} saw the {B} and the"


@cache
def posed() -> OneTask:
    return pose_alike(SHIPPED, 6, Asked(seed=3), "ioi")


@cache
def compared() -> ComparedModels:
    return compare_two(posed())


def scores(problem: Problem, tokens: torch.Tensor) -> np.ndarray:
    """The logit difference of each prompt, run alone."""
    found = []
    for row, last, (right, wrong) in zip(
        tokens, problem.pairs.answers.tolist(), problem.pairs.labels.tolist(), strict=True
    ):
        logits = problem.model(row[None, : last + 1])[0, -1]
        found.append((logits[right] - logits[wrong]).item())
    return np.array(found)


@torch.no_grad()
def test_measures_are_those_of_each_prompt_run_alone() -> None:
    first, second = posed().scored
    assert first.prompts == second.prompts
    for which in ("clean", "corrupted"):
        one, other = (scores(each, getattr(each.pairs, which)) for each in (first, second))
        for found, own in zip(compared().models, (one, other), strict=True):
            mean = getattr(found, which)["logit difference"]
            assert mean == pytest.approx(own.mean(), abs=1e-4)
        (difference,) = [
            each
            for each in compared().differences
            if (each.measure, each.prompts) == ("logit difference", which)
        ]
        assert difference.difference == pytest.approx((other - one).mean(), abs=1e-4)
        wanted = stats.ttest_rel(other, one)
        assert difference.tests.t_paired == pytest.approx(wanted.statistic, rel=1e-3)
        assert difference.tests.p_paired == pytest.approx(wanted.pvalue, rel=1e-3)


@torch.no_grad()
def test_links_cut_are_links_cut() -> None:
    classic, values = compared().models
    assert classic.links is None
    assert classic.left_out == {"links": "it has none"}
    assert values.links is not None
    assert values.links.names == ["all", "v1", "v2", "v3"]
    problem = posed().scored[1]
    with cut_links(problem.model):
        wanted = scores(problem, problem.pairs.clean).mean()
    assert values.links.cells("logit difference")["all", "zero"] == pytest.approx(wanted, abs=1e-4)


@torch.no_grad()
def test_a_patched_head_takes_its_z_from_the_clean_run() -> None:
    problem = posed().scored[1]
    name = "blocks.1.attn.hook_z"
    _, cache = problem.model.run_with_cache(problem.pairs.clean, padding_side="right")

    def take(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z[:, :, 2] = cache[name][:, :, 2]
        return z

    logits = problem.model.run_with_hooks(
        problem.pairs.corrupted, fwd_hooks=[(name, take)], padding_side="right"
    )
    rows = torch.arange(len(logits))
    at = logits[rows, problem.pairs.answers]
    labels = problem.pairs.labels
    patched = (at[rows, labels[:, 0]] - at[rows, labels[:, 1]]).mean().item()
    found = compared().models[1]
    clean, corrupted = (own["logit difference"] for own in (found.clean, found.corrupted))
    z = next(each for each in found.patched if each.site == "z")
    assert z.recovered[1, 2].item() == pytest.approx(
        (patched - corrupted) / (clean - corrupted), abs=1e-4
    )


def test_circuits_and_attribution() -> None:
    for problem, others, found in zip(
        posed().scored, posed().held_out, compared().models, strict=True
    ):
        assert found.circuit is not None
        assert found.attribution is not None
        own = circuit_study(problem.model, problem.pairs, others.pairs, method="eap")
        assert found.circuit.circuit.edges == own.circuit.edges
        assert found.circuit.circuit.faithfulness == own.circuit.faithfulness
        assert set(problem.prompts).isdisjoint(others.prompts)
        difference = found.clean["logit difference"]
        assert found.attribution.total == pytest.approx(difference, abs=1e-4)
    assert any(" from " in name for name in compared().models[1].attribution.top)


def test_what_is_told() -> None:
    said = compared().sentences()
    values = compared().models[1]
    cut = values.links.cells("logit difference")["all", "zero"]
    assert f"stories-small-values: logit difference is {cut:.3f} with all links cut." in said
    assert all(len(sentence) < 130 for sentence in said)
    assert len(compared().tables()) == 6
    assert {"ablate-2.png", "patch-z-1.png", "attribute-2.png"} < set(compared().figures())
    document = compared().to_dict()
    assert document["models"][0]["model"] == SHIPPED[0]
    assert document["differences"][0]["p_paired"] == compared().differences[0].tests.p_paired


def test_the_metric_that_is_asked_for_measures_everything() -> None:
    found = compare_two(posed().by("log-probability"))
    for each in found.models:
        assert next(iter(each.clean)) == each.facts.metric == "log P(IO)"
        assert each.patched[0].source == pytest.approx(each.clean["log P(IO)"], abs=1e-5)


def saved(folder: Path, words: str, **sizes: Any) -> str:
    """A tiny model whose tokenizer has these words and no others."""
    known = {word: i for i, word in enumerate(["[UNK]", *words.split()])}
    backend = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    model = tiny_model(d_vocab=len(known), default_prepend_bos=False, **sizes)
    model._use_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))
    model.save_pretrained(folder)
    return str(folder)


def animals(folder: Path) -> Path:
    path = folder / "animals.yaml"
    path.write_text(
        "slots:\n  A: [cat, dog, fox, cow, hen, pig, ant, bee]\n  B: A\n  C: A\n"
        f'templates:\n  - clean: "{SENTENCE}"\n    corrupted: "{SENTENCE.replace("{A}", "{C}")}"\n'
        '    answer: " {A}"\n    wrong: " {B}"\n'
    )
    return path


def test_different_tokenizers_read_the_same_texts(tmp_path: Path) -> None:
    one = saved(tmp_path / "one", "and saw the cat dog fox cow hen ant", streams="v")
    other = saved(tmp_path / "other", "pig cow fox hen cat the and saw ant", n_layers=2)
    task = pose_alike((one, other), 4, Asked(), animals(tmp_path))
    assert task.unlike == ""
    first, second = task.scored
    assert first.prompts == second.prompts
    assert not torch.equal(first.pairs.clean, second.pairs.clean)
    for each in task.scored:
        words = {word for prompt in each.prompts for word in prompt.text.split()}
        assert words <= {"and", "saw", "the", "cow", "fox", "hen", "cat", "ant"}
    found = compare_two(task)
    assert found.differences[0].tests.p_paired is not None
    assert [each.size.layers for each in found.models] == [3, 2]


def test_tokenizers_without_common_words_have_prompts_of_their_own(tmp_path: Path) -> None:
    one = saved(tmp_path / "one", "and saw the cat dog fox cow", streams="v")
    other = saved(tmp_path / "other", "pig hen ant bee the and saw")
    task = pose_alike((one, other), 4, Asked(), animals(tmp_path))
    assert "0 are one token" in task.unlike
    found = compare_two(task)
    assert {each.tests.p_paired for each in found.differences} == {None}
    assert found.differences[0].tests.p is not None
    assert found.sentences()[-1].startswith("Prompts of the two models differ: ")


def test_what_a_model_cannot_be_asked_is_left_out_with_the_reason(tmp_path: Path) -> None:
    name = saved(tmp_path / "flat", "and saw the cat dog fox cow", streams="v")
    model = ResValTransformer.from_pretrained(name)
    model.unembed.W_U.data.zero_()
    model.save_pretrained(name, overwrite=True)
    found = compare_two(pose_alike((name, name), 4, Asked(), animals(tmp_path)))
    for each in found.models:
        assert "no gap to recover" in each.left_out["patching"]
        assert "their gap vanishes" in each.left_out["circuit"]
        assert (each.patched, each.circuit) == ((), None)
    assert {each.difference for each in found.differences} == {0.0}
    assert found.tables()
    assert "Logit difference on clean prompts is the same in both models." in found.sentences()


@pytest.mark.parametrize("name", ["ioi", "greater-than", "repeated-tokens"])
def test_a_model_beside_itself_differs_in_nothing(name: str, tmp_path: Path) -> None:
    worded().model.save_pretrained(tmp_path / "model")
    folder = str(tmp_path / "model")
    task = pose_alike((folder, folder), 3, Asked(general=TASKS[name].has_general or None), name)
    assert task.unlike == ""
    found = compare_two(task)
    assert {each.difference for each in found.differences} == {0.0}
    first, second = found.to_dict()["models"]
    assert first == second
    assert found.tables()
    assert found.sentences()


def test_classifiers_compare() -> None:
    task = pose_alike(("classic", "values"), 12, Asked())
    assert task.unlike == ""
    found = compare_two(task)
    assert found.models[0].facts.task == "classifying in context"
    assert "not a sum" in found.models[1].left_out["attribution"]
    document = {**found.to_dict(), "provenance": provenance()}
    assert "Heads that write the answer" not in two_models_page(found, document, "compare.json")
    assert found.differences[0].tests.p_paired is not None


def test_settings_go_to_the_models_that_take_them(tmp_path: Path) -> None:
    task, names = animals(tmp_path), (SHIPPED[0], str(tmp_path / "d4"))
    (tmp_path / "d4").mkdir()
    save(tmp_path / "d4", *drawn("2026-01-16"))
    for settings, what in (
        ({}, "does not say its soft cap"),
        ({"softcap": 15.0}, "tokenizer"),  # it is loaded: what it lacks is another thing
        ({"heads": 4.0}, f"neither of {' and '.join(names)} takes a setting 'heads'"),
    ):
        with pytest.raises(ValueError, match=re.escape(what)):
            pose_alike(names, 2, Asked(), task, settings=settings)


def test_one_clear_line(tmp_path: Path) -> None:
    def refused(what: str, *names: str, task: Any = None) -> None:
        with pytest.raises(ValueError, match=re.escape(what)):
            pose_alike(names, 2, Asked(), task)

    refused("takes two models, or none; got classic", "classic")
    refused(
        "no task is for both models: classic reads vectors, stories-small-values reads tokens",
        "classic", "stories-small-values",
    )  # fmt: skip
    refused("task icl: its prompts are vectors", *SHIPPED, task="icl")
    words = "and saw the cat dog fox cow hen"
    one, other = saved(tmp_path / "one", words), saved(tmp_path / "other", words.replace("hen", ""))
    backend = Tokenizer(models.WordPiece({**{w: i for i, w in enumerate(
        ["[UNK]", *words.split()[:-1], "h", "##en"])}}, unk_token="[UNK]"))  # fmt: skip
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    model = tiny_model(d_vocab=12, default_prepend_bos=False)
    model._use_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))
    model.save_pretrained(other, overwrite=True)
    file = tmp_path / "own.jsonl"
    line = {"clean": "the cat saw the", "corrupted": "the hen saw the", "answer": " dog"}
    file.write_text("".join(json.dumps(line | {"answer": f" {x}"}) + "\n" for x in ("dog", "fox")))
    assert pose_alike((one, one), 1, Asked(), file).unlike == ""
    refused(f"{other}: {file}, line 1: clean has 4 tokens, corrupted 5", one, other, task=file)


RUN = CliRunner(env={"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"})


def test_the_command(tmp_path: Path) -> None:
    asked = ["compare", *SHIPPED, "--task", "ioi", "--prompts", "6", "--seed", "3", "--quiet"]
    done = RUN.invoke(app, [*asked, "--json", "--report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["found"] == compared().sentences()
    assert document["models"][1]["clean"] == compared().models[1].clean
    assert (tmp_path / "patch-z-1.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert all(escape(sentence, quote=False) in page for sentence in document["found"])
    assert page.count("<table") == len(compared().tables())
    assert page.count("<figure") == len(list(tmp_path.glob("*.png")))
    assert document["provenance"]["created"] in page
    assert 'src="http' not in page
    for given, message in (
        ([*SHIPPED, "--sequences", "5"], "--sequences 5 is for comparing runs"),
        (["--task", "ioi"], "--task ioi is for comparing two models by name"),
        ([*SHIPPED, "--metric", "x"], "metric: indirect objects is measured by"),
    ):
        refused = RUN.invoke(app, ["compare", *given])
        assert message in str(refused.exception)


@pytest.mark.pretrained
@needs_pretrained[1]
def test_a_grafted_stream_that_carries_nothing_changes_nothing(tmp_path: Path) -> None:
    grafted = smollm2().with_streams("v(mix=head, carried=0)", share_weights=True)
    grafted.save_pretrained(tmp_path / "grafted")
    names = str(SMOLLM2), str(tmp_path / "grafted")
    found = compare_two(pose_alike(names, 1, Asked(), "agreement"))
    assert {each.difference for each in found.differences} == {0.0}
    first, second = found.models
    for one, other in zip(first.patched, second.patched, strict=True):
        assert torch.equal(one.recovered, other.recovered)
    assert first.circuit
    assert second.circuit
    assert first.circuit.circuit.edges == second.circuit.circuit.edges
    f, same = (each.circuit.circuit.faithfulness for each in (first, second))
    assert f == pytest.approx(same, rel=1e-5)  # what links bring is added
    assert first.attribution
    assert second.attribution
    assert first.attribution.total == second.attribution.total
    assert second.links
    edited = second.links.cells("logit difference").values()
    assert set(edited) == {first.clean["logit difference"]}


# --- the page -----------------------------------------------------------------------------------


@cache
def page_of_two() -> str:
    found = compared()
    return two_models_page(found, {**found.to_dict(), "provenance": provenance()}, "compare.json")


def test_the_page_opens_with_findings_and_their_figures() -> None:
    html = page_of_two()
    opening = html.split("<nav")[0]
    for said in (compared().differ()[0], *compared().cut(), *compared().sized()):
        assert escape(said) in opening
    assert opening.count('class="rv-figure"') == 3
    sections = re.findall('<section aria-label="([^"]+)"', html)
    assert sections == ["What was compared", "Links ablated", "Activations patched",
                        "Heads that write the answer", "The circuit", "What else was found",
                        "Provenance"]  # fmt: skip
    for said in compared().sentences():
        assert html.count(escape(said)) == 1


def test_every_figure_of_the_page_speaks_and_every_table_has_its_csv() -> None:
    html = page_of_two()
    drawn = re.findall(r'<svg[^>]*class="rv-figure".*?</svg>', html, re.DOTALL)
    assert len(drawn) == len(compared().figures())
    assert all(figure.count('class="rv-mark"') > 1 for figure in drawn)
    held = [json.loads(each) for each in re.findall('class="rv-csv">(.*?)</script>', html)]
    assert held == compared().csv()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert {"figure-measures-of-both-models", "table-the-circuit-the-fewest-edges-that-are-"
            "faithful-enough", "links-ablated"} <= set(ids)  # fmt: skip


def test_figures_of_two_models_say_their_numbers() -> None:
    found = compared()
    values = found.models[1]
    assert values.links is not None
    said = page_of_two()
    for which, own in (("clean", values.clean), ("corrupted", values.corrupted)):
        for measure, value in own.items():
            assert f"{SHIPPED[1]}, {which}: {measure} {number(value)}" in said
    cells = values.links.cells("logit difference")
    for edit in ("zero", "resample"):
        label = f"{SHIPPED[1]}, {edit}: logit difference {number(cells['all', edit])}"
        assert label in said
    curves = found.figures()["faithfulness.png"].axes[0].get_lines()
    drawn = {line.get_label(): line.get_color() for line in curves if line.get_label() in SHIPPED}
    assert len(set(drawn.values())) == 2


def test_deep_models_make_a_page_of_maps_one_below_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 layers of 9 heads: every cell speaks, and no picture is wider than a page can show."""

    def no_circuit(*_: Any, **__: Any) -> None:  # which takes minutes, and has no map
        raise ValueError("not asked for")

    monkeypatch.setattr(two_models, "circuit_study", no_circuit)
    words, sizes = "and saw the cat dog fox cow hen", {"n_layers": 30, "n_heads": 9}
    names = [
        saved(tmp_path / name, words, streams=streams, **sizes)
        for name, streams in (("one", ""), ("other", "v"))
    ]
    found = compare_two(pose_alike(names, 2, Asked(), animals(tmp_path)))
    html = two_models_page(found, {**found.to_dict(), "provenance": provenance()}, "compare.json")
    assert html.count("layer 29, head 8: ") + html.count("head 8, layer 29: ") == 2
    assert 'class="rv-pairs"' not in html
    widths = [int(each) for each in re.findall(r"--rv-width: (\d+)px", html)]
    assert max(widths) < 1100
    (tmp_path / "report.html").write_text(html)
