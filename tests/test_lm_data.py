"""Text to train on, by name."""

import fcntl
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import pytest

from resval_lens.tasks import stories
from resval_lens.tasks.text import fingerprint, load_tokenizer, train_bpe, vocabulary_size
from resval_lens.tasks.text.sources import named
from resval_lens.tasks.text.writing import BeingWritten
from resval_lens.training.lm_data import prepare
from tests.text_files import documents_of

DOCUMENTS = [f"{name} saw a big dog number {i}. {name} ran." for i in range(150) for name in
             ("Tom", "Amy")]  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "own.txt"
    path.write_text("<|endoftext|>".join(DOCUMENTS))
    return path


def test_every_hundredth_document_is_held_out(text: Path, tmp_path: Path) -> None:
    found = prepare(str(text), tmp_path / "tokens", "bpe:300")
    train, valid = documents_of(found.train), documents_of(found.valid)
    assert valid == DOCUMENTS[99::100]
    assert sorted(train + valid) == sorted(DOCUMENTS)


def test_a_tokenizer_is_learnt_from_the_training_text_alone(text: Path, tmp_path: Path) -> None:
    found = prepare(str(text), tmp_path / "tokens", "bpe:300")
    assert vocabulary_size(found.tokenizer) == 300
    learnt = train_bpe([d for i, d in enumerate(DOCUMENTS) if i % 100 != 99], 300)
    assert fingerprint(found.tokenizer) == fingerprint(learnt)


def test_it_is_read_again_and_not_learnt_again(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(str(text), tmp_path / "tokens", "bpe:300")
    monkeypatch.setattr("resval_lens.training.lm_data.train_bpe", None)
    again = prepare(str(text), tmp_path / "tokens", "bpe:300")
    assert fingerprint(again.tokenizer) == fingerprint(first.tokenizer)


def test_overwrite_learns_it_anew(text: Path, tmp_path: Path) -> None:
    prepare(str(text), tmp_path / "tokens", "bpe:300")
    found = prepare(str(text), tmp_path / "tokens", "bpe:310", overwrite=True)
    assert vocabulary_size(found.tokenizer) == 310
    assert vocabulary_size(load_tokenizer(tmp_path / "tokens" / "train")) == 310


def test_what_another_process_writes_is_waited_for(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, here = tmp_path / "other", tmp_path / "tokens"
    prepare(str(text), other, "bpe:300")
    (here / ".valid.partial").mkdir(parents=True)
    lock = os.open(here / ".valid.partial", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    notes: list[str] = []
    with pytest.raises(BeingWritten, match=r"valid.* is being written by another process"):
        prepare(str(text), here, "bpe:300", overwrite=True)

    def until_it_is_done(seconds: float) -> None:
        for part in ("valid", "train"):
            (other / part).rename(here / part)
        os.close(lock)

    monkeypatch.setattr("resval_lens.training.lm_data.sleep", until_it_is_done)
    found = prepare(str(text), here, "bpe:300", note=notes.append)
    assert f"waiting for another process, which writes {here / 'valid'}" in notes
    assert documents_of(found.valid) == DOCUMENTS[99::100]


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        (None, {"tokenizer": None}, "needs a tokenizer: .* bpe:4096 to learn one"),
        (None, {"tokenizer": "bpe:many"}, "tokenizer must be like bpe:4096; got 'bpe:many'"),
        (None, {"data": "FEW"}, "the text has 9 documents, too few .*--validation"),
        (None, {"tokenizer": "bpe:9"}, "vocab_size must be at least 257, the bytes; got 9"),
        (None, {"tokenizer": "bpe:9999"}, "the texts give only .* got vocab_size=9999"),
        ("bpe:300", {"tokenizer": "bpe:310"}, "a vocabulary of 300, not 310; .* --overwrite"),
        (None, {"data": "stories", "tokenizer": "bpe:x"}, "tokenizer must be like"),
        ("bpe:300", {"tokenizer": "STORIES"}, "tokenizer"),
        ("bpe:300", {"data": "OTHER"}, "holds tokens of .*own.txt.*, not .*other.txt.*--overwrite"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_lost(
    text: Path, tmp_path: Path, first: str | None, then: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "tokens"
    if first:
        prepare(str(text), folder, first)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    settings = {"data": str(text), "folder": folder, "tokenizer": "bpe:300", **then}
    if settings["tokenizer"] == "STORIES":
        settings["tokenizer"] = str(tmp_path / "stories.json")
        stories.load_tokenizer().save(settings["tokenizer"])
    if settings["data"] == "FEW":
        settings["data"] = str(text.with_name("few.txt"))
        text.with_name("few.txt").write_text("<|endoftext|>".join(DOCUMENTS[:9]))
        settings["tokenizer"] = "bpe:260"
    if settings["data"] == "OTHER":
        settings["data"] = str(text.with_name("other.txt"))
        text.with_name("other.txt").write_text(text.read_text())
    with pytest.raises(ValueError, match=message):
        prepare(**settings)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_text_is_known_by_its_content_wherever_it_lies(text: Path, tmp_path: Path) -> None:
    made = prepare(str(text), tmp_path / "tokens", "bpe:300")
    sha256 = hashlib.sha256(text.read_bytes()).hexdigest()
    assert made.train.source == f"own.txt (sha256 {sha256}), None, bpe:300, train"
    (tmp_path / "elsewhere").mkdir()
    moved = text.rename(tmp_path / "elsewhere" / "own.txt")
    assert prepare(str(moved), tmp_path / "tokens", "bpe:300").train.source == made.train.source
    moved.write_text(moved.read_text().replace("a", "b"))
    with pytest.raises(ValueError, match=r"holds tokens of 'own\.txt"):
        prepare(str(moved), tmp_path / "tokens", "bpe:300")


def test_a_folder_of_texts_is_known_by_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("train.txt", "valid.txt"):
        (folder / name).write_text(name)
    before = named(folder)
    assert re.fullmatch("texts \\(sha256 [0-9a-f]{64}\\)", before)
    (folder / "valid.txt").write_text("else")
    assert named(folder) != before
    assert named("owner/dataset") == "owner/dataset"


def test_generated_stories_are_told_apart_by_number_and_tokenizer(tmp_path: Path) -> None:
    prepare("stories", tmp_path / "a", n_stories=300)
    for changes in ({"tokenizer": "bpe:2048"}, {"n_stories": 400}):
        with pytest.raises(ValueError, match="holds tokens of 'stories, 300"):
            prepare("stories", tmp_path / "a", **{"n_stories": 300, **changes})
