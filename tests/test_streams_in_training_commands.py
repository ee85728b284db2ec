"""Streams in full on every command that trains: how layers mix is the user's."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from resval_lens import ResValTransformer
from resval_lens.analyses.cli.app import app
from resval_lens.load import load_model
from resval_lens.streams import parse_streams

EVEN = "v(source=first, mix=pair, own=.5, carried=.5)"
NAMED = "v-source-first-mix-pair-own-0.5-carried-0.5"
RUN = CliRunner(env={"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"})


def train(what: str, *arguments: str, runs: Path) -> Path:
    """The folder of the one run."""
    asked = ["train", what, "--streams", EVEN, "--runs", str(runs), "--quiet", "--json"]
    done = RUN.invoke(app, [*asked, *arguments])
    assert done.exit_code == 0, done.output
    ((run),) = json.loads(done.stdout)["runs"]
    return Path(run["folder"])


def test_classifiers(tmp_path: Path) -> None:
    folder = train("icl", "--steps", "3", "--seeds", "2", "--jobs", "1", runs=tmp_path)
    assert folder.name == f"{NAMED}-seed2"
    assert load_model(folder).model.cfg.streams == parse_streams(EVEN, 2)


@pytest.mark.parametrize("variant", ["relative", "absolute-values"])
def test_simplified_transformers(variant: str, tmp_path: Path) -> None:
    few = ("--steps", "2", "--batch", "2", "--length", "16", "--d-model", "16", "--jobs", "1")
    folder = train("memory", *few, "--variants", variant, runs=tmp_path)
    assert folder.name == f"{variant}-{NAMED}-seed0"
    record = json.loads((folder / "run.json").read_text())["run"]
    assert record["positions"] == variant.removesuffix("-values")
    (stream,) = record["streams"]
    assert (stream["source"], stream["mix"], stream["carried"]) == ("first", "pair", 0.5)


def test_language_models_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    size = (
        "--n-layers",
        "3",
        "--d-model",
        "64",
        "--stories",
        "300",
        "--steps",
        "2",
        "--batch",
        "2",
    )
    folder = train("lm", *size, runs=tmp_path / "runs")
    model = ResValTransformer.from_pretrained(folder / "model")
    assert (model.cfg.n_layers, model.cfg.d_model) == (3, 64)
    stream = model.cfg.streams[0]
    assert (stream.source, stream.mix, stream.own, stream.carried) == ("first", "pair", 0.5, 0.5)


def test_bad_streams_are_one_line(tmp_path: Path) -> None:
    for what in ("icl", "memory"):
        done = RUN.invoke(app, ["train", what, "--streams", "x", "--runs", str(tmp_path)])
        assert "streams='x' has 'x'" in str(done.exception)
    assert not list(tmp_path.iterdir())
