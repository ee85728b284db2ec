"""Token files hold every document, are whole or not there, and any damage is named."""

import hashlib
import json
import pickle
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, processors

from resval_lens.tasks.text import (
    TokenFiles,
    fingerprint,
    read_texts,
    token_files,
    train_bpe,
    write_token_files,
    writing,
)
from resval_lens.tasks.text.token_files import FILES, checksum
from tests import text_files
from tests.crashing import DIED, PROCESSES
from tests.text_files import STORIES, WITH_MARK, documents_of, tokenizer

OTHERS = [f"Another story, number {i}, of other boxes." for i in range(30)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "tokens"
    write_token_files(STORIES, tokenizer(), folder, source="these tests")
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(written, tmp_path / "tokens"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# What is written


def test_every_document_is_found_again(tmp_path: Path) -> None:
    texts = [*STORIES, WITH_MARK, "", " "]
    files = write_token_files(texts, tokenizer(), tmp_path / "tokens")
    assert documents_of(files) == texts
    assert documents_of(TokenFiles.open(tmp_path / "tokens")) == texts
    assert files.n_documents == len(texts)


def test_tokens_are_the_tokenizers_with_an_end_of_text_after_each_document(written: Path) -> None:
    files = TokenFiles.open(written)
    expected = [token for text in STORIES for token in (*tokenizer().encode(text).ids, 0)]
    assert files.tokens.tolist() == expected
    assert files.n_tokens == len(expected)
    assert (files.d_vocab, files.end_of_text, files.source) == (320, 0, "these tests")
    assert files.fingerprint == fingerprint(files.tokenizer()) == fingerprint(tokenizer())


def test_files_are_the_same_whatever_the_batches(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (1, 300):
        monkeypatch.setattr(writing, "BATCH", size)
        folder = tmp_path / str(size)
        write_token_files(iter(STORIES), tokenizer(), folder, source="these tests")
        assert content(folder) == content(written)


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_text_goes_from_a_file_into_token_files(tmp_path: Path, kind: str) -> None:
    texts = [text.strip("\n") for text in STORIES]
    lines = {
        "txt": "\n<|endoftext|>\n".join(texts),
        "jsonl": "\n".join(json.dumps({"text": text}) for text in texts),
    }
    (tmp_path / f"stories.{kind}").write_text(lines[kind])
    found = write_token_files(read_texts(tmp_path), tokenizer(), tmp_path / "tokens")
    assert documents_of(found) == texts


@pytest.mark.parametrize(
    ("d_vocab", "dtype", "size"),
    [(65_535, np.uint16, 2), (65_536, np.uint32, 4), (70_000, np.uint32, 4)],
)
def test_tokens_take_two_bytes_below_65536(
    tmp_path: Path, d_vocab: int, dtype: type, size: int
) -> None:
    names = {"<eos>": 0, **{f"t{i}": i for i in range(1, d_vocab)}}
    one_word = Tokenizer(models.WordLevel(names, "<eos>"))
    files = write_token_files([f"t{d_vocab - 1}", "t1"], one_word, tmp_path / "tokens")
    assert files.tokens.dtype == dtype
    assert files.tokens.tolist() == [d_vocab - 1, 0, 1, 0]
    assert (tmp_path / "tokens" / "tokens.bin").stat().st_size == 4 * size
    assert TokenFiles.open(tmp_path / "tokens").tokens.dtype == dtype


def test_settings_of_the_tokenizer_do_not_change_the_tokens_nor_are_changed(
    written: Path, tmp_path: Path
) -> None:
    copy = Tokenizer.from_str(tokenizer().to_str())
    copy.enable_truncation(3)
    copy.enable_padding(length=50)
    copy.post_processor = processors.TemplateProcessing(
        "<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    files = write_token_files(STORIES, copy, tmp_path / "tokens")
    assert files.tokens.tolist() == TokenFiles.open(written).tokens.tolist()
    assert copy.truncation["max_length"] == 3
    assert copy.padding["length"] == 50
    assert copy.encode(WITH_MARK).ids.count(0) > 1
    files.check_tokenizer(copy)


def test_documents_are_read_no_further_than_a_batch_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "BATCH", 100)
    seen: list[tuple[int, int]] = []
    ahead = []

    def texts() -> Iterator[str]:
        for i in range(1, 200):
            ahead.append(i - (seen[-1][0] if seen else 0))
            yield f"Story {i}: the girl"

    files = write_token_files(
        texts(), tokenizer(), tmp_path / "tokens", progress=lambda *counts: seen.append(counts)
    )
    assert max(ahead) <= 6
    assert seen == sorted(seen)
    assert len(seen) > 30
    assert seen[-1] == (files.n_documents, files.n_tokens) == (199, len(files.tokens))


def test_tokens_cannot_be_changed(written: Path) -> None:
    files = TokenFiles.open(written)
    for array in (files.tokens, files.offsets):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_another_process_gets_the_folder_not_the_tokens(written: Path) -> None:
    files = TokenFiles.open(written)
    sent = pickle.dumps(files)
    assert len(sent) < 400
    assert pickle.loads(sent).tokens.tolist() == files.tokens.tolist()


def test_tokens_of_another_tokenizer_are_refused(written: Path) -> None:
    files = TokenFiles.open(written)
    files.check_tokenizer(tokenizer())
    with pytest.raises(ValueError, match=r"another tokenizer .*; use the tokenizer\.json in that"):
        files.check_tokenizer(train_bpe(OTHERS, 280))


# What is refused


def test_nothing_is_written_without_documents(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are no documents to write to"):
        write_token_files([], tokenizer(), tmp_path / "tokens")
    assert not list(tmp_path.iterdir())


def test_one_text_is_not_taken_for_documents(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="texts must be documents; got one text"):
        write_token_files("one text", tokenizer(), tmp_path / "tokens")


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no end of text"):
        write_token_files(STORIES, Tokenizer(models.BPE()), tmp_path / "tokens")
    assert not list(tmp_path.iterdir())


def test_token_files_are_replaced_only_if_asked_for(folder: Path) -> None:
    before = content(folder)
    with pytest.raises(ValueError, match="holds token files; pass overwrite=True"):
        write_token_files(OTHERS, tokenizer(), folder)
    assert content(folder) == before
    write_token_files(OTHERS, tokenizer(), folder, overwrite=True)
    assert documents_of(TokenFiles.open(folder)) == OTHERS
    assert list(folder.parent.iterdir()) == [folder]


def test_an_empty_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokens").mkdir()
    monkeypatch.chdir(tmp_path / "tokens")
    write_token_files(OTHERS, tokenizer(), ".")
    assert documents_of(TokenFiles.open(tmp_path / "tokens")) == OTHERS


def test_what_is_not_token_files_is_never_replaced(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.txt beside token files"):
        write_token_files(OTHERS, tokenizer(), folder, overwrite=True)
    (folder / "meta.json").unlink()
    for target in (folder, folder / "tokens.bin"):
        with pytest.raises(ValueError, match="exists and is not token files; nothing was written"):
            write_token_files(OTHERS, tokenizer(), target, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert {path.name for path in folder.iterdir()} == {*FILES, "notes.txt"} - {"meta.json"}


def test_an_error_in_the_text_leaves_what_was_there(folder: Path) -> None:
    before = content(folder)

    def texts() -> Iterator[str]:
        yield from OTHERS
        raise ValueError("line 31 is damaged")

    for target in (folder, folder.parent / "new"):
        with pytest.raises(ValueError, match="line 31 is damaged"):
            write_token_files(texts(), tokenizer(), target, overwrite=True)
    assert content(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    def texts() -> Iterator[str]:
        with pytest.raises(RuntimeError, match=r"tokens.* is being written by another"):
            write_token_files(OTHERS, tokenizer(), tmp_path / "tokens")
        yield from STORIES

    write_token_files(texts(), tokenizer(), tmp_path / "tokens")
    assert documents_of(TokenFiles.open(tmp_path / "tokens")) == STORIES


def test_what_a_dead_writer_left_is_not_taken_over(tmp_path: Path) -> None:
    left = tmp_path / ".tokens.partial"
    left.mkdir()
    for name in ("tokens.bin", "meta.json", ".meta.json.partial", "more.bin"):
        (left / name).write_bytes(b"left" * 10_000)
    write_token_files(STORIES, tokenizer(), tmp_path / "tokens")
    assert set(content(tmp_path / "tokens")) == set(FILES)
    assert documents_of(TokenFiles.open(tmp_path / "tokens")) == STORIES


# Death


def dies(**settings: Any) -> bool:
    """Whether the process died before it had written all."""
    process = PROCESSES.Process(target=text_files.write, kwargs=settings)
    process.start()
    process.join()
    code = process.exitcode
    process.close()
    assert code in (0, DIED)
    return code == DIED


@pytest.mark.parametrize("there", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("moment", ["dies_at_change", "dies_at_batch"])
def test_a_writer_that_dies_leaves_nothing_or_the_whole(
    tmp_path: Path, there: bool, moment: str
) -> None:
    numbers = range(1, 1000) if moment == "dies_at_change" else [1, 3, 1000]
    left = []
    for number in numbers:
        folder = tmp_path / str(number) / "tokens"
        if there:
            write_token_files(OTHERS, tokenizer(), folder)
        settings = {"texts": STORIES, "folder": folder, "overwrite": True, moment: number}
        died = dies(**settings)
        found = documents_of(TokenFiles.open(folder)) if folder.exists() else None
        left.append(found)
        if not died:
            break
        write_token_files(OTHERS, tokenizer(), folder, overwrite=True)
        assert documents_of(TokenFiles.open(folder)) == OTHERS
        assert list(folder.parent.iterdir()) == [folder]
    assert not died
    assert left[0] == (OTHERS if there else None)
    assert left[-1] == STORIES
    assert all(found in (None, OTHERS, STORIES) for found in left)
    if moment == "dies_at_change":
        assert number > (7 if there else 5)
        assert left.count(None) <= (1 if there else number)


# Damage


def reads_as(path: Path, expected: Any) -> bool:
    try:
        return bool(json.loads(path.read_bytes()) == expected)
    except ValueError:
        return False


@pytest.mark.parametrize("name", FILES)
def test_a_change_of_any_bit_is_noticed(folder: Path, name: str) -> None:
    chance, path = random.Random(name), folder / name
    whole, meta = path.read_bytes(), json.loads((folder / "meta.json").read_text())
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        if name == "meta.json" and reads_as(path, meta):
            continue  # a blank between two entries, now another
        with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
            TokenFiles.open(folder)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    TokenFiles.open(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(path.read_bytes() + b"1"),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids=["a byte less", "half", "a byte more", "empty", "missing"],
)
def test_a_file_of_another_length_is_named(
    folder: Path, name: str, damage: Callable[[Path], Any], request: pytest.FixtureRequest
) -> None:
    damage(folder / name)
    if name == "meta.json" and request.node.callspec.id.startswith("a byte less"):
        TokenFiles.open(folder)  # a line break
        return
    with pytest.raises(ValueError, match=f"{name}(:| is (missing|damaged|not the record))"):
        TokenFiles.open(folder)
    if name.endswith(".bin"):
        with pytest.raises(ValueError, match=name):
            TokenFiles.open(folder, verify=False)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none/meta\.json is missing; expected the record of"):
        TokenFiles.open(tmp_path / "none")


def forge(folder: Path, **changes: Any) -> None:
    """Changes meta.json, and makes every checksum fit."""
    meta = json.loads((folder / "meta.json").read_text())
    del meta["checksum"]
    for name in meta["sha256"]:
        meta["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    meta |= changes
    (folder / "meta.json").write_text(json.dumps({**meta, "checksum": checksum(meta)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "resval-lens/tokens/2"}, "expected format 'resval-lens/tokens/1'; got 'resval"),
        ({"n_tokens": "9"}, "meta.json is damaged: 'n_tokens' is missing or of another kind"),
        ({"n_documents": True}, "meta.json is damaged: 'n_documents' is missing or"),
        ({"source": 7}, "meta.json is damaged: 'source' is missing or"),
        ({"dtype": "<u4"}, "meta.json: dtype '<u4' does not fit a vocabulary of 320"),
        ({"dtype": "?"}, r"meta.json: dtype '\?' does not fit"),
        ({"sha256": {}}, "meta.json is damaged: it has no SHA-256 of each file"),
        ({"n_tokens": 5}, "tokens.bin is damaged: expected 10 bytes"),
        ({"n_tokens": 0}, "tokens.bin is damaged: expected 0 bytes"),
        ({"n_documents": 5}, "documents.bin is damaged: expected 48 bytes"),
        ({"d_vocab": 300}, "tokens.bin is damaged: token 31[0-9] is not below d_vocab=300"),
        ({"end_of_text": 7}, "documents.bin is damaged: document 0 ends with token 0, not .*7"),
    ],
)  # fmt: skip
def test_a_record_that_does_not_fit_the_files_is_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    forge(folder, **changes)
    with pytest.raises(ValueError, match=message):
        TokenFiles.open(folder)


def test_a_record_that_is_no_object_is_refused(folder: Path) -> None:
    (folder / "meta.json").write_text("[]")
    with pytest.raises(ValueError, match=r"meta\.json: expected format .*; got 'list'"):
        TokenFiles.open(folder)


@pytest.mark.parametrize("chunk", [1, 2**22])
@pytest.mark.parametrize(
    ("which", "value", "message"),
    [
        (0, 1, "expected offsets from 0 to .*; got 1 to"),
        (-1, 7, "expected offsets from 0 to .*; got 0 to 7"),
        (3, "next", r"document 3 lies from (\d+) to \1$"),
        (3, 10**9, r"document 2 lies from \d+ to 1000000000$"),
        (3, -5, r"document 2 lies from \d+ to -5$"),
        (3, "shift", "document 2 ends with token [1-9]"),
    ],
)
def test_offsets_that_are_none_are_refused(
    folder: Path,
    which: int,
    value: Any,
    message: str,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token_files, "_CHUNK", chunk)
    path = folder / "documents.bin"
    offsets = np.fromfile(path, "<i8")
    offsets[which] = {"next": offsets[4], "shift": offsets[3] - 1}.get(value, value)
    path.write_bytes(offsets.tobytes())
    forge(folder)
    with pytest.raises(ValueError, match=f"documents.bin is damaged: {message}"):
        TokenFiles.open(folder)


def test_without_verifying_only_sizes_are_looked_at(folder: Path) -> None:
    whole = (folder / "tokens.bin").read_bytes()
    (folder / "tokens.bin").write_bytes(b"\xff" * len(whole))
    assert TokenFiles.open(folder, verify=False).tokens.tolist() == [65_535] * (len(whole) // 2)
    message = re.escape(f"{folder / 'tokens.bin'} is damaged: its SHA-256 is not")
    with pytest.raises(ValueError, match=message):
        TokenFiles.open(folder)
