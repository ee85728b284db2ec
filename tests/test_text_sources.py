"""Documents are the same from every kind of file; what is wrong with a file is named."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from resval_lens.tasks.text import read_texts
from tests.text_files import STORIES

KINDS = ["txt", "jsonl", "parquet"]


def save(path: Path, texts: list[str], field: str = "text") -> Path:
    if path.suffix == ".txt":
        path.write_bytes("".join(f"{text}\n<|endoftext|>\n" for text in texts).encode())
    elif path.suffix == ".jsonl":
        rows = [{"id": i, field: text} for i, text in enumerate(texts)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pa.table({"id": range(len(texts)), field: texts}), path)
    return path


# What is read


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path, kind: str) -> None:
    assert list(read_texts(save(tmp_path / f"stories.{kind}", STORIES))) == STORIES


@pytest.mark.parametrize("kind", KINDS)
def test_documents_without_text_are_left_out(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / f"stories.{kind}", ["", "one", " \n\t", "two", "\n"])
    assert list(read_texts(str(path))) == ["one", "two"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_another_field_can_be_read(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / f"stories.{kind}", STORIES, "story")
    assert list(read_texts(path, field="story")) == STORIES


def test_more_rows_than_a_batch_of_parquet_are_all_read_in_order(tmp_path: Path) -> None:
    texts = [f"story {i}" for i in range(2500)]
    table = pa.table({"text": pa.array(texts).dictionary_encode()})
    parquet.write_table(table, tmp_path / "many.parquet", row_group_size=700)
    assert list(read_texts(tmp_path / "many.parquet")) == texts


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        ("one<|endoftext|>two", ["one", "two"]),
        ("one\n<|endoftext|>\ntwo\n<|endoftext|>\n", ["one", "two"]),
        ("<|endoftext|>one<|endoftext|><|endoftext|>\n\n<|endoftext|>two", ["one", "two"]),
        ("one\n\nstill one\n<|endoftext|>\n\n\n  two ", ["one\n\nstill one", "  two "]),
        ("one\nstill one\n\n\ntwo\n \t\n three\n", ["one\nstill one", "two", " three"]),
        ("one\r\nstill one\r\n\r\ntwo\r\n", ["one\nstill one", "two"]),
        ("one\r\n<|endoftext|>\r\ntwo", ["one", "two"]),
        ("\ufeffone", ["one"]),
        ("one\u2028\x0bstill one\rstill", ["one\u2028\x0bstill one\rstill"]),
    ],
)  # fmt: skip
def test_documents_of_a_text_file(tmp_path: Path, content: str, documents: list[str]) -> None:
    (tmp_path / "stories.txt").write_bytes(content.encode())
    assert list(read_texts(tmp_path / "stories.txt")) == documents


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.text("a b\n<|é"), min_size=1).filter(lambda texts: any(map(str.split, texts)))
)
def test_any_texts_between_marks_are_found_again(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = save(tmp_path_factory.mktemp("texts") / "texts.txt", texts)
    assert list(read_texts(path)) == [text.strip("\n") for text in texts if text.split()]


def test_blank_lines_of_jsonl_are_no_documents(tmp_path: Path) -> None:
    (tmp_path / "stories.jsonl").write_text('{"text": "one"}\n\n  \n{"text": "two"}')
    assert list(read_texts(tmp_path / "stories.jsonl")) == ["one", "two"]


# Folders


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    save(tmp_path / "2.txt", ["second"])
    save(tmp_path / "3.parquet", ["third"])
    save(tmp_path / "1.jsonl", ["first", "next"])
    (tmp_path / "README.md").write_text("no story")
    (tmp_path / ".0.txt").write_text("hidden")
    assert list(read_texts(tmp_path)) == ["first", "next", "second", "third"]


@pytest.mark.parametrize(
    ("split", "documents"), [("train", ["b", "c"]), ("valid", ["d"]), ("training", ["a"])]
)
def test_files_named_for_a_split_are_that_split(
    tmp_path: Path, split: str, documents: list[str]
) -> None:
    names = {"training.txt": "a", "train-00000-of-00002.txt": "b", "train_1.jsonl": "c"}
    for name, text in (names | {"valid.txt": "d"}).items():
        save(tmp_path / name, [text])
    assert list(read_texts(tmp_path, split)) == documents


def test_a_split_that_no_file_is_named_for_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "stories.txt", ["one"])
    with pytest.raises(ValueError, match=r"has no split 'test'; expected a file such as test\.txt"):
        read_texts(tmp_path, "test")


def test_a_folder_comes_before_a_name_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    save(tmp_path / "owner" / "name" / "stories.txt", ["one"])
    monkeypatch.chdir(tmp_path)
    assert list(read_texts("owner/name")) == ["one"]


# What is refused


@pytest.mark.parametrize("source", ["a/b/c", "stories.txt", "/nowhere/stories", "./stories"])
def test_a_missing_file_is_not_looked_for_on_the_hub(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.load_dataset", None)
    for missing in (source, Path(source)):
        with pytest.raises(ValueError, match=f"{Path(source).name} is missing"):
            read_texts(missing)


def test_a_folder_without_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape("no .txt, .jsonl or .parquet file")):
        read_texts(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stories.csv").write_text("text\none\n")
    with pytest.raises(ValueError, match=r"stories.csv is of no known kind; expected a .txt, "):
        read_texts(tmp_path / "stories.csv")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_without_documents_is_refused_where_it_stands(tmp_path: Path, kind: str) -> None:
    save(tmp_path / "1.txt", ["one"])
    save(tmp_path / f"2.{kind}", [" ", ""])
    texts = read_texts(tmp_path)
    assert next(texts) == "one"
    with pytest.raises(ValueError, match=f"2.{kind} holds no documents"):
        next(texts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt holds no documents"),
        ("a.jsonl", b"", "a.jsonl holds no documents"),
        ("a.parquet", b"", "a.parquet is not a complete parquet file"),
        ("a.parquet", b"PAR1 and no more", "a.parquet is not a complete parquet file"),
        ("a.txt", b"one\ntw\xffo\n", "a.txt: line 2 is not UTF-8 text .*byte 2 of the line"),
        ("a.txt", "one".encode("utf-16"), "a.txt: line 1 is not UTF-8 text"),
        ("a.jsonl", b'{"text": "one"}\n\xff\n', "a.jsonl: line 2 is not UTF-8 text"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "tw\n', "a.jsonl: line 2 is not JSON .*column"),
        ("a.jsonl", b'{"text": "a"}\n\n[1]\n', "a.jsonl: line 3 is not a JSON object"),
        ("a.jsonl", b'{"txt": "a", "id": 1}', "a.jsonl: line 1 has no field 'text'; .*'txt', 'id'"),
        ("a.jsonl", b'{"text": 7}', "a.jsonl: line 1: field 'text' must be text; got int"),
        ("a.jsonl", b'{"text": null}', "a.jsonl: line 1: field 'text' must be text; got NoneType"),
        ("a.jsonl", b'{"text": "\\ud83d"}', "a.jsonl: line 1: field 'text' is not Unicode"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_texts(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array(["one", None]), "a.parquet: row 2: field 'text' must be text; got NoneType"),
        (pa.array([1, 2]), "a.parquet: row 1: field 'text' must be text; got int"),
        (
            pa.Array.from_buffers(
                pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]
            ),
            "a.parquet: row 1 is not UTF-8 text",
        ),
    ],
)
def test_a_row_of_parquet_that_is_no_text_is_named(
    tmp_path: Path, column: Any, message: str
) -> None:
    parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        list(read_texts(tmp_path / "a.parquet"))


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", ["one"], "story")
    message = re.escape("a.parquet has no field 'text'; its fields are ['id', 'story']")
    with pytest.raises(ValueError, match=message):
        list(read_texts(path))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", [str(i) for i in range(1000)])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"a\.parquet is not a complete parquet file"):
        list(read_texts(path))


# The hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], list[Any]]:
    """Puts texts on a hub of one dataset, read by the real library; gives what was asked of it."""
    load = datasets.load_dataset

    def publish(texts: list[str]) -> list[Any]:
        save(tmp_path / "train.jsonl", texts)
        asked: list[Any] = []

        def load_dataset(name: str, **settings: Any) -> Any:
            asked.append((name, settings))
            return load(str(tmp_path), **settings)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return publish


def test_a_dataset_of_the_hub_is_streamed(hub: Callable[[list[str]], list[Any]]) -> None:
    asked = hub(["", *STORIES])
    assert list(read_texts("owner/stories")) == STORIES
    assert asked == [("owner/stories", {"split": "train", "streaming": True})]


def test_what_a_dataset_of_the_hub_lacks_is_named(hub: Callable[[list[str]], list[Any]]) -> None:
    hub(STORIES)
    message = "dataset 'stories', split 'train': row 1 has no field 'story'; .*'id', 'text'"
    with pytest.raises(ValueError, match=message):
        next(read_texts("stories", field="story"))
    with pytest.raises(ValueError, match="no dataset with a split 'valid' could be had from"):
        read_texts("stories", "valid")


def test_a_hub_that_is_not_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'stories'\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = re.escape("(Couldn't reach 'stories' on the Hub)")
    with pytest.raises(ValueError, match=f"^'stories' is not a file or folder here, .*{message}$"):
        read_texts("stories")


@pytest.mark.network
def test_tinystories_is_on_the_hub() -> None:
    texts = read_texts("roneneldan/TinyStories")
    assert next(texts).startswith("One day, a little girl named Lily found a needle")
    assert next(texts)
