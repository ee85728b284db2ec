"""nanochat's tokenizers: tokenizer.json, and tiktoken encodings, which are not unpickled."""

import itertools
import pickle
import random
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from resval_lens import ResValTransformer
from resval_lens.io.formats.nanochat_tokenizer import read_encoding
from resval_lens.io.tokenizers import train_bpe
from resval_lens.load import load_model
from resval_lens.tasks.leading import leading_token
from tests.test_nanochat import NEWEST, Payload, drawn, save

SPECIAL = ("<|bos|>", "<|user_start|>", "<|user_end|>")
TEXT = "Mary and John went to the store. It's 12345 o'clock:  they'LL buy milk, ananas!\n\n"
PATTERN = r"'(?i:[sd]|ll)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s+"
PIECES = ["Mary", " and", " John", " went", " to", " the", " store", ".", " It", "'s", " ", "12",
          "34", "5", " o", "'clock", ":", "  ", "they", "'LL", " buy", " milk", ",", " ananas",
          "!\n\n"]  # fmt: skip
"""TEXT as PATTERN splits it, by hand."""


def ranks_of(vocabulary: int = 290) -> dict[bytes, int]:
    """Byte pairs learnt from ``TEXT``, the bytes first."""
    learnt = train_bpe([TEXT] * 3, vocabulary, 1)
    texts = [learnt.decode([number]) for number in range(257, vocabulary)]
    pairs = list(dict.fromkeys(text.encode() for text in texts))
    return {token: n for n, token in enumerate([*(bytes([n]) for n in range(256)), *pairs])}


def split(piece: bytes, ranks: dict[bytes, int]) -> list[int]:
    """tiktoken's rule: of neighbours that are a token together, the lowest and leftmost merge."""
    parts = [piece] if piece in ranks else [bytes([byte]) for byte in piece]
    while True:
        pairs = [
            (ranks.get(first + second, len(ranks)), place)
            for place, (first, second) in enumerate(itertools.pairwise(parts))
        ]
        rank, place = min(pairs, default=(len(ranks), 0))
        if rank == len(ranks):
            return [ranks[part] for part in parts]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def encoding(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    """An object that is pickled as tiktoken pickles its encodings."""
    ranks = ranks_of()
    state = {
        "name": "rustbpe", "pat_str": PATTERN, "mergeable_ranks": ranks,
        "special_tokens": {name: len(ranks) + i for i, name in enumerate(SPECIAL)}, **changes,
    }  # fmt: skip
    module = ModuleType("tiktoken.core")
    module.Encoding = type(  # type: ignore[attr-defined]
        "Encoding", (), {"__module__": "tiktoken.core", "__getstate__": lambda self: state}
    )
    monkeypatch.setitem(sys.modules, "tiktoken", ModuleType("tiktoken"))
    monkeypatch.setitem(sys.modules, "tiktoken.core", module)
    return module.Encoding()  # type: ignore[attr-defined]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "base_checkpoints" / "d5", *drawn(NEWEST))


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_pickled_encoding_is_read_and_not_unpickled(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, ranks = tmp_path / "tokenizer.pkl", ranks_of()
    path.write_bytes(pickle.dumps(encoding(monkeypatch), protocol))
    monkeypatch.undo()  # nothing of tiktoken is there now
    tokenizer = read_encoding(path)
    wanted = [number for piece in PIECES for number in split(piece.encode(), ranks)]
    assert tokenizer.encode(TEXT).ids == wanted
    assert any(len(split(piece.encode(), ranks)) > 1 for piece in PIECES)
    chance = torch.Generator().manual_seed(0)
    letters = torch.randint(97, 123, (400, 6), generator=chance).tolist()
    for word in (bytes(row) for row in letters):
        assert tokenizer.encode(word.decode()).ids == split(word, ranks)
    strange = "naïve 中文 \U0001f600\x00"
    assert tokenizer.decode(tokenizer.encode(strange).ids) == strange
    assert tokenizer.encode("a<|user_end|>").ids == [ranks[b"a"], len(ranks) + 2]


@pytest.mark.parametrize("seed", range(20))
def test_tokens_merge_as_tiktoken_merges_them(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any tokens: some that no merge leads to, in any order in the file."""
    chance = random.Random(seed)
    every = [bytes(word) for n in (2, 3, 4, 5) for word in itertools.product(b"ab", repeat=n)]
    some = chance.sample(every, 12)
    ranks = {token: n for n, token in enumerate([*(bytes([n]) for n in range(256)), *some])}
    kept = dict(chance.sample(list(ranks.items()), len(ranks)))
    given = {"mergeable_ranks": kept, "special_tokens": {"<|bos|>": len(ranks)}}
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(pickle.dumps(encoding(monkeypatch, **given)))
    tokenizer = read_encoding(path)
    for word in (*some, *(bytes(chance.choices(b"ab", k=14)) for _ in range(50))):
        assert tokenizer.encode(word.decode()).ids == split(word, ranks)


def test_texts_begin_with_bos_and_are_saved_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(ranks_of())
    folder = save(tmp_path / "base_checkpoints" / "d5", *drawn(NEWEST, vocab_size=count + 3))
    (tmp_path / "tokenizer").mkdir()
    content = pickle.dumps(encoding(monkeypatch))
    (tmp_path / "tokenizer" / "tokenizer.pkl").write_bytes(content)
    model = load_model(folder).model
    model.save_pretrained(tmp_path / "saved")
    for each in (model, load_model(tmp_path / "saved").model):
        assert each.to_tokens("Mary")[0, 0] == count
        assert leading_token(each) == count
        assert each.to_string(each.to_tokens(TEXT)[0, 1:]) == TEXT
    made = model.generate("Mary", max_new_tokens=3, temperature=0, verbose=False)
    assert made.startswith("Mary")


@pytest.mark.parametrize("place", [".", "tokenizer", "../../tokenizer"])
@pytest.mark.parametrize("kind", ["json", "pkl"])
def test_the_tokenizer_is_found(
    place: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(ranks_of())
    folder = save(tmp_path / "base_checkpoints" / "d5", *drawn(NEWEST, vocab_size=count + 3))
    (folder / place).mkdir(exist_ok=True)
    pickled = folder / place / "tokenizer.pkl"
    pickled.write_bytes(pickle.dumps(encoding(monkeypatch)))
    if kind == "json":
        read_encoding(pickled).save(str(folder / place / "tokenizer.json"))
        pickled.write_bytes(b"")
    monkeypatch.chdir(folder)
    for source in (folder, folder / "model_000123.pt", Path()):
        tokenizer: Any = load_model(source).model.tokenizer
        assert (tokenizer.bos_token_id, tokenizer.pad_token) == (count, "<|bos|>")


def test_a_tokenizer_of_another_vocabulary_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(encoding(monkeypatch)))
    message = rf"tokenizer\.pkl has {len(ranks_of()) + 3} tokens, the model beside it 50; pass the"
    with pytest.raises(ValueError, match=message) as raised:
        load_model(folder)
    assert "\n" not in str(raised.value)
    own = PreTrainedTokenizerFast(tokenizer_object=train_bpe([TEXT], 270, 1))
    model = ResValTransformer.from_pretrained(folder, tokenizer=own)
    assert model.tokenizer is own
    assert leading_token(model) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "expected the fields name, pat_str, mergeable_ranks, special_tokens"),
        ({"pat_str": 3}, "expected a text as pat_str"),
        ({"pat_str": "("}, ""),
        ({"mergeable_ranks": []}, "it has the instruction EMPTY_LIST"),
        ({"mergeable_ranks": {"a": 0}}, "expected a dictionary of bytes and numbers"),
        ({"mergeable_ranks": {b"a": b"0"}}, "expected a dictionary of bytes and numbers"),
        ({"special_tokens": {b"a": 0}}, "expected a dictionary of str and numbers"),
        ({"special_tokens": {}}, None),
        ({"special_tokens": {"a": 5}}, "its tokens' numbers are not 0, 1, 2, ..."),
        ({"special_tokens": {"a": 10**9}}, "its tokens' numbers are not 0, 1, 2, ..."),
        ({"mergeable_ranks": {b"a": 0}, "special_tokens": {}}, "no token is the byte 0"),
        ({"mergeable_ranks": {b"a" * 1001: 0}, "special_tokens": {}}, "a token has 1,001 bytes"),
        ({"name": Payload(Path("ran"))}, "it asks for pathlib.Path.touch"),
    ],
)
def test_other_pickles_are_no_tokenizers(
    change: dict[str, Any], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(pickle.dumps(encoding(monkeypatch, **change)))
    monkeypatch.chdir(tmp_path)
    if message is None:
        assert read_encoding(path).get_vocab_size() == len(ranks_of())
        return
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a pickled tiktoken")) as raised:
        read_encoding(path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"", b".", b"not a pickle", b"\x80\x04.", b"\x80\x04N.", b"\x80\x04}b.", b"\x80\x04}}u.",
        b"\x80\x04h\x05.", b"cos\nsystem\n(S'true'\ntR.", b"\x80\x04]\x94h\x00a.", b"\x80\x04(u.",
        b"\x80\x04}(]]u.", b"\x80\x04)\x81.", b"\x80\x04\x93.", b"\x80\x04}(K\x01u.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", pickle.dumps({"a": 1}), pickle.dumps(3),
    ],
)  # fmt: skip
def test_scraps_of_pickles_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a pickled tiktoken")) as raised:
        read_encoding(path)
    assert "\n" not in str(raised.value)


def test_a_tokenizer_that_cannot_be_read_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(Payload(folder / "ran")))
    model = load_model(folder).model
    assert model.tokenizer is None
    assert leading_token(model) is None
    assert "the model is loaded without a tokenizer: pass tokenizer=" in caplog.text
    assert not (folder / "ran").exists()
