"""Saved models: back bit for bit, or refused by name; never half written, never run as code."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from resval_lens.host import HookedTransformer
from resval_lens.io import checkpoint, files, provenance
from resval_lens.io.checkpoint import FILES, HUB_FILES, NOT_OURS
from resval_lens.streams import AttentionStream, StreamsLike
from resval_lens.transformer import ResValTransformer
from tests.helpers import needs_stock, reseal, stock_model, tiny_model, tiny_tokens

LEARNED = [AttentionStream("q", mix="gate"), AttentionStream("v", source="all", mix="matrix")]

# These models have no tokenizer.
OWN_FILES = sorted(name for name in FILES if "tokenizer" not in name)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_model(LEARNED).save_pretrained(folder, record={"seed": 1})
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# There and back.


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_key_value_heads": 2, "positional_embedding_type": "rotary"},
        {"attn_only": True, "normalization_type": None, "use_fused": False},
        {"dtype": torch.float64},
        {"dtype": torch.bfloat16},
    ],
    ids=str,
)
@pytest.mark.parametrize("streams", ["", "qkv", LEARNED], ids=["classic", "qkv", "learned"])
def test_a_saved_model_comes_back_bit_for_bit(
    streams: StreamsLike, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model(streams, **changes)
    model.save_pretrained(tmp_path / "model")
    loaded = ResValTransformer.from_pretrained(tmp_path / "model")
    assert loaded.cfg == model.cfg
    expected, found = model.state_dict(), loaded.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(loaded(tiny_tokens()), model(tiny_tokens()))


def test_a_processed_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = tiny_model("v")
    model.process_weights_()
    model.save_pretrained(tmp_path / "model")
    loaded = ResValTransformer.from_pretrained(tmp_path / "model")
    assert loaded.cfg.normalization_type == "LNPre"
    assert torch.equal(loaded(tiny_tokens()), model(tiny_tokens()))


def test_the_folder_holds_tensors_a_readable_config_and_a_record(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == OWN_FILES
    config = json.loads((saved / "config.json").read_text())
    assert config["model_class"] == "ResValTransformer"
    assert config["config"]["n_layers"] == 3
    assert config["config"]["streams"] == [stream.to_dict() for stream in LEARNED]
    tensors = load_file(saved / "model.safetensors")
    assert set(tensors) == {name for name, _ in tiny_model(LEARNED).named_parameters()}
    assert json.loads((saved / "provenance.json").read_text()) == {"seed": 1}


def test_loading_draws_no_random_numbers(saved: Path) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    loaded = ResValTransformer.from_pretrained(saved)
    assert torch.equal(torch.get_rng_state(), before)
    assert (loaded.cfg.seed, loaded.cfg.init_weights) == (0, True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_model_saved_on_an_absent_device_loads_on_a_present_one(saved: Path) -> None:
    content = json.loads((saved / "config.json").read_text())
    content["config"]["device"] = "cuda"
    (saved / "config.json").write_text(json.dumps(content))
    reseal(saved)
    loaded = ResValTransformer.from_pretrained(saved)
    assert str(loaded.cfg.device) == loaded.W_E.device.type == "cpu"
    assert torch.equal(loaded(tiny_tokens()), tiny_model(LEARNED)(tiny_tokens()))


def test_saved_weights_run_with_other_streams_on_request(saved: Path) -> None:
    model = tiny_model(LEARNED)
    cut = ResValTransformer.from_pretrained(saved, streams="")
    assert torch.equal(cut(tiny_tokens()), model.with_streams("")(tiny_tokens()))
    same = ResValTransformer.from_pretrained(saved, streams=LEARNED)
    assert torch.equal(same(tiny_tokens()), model(tiny_tokens()))


# Where a model may be written.


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "runs" / "one" / "model")
    assert sorted(contents(tmp_path / "runs" / "one" / "model")) == OWN_FILES


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    assert sorted(contents(tmp_path)) == OWN_FILES


def test_a_saved_model_is_replaced_only_on_request(saved: Path) -> None:
    before = contents(saved.parent)
    with pytest.raises(ValueError, match=rf"{saved} holds a saved model; pass overwrite=True"):
        tiny_model("k").save_pretrained(saved)
    assert contents(saved.parent) == before
    tiny_model("k").save_pretrained(saved, overwrite=True)
    assert ResValTransformer.from_pretrained(saved).cfg.streams == (AttentionStream("k"),)
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "present",
    [
        {"thesis.txt": "years of work"},
        {"config.json": "{}"},
        {"sub/model.safetensors": "deeper"},
        {"config.json": '{"model_type": "gpt2"}', "model.safetensors": "another library's model"},
    ],
    ids=["a file", "a config alone", "a subfolder", "another library's model"],
)
def test_a_folder_with_other_things_is_refused_and_untouched(
    present: dict[str, str], overwrite: bool, tmp_path: Path
) -> None:
    for name, text in present.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path} exists and is not a saved model"):
        tiny_model().save_pretrained(tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_a_saved_model_beside_other_files_is_not_replaced(saved: Path) -> None:
    """Replacing the folder would delete what someone put into it."""
    (saved / "notes.txt").write_text("years of work")
    before = contents(saved.parent)
    with pytest.raises(ValueError, match=r"notes\.txt"):
        tiny_model().save_pretrained(saved, overwrite=True)
    assert contents(saved.parent) == before


def test_a_file_in_the_folders_place_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file")
    with pytest.raises(ValueError, match="exists and is not a saved model"):
        tiny_model().save_pretrained(tmp_path / "model", overwrite=True)
    assert contents(tmp_path) == {"model": b"a file"}


# A save that fails.

Break = Callable[[pytest.MonkeyPatch], None]


def fail(*args: Any, **options: Any) -> None:
    raise OSError("no space left on device")


def fail_at_rename(number: int) -> Break:
    def install(monkeypatch: pytest.MonkeyPatch) -> None:
        rename, calls = Path.rename, []

        def fail_once(self: Path, target: Path) -> Path:
            calls.append(target)
            return fail() if len(calls) == number else rename(self, target)

        monkeypatch.setattr(Path, "rename", fail_once)

    return install


def interrupt(*args: Any, **options: Any) -> None:
    raise KeyboardInterrupt


BREAKS: dict[str, Break] = {
    "writing tensors": lambda patch: patch.setattr(checkpoint, "write_tensors", fail),
    "writing the record": lambda patch: patch.setattr(checkpoint, "provenance", fail),
    "flushing": lambda patch: patch.setattr(files.os, "fsync", fail),
    "stopped by the user": lambda patch: patch.setattr(checkpoint, "write_tensors", interrupt),
    "putting the old folder aside": fail_at_rename(1),
    "putting the new folder there": fail_at_rename(2),
}


@pytest.mark.parametrize("break_at", BREAKS.values(), ids=BREAKS)
def test_a_failing_save_leaves_the_old_model_and_no_litter(
    break_at: Break, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(saved.parent)
    model = tiny_model("k")
    break_at(monkeypatch)
    with pytest.raises((OSError, KeyboardInterrupt)):
        model.save_pretrained(saved, overwrite=True)
    monkeypatch.undo()
    assert contents(saved.parent) == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_failing_first_save_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "write_tensors", fail)
    with pytest.raises(OSError, match="no space"):
        tiny_model().save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# Damaged files.


def assert_refused(folder: Path, file: str, *expected: str) -> None:
    """A ValueError that names the file and says what was expected there, its checksums apart."""
    reseal(folder)
    with pytest.raises(ValueError, match=re.escape(str(folder / file))) as error:
        ResValTransformer.from_pretrained(folder)
    for text in expected:
        assert text in str(error.value)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_a_truncated_tensor_file_is_refused(saved: Path, kept: float) -> None:
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept == 0.5 else int(kept)])
    assert_refused(saved, "model.safetensors", "expected a complete safetensors file")


class Payload:
    """Pickled, it creates a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("save", [pickle.dump, torch.save], ids=["pickle", "torch.save"])
def test_a_pickle_in_the_tensors_place_is_refused_and_not_run(
    save: Callable[..., None], saved: Path, tmp_path: Path
) -> None:
    with (saved / "model.safetensors").open("wb") as file:
        save(Payload(tmp_path / "executed"), file)
    assert_refused(saved, "model.safetensors", "expected a complete safetensors file")
    assert not (tmp_path / "executed").exists()
    with (saved / "model.safetensors").open("rb") as file:
        torch.load(file, weights_only=False) if save is torch.save else pickle.load(file)
    assert (tmp_path / "executed").exists(), "the payload is harmless, the test proves nothing"


W_V = "blocks.1.attn.W_V"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tensors: tensors.pop(W_V), f"lacks {W_V}"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "has the unknown 'extra'"),
        (
            lambda tensors: tensors.update({W_V: torch.zeros(4, 4, 16)}),
            f"{W_V} must have shape [4, 16, 4]; got [4, 4, 16]",
        ),
        (
            lambda tensors: tensors.update({W_V: torch.zeros(4, 16, 4, dtype=torch.int32)}),
            f"{W_V} must be torch.float32; got torch.int32",
        ),
        (
            lambda tensors: tensors.pop("blocks.2.attn.mixes.v.carried"),
            "lacks blocks.2.attn.mixes.v.carried",
        ),
    ],
    ids=["missing", "unknown", "shape", "integers", "missing mix"],
)
def test_tensors_that_do_not_fit_are_refused(
    change: Callable[[dict[str, torch.Tensor]], object], expected: str, saved: Path
) -> None:
    tensors = load_file(saved / "model.safetensors")
    change(tensors)
    save_file(tensors, saved / "model.safetensors")
    assert_refused(saved, "model.safetensors", expected)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved: Path, file: str) -> None:
    (saved / file).unlink()
    assert_refused(saved, file, "is missing; expected")


@pytest.mark.parametrize("text", [b"", b"{", b'{"format": ', b"\xff\xfe\x00", b"not JSON"])
def test_a_broken_config_is_refused(saved: Path, text: bytes) -> None:
    (saved / "config.json").write_bytes(text)
    assert_refused(saved, "config.json", "configuration of a saved model", "not JSON")


@pytest.mark.parametrize("content", [[], "text", 3, {}, {"format": "other/2"}, {"n_layers": 3}])
def test_json_of_another_format_is_refused(saved: Path, content: Any) -> None:
    (saved / "config.json").write_text(json.dumps(content))
    assert_refused(saved, "config.json", "expected format 'resval-lens/1'")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"n_layer": 3}, "ResValConfig has no field 'n_layer'"),
        ({"dtype": "float23"}, "dtype must name a torch dtype; got 'float23'"),
        ({"streams": [{"of": "w"}]}, "AttentionStream.of must be one of q, k, v; got 'w'"),
        ({"streams": [{"of": "v", "layers": [7]}]}, "names layer 7"),
        ({"streams": 3}, ""),
        ({"act_fn": "none"}, "act_fn must be one of"),
        ({"n_layers": "three"}, ""),
        ({"d_model": None}, ""),
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_a_config_that_makes_no_model_is_refused(
    changes: dict[str, Any], expected: str, saved: Path
) -> None:
    content = json.loads((saved / "config.json").read_text())
    content["config"].update(changes)
    (saved / "config.json").write_text(json.dumps(content))
    assert_refused(saved, "config.json", expected)


@pytest.mark.parametrize("config", [None, [], "text"])
def test_a_config_that_is_no_object_is_refused(config: Any, saved: Path) -> None:
    content = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**content, "config": config}))
    assert_refused(saved, "config.json", "a ResValConfig is a JSON object")


def test_a_config_without_a_required_field_is_refused(saved: Path) -> None:
    content = json.loads((saved / "config.json").read_text())
    del content["config"]["n_layers"]
    (saved / "config.json").write_text(json.dumps(content))
    assert_refused(saved, "config.json", "n_layers")


def test_a_model_of_another_class_is_refused(saved: Path) -> None:
    content = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**content, "model_class": "ICLClassifier"}))
    reseal(saved)
    message = f"{saved} holds a ICLClassifier; load it with that class, not ResValTransformer"
    with pytest.raises(ValueError, match=re.escape(message)):
        ResValTransformer.from_pretrained(saved)


# Where it came from.


def test_the_record_says_what_made_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/home/someone/private/train.py", "--seed", "1"])
    tiny_model().save_pretrained(tmp_path / "model")
    record = json.loads((tmp_path / "model" / "provenance.json").read_text())
    assert record["command"] == "train.py --seed 1"
    folders = ["--data", "../private/train.txt", "--runs=/home/someone/runs", "--out", "out/one"]
    monkeypatch.setattr("sys.argv", ["train.py", *folders, "--streams", "v(own=2)"])
    command = "train.py --data train.txt --runs=runs --out out/one --streams 'v(own=2)'"
    assert provenance.provenance()["command"] == command
    assert set(record["versions"]) == {"python", "resval-lens", "torch", "transformer-lens"}
    assert record["versions"]["torch"] == torch.__version__
    assert record["git_commit"] == provenance.git_commit()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["created"])


def test_the_commit_is_that_of_the_source_tree() -> None:
    source_tree = Path(provenance.__file__).resolve().parents[2]
    commit = provenance.git_commit()
    if (source_tree / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}\+?", str(commit))
    else:
        assert commit is None


# The hub, and models that TransformerLens knows.


def test_a_hub_model_is_fetched_and_loaded(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download = create_autospec(huggingface_hub.snapshot_download, return_value=str(saved))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = ResValTransformer.from_pretrained("someone/a-model", revision="abc", token="t")
    download.assert_called_once_with(
        "someone/a-model",
        allow_patterns=list(HUB_FILES),
        ignore_patterns=list(NOT_OURS),
        revision="abc",
        token="t",
    )
    assert all(any(fnmatch(name, pattern) for pattern in HUB_FILES) for name in FILES)
    assert not any(fnmatch(name, pattern) for name in FILES for pattern in NOT_OURS)
    assert torch.equal(loaded(tiny_tokens()), tiny_model(LEARNED)(tiny_tokens()))


def test_a_model_is_pushed_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    address = "https://huggingface.co/someone/a-model/commit/0123"
    commit = huggingface_hub.CommitInfo(
        commit_url=address, commit_message="", commit_description="", oid="0123"
    )

    def upload(*, folder_path: Path, **options: Any) -> huggingface_hub.CommitInfo:
        shutil.copytree(folder_path, tmp_path / "uploaded")
        assert options == {"repo_id": "someone/a-model", "commit_message": "first"}
        return commit

    api_class = create_autospec(huggingface_hub.HfApi)
    api_class.return_value.upload_folder.side_effect = upload
    monkeypatch.setattr(huggingface_hub, "HfApi", api_class)

    model = tiny_model("v")
    options = {"token": "t", "private": True, "commit_message": "first"}
    assert model.push_to_hub("someone/a-model", record={"seed": 1}, **options) == address
    api_class.assert_called_once_with(token="t")
    api_class.return_value.create_repo.assert_called_once_with(
        "someone/a-model", exist_ok=True, private=True
    )
    loaded = ResValTransformer.from_pretrained(tmp_path / "uploaded")
    assert torch.equal(loaded(tiny_tokens()), model(tiny_tokens()))
    assert json.loads((tmp_path / "uploaded" / "provenance.json").read_text()) == {"seed": 1}


@needs_stock
@pytest.mark.parametrize("name", ["gpt2", "gpt2-small", "EleutherAI/pythia-70m"])
def test_a_model_that_transformer_lens_knows_is_converted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = create_autospec(
        HookedTransformer.from_pretrained_no_processing, return_value=stock_model()
    )
    monkeypatch.setattr(HookedTransformer, "from_pretrained_no_processing", load)
    model = ResValTransformer.from_pretrained(name, streams="v", device="cpu")
    load.assert_called_once_with(name, device="cpu", tokenizer=None)
    expected = ResValTransformer.from_hooked(stock_model(), "v")
    assert torch.equal(model(tiny_tokens()), expected(tiny_tokens()))


@pytest.mark.parametrize("name", ["no-such-folder", "some one/else", "a/b/c"])
def test_neither_folder_nor_hub_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = rf"^no model '{name}': It is not a folder here, .* and the Hugging Face hub does not"
    with pytest.raises(ValueError, match=message) as raised:
        ResValTransformer.from_pretrained(name)
    assert "\n" not in str(raised.value)


def test_a_folder_comes_before_a_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved.rename(saved.parent / "gpt2")
    monkeypatch.chdir(saved.parent)
    assert ResValTransformer.from_pretrained("gpt2").cfg.streams == tuple(LEARNED)


@pytest.mark.network
@pytest.mark.filterwarnings("ignore:HookedTransformer.from_pretrained:DeprecationWarning")
def test_a_pretrained_model_keeps_its_logits() -> None:
    tokens = torch.arange(20)[None]
    stock = HookedTransformer.from_pretrained_no_processing("tiny-stories-1M", device="cpu")
    ours = ResValTransformer.from_pretrained("tiny-stories-1M", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), stock(tokens), atol=1e-4, rtol=1e-4)
