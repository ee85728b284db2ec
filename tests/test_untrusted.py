"""Files from strangers: read as data, refused in one line, never run, never waited for."""

import contextlib
import io
import json
import logging
import os
import pickle
import shutil
import socket
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from resval_lens.analyses.papers.memory.model.config import memory_config
from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.tasks.analogies import read_pairs
from resval_lens.analyses.papers.memory.tasks.bigrams import Bigrams
from resval_lens.analyses.papers.memory.training import MemoryRun
from resval_lens.config import ResValConfig
from resval_lens.io.checkpoint import present_device
from resval_lens.io.files import note, write_json, write_sealed
from resval_lens.load import load_model
from resval_lens.models.authors import load_authors_classifier
from resval_lens.models.authors_language_model import load_authors_language_model
from resval_lens.tasks import stories
from resval_lens.tasks.text import TokenFiles, load_tokenizer, read_texts, write_token_files
from resval_lens.training.icl import train_icl
from resval_lens.training.icl_run import ICLRun
from resval_lens.training.lm import train_lm
from resval_lens.training.lm_run import LMRun
from resval_lens.training.recorded import export_run, load_run
from resval_lens.training.run_folder import append_metrics, read_metrics
from resval_lens.transformer import ResValTransformer
from tests import lm_runs
from tests.helpers import reseal, tiny_config, tiny_model, tiny_tokens
from tests.runs import RUN, stop_before

STORIES = Path(stories.__file__).parents[2] / "data" / "lm" / "stories-small-v-raw-seed0" / "model"
CODE = "from pathlib import Path\nPath({marker!r}).touch()\nclass Evil: pass\n"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_model("v").save_pretrained(tmp_path / "model", record={"seed": 1})
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def change_config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["config"].update(changes)
    (folder / "config.json").write_text(json.dumps(content))
    reseal(folder)


def refused(load: Callable[[], Any], *texts: str) -> str:
    """The one line with which ``load`` refuses."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load()
    line = str(error.value)
    assert "\n" not in line
    for text in texts:
        assert text in line
    return line


# Code


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder whose tokenizer is a Python file; running it leaves ``tmp_path/executed``."""
    folder = tmp_path / "trap"
    folder.mkdir()
    (folder / "evil.py").write_text(CODE.format(marker=str(tmp_path / "executed")))
    write_json(
        folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    )
    return folder


@pytest.mark.parametrize("own", [False, True], ids=["another folder", "its own folder"])
def test_a_model_cannot_have_its_tokenizer_run_as_code(
    own: bool, saved: Path, trap: Path, tmp_path: Path
) -> None:
    if own:
        for name in ("evil.py", "tokenizer_config.json"):
            shutil.copy(trap / name, saved / name)
    name = str(saved if own else trap)
    change_config(saved, trust_remote_code=True, tokenizer_name=name)
    assert ResValConfig.from_json('{"n_layers": 1, "d_model": 8, "d_head": 4, "n_ctx": 4, '
                                  '"attn_only": true, "d_vocab": 5, "trust_remote_code": true}'
                                  ).trust_remote_code is False  # fmt: skip
    for loaded in (ResValTransformer.from_pretrained(saved), load_model(saved).model):
        assert loaded.tokenizer is None
        assert (loaded.cfg.trust_remote_code, loaded.cfg.tokenizer_name) == (False, None)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(Exception):  # noqa: B017, PT011  # whatever becomes of it there
        AutoTokenizer.from_pretrained(trap, trust_remote_code=True)
    assert (tmp_path / "executed").exists(), "the trap is harmless, the test proves nothing"


def test_a_run_cannot_have_a_tokenizer_run_as_code(trap: Path, tmp_path: Path) -> None:
    model = json.loads(lm_runs.RUN.model) | {
        "tokenizer_name": str(trap), "trust_remote_code": True
    }  # fmt: skip
    run = replace(lm_runs.RUN, model=json.dumps(model), steps=1, warmup=0)
    (tmp_path / "run").mkdir()
    write_sealed(tmp_path / "run" / "run.json", {"run": run.to_dict(), "starts": []})
    append_metrics(tmp_path / "run", {"step": 0, "valid_loss": 1.0})
    recorded = load_run(tmp_path / "run", LMRun)
    assert train_lm(recorded.run, lm_runs.Noise(), tmp_path / "run") is not None
    assert ResValTransformer.from_pretrained(tmp_path / "run" / "model").tokenizer is None
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["gpt2", "no/such", "../somewhere", "/dev/null"])
def test_a_tokenizers_name_is_not_looked_up_but_noted(
    name: str, saved: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a tokenizer was looked up")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    change_config(saved, tokenizer_name=name)
    note.cache_clear()
    with caplog.at_level(logging.WARNING, "resval_lens"):
        model = ResValTransformer.from_pretrained(saved)
        assert ResValTransformer.from_pretrained(saved, streams="").tokenizer is None
    (said,) = (record.getMessage() for record in caplog.records)
    assert name in said
    assert "pass tokenizer=" in said
    assert torch.equal(model(tiny_tokens()), tiny_model("v")(tiny_tokens()))


def test_a_loaded_tokenizer_leads_nowhere_when_it_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TransformerLens makes a tokenizer with a BOS anew by the name it has."""
    first = ResValTransformer.from_pretrained("stories-small-values")
    first.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: pytest.fail("looked up"))
    loaded = ResValTransformer.from_pretrained(tmp_path / "model")
    again = ResValTransformer(first.cfg, tokenizer=loaded.tokenizer)
    assert torch.equal(again.to_tokens("Mary gave"), first.to_tokens("Mary gave"))


def test_pickles_among_arrays_are_not_loaded(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    arrays = [np.zeros((4, 4))] * 12 + [np.array([Payload()], dtype=object)]
    np.savez(tmp_path / "a.npz", *arrays)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Payload()))
    torch.save({"state_dict": {"wte.weight": Payload()}}, tmp_path / "a.pt")
    for name in ("a.npz", "a.pkl", "a.pt"):
        refused(lambda name=name: load_authors_classifier(tmp_path / name), name)
        refused(lambda name=name: load_authors_language_model(tmp_path / name), name)
        refused(lambda name=name: load_tokenizer(tmp_path / name), name)
    assert not (tmp_path / "executed").exists()


# Names


@pytest.mark.parametrize(
    ("saved_on", "present"),
    [("cpu", "cpu"), ("hub", "cpu"), ("distributed", "cpu"), ("__class__", "cpu"), ("", "cpu")],
)
def test_only_devices_are_devices(saved_on: str, present: str) -> None:
    assert present_device(saved_on) == present


@pytest.mark.parametrize("name", ["../outside", "/tmp/x", "a/b", "..", ".", "", ".hidden", "a\nb",
                                  "x" * 300, "a\\b", 3, None])  # fmt: skip
@pytest.mark.usefixtures("unchecked_annotations")
def test_a_run_cannot_be_exported_to_another_place(name: Any, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    write_sealed(folder / "run.json", {"run": RUN.to_dict() | {"name": name}, "starts": [{}]})
    measured = {"accuracy": 1.0, "loss": 0.0}
    append_metrics(folder, {"step": 30, "test": measured, "ic": measured, "ic2": measured,
                            "iw": measured})  # fmt: skip
    refused(
        lambda: export_run(load_run(folder, ICLRun), tmp_path / "out"), "run.json", "name must be"
    )
    assert not (tmp_path / "out").exists()
    refused(lambda: replace(lm_runs.RUN, name=name), "name must be")


def test_checksums_of_files_elsewhere_are_refused(saved: Path, tmp_path: Path) -> None:
    content = json.loads((saved / "config.json").read_text())
    content.pop("checksum")
    content["sha256"]["../secret"] = "0" * 64
    write_sealed(saved / "config.json", content)
    refused(lambda: ResValTransformer.from_pretrained(saved), "config.json")


# Links: what would be written, truncated or deleted through them


@pytest.mark.parametrize("name", ["lock", "run.json", "metrics.jsonl", "snapshots", "model"])
def test_training_does_not_write_through_links(name: str, tmp_path: Path) -> None:
    folder, target = tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir()
    if name in ("snapshots", "model"):
        target.mkdir()
        (target / "00000001.safetensors").write_text("years of work")
    else:
        target.write_text("years of work")
    (folder / name).symlink_to(target)
    refused(lambda: train_icl(RUN, folder), str(folder / name), "is a link")
    kept = target / "00000001.safetensors" if target.is_dir() else target
    assert kept.read_text() == "years of work"


def test_files_are_not_written_through_a_link_in_their_partials_place(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / ".a.json.partial").symlink_to(tmp_path / "thesis")
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "thesis").read_text() == "years of work"
    assert not (tmp_path / "a.json").is_symlink()


def test_saving_over_a_link_leaves_what_it_leads_to(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(saved)
    tiny_model("k").save_pretrained(tmp_path / "link", overwrite=True)
    assert not (tmp_path / "link").is_symlink()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert ResValTransformer.from_pretrained(saved).cfg.streams == tiny_config(streams="v").streams


# What is no file


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half")
    train_icl(RUN, folder, should_stop=stop_before(15))
    return folder


@pytest.fixture(params=["pipe", "folder", "loop", "zeros"])
def put(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """Puts something else in a file's place. Reading a pipe would never end."""

    def place(path: Path) -> None:
        path.unlink(missing_ok=True)
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "folder":
            path.mkdir()
        else:
            path.symlink_to(path if request.param == "loop" else "/dev/zero")

    return place


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "provenance.json", "tokenizer.json",
             "tokenizer_config.json"]
)  # fmt: skip
def test_what_is_no_file_in_a_model_is_refused(
    name: str, put: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(STORIES, folder)
    put(folder / name)
    for sealed in (True, False):
        if not sealed and name != "config.json":
            content = json.loads((folder / "config.json").read_text())
            write_json(folder / "config.json", {k: content[k] for k in
                                                ("format", "model_class", "config")})  # fmt: skip
            if name == "provenance.json":  # not read without
                continue
        refused(lambda: ResValTransformer.from_pretrained(folder), str(folder / name))


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "snapshots/00000010.safetensors"])
def test_what_is_no_file_in_a_run_is_refused(
    name: str, put: Callable[[Path], None], half: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(half, folder)
    put(folder / name)
    refused(lambda: load_run(folder, ICLRun), str(folder / name))
    refused(lambda: train_icl(RUN, folder), str(folder / name))


def test_what_is_no_file_among_texts_is_refused(
    put: Callable[[Path], None], tmp_path: Path
) -> None:
    readers: dict[str, Callable[[Path], Any]] = {
        "a.txt": lambda path: next(read_texts(str(path))),
        "a.jsonl": lambda path: next(read_texts(str(path))),
        "a.parquet": lambda path: next(read_texts(str(path))),
        "tokenizer.json": load_tokenizer,
        "b.txt": Bigrams.count_file,
        "b.json": Bigrams.load,
        "pairs": read_pairs,
        "a.npz": load_authors_classifier,
        "a.pt": load_authors_language_model,
    }
    for name, read in readers.items():
        put(tmp_path / name)
        refused(lambda read=read, name=name: read(tmp_path / name), str(tmp_path / name))
    write_token_files(["Mary gave", "the bag"], stories.load_tokenizer(), tmp_path / "tokens")
    for name in ("tokens.bin", "documents.bin", "meta.json"):
        shutil.copytree(tmp_path / "tokens", tmp_path / name)
        put(tmp_path / name / name)
        refused(lambda name=name: TokenFiles.open(tmp_path / name), str(tmp_path / name / name))


# JSON


BAD_JSON = {
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 900 + "1" + "}" * 900,
    "a long number": '{"a": ' + "1" * 5_000 + "}",
    "a number beyond floats": '{"a": ' + "1" * 400 + "}",
    "NaN": '{"format": NaN}',
    "infinity": '{"format": -Infinity}',
    "overflow": '{"format": 1e999}',
    "a key twice": '{"format": "resval-lens/1", "format": "resval-lens/1"}',
    "no UTF-8": b'{"\xff": 1}',
    "half a character": '{"format": "\\ud800"}',
    "a zero byte": '{"a": 1}\x00',
}


@pytest.mark.parametrize("text", BAD_JSON.values(), ids=BAD_JSON)
def test_bad_json_is_one_line(text: str | bytes, saved: Path, half: Path, tmp_path: Path) -> None:
    raw = text if isinstance(text, bytes) else text.encode()
    run = tmp_path / "run"
    shutil.copytree(half, run)
    tokens = tmp_path / "tokens"
    write_token_files(["Mary gave", "the bag"], stories.load_tokenizer(), tokens)
    cases: list[tuple[Path, Callable[[], Any]]] = [
        (saved / "config.json", lambda: ResValTransformer.from_pretrained(saved)),
        (tokens / "meta.json", lambda: TokenFiles.open(tokens)),
        (tmp_path / "b.json", lambda: Bigrams.load(tmp_path / "b.json")),
        (tmp_path / "t.json", lambda: load_tokenizer(tmp_path / "t.json")),
        (run / "metrics.jsonl", lambda: read_metrics(run)),
        (run / "run.json", lambda: load_run(run, ICLRun)),
        (run / "run.json", lambda: load_run(run, LMRun)),
        (run / "run.json", lambda: load_run(run, MemoryRun)),
        (run / "run.json", lambda: train_icl(RUN, run)),
        (tmp_path / "a.jsonl", lambda: next(read_texts(tmp_path / "a.jsonl"))),
    ]
    for path, load in cases:
        path.write_bytes(raw)
        refused(load, str(path))


# Sizes


@pytest.mark.parametrize(
    "changes",
    [
        {"d_model": 10**9},
        {"d_model": 10**30},
        {"n_layers": 10**9},
        {"d_vocab": 10**10},
        {"n_ctx": 10**12},
        {"n_heads": 10**7, "d_head": 10**7},
        {"num_experts": 10**9, "experts_per_token": 1},
        {"n_ctx": 10**9, "positional_embedding_type": "rotary"},
        {"streams": [{"of": "v", "own": 10**200, "mix": "pair", "carried": 1}], "d_mlp": 10**12},
        {"d_model": -16},
        {"d_model": 0, "d_head": 0},
    ],
    ids=str,
)
def test_a_model_larger_than_its_file_is_refused_before_memory_is_taken(
    changes: dict[str, Any], saved: Path
) -> None:
    change_config(saved, **changes)
    refused(lambda: ResValTransformer.from_pretrained(saved), str(saved))


def test_tables_larger_than_the_memory_are_refused(tmp_path: Path) -> None:
    """ALiBi's table has no parameter whose shape gives it away."""
    config = memory_config(5, "alibi", d_model=8, n_ctx=6)
    MemoryTransformer(config).save_pretrained(tmp_path / "model")
    assert MemoryTransformer.from_pretrained(tmp_path / "model").cfg.n_ctx == 6
    change_config(tmp_path / "model", n_ctx=10**7)
    refused(lambda: MemoryTransformer.from_pretrained(tmp_path / "model"), "n_ctx=10000000")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, 100_000_001])
def test_a_header_of_any_length_is_refused(length: int, saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    reseal(saved)
    refused(lambda: ResValTransformer.from_pretrained(saved), str(path))


def test_arrays_that_claim_more_than_they_hold_are_refused(tmp_path: Path) -> None:
    small = torch.zeros(1).as_strided((10**9, 10**9), (0, 0))
    torch.save({"state_dict": {"wte.weight": small, "wpe.weight": small}}, tmp_path / "a.pt")
    refused(lambda: load_authors_language_model(tmp_path / "a.pt"), "a.pt")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for i in range(13):
            part = io.BytesIO()
            fields = {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**7)}
            np.lib.format.write_array_header_1_0(part, fields)
            file.writestr(f"arr_{i}.npy", part.getvalue() + bytes(64))
    refused(lambda: load_authors_classifier(tmp_path / "a.npz"), "a.npz")


def test_a_tokenizer_beyond_all_bounds_is_one_line(tmp_path: Path) -> None:
    """Damage at any place of a tokenizer.json is refused or gives a tokenizer, never a crash."""
    text = Tokenizer.from_str(stories.load_tokenizer().to_str()).to_str()
    generator = np.random.default_rng(0)
    for _ in range(60):
        at, end = sorted(generator.integers(len(text), size=2).tolist())
        (tmp_path / "t.json").write_text(text[:at] + text[end:])
        with contextlib.suppress(ValueError):
            load_tokenizer(tmp_path / "t.json")


# Numbers that are none


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_neither_saved_nor_loaded(
    number: float, saved: Path, tmp_path: Path
) -> None:
    name = "blocks.1.attn.W_V"
    model = tiny_model("v")
    with torch.no_grad():
        model.blocks[1].attn.W_V[0, 0, 0] = number
    refused(lambda: model.save_pretrained(tmp_path / "other"), name, "NaN or infinite")
    assert not (tmp_path / "other").exists()
    tensors = load_file(saved / "model.safetensors")
    tensors[name][0, 0, 0] = number
    save_file(tensors, saved / "model.safetensors")
    reseal(saved)
    refused(
        lambda: ResValTransformer.from_pretrained(saved),
        f"{saved / 'model.safetensors'}: {name} holds NaN or infinite numbers",
    )
