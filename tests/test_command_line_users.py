"""What people type: other people's models, their own prompts, slips; and progress in log files."""

import io
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from resval_lens import ResValTransformer
from resval_lens.analyses.cli import app as cli
from resval_lens.analyses.cli import console
from resval_lens.analyses.cli.options import notes
from resval_lens.analyses.comparison.lm_progress import first_words
from resval_lens.analyses.tasks import Asked
from resval_lens.analyses.tasks.problem import pose
from resval_lens.analyses.tasks.task import PromptWarning
from resval_lens.load import load_model
from tests.test_leading import model_with, word_tokenizer

RUN = CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})


def invoke(*arguments: str) -> Any:
    return RUN.invoke(cli.app, list(arguments), prog_name="resval-lens")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["patch", "stories-small-value"], "no model 'stories-small-value'; did you mean "
         "'stories-small-values'"),
        (["patch", "mine"], "no model 'mine'; there are stories-small-classic"),
        (["patch", "mine"], "and folders; here is no folder of that name"),
        (["patch", "gpt-2"], "no model 'gpt-2'; did you mean 'gpt2'"),
        (["circuit", "/some/where"], "no model '/some/where': there is no such folder or file"),
        (["patch", "--task", "greaterthan"], "got 'greaterthan'; did you mean 'greater-than'?"),
        (["circuit", "out/none"], "no model 'out/none': It is not a folder here"),
        (["eval", "ioi", "stories-small-value"], "did you mean 'stories-small-values'"),
        (["generate", "stories-small-values", "word " * 200], "n_ctx=128 leaves no room"),
        (["patch", "stories-small-values", "--prompts", "2", "--prepend", "<bos>"],
         "prepend='<bos>': this tokenizer has no such token"),
        (["attribute", "stories-small-values", "--prepend", "<bos>"], "no such token"),
        (["induction", "stories-small-values", "--prepend", "<bos>"], "no such token"),
        (["induction", "values", "--prepend", "eos"], "--prepend is for language models"),
        (["circuit", "values", "--prepend", "eos"], "--prepend is for prompts of text"),
        (["circuit", "values", "--threshold", "0.1", "--edges", "4"], "edges=4 and threshold=0.1"),
        (["circuit", "values", "--prompts", "4", "--edges", "10000"], "edges must lie between"),
        (["circuit", "values", "--prompts", "4", "--sizes", "9,3"], "sizes must rise from 1"),
        (["circuit", "values", "--sizes", "many"], "sizes must be numbers like 0,1,2"),
        (["circuit", "values", "--minimality", "-1"], "minimality must be 0 or more; got -1"),
    ],
)  # fmt: skip
def test_a_slip_is_one_clear_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = invoke(*arguments)
    assert found.exit_code == 1
    assert message in str(found.exception)
    assert not isinstance(found.exception, AssertionError)


def test_a_note_on_prompts_is_a_line_and_other_warnings_are_pythons(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown: list[Any] = []
    for kind in (PromptWarning, UserWarning):
        cli.show_warning(lambda *all_: shown.append(all_), "words", kind, "file.py", 3)
    assert capsys.readouterr().err == "note: words\n"
    assert shown == [("words", UserWarning, "file.py", 3)]


@pytest.mark.parametrize("command", ["patch", "ablate", "circuit"])
def test_a_model_that_does_not_do_the_task_is_told(command: str, tmp_path: Path) -> None:
    """The wrong name as the answer, then the right one."""
    names = ("Tom", "Mary"), ("Ben", "Anna")
    lines = [
        {
            "clean": f"{one} and {other} went to the park, {one} gave a ball to",
            "corrupted": f"{one} and {other} went to the park, {other} gave a ball to",
            "answer": f" {one if wrong else other}",
            "wrong": f" {other if wrong else one}",
        }
        for wrong in (True, False)
        for one, other in names
    ]
    said = []
    for kind in (lines[:2], lines[2:]):
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in kind))
        options = ("--edges", "4") if command == "circuit" else ()
        done = invoke(command, "stories-small-values", "--task", str(path), *options, "--quiet",
                      "--out", str(tmp_path))  # fmt: skip
        assert done.exit_code == 0, done.output
        said.append("this model does not do the task" in " ".join(done.output.split()))
    assert said == [True, False]


def test_prompts_of_ones_own_are_told_where_to_go(tmp_path: Path) -> None:
    found = invoke("patch", "stories-small-values", "--prompts", "mine.json")
    assert found.exit_code == 2
    assert "'mine.json' is not a whole number" in found.output
    assert "--task FILE" in found.output


def test_a_name_that_nothing_is_like_is_not_blamed_on_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    near = (
        r"no model 'stories-small-value': did you mean 'stories-small-values'\? "
        "It is not a folder"
    )
    with pytest.raises(ValueError, match=near):
        ResValTransformer.from_pretrained("stories-small-value")
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set: it was not asked") as caught:
        ResValTransformer.from_pretrained("zzzzzz/qqqqqqq")
    assert "did you mean" not in str(caught.value)


def test_a_word_of_several_tokens_is_named_with_them() -> None:
    model = ResValTransformer.from_pretrained("stories-small-classic")
    encode, decode = model.tokenizer.encode, model.tokenizer.decode
    assert [model.to_single_token(" Mary")] == encode(" Mary", add_special_tokens=False)
    parts = encode(" Philadelphia", add_special_tokens=False)
    spelled = " + ".join(repr(decode([part])) for part in parts)
    message = f"' Philadelphia' is {len(parts)} tokens with this tokenizer ({spelled}); expected"
    with pytest.raises(ValueError, match=re.escape(message)):
        model.to_single_token(" Philadelphia")


def test_another_tokenizers_model_is_studied(tmp_path: Path) -> None:
    """Elena and Leah are several tokens: prompts do without, and the report says so."""
    missing = {"Elena", "Mary", "John"}
    model = model_with(word_tokenizer(missing))
    model.save_pretrained(tmp_path / "model")
    loaded = load_model(str(tmp_path / "model")).model
    assert loaded.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    chosen = pose(str(tmp_path / "model"), 4, Asked(general=True))
    assert set(chosen.left_out) == missing
    found = invoke("patch", str(tmp_path / "model"), "--prompts", "4", "--general", "--prepend",
                   "eos", "--out", str(tmp_path / "out"))  # fmt: skip
    assert found.exit_code == 0, found.output
    told = re.search(r"note: 3 words are not one token .*: (.*)", found.stderr)
    assert told
    assert set(told[1].split(", ")) == missing
    report = json.loads((tmp_path / "out" / "patch.json").read_text())
    assert set(report["words_left_out"]) == missing
    assert report["leading_token"]["token"] == "</s>"
    silent = invoke("attribute", str(tmp_path / "model"), "--prompts", "4", "--general", "--quiet",
                    "--out", str(tmp_path / "out"))  # fmt: skip
    assert silent.exit_code == 0, silent.output
    assert silent.stderr == ""


def test_a_circuit_by_size_is_said_to_be_one(tmp_path: Path) -> None:
    asked = [
        "--prompts",
        "2",
        "--edges",
        "30",
        "--sizes",
        "5,50",
        "--minimality",
        "3",
        "--completeness",
        "2",
    ]
    found = invoke("circuit", "stories-small-values", *asked, "--out", str(tmp_path))
    assert found.exit_code == 0, found.output
    study = json.loads((tmp_path / "circuit.json").read_text())
    assert study["search"] == {"size": 30}
    assert study["curve"]["sizes"] == [5, 50]
    assert len(study["circuit"]["minimality"]) == 3
    assert study["circuit"]["measured"]["completeness"]["alone"] == 2
    assert study["leading_token"] == {"id": 0, "token": "<|endoftext|>"}
    said = " ".join(found.stdout.split())
    assert f"Minimality was measured on 3 of its {study['circuit']['n_edges']} edges" in said
    assert found.stderr.startswith("0 s: prompts\n")


# Progress


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A stderr that is a file."""
    stream = io.StringIO()
    plain = Console(file=stream, force_terminal=False, width=300)
    for module in ("console", "options"):
        monkeypatch.setattr(f"resval_lens.analyses.cli.{module}.err", plain)
    monkeypatch.setattr(console.Lines, "EVERY", 0.02)
    return stream


def wait_for(log: io.StringIO, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in log.getvalue():
        assert time.monotonic() < deadline, log.getvalue()
        time.sleep(0.005)


def test_progress_in_a_log_is_lines_that_change(log: io.StringIO) -> None:
    with notes(quiet=False) as note:
        note("first")
        assert "first" in log.getvalue()  # at once
        note("edges: 1 of 9")
        wait_for(log, "edges: 1 of 9")
        time.sleep(0.1)
        for done in range(1_000):
            note(f"edges: {done} of 9")
    lines = log.getvalue().splitlines()
    assert sum("edges: 1 of 9" in line for line in lines) == 1
    assert len(lines) < 20
    assert all(re.fullmatch(r"\d+ s: .*", line) for line in lines)
    assert "\r" not in log.getvalue()
    before = log.getvalue()
    with notes(quiet=True) as note:
        note("nothing")
    time.sleep(0.1)
    assert log.getvalue() == before


def test_bars_in_a_log_are_lines(log: io.StringIO) -> None:
    with console.progress_bars() as bars:
        task = bars.add_task("z by layer", total=None, note="")
        bars.update(task, completed=3, total=64)
        wait_for(log, "z by layer: 3 of 64")
        bars.update(task, completed=64, note="loss 1.2")
    assert log.getvalue().splitlines()[-1].endswith("z by layer: 64 of 64 (loss 1.2)")
    with console.progress_bars(quiet=True) as bars:
        bars.update(bars.add_task("none", total=4, note=""), completed=4)
    assert "none" not in log.getvalue()


def test_lines_grow_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    lines = console.Lines()
    now = iter([0.0, 10.0, 100.0, 5_000.0])
    monkeypatch.setattr(lines, "_elapsed", lambda: next(now))

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return len(waited) == 4

    monkeypatch.setattr(lines._over, "wait", wait)
    lines._keep_telling()
    assert waited == [3.0, 3.0, 10.0, 60.0]


# Samples of a model in training


@pytest.mark.parametrize("text", ["Il était une fois un petit garçon.", "Deux mots", "漢字" * 40])
def test_a_sample_begins_as_the_text_does(text: str) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    ids = [0, *tokenizer.encode(text).ids, 0, *tokenizer.encode("Another").ids]

    class OneRow:
        def __len__(self) -> int:
            return 1

        def batch(self, indices: Any) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.tensor([ids]), torch.tensor([ids])

    begins = tokenizer.decode(first_words(OneRow(), tokenizer, most=30)).rstrip()
    words = " ".join(text.split()[:4])
    assert words.startswith(begins.rstrip("\N{REPLACEMENT CHARACTER}"))
    if len(words) < 20:
        assert begins == words
