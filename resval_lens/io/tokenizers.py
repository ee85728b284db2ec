"""Tokenizers: loaded, trained, and told apart."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from resval_lens.io.files import check_plain, first_line, read_bytes

END_OF_DOCUMENT = "<|endoftext|>"
END_OF_TEXT = (END_OF_DOCUMENT, "</s>", "<eos>", "<|end_of_text|>", "<|eot_id|>")
MOST_ADDED = 1_000  # special tokens that a tokenizer puts around a text
MOST_GROWTH = 1_000  # times as long as it was, which a text may become in one of its parts

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_ONE_FILE = "tokenizer.json"
_TWO_FILES = ("vocab.json", "merges.txt")


def load_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer of a file, a folder or a model on the Hugging Face hub.

    Args:
        source: a tokenizer.json; a folder that holds one, or else vocab.json and merges.txt, which
            are read as GPT-2's byte-level BPE; else a name on the hub, such as "gpt2", from which
            the same files are taken.

    Raises:
        ValueError: nothing of the kind there, or it is damaged.
    """
    path = Path(source)
    if path.is_dir():
        if (path / _ONE_FILE).is_file():
            return _read(path / _ONE_FILE)
        vocab, merges = (path / name for name in _TWO_FILES)
        if vocab.is_file() and merges.is_file():
            return _read_gpt2(vocab, merges)
        raise ValueError(f"{path} holds no tokenizer; expected {_ONE_FILE}, or {_TWO_FILES}")
    if path.exists():
        return _read(path)
    if isinstance(source, Path) or path.suffix == ".json" or not could_be_on_hub(source):
        raise ValueError(f"{source} is missing; expected a tokenizer's file or folder")
    return _from_hub(source)


def train_bpe(texts: Iterable[str], vocab_size: int, min_frequency: int = 2) -> Tokenizer:
    """A byte-level BPE as GPT-2's, learnt from ``texts``; the same texts give the same one.

    Id 0 is ``<|endoftext|>``, 1 to 256 are the bytes, then come the merges, the commonest first.

    Args:
        vocab_size: tokens, with the first 257.
        min_frequency: times that a pair must occur to be merged.

    Raises:
        ValueError: ``vocab_size`` is below 257, or more than the texts give.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + 1
    if vocab_size < least:
        raise ValueError(f"vocab_size must be at least {least}, the bytes; got {vocab_size}")
    if isinstance(texts, str):
        raise ValueError("texts must be documents; got one text")
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    if found != vocab_size:
        raise ValueError(
            f"the texts give only {found} tokens with min_frequency={min_frequency}; got "
            f"vocab_size={vocab_size}"
        )
    return tokenizer


def end_of_text(tokenizer: Tokenizer) -> int:
    """The id of the token that ends a document: the first of ``END_OF_TEXT`` that there is.

    Raises:
        ValueError: there is none.
    """
    for name in END_OF_TEXT:
        token = tokenizer.token_to_id(name)
        if token is not None:
            return int(token)
    raise ValueError(f"the tokenizer has no end of text; expected one of {END_OF_TEXT}")


def spelled(tokenizer: Any, tokens: Iterable[int]) -> str:
    """Tokens as messages show them: ``' Phil' + 'ippa'``."""
    return " + ".join(repr(tokenizer.decode([token])) for token in tokens)


def could_be_on_hub(name: str) -> bool:
    """Whether ``name`` is written as hub names are, ``name`` or ``owner/name``."""
    return _HUB_NAME.fullmatch(name) is not None


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """d_vocab: the highest id + 1 (ids may have gaps)."""
    return int(max(tokenizer.get_vocab().values(), default=-1)) + 1


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 of the tokenizer as JSON with sorted keys.

    Truncation and padding are left out: they are settings of the moment, and tokenising for
    training uses neither.
    """
    content = json.loads(tokenizer.to_str())
    for name in ("truncation", "padding"):
        content.pop(name, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> Tokenizer:
    content = read_bytes(path, "a tokenizer")
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises no narrower one, or panics
        raise ValueError(f"{path} is not a tokenizer ({error})") from None
    # A few bytes can ask for more memory than there is, at which the library ends the process.
    added = max(tokenizer.num_special_tokens_to_add(pair) for pair in (False, True))
    if added > MOST_ADDED:
        raise ValueError(f"{path} adds {added:,} tokens to a text; expected at most {MOST_ADDED}")
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        part = getattr(tokenizer, name)
        times = 1.0 if part is None else _growth(json.loads(part.__getstate__()))
        if times > MOST_GROWTH:
            raise ValueError(
                f"{path}: its {name} may make a text {times:.3g} times as long; expected at most "
                f"{MOST_GROWTH}"
            )
    return tokenizer


def _growth(part: Any) -> float:
    """How many times as long a text may become in a part of a tokenizer, given as JSON."""
    if isinstance(part, list):
        return math.prod(map(_growth, part))
    if not isinstance(part, dict):
        return 1.0
    if part.get("type") == "Replace":
        ((kind, pattern),) = part["pattern"].items()
        shortest = len(pattern) if kind == "String" else 0
        return max(1.0, len(part["content"]) / shortest if shortest else 1 + len(part["content"]))
    if part.get("type") == "TemplateProcessing":
        templates = (part["single"], part["pair"])
        return float(max(1, *(sum("Sequence" in piece for piece in each) for each in templates)))
    return math.prod(map(_growth, part.values()))


def _read_gpt2(vocab: Path, merges: Path) -> Tokenizer:
    for path in (vocab, merges):
        check_plain(path, "a BPE vocabulary")
    try:
        tokens, pairs = models.BPE.read_file(str(vocab), str(merges))
        tokenizer = _byte_level(models.BPE(tokens, pairs))
    except Exception as error:
        raise ValueError(f"{vocab} and {merges} are not a BPE vocabulary ({error})") from None
    if not pairs:
        raise ValueError(f"{merges} is not a list of merges: it is empty")
    special = [name for name in END_OF_TEXT if tokenizer.token_to_id(name) is not None]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    return tokenizer


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _from_hub(name: str) -> Tokenizer:
    try:
        try:
            return _read(Path(hf_hub_download(name, _ONE_FILE)))
        except LocalEntryNotFoundError:  # the hub was not reached
            raise
        except EntryNotFoundError:
            vocab, merges = (Path(hf_hub_download(name, file)) for file in _TWO_FILES)
            return _read_gpt2(vocab, merges)
    except (OSError, EntryNotFoundError) as error:
        raise ValueError(
            f"{name!r} is not a file or folder here, and no tokenizer could be had from the "
            f"Hugging Face hub ({first_line(error)})"
        ) from None
