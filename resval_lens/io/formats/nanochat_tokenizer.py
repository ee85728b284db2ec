"""nanochat's tokenizer: a tokenizer.json, or a pickled tiktoken encoding, which is not unpickled.

A pickle is a program. Here its instructions are read one by one, and only those are followed that
lay out texts, bytes, numbers and dictionaries; whatever else is there, it is refused.
"""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from resval_lens.io.files import first_line, note, read_bytes
from resval_lens.io.tokenizers import END_OF_DOCUMENT, load_tokenizer, vocabulary_size

MOST_OF_TOKEN = 1_000  # bytes, of which each way to merge two parts is looked at
_WHAT = "a pickled tiktoken encoding"
_BOS = ("<|bos|>", END_OF_DOCUMENT)
_ENCODING = ("tiktoken.core", "Encoding")
_VALUES = (
    "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "BININT", "BININT1", "BININT2",
)  # fmt: skip
_FIELDS = ("name", "pat_str", "mergeable_ranks", "special_tokens")


def find_tokenizer(folder: Path, d_vocab: int) -> PreTrainedTokenizerFast | None:
    """The tokenizer of the checkpoints in ``folder``: beside them, or where nanochat puts it.

    That is ``tokenizer/`` beside ``base_checkpoints/``, which holds ``folder``. One that cannot be
    read is noted, and None.

    Raises:
        ValueError: a tokenizer of another vocabulary than ``d_vocab`` tokens.
    """
    places = (folder, folder / "tokenizer", folder.resolve().parent.parent / "tokenizer")
    for path in (place / name for place in places for name in ("tokenizer.json", "tokenizer.pkl")):
        if not path.is_file():
            continue
        try:
            backend = load_tokenizer(path) if path.suffix == ".json" else read_encoding(path)
        except ValueError as error:
            note(f"{error}; the model is loaded without a tokenizer: pass tokenizer=")
            return None
        size = vocabulary_size(backend)
        if size != d_vocab:
            raise ValueError(
                f"{path} has {size} tokens, the model beside it {d_vocab}; pass the tokenizer that "
                "it was trained with as tokenizer="
            )
        bos = next((name for name in _BOS if backend.token_to_id(name) is not None), None)
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=bos)
    return None


def read_encoding(path: Path) -> Tokenizer:
    """The tokenizer that a pickled ``tiktoken.Encoding`` describes; nothing of it is run.

    Raises:
        ValueError: anything else.
    """
    content = read_bytes(path, _WHAT)
    try:
        return _byte_pairs(*_described(content))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a stranger's file fails in many ways; tokenizers may panic
        raise ValueError(f"{path} is not {_WHAT}: {first_line(error)}") from None


def _described(content: bytes) -> tuple[str, dict[bytes, int], dict[str, int]]:
    """Pattern, mergeable ranks and special tokens."""
    state = _laid_out(content)
    if not isinstance(state, dict) or sorted(map(str, state)) != sorted(_FIELDS):
        raise ValueError(f"expected the fields {', '.join(_FIELDS)}")
    _, pattern, ranks, special = (state[name] for name in _FIELDS)
    if type(pattern) is not str:
        raise ValueError("expected a text as pat_str")
    for tokens, kind in ((ranks, bytes), (special, str)):
        if type(tokens) is not dict or any(
            type(token) is not kind or type(number) is not int for token, number in tokens.items()
        ):
            raise ValueError(f"expected a dictionary of {kind.__name__} and numbers")
    numbers = [*ranks.values(), *special.values()]
    if sorted(numbers) != list(range(len(numbers))):
        raise ValueError("its tokens' numbers are not 0, 1, 2, ...")
    longest = max(map(len, ranks), default=0)
    if longest > MOST_OF_TOKEN:
        raise ValueError(f"a token has {longest:,} bytes; expected at most {MOST_OF_TOKEN:,}")
    missing = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if missing is not None:
        raise ValueError(f"no token is the byte {missing}")
    return pattern, ranks, special


def _laid_out(content: bytes) -> Any:
    """What a pickle gives an encoding as its state."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: list[Any] = []
    for code, value, _ in pickletools.genops(content):
        match code.name:
            case "PROTO" | "FRAME":
                pass
            case name if name in _VALUES:
                stack.append(value)
            case "MEMOIZE":
                memo.append(stack[-1])
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[cast("int", value)])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "MARK":
                marks.append(len(stack))
            case "SETITEM":
                number, token = stack.pop(), stack.pop()
                stack[-1][token] = number
            case "SETITEMS":
                mark = marks.pop()
                stack[mark - 1].update(zip(stack[mark::2], stack[mark + 1 :: 2], strict=True))
                del stack[mark:]
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                if (module, name) != _ENCODING:
                    raise ValueError(f"it asks for {module}.{name}")
                stack.append(_ENCODING)
            case "NEWOBJ":
                if (stack.pop(), stack[-1]) != ((), _ENCODING):
                    raise ValueError("it makes something else")
            case "BUILD":
                state = stack.pop()
                if stack != [_ENCODING]:
                    raise ValueError("it makes something else")
            case "STOP":
                return state
            case other:
                raise ValueError(f"it has the instruction {other}")


def _byte_pairs(pattern: str, ranks: dict[bytes, int], special: dict[str, int]) -> Tokenizer:
    """tiktoken's byte pairs: two neighbours merge that are a token together, the lowest first."""
    letter = _letters()

    def written(token: bytes) -> str:
        return "".join(letter[byte] for byte in token)

    merges = [
        (written(token[:i]), written(token[i:]))
        for token in sorted(ranks, key=ranks.__getitem__)
        for i in range(1, len(token))
        if token[:i] in ranks and token[i:] in ranks
    ]
    vocabulary = {written(token): number for token, number in ranks.items()}
    # a piece that is a token itself is taken whole, as tiktoken does
    model = models.BPE(vocabulary, merges, ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    in_order = sorted(special, key=special.__getitem__)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in in_order])
    if any(tokenizer.token_to_id(token) != number for token, number in special.items()):
        raise ValueError("its special tokens are not the last ones")
    return tokenizer


def _letters() -> dict[int, str]:
    """The letter that stands for each byte in byte-level BPE: its own if it can be printed."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {
        byte: chr(256 + place) for place, byte in enumerate(others)
    }
