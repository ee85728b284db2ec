"""A model loaded as one says, on one's own task: --streams, --dtype, --fold, --task FILE."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from typer.testing import CliRunner

from resval_lens import ResValConfig, ResValTransformer
from resval_lens.analyses.cli import app as cli
from resval_lens.analyses.cli.completion import one_or_file
from resval_lens.analyses.tasks import TASKS, Asked
from resval_lens.hooks.patching import patch
from resval_lens.io import formats
from resval_lens.io.formats.format import NO_SETTINGS, Converted, Format, Settings
from resval_lens.load import Loaded, load_config, load_model
from tests.test_leading import model_with, word_tokenizer
from tests.worded import worded

RUN = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})


def invoke(*arguments: str | Path) -> Any:
    return RUN.invoke(cli.app, list(map(str, arguments)), prog_name="resval-lens")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    worded().model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_weights_are_run_as_asked_and_the_result_says_how(saved: Path, tmp_path: Path) -> None:
    asked = ["--task", "pronoun", "--prompts", "3", "--json", "--quiet", "--out", tmp_path]
    plain = json.loads(invoke("patch", saved, *asked).stdout)
    assert (plain["streams"], plain["dtype"], plain["folded"]) == ("v", "float32", False)
    done = invoke("patch", saved, *asked, "--streams", "q", "--dtype", "float64", "--fold")
    found = json.loads(done.stdout)
    assert (found["streams"], found["dtype"], found["folded"]) == ("q", "float64", True)
    model = ResValTransformer.from_pretrained(saved, streams="q", dtype=torch.float64)
    pairs = TASKS["pronoun"].draw(Loaded("same", model), 3).pairs
    values = patch(model, pairs, "z", by=("layer", "head")).values
    # Folding changes no difference of logits.
    shown = torch.tensor(found["values"], dtype=torch.float64)
    torch.testing.assert_close(shown, values, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(torch.tensor(plain["values"]).double(), values, atol=1e-3)


class Capped(Format):
    """A folder of a random model whose soft cap is asked for."""

    name = "a folder with capped.txt"
    settings: ClassVar[Mapping[str, str]] = {"softcap": "of the logits"}

    def holds(self, path: Path) -> bool:
        return (path / "capped.txt").is_file()

    def read(
        self,
        path: Path,
        dtype: torch.dtype,
        device: str,
        tokenizer: Any = None,
        settings: Settings = NO_SETTINGS,
    ) -> Converted:
        if "softcap" not in settings:
            raise ValueError(f"{path} does not say its softcap")
        cfg = ResValConfig(n_layers=2, d_model=8, d_head=4, n_ctx=20, d_vocab=30, act_fn="relu",
                           output_logits_soft_cap=settings["softcap"], dtype=dtype)  # fmt: skip
        return Converted(str(path), cfg, ResValTransformer(cfg).state_dict())


@pytest.fixture
def capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, Capped()))
    (tmp_path / "capped").mkdir()
    (tmp_path / "capped" / "capped.txt").touch()
    return tmp_path / "capped"


def test_what_files_leave_open_is_given(capped: Path, tmp_path: Path) -> None:
    settings = {"softcap": 20.0}
    for device in (None, "auto"):
        model = load_model(capped, settings=settings, device=device).model
        assert model.cfg.output_logits_soft_cap == 20
    assert load_config(capped, settings=settings).output_logits_soft_cap == 20
    model.save_pretrained(tmp_path / "saved")  # and says it from then on
    assert load_model(tmp_path / "saved").model.cfg.output_logits_soft_cap == 20
    asked = ["--setting", "softcap=20", "--length", "8", "--quiet", "--out", tmp_path]
    assert invoke("induction", capped, *asked).exit_code == 0
    asked = ["--prompts", "2", "--length", "8", "--quiet"]
    assert invoke("plan", "circuit", capped, *asked, "--setting", "softcap=20").exit_code == 0


def test_settings_that_are_not_taken_are_named(capped: Path, saved: Path) -> None:
    with pytest.raises(ValueError, match="does not say its softcap"):
        load_model(capped)
    message = r"takes no setting 'sofcap', as a folder with capped\.txt; it takes softcap: of the"
    with pytest.raises(ValueError, match=message):
        load_model(capped, settings={"sofcap": 20})
    message = "takes no setting 'softcap': its own say everything"
    for name in (saved, "stories-small-values", "gpt2"):
        for device in (None, "auto"):
            with pytest.raises(ValueError, match=message):
                load_model(name, settings={"softcap": 20}, device=device)
        with pytest.raises(ValueError, match=message):
            load_config(name, settings={"softcap": 20})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["softcap"], "--setting is written NAME=NUMBER, like softcap=20; got 'softcap'"),
        (["softcap=high"], "--setting is written NAME=NUMBER, like softcap=20; got 'softcap=high'"),
        (["softcap=nan"], "--setting is written NAME=NUMBER, like softcap=20; got 'softcap=nan'"),
        (["=20"], "--setting is written NAME=NUMBER, like softcap=20; got '=20'"),
        (["step=1", "step=2"], "--setting step is given twice"),
    ],
)
def test_settings_that_are_no_settings_are_refused(given: list[str], message: str) -> None:
    written = [part for each in given for part in ("--setting", each)]
    assert str(invoke("ablate", "stories-small-values", *written).exception) == message


def test_generate_runs_as_asked(saved: Path) -> None:
    texts = {
        invoke("generate", saved, "So Mary is", "--temperature", "0", *more).stdout
        for more in ([], ["--streams", "qkv"], ["--dtype", "float64"])
    }
    assert len(texts) == 2  # other streams say something else, another precision does not


@pytest.mark.parametrize("converted", [True, False])
def test_prompts_are_general_for_a_model_from_elsewhere(converted: bool) -> None:
    model = model_with(word_tokenizer(set()))
    if converted:
        model.cfg.original_architecture = "LlamaForCausalLM"
    drawn = TASKS["ioi"].draw(Loaded("some", model), 4)
    general, stories = (
        TASKS["ioi"].draw(Loaded("some", model), 4, Asked(general=each)) for each in (True, False)
    )
    assert (general.general, general.of_stories) == (True, False)
    assert (stories.general, stories.of_stories) == (False, True)
    texts = [[prompt.text for prompt in each.prompts] for each in (drawn, general, stories)]
    assert texts[0] == texts[1 if converted else 2]
    assert texts[1] != texts[2]
    assert drawn.general is converted


def test_the_report_says_which_prompts_they_were(tmp_path: Path) -> None:
    for flags in ([], ["--stories"]):
        done = invoke(
            "patch", "stories-small-values", "--prompts", "2", "--json", *flags, "--out", tmp_path
        )
        assert json.loads(done.stdout)["general"] is False


def test_answers_of_several_tokens_are_asked_for(saved: Path, tmp_path: Path) -> None:
    line = {"clean": "The city of", "corrupted": "The road of", "answer": " Paris Rome"}
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({**line, "wrong": " Paris Madrid"}))
    refused = invoke("patch", saved, "--task", path, "--out", tmp_path)
    assert "mine.jsonl, line 1: answer ' Paris Rome' is 2 tokens" in str(refused.exception)
    assert "unless --several-tokens" in str(refused.exception)
    done = invoke("patch", saved, "--task", path, "--several-tokens", "--json", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    example = json.loads(done.stdout)["example"]
    assert example == {"clean": "The city of Paris", "corrupted": "The road of Paris"}
    chat = invoke("patch", saved, "--task", path, "--chat", "--out", tmp_path)
    assert "its tokenizer has no chat template" in str(chat.exception)


def test_positions_of_a_file_are_its_own(saved: Path, tmp_path: Path) -> None:
    line = {"clean": "The city of", "corrupted": "The road of", "answer": " Paris"}
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({**line, "positions": {"place": [4, 8]}}))
    asked = ["patch", saved, "--task", path, "--site", "resid_pre", "--by", "layer,position"]
    wrong = invoke(*asked, "--positions", "S2", "--out", tmp_path)
    assert "positions must be among place, end, or numbers" in str(wrong.exception)
    done = invoke(*asked, "--json", "--out", tmp_path)
    assert json.loads(done.stdout)["axes"]["position"] == ["place", "end"]
    assert "mine, corrupted as given" in invoke(*asked, "--out", tmp_path).stdout


def test_tasks_and_files_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompts").mkdir()
    for name in ("prompts/a.jsonl", "prompts/b.csv", "prompts/c.txt", "prior.yaml", ".hidden.yaml"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    complete = one_or_file("pronoun", "ioi", endings=(".jsonl", ".csv", ".yaml"))
    assert complete("pr") == ["pronoun", "prior.yaml", "prompts/"]
    assert complete("prompts/") == ["prompts/a.jsonl", "prompts/b.csv"]
    assert complete("") == ["pronoun", "ioi", "prior.yaml", "prompts/"]
    assert complete("nowhere/") == []


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("gpt2", "gpt2"),
        ("user/name", "user/name"),
        ("runs/mine", "runs/mine"),
        ("/home/somebody/smollm2", "smollm2"),
        ("../elsewhere/values-seed0/model", "values-seed0/model"),
        ("", ""),
    ],
)
def test_results_name_no_folder_of_this_machine(given: str, shown: str) -> None:
    model = worded().model
    problem = TASKS["pronoun"].draw(Loaded(given, model), 1)
    assert problem.facts().model == shown


def test_classifiers_take_these_options_too(tmp_path: Path) -> None:
    asked = ["patch", "values", "--prompts", "8", "--json", "--quiet", "--out", tmp_path]
    plain, found = (
        json.loads(invoke(*asked, *more).stdout)
        for more in ([], ["--dtype", "float64", "--streams", "v"])
    )
    assert found["dtype"] == "float64"
    refused = invoke(*asked, "--fold").exception
    assert "a classifier has no weights to process" in str(refused)
    assert found["source"] == pytest.approx(plain["source"], rel=1e-4)
