"""``resval-lens train lm`` and ``plan`` as a person runs them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from resval_lens import ResValTransformer
from resval_lens.io.files import read_tensors
from tests.helpers import tiny_config
from tests.test_cli import PROGRAM, run

SMALL = ["--stories", "400", "--batch", "4", "--threads", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the command has trained six steps."""
    folder = tmp_path_factory.mktemp("lm")
    done = run("train", "lm", "stories-small", "--streams", "v", "--steps", "6", *SMALL, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "validation loss" in done.stderr
    assert "IOI unseen" in done.stderr
    assert "runs/lm/stories-small-v-raw-seed0/model" in done.stdout
    return folder


def test_a_trained_model_loads_with_its_tokenizer_and_writes(trained: Path) -> None:
    model = ResValTransformer.from_pretrained(
        trained / "runs" / "lm" / "stories-small-v-raw-seed0" / "model"
    )
    assert model.cfg.streams[0].carry == "raw"
    assert model.to_string(model.to_tokens("Once upon a time", prepend_bos=False)) == [
        "Once upon a time"
    ]
    text = model.generate("Once upon a time", max_new_tokens=5, verbose=False)
    assert text.startswith("Once upon a time")


def test_metrics_hold_losses_ioi_and_a_sample(trained: Path) -> None:
    folder = trained / "runs" / "lm" / "stories-small-v-raw-seed0"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 6]
    assert set(lines[0]["ioi"]) == {"paper", "seen", "unseen"}
    assert lines[-1]["valid_loss"] < lines[0]["valid_loss"]
    begins = lines[-1]["sample_begins"]
    assert len(begins.split()) == 4
    assert lines[-1]["sample"].startswith(begins)
    start = json.loads((folder / "model" / "provenance.json").read_text())
    assert start["command"].startswith("resval-lens train lm stories-small")


def test_the_same_command_leaves_a_finished_run_as_it_is(trained: Path) -> None:
    model = trained / "runs" / "lm" / "stories-small-v-raw-seed0" / "model" / "model.safetensors"
    before = read_tensors(model, "model")[0]
    done = run("train", "lm", "stories-small", "--streams", "v", "--steps", "6", *SMALL, "--quiet",
               cwd=trained)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(torch.equal(x, before[k]) for k, x in read_tensors(model, "model")[0].items())


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    command = ["train", "lm", "stories-small", *SMALL, "--steps", "40", "--snapshot-every", "1000",
               "--evaluate-every", "1000", "--quiet"]  # fmt: skip
    process = subprocess.Popen(
        [*PROGRAM, *command], stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    folder = tmp_path / "runs" / "lm" / "stories-small-classic-seed0"
    end = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command resumes from here" in errors
    (snapshot,) = (folder / "snapshots").iterdir()
    assert 0 < int(snapshot.stem) < 40
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (folder / "model" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "lm", "gpt-9"], "no preset 'gpt-9'; there are llama-1b, stories-nanochat, "),
        (
            ["train", "lm", "--spec", "paper"],
            "'stories-small' has the specs reference; got 'paper'",
        ),
        (["train", "lm", "--streams", "x"], "streams='x' has 'x'"),
        (["train", "lm", "--data", "no-such.txt"], "data='no-such.txt' needs a tokenizer"),
        (["train", "lm", "--seeds", "a"], "seeds must be numbers"),
        (["plan", "training", "llama-1b", "--gpus", "0"], "processes must be 1 or more; got 0"),
        (["plan", "training", "llama"], "no preset 'llama'"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_plan_is_printed_with_its_formulas(tmp_path: Path) -> None:
    done = run("plan", "training", "llama-1b", "--gpus", "8", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "1,510,017,024" in done.stdout
    assert "83.89 billion" in done.stdout
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["parameters"]["total"] == 1_510_017_024
    assert found["provenance"]["versions"]["torch"]


def test_ioi_is_evaluated_over_seeds_and_in_four_cells(trained: Path, tmp_path: Path) -> None:
    model = trained / "runs" / "lm" / "stories-small-v-raw-seed0" / "model"
    classic = tmp_path / "classic"
    stream = ResValTransformer.from_pretrained(model)
    stream.with_streams("").save_pretrained(classic)
    done = run("eval", "ioi", str(classic), str(model), "--prompts", "20", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "42.89 ± 10.58" in done.stdout
    report = json.loads((tmp_path / "ioi.json").read_text())
    assert set(report["scores"]) == {"seen", "unseen"}
    ((cells,),) = report["four_cells"].values()
    # one model's weights under both names: what is run alike is alike
    assert len(cells["cells"]) == 4
    for run_as in ("run without", "run with"):
        one, other = (
            cells["cells"][f"trained {kind}, {run_as}"] for kind in ("classic", "with stream")
        )
        assert one == pytest.approx(other)
    assert {row["architecture"] for row in report["paper"]["rows"]} == {"classic", "values"}


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    ResValTransformer(tiny_config()).save_pretrained(tmp_path / "model")
    done = run("eval", "ioi", str(tmp_path / "model"), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "model has no tokenizer.json" in done.stderr


def test_two_processes_share_the_text_and_a_spread_model(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
         str(40_000 + os.getpid() % 20_000), "-m", "resval_lens.analyses", "train", "lm",
         "stories-small", "--streams", "v", "--steps", "2", *SMALL, "--fsdp"],
        capture_output=True, text=True, timeout=180, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = tmp_path / "runs" / "lm" / "stories-small-v-raw-seed0" / "model"
    assert ResValTransformer.from_pretrained(model).cfg.streams[0].carry == "raw"
    assert done.stdout.count("stories-small-v-raw-seed0/model") == 1  # one of the two speaks


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_trackers_get_the_metrics(tmp_path: Path, tracker: str) -> None:
    done = run(
        "train", "lm", "stories-small", "--steps", "2", *SMALL, "--tracker", tracker, "--quiet",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "lm" / "stories-small-classic-seed0"
    if tracker == "wandb":
        assert list(folder.glob("wandb/offline-run-*/*.wandb"))
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (path,) = folder.glob("**/events.out.tfevents.*")
    events = EventAccumulator(str(path)).Reload()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = {event.step: event.value for event in events.Scalars("valid_loss")}
    assert logged == pytest.approx({line["step"]: line["valid_loss"] for line in lines})
    assert "ioi/unseen/accuracy" in events.Tags()["scalars"]
