"""Files made to harm: what they make take time or memory, what they have fetched or overwritten."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from resval_lens.analyses.cli.loading import load_language_model
from resval_lens.analyses.papers.memory.training import (
    MemoryRun,
    draw_tests,
    initial_memory,
    train_memory,
)
from resval_lens.io import loading
from resval_lens.io.files import parse_json, read_json, read_tensors, write_json, write_sealed
from resval_lens.load import AS_SAVED, load_model
from resval_lens.models.classifier import ICLClassifier, classifier_config
from resval_lens.tasks.text import load_tokenizer
from resval_lens.training.icl import train_icl
from resval_lens.training.icl_run import ICLRun, draw_world, initial_model, kept_models
from resval_lens.training.lm import train_lm
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import load_run
from resval_lens.training.run_folder import append_metrics, write_snapshot
from resval_lens.transformer import ResValTransformer
from tests import lm_runs
from tests.helpers import reseal, tiny_model
from tests.memory_runs import tiny_run
from tests.runs import RUN
from tests.test_untrusted import STORIES, change_config, refused

SCORE = {"accuracy": 1.0, "loss": 0.0}
MEMORY = tiny_run("relative-values")
W_V = "blocks.1.attn.W_V"


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Ends a test that hangs."""

    def end(*args: Any) -> None:
        pytest.fail("half a minute is over")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_model("v").save_pretrained(tmp_path / "model", record={"seed": 1})
    return tmp_path / "model"


def make_run(folder: Path, run: dict[str, Any], **metrics: Any) -> Path:
    """A run of that record with one line of metrics; of a classifier's if there are no others."""
    folder.mkdir()
    write_sealed(folder / "run.json", {"run": run, "starts": [{}]})
    lines = metrics or dict.fromkeys(("test", "ic", "ic2", "iw"), SCORE)
    append_metrics(folder, {"step": 0, **lines})
    return folder


# Time


def test_a_key_twice_among_many_is_found_at_once() -> None:
    keys = ",".join(f'"k{i}":1' for i in range(100_000))
    refused(lambda: parse_json(f'{{{keys},"k99999":1}}'), "'k99999' is given twice")


@pytest.mark.parametrize("name", ["provenance.json", "model.safetensors", "config.json"])
def test_files_of_endless_zeros_are_not_read(name: str, saved: Path) -> None:
    """Sparse ones take no room on a disk, and days to read."""
    os.truncate(saved / name, 2**43)
    refused(lambda: ResValTransformer.from_pretrained(saved), str(saved / name))


def test_writing_does_not_wait_for_a_pipe_in_a_partials_place(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".a.json.partial")
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_json(tmp_path / "a.json", "a test") == {"a": 1}
    (tmp_path / ".a.json.partial").mkdir()
    refused(lambda: write_json(tmp_path / "a.json", {"a": 2}), ".a.json.partial is a folder")
    assert read_json(tmp_path / "a.json", "a test") == {"a": 1}


def test_what_is_nested_too_deeply_to_be_written_again_is_not_read(tmp_path: Path) -> None:
    """A resumed run's record is: with indentation, Python reaches its depth sooner."""
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    make_run(tmp_path / "run", RUN.to_dict())
    write_sealed(tmp_path / "run" / "run.json", {"run": RUN.to_dict(), "starts": [deep]})
    refused(lambda: train_icl(RUN, tmp_path / "run"), "run.json", "nested too deeply")


# Memory


TASK = RUN.task.to_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {"test_size": 10**9},
        {"task": TASK | {"n_classes": 32 * 10**9}},
        {"task": TASK | {"n_fresh": 32 * 10**9}},
        {"task": TASK | {"n_max": 10**10}},
        {"task": TASK | {"content": 10**30}},
        {"task": TASK | {"n_labels": 10**9, "n_classes": 10**9, "n_fresh": 10**9}},
    ],
    ids=lambda changes: str(changes)[-60:],
)
def test_a_classifiers_record_does_not_take_more_memory_than_there_is(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    recorded = load_run(make_run(tmp_path / "run", RUN.to_dict() | changes), ICLRun)
    refused(lambda: draw_world(recorded.run), "bytes; this machine has")
    refused(lambda: train_icl(recorded.run, tmp_path / "new"), "bytes; this machine has")


def test_a_snapshots_model_is_no_larger_than_the_snapshot(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train_icl(replace(RUN, steps=1), folder)
    (recorded,) = (load_run(folder, ICLRun),)
    assert [step for step, _ in kept_models(recorded.run, recorded.folder)] == [1]
    wide = replace(RUN, task=replace(RUN.task, content=10**5))
    made = replace(recorded, run=wide)
    refused(
        lambda: list(kept_models(made.run, made.folder)), "00000001.safetensors", "must have shape"
    )
    huge = replace(RUN, task=replace(RUN.task, content=10**6))
    refused(lambda: initial_model(huge), "bytes; this machine has")


@pytest.mark.parametrize("layers", [10**9, 10**6])
def test_a_classifier_of_endless_readout_layers_is_refused(layers: int, tmp_path: Path) -> None:
    ICLClassifier(classifier_config("v")).save_pretrained(tmp_path / "model")
    change_config(tmp_path / "model", n_readout_layers=layers)
    refused(lambda: ICLClassifier.from_pretrained(tmp_path / "model"), f"n_readout_layers={layers}")


@pytest.mark.parametrize(
    "changes", [{"n_layers": 2**30}, {"d_model": 10**9}, {"n_ctx": 10**10}, {"n_layers": 10**30}]
)
def test_a_language_models_record_does_not_take_more_memory_than_there_is(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    model = json.dumps(json.loads(lm_runs.RUN.model) | changes)
    folder = make_run(tmp_path / "run", lm_runs.RUN.to_dict() | {"model": model}, valid_loss=1.0)
    (name,) = changes
    refused(lambda: train_lm(load_run(folder, LMRun).run, lm_runs.Noise(), folder), name)


@pytest.mark.parametrize(
    "changes",
    [
        {"test_size": 10**9},
        {"d_model": 10**6},
        {"n_ctx": 2 * 10**8, "task": MEMORY.task.to_dict() | {"length": 10**8}},
    ],
    ids=lambda changes: str(list(changes)),
)
def test_a_simplified_transformers_record_does_not_take_more_memory_than_there_is(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    lines = dict.fromkeys(("trained", "longer", "recall", "attention"), SCORE)
    folder = make_run(tmp_path / "run", MEMORY.to_dict() | changes, **lines)
    run = load_run(folder, MemoryRun).run
    make = initial_memory if "d_model" in changes else draw_tests
    refused(lambda: make(run), "bytes; this machine has")
    refused(lambda: train_memory(run, tmp_path / "new"), "bytes; this machine has")


# Numbers that are none once they are loaded


def test_weights_too_large_for_their_model_are_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    tensors = load_file(path)
    tensors[W_V] = tensors[W_V].double()
    tensors[W_V][0, 0, 0] = 1e300
    save_file(tensors, path)
    reseal(saved)
    refused(lambda: ResValTransformer.from_pretrained(saved), str(path), W_V, "torch.float32")
    tensors[W_V] = tensors[W_V].clamp(max=1e6).float()
    save_file(tensors, path)
    change_config(saved, dtype="torch.float16")
    refused(lambda: ResValTransformer.from_pretrained(saved), str(path), W_V, "torch.float16")


def too_large(folder: Path, name: str) -> Path:
    """Puts 1e300 into a tensor of the newest snapshot, sealed as it should be."""
    path = sorted((folder / "snapshots").iterdir())[-1]
    tensors, _ = read_tensors(path, "a snapshot")
    tensors[name] = tensors[name].double()
    tensors[name].view(-1)[0] = 1e300
    write_snapshot(folder, int(path.stem), tensors)
    return path


def test_snapshots_too_large_for_their_model_are_refused(tmp_path: Path) -> None:
    train_icl(replace(RUN, steps=1), tmp_path / "icl")
    path = too_large(tmp_path / "icl", W_V)
    refused(lambda: train_icl(RUN, tmp_path / "icl"), str(path), W_V, "torch.float32")
    run = replace(lm_runs.RUN, schedule="constant", warmup=0, cooldown=0, steps=1)
    for name in (W_V, f"optimizer.{W_V}.exp_avg"):
        folder = tmp_path / name
        train_lm(run, lm_runs.Noise(), folder)
        path = too_large(folder, name)
        longer = replace(run, steps=2)
        refused(lambda: train_lm(longer, lm_runs.Noise(), folder), str(path), name, "torch.float32")  # noqa: B023


# Tokenizers


def with_tokenizer(folder: Path, **parts: Any) -> Path:
    shutil.copytree(STORIES, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    write_json(folder / "tokenizer.json", content | parts)
    reseal(folder)
    return folder


def template(special: int, text: int, ids: int) -> dict[str, Any]:
    name = "<|endoftext|>"
    a = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": name, "type_id": 0}}] * special + [a] * text,
        "pair": [a, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {name: {"id": name, "ids": [0] * ids, "tokens": [name] * ids}},
    }


DOUBLED = [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40
STARTS = [{"type": "Replace", "pattern": {"Regex": "^"}, "content": "a" * 10_000}]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"post_processor": template(3_000, 1, 10_000)}, "adds 30,000,000 tokens"),
        ({"post_processor": template(0, 2_000, 1)}, "post_processor"),
        ({"post_processor": {"type": "Sequence", "processors": [template(0, 2, 1)] * 40}}, "e+12"),
        ({"normalizer": {"type": "Sequence", "normalizers": DOUBLED}}, "normalizer"),
        ({"normalizer": {"type": "Sequence", "normalizers": STARTS}}, "normalizer"),
        ({"decoder": {"type": "Sequence", "decoders": DOUBLED}}, "decoder"),
    ],
    ids=lambda given: str(given)[:60],
)
def test_tokenizers_that_make_texts_endless_are_refused(
    parts: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    """The library would end the process, for lack of memory."""
    folder = with_tokenizer(tmp_path / "model", **parts)
    for load in (
        lambda: ResValTransformer.from_pretrained(folder),
        lambda: load_tokenizer(folder / "tokenizer.json"),
    ):
        refused(load, str(folder / "tokenizer.json"), expected)


def test_tokenizers_that_change_texts_a_little_are_loaded(tmp_path: Path) -> None:
    folder = with_tokenizer(
        tmp_path / "model", post_processor=template(2, 1, 1),
        normalizer={"type": "Sequence", "normalizers": DOUBLED[:3]},
    )  # fmt: skip
    tokens = ResValTransformer.from_pretrained(folder).to_tokens("Mary", prepend_bos=False)
    assert tokens.shape[1] > 2


@pytest.mark.parametrize("seed", [[1], -1, 2**32, "x"])
def test_a_configurations_seed_is_one(seed: Any, saved: Path) -> None:
    change_config(saved, seed=seed)
    refused(lambda: ResValTransformer.from_pretrained(saved), "seed must be")


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_of_eight_bits_are_refused_by_name(kind: torch.dtype, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3).to(kind)}, tmp_path / "a.safetensors")
    refused(lambda: read_tensors(tmp_path / "a.safetensors", "a test"), "'a' is of the unknown")


@pytest.mark.parametrize("found", [5, None, ["accuracy", "loss"], {"accuracy": "x", "loss": 0.0}])
def test_metrics_of_another_kind_are_one_line(found: Any, tmp_path: Path) -> None:
    lines = {**dict.fromkeys(("test", "ic", "ic2", "iw"), SCORE), "ic": found}
    folder = make_run(tmp_path / "run", RUN.to_dict(), **lines)
    refused(lambda: load_run(folder, ICLRun), "metrics.jsonl", "'ic'")


# Elsewhere: the hub, another run's model, files outside


def test_a_runs_missing_model_is_not_looked_up_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """evil/model could be a model of the hub."""
    monkeypatch.setattr(loading, "fetch", lambda *a, **k: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)
    folder = make_run(Path("evil"), lm_runs.RUN.to_dict(), valid_loss=1.0)
    for load in (
        lambda: load_model("evil"),
        lambda: load_language_model(folder, AS_SAVED),
        load_run(folder, LMRun).model,
        load_run(make_run(Path("icl"), RUN.to_dict()), ICLRun).model,
        lambda: load_model("icl"),
    ):
        refused(load, "model is missing")


def test_another_runs_model_is_refused(tmp_path: Path) -> None:
    for seed in (3, 4):
        train_icl(replace(RUN, steps=1, seed=seed), tmp_path / str(seed))
    load_run(tmp_path / "3", ICLRun).model()
    shutil.rmtree(tmp_path / "3" / "model")
    shutil.copytree(tmp_path / "4" / "model", tmp_path / "3" / "model")
    recorded = load_run(tmp_path / "3", ICLRun)
    for load in (recorded.model, lambda: load_model(str(tmp_path / "3"))):
        refused(load, str(tmp_path / "3" / "model"), "is not of the model that this run ended with")


@pytest.mark.parametrize("name", ["lock", "metrics.jsonl", "run.json"])
def test_training_does_not_write_into_the_other_end_of_a_hard_link(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).hardlink_to(tmp_path / "thesis")
    refused(lambda: train_icl(RUN, tmp_path / "run"), name, "hard link")
    assert (tmp_path / "thesis").read_text() == "years of work"
