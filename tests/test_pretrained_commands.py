"""Each command once on a real pretrained model, SmolLM2-135M-Instruct."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from resval_lens.analyses.cli import app as cli
from tests.pretrained import SMOLLM2, needs_pretrained

pytestmark = needs_pretrained
RUN = CliRunner(env={"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"})
PAIRS = [("hot", "cold", "big", "small"), ("up", "down", "left", "right"),
         ("day", "night", "black", "white"), ("open", "closed", "good", "bad")]  # fmt: skip


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Prompts of one's own: the opposite of a word, and of another word."""
    path = tmp_path / "opposites.jsonl"
    frame = "The opposite of {} is"
    lines = [
        {
            "clean": frame.format(word),
            "corrupted": frame.format(other),
            "answer": f" {answer}",
            "wrong": f" {wrong}",
            "positions": {"word": [16, 16 + len(word)]},
        }
        for word, answer, other, wrong in PAIRS
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def result(command: str, *arguments: str | Path, to: Path) -> dict[str, Any]:
    asked = [command, SMOLLM2, *arguments, "--quiet", "--out", to]
    done = RUN.invoke(cli.app, list(map(str, asked)))
    assert done.exit_code == 0, done.output
    assert (to / f"{command}.png").is_file()
    found: dict[str, Any] = json.loads((to / f"{command}.json").read_text())
    return found


def test_patching_ones_own_prompts(task: Path, tmp_path: Path) -> None:
    """What differs is the word, until its meaning has moved to the end."""
    site = ["--site", "resid_pre", "--by", "layer,position", "--layers", "0,15,29"]
    found = result("patch", "--task", task, *site, to=tmp_path)
    assert found["axes"]["position"] == ["word", "end"]
    (word, end), middle, (late_word, late_end) = found["recovered"]
    assert (word, end) == (pytest.approx(1, abs=1e-3), pytest.approx(0, abs=1e-3))
    assert middle[0] > 0.8
    assert late_word < 0.2 < 0.8 < late_end


def test_patching_indirect_objects_is_of_general_prompts(tmp_path: Path) -> None:
    found = result("patch", "--prompts", "3", "--layers", "20,23", to=tmp_path)
    assert found["general"]
    assert found["source"] > 2 > 0 > found["base"]  # logit differences, clean and corrupted


def test_a_circuit_of_ones_own_prompts(task: Path, tmp_path: Path) -> None:
    quick = ["--method", "eap", "--edges", "100", "--sizes", "100", "--minimality", "1",
             "--completeness", "1", "--prompts", "2"]  # fmt: skip
    found = result("circuit", "--task", task, *quick, to=tmp_path)
    assert found["search"]["size"] == 100
    assert 0 < found["circuit"]["n_edges"] <= 100 < found["circuit"]["n_edges_of_model"]


def test_attribution_adds_up(tmp_path: Path) -> None:
    found = result("attribute", "--prompts", "2", to=tmp_path)
    assert sum(found["components"].values()) == pytest.approx(found["total"], rel=1e-3)
    assert found["general"]


def test_links_of_a_grafted_stream_that_carries_nothing(tmp_path: Path) -> None:
    asked = ["--task", "pronoun", "--streams", "v(mix=head, carried=0)", "--layers", "1",
             "--heads", "0", "--edits", "zero", "--prompts", "2"]  # fmt: skip
    found = result("ablate", *asked, to=tmp_path)
    assert found["story_loss"] is None
    (row,) = found["rows"]
    assert row["measures"] == pytest.approx(found["clean"])
    assert found["clean"]["accuracy"] == 1


def test_induction_heads(tmp_path: Path) -> None:
    found = result("induction", "--rows", "2", "--length", "12", to=tmp_path)
    assert found["top"]["prefix_matching"][0]["score"] > 0.5
    assert found["loss"]["second"] < found["loss"]["first"] / 2


def test_it_writes() -> None:
    asked = ["generate", str(SMOLLM2), "The capital of France is", "--temperature", "0",
             "--max-new-tokens", "3", "--dtype", "bfloat16"]  # fmt: skip
    assert RUN.invoke(cli.app, asked).stdout.startswith("The capital of France is Paris")
