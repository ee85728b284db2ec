"""Tokenizers from every place they are kept in; training is the same each time."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from resval_lens.io import tokenizers as files_tokenizers
from resval_lens.tasks.text import (
    end_of_text,
    fingerprint,
    load_tokenizer,
    train_bpe,
)
from tests.text_files import STORIES, WITH_MARK, tokenizer


def save_two_files(folder: Path, **more: int) -> Path:
    """The tokenizer of these tests as GPT-2's two files."""
    model = json.loads(tokenizer().to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"] | more))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    return folder


def words(*names: str) -> Tokenizer:
    return Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, names[0]))


# Training


def test_a_trained_vocabulary_starts_with_the_end_of_text_and_the_bytes() -> None:
    trained = tokenizer()
    assert trained.get_vocab_size() == 320
    assert end_of_text(trained) == trained.token_to_id("<|endoftext|>") == 0
    assert all(len(trained.id_to_token(i)) == 1 for i in range(1, 257))
    assert all(len(trained.id_to_token(i)) > 1 for i in range(257, 320))
    assert len(trained.encode(" the little").ids) < 5


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_made_of_a_trained_vocabulary(text: str) -> None:
    trained = tokenizer()
    ids = trained.encode(text).ids
    assert trained.decode(ids) == text.replace("<|endoftext|>", "")


def test_the_same_texts_give_the_same_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> str:
        return fingerprint(train_bpe(iter(STORIES), 320, min_frequency=1))

    assert trained() == trained() == fingerprint(tokenizer())
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert trained() == fingerprint(tokenizer())


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (STORIES, 256, "vocab_size must be at least 257, the bytes; got 256"),
        (["aa aa"], 300, "give only 25[89] tokens with min_frequency=2; got vocab_size=300"),
        ("aa aa", 300, "texts must be documents; got one text"),
    ],
)  # fmt: skip
def test_a_vocabulary_that_the_texts_do_not_give_is_refused(
    texts: Any, size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train_bpe(texts, size)


# Loading


def test_a_tokenizer_is_loaded_from_its_file_or_folder(tmp_path: Path) -> None:
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    for source in (tmp_path, str(tmp_path), tmp_path / "tokenizer.json"):
        assert fingerprint(load_tokenizer(source)) == fingerprint(tokenizer())


def test_the_two_files_of_gpt2_are_read_as_byte_level_bpe(tmp_path: Path) -> None:
    loaded = load_tokenizer(save_two_files(tmp_path))
    for text in STORIES:
        assert loaded.encode(text).ids == tokenizer().encode(text).ids
        assert loaded.decode(loaded.encode(text).ids) == text
    assert loaded.encode(WITH_MARK).ids.count(0) == 1
    assert end_of_text(loaded) == 0


def test_one_file_comes_before_two(tmp_path: Path) -> None:
    words("</s>").save(str(save_two_files(tmp_path) / "tokenizer.json"))
    assert load_tokenizer(tmp_path).get_vocab_size() == 1


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (save_two_files(tmp_path) / "merges.txt").unlink()
    with pytest.raises(ValueError, match=r"holds no tokenizer; expected tokenizer\.json, or"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1", b"\xff\xfe", b"a b c\n"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (save_two_files(tmp_path) / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.* (is|are) not a") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["a/b/c", "tokenizer.json", "./gpt2"])
def test_a_missing_file_is_not_looked_for_on_the_hub(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_tokenizers, "hf_hub_download", None)
    for missing in (source, Path(source)):
        with pytest.raises(ValueError, match="is missing; expected a tokenizer's file or folder"):
            load_tokenizer(missing)


# The hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A hub that has what is in ``tmp_path``; gives what was asked of it."""

    def start() -> list[str]:
        asked = []

        def download(name: str, file: str) -> str:
            asked.append(f"{name}: {file}")
            if not (tmp_path / file).exists():
                raise EntryNotFoundError(f"404: no {file}")
            return str(tmp_path / file)

        monkeypatch.setattr(files_tokenizers, "hf_hub_download", download)
        return asked

    return start


def test_a_tokenizer_is_loaded_from_the_hub(tmp_path: Path, hub: Callable[[], list[str]]) -> None:
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    asked = hub()
    assert fingerprint(load_tokenizer("owner/model")) == fingerprint(tokenizer())
    assert asked == ["owner/model: tokenizer.json"]


def test_a_model_of_the_hub_with_two_files_gives_them(
    tmp_path: Path, hub: Callable[[], list[str]]
) -> None:
    save_two_files(tmp_path)
    hub()
    assert load_tokenizer("model").encode(STORIES[0]).ids == tokenizer().encode(STORIES[0]).ids


def test_a_model_of_the_hub_without_a_tokenizer_is_refused(hub: Callable[[], list[str]]) -> None:
    hub()
    message = "'model' is not a file or folder here, and no tokenizer could be had .*404: no vocab"
    with pytest.raises(ValueError, match=message):
        load_tokenizer("model")


def test_a_hub_that_is_not_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, file: str) -> str:
        asked.append(file)
        raise LocalEntryNotFoundError("Please check your connection\nand try again.")

    monkeypatch.setattr(files_tokenizers, "hf_hub_download", download)
    with pytest.raises(ValueError, match=r"Face hub \(Please check your connection"):
        load_tokenizer("gpt2")
    assert asked == ["tokenizer.json"]


@pytest.mark.network
def test_the_tokenizer_of_gpt2_is_on_the_hub() -> None:
    loaded = load_tokenizer("gpt2")
    assert loaded.encode("Once upon a time").ids == [7454, 2402, 257, 640]
    assert end_of_text(loaded) == 50256


# What is known of a tokenizer


def test_the_end_of_text_is_found_under_any_of_its_names() -> None:
    for name in ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|eot_id|>"):
        assert end_of_text(words("a", "b", name)) == 2
    assert end_of_text(words("<|eot_id|>", "</s>")) == 1


def test_a_tokenizer_without_an_end_of_text_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("has no end of text; expected one of ('<|end")):
        end_of_text(words("a", "b"))


def test_the_vocabulary_ends_at_the_highest_id() -> None:
    gap = Tokenizer(models.WordLevel({"a": 0, "</s>": 9}, "a"))
    assert files_tokenizers.vocabulary_size(gap) == 10
    gap.add_special_tokens(["<more>"])
    assert files_tokenizers.vocabulary_size(gap) == max(gap.get_vocab().values()) + 1
    assert files_tokenizers.vocabulary_size(Tokenizer(models.BPE())) == 0


def test_a_fingerprint_tells_tokenizers_apart_and_not_their_settings() -> None:
    copy = Tokenizer.from_str(tokenizer().to_str(pretty=True))
    copy.enable_truncation(5)
    copy.enable_padding()
    assert fingerprint(copy) == fingerprint(tokenizer())
    copy.add_special_tokens(["<more>"])
    assert fingerprint(copy) != fingerprint(tokenizer())
    assert len({fingerprint(words(*names)) for names in (["a", "b"], ["b", "a"], ["a"])}) == 3
