"""Text to train on, by name: generated stories, a data set of the hub, or the user's own files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from time import sleep
from typing import NamedTuple

from tokenizers import Tokenizer

from resval_lens.notes import Note
from resval_lens.tasks import stories
from resval_lens.tasks.text import (
    PackedRows,
    StoryRows,
    TokenFiles,
    load_tokenizer,
    read_texts,
    train_bpe,
    vocabulary_size,
    write_token_files,
)
from resval_lens.tasks.text.sources import named
from resval_lens.tasks.text.writing import BeingWritten
from resval_lens.training.lm_run import RowKind

GENERATED = "stories"
LEARN = "bpe:"
NAMES = {"tinystories": "roneneldan/TinyStories"}
HELD_OUT_EVERY = 100


class LMData(NamedTuple):
    """Tokens to train on, tokens to validate on, and their tokenizer."""

    train: TokenFiles
    valid: TokenFiles
    tokenizer: Tokenizer

    def rows(self, kind: RowKind, n_ctx: int) -> tuple[PackedRows | StoryRows, ...]:
        """(training rows, validation rows) of ``n_ctx`` tokens."""
        make = PackedRows if kind == "packed" else StoryRows
        return make(self.train, n_ctx), make(self.valid, n_ctx)


def prepare(
    data: str,
    folder: Path,
    tokenizer: str | Tokenizer | None = None,
    validation: str | None = None,
    n_stories: int = 300_000,
    overwrite: bool = False,
    note: Note = lambda text: None,
) -> LMData:
    """Token files of ``data`` in ``folder``, written if they are not there yet.

    While another process writes them, this one waits.

    Args:
        data: ``"stories"`` (generated), ``"tinystories"``, the name of a data set on the Hugging
            Face hub, or a file or folder of .txt, .jsonl or .parquet.
        tokenizer: itself, a folder or file, a name on the hub, or ``"bpe:N"`` for a byte-level BPE
            of N tokens, learnt from the training text; by default the stories' own tokenizer for
            stories, and for others there is none.
        validation: a file or folder to validate on; by default the hub's split ``validation``, or
            every hundredth document of local text, which then is not trained on.
        n_stories: how many to generate to train on.
        overwrite: write the token files again.

    Raises:
        BeingWritten: ``overwrite`` while another process writes them.
        ValueError: data or tokenizer missing, empty or damaged; token files of another tokenizer
            or another text in ``folder``. A text is known by its name and checksum, not its folder.
    """
    if data != GENERATED and tokenizer is None:
        raise ValueError(
            f"data={data!r} needs a tokenizer: a folder, a file, a name on the hub, or bpe:4096 to "
            "learn one of 4096 tokens from the text"
        )
    # What the files are made of; the validation text first, as its lack shows sooner.
    of = [str(n_stories)] if data == GENERATED else []
    of += [named(validation) if validation else "None"] if validation or not of else []
    learnt = isinstance(tokenizer, str) and tokenizer.startswith(LEARN)
    of += [str(tokenizer)] if learnt else []
    text = data if data in (GENERATED, *NAMES) else named(data)
    sources = {part: ", ".join((text, *of, part)) for part in ("valid", "train")}

    def texts(part: str) -> Iterable[str]:
        if data == GENERATED:
            count = n_stories if part == "train" else max(200, n_stories // HELD_OUT_EVERY)
            return islice(stories.stories(seed=0 if part == "train" else 1), count)
        name = NAMES.get(data, data)
        if part == "valid" and validation:
            return read_texts(validation)
        if Path(name).exists():
            documents = read_texts(name)
            return documents if validation else _every_hundredth(documents, part == "valid")
        return read_texts(name, "train" if part == "train" else "validation")

    if tokenizer is None:
        words = stories.load_tokenizer()
    elif isinstance(tokenizer, Tokenizer):
        words = tokenizer
    elif learnt:
        known = folder / "train" if not overwrite else None
        words = _learnt(tokenizer, known, partial(texts, "train"), note)
    else:
        words = load_tokenizer(tokenizer)
    parts = {}
    for part, source in sources.items():
        path = folder / part
        while overwrite or not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            try:
                files = write_token_files(
                    texts(part), words, path, overwrite=overwrite, source=source,
                    progress=partial(_say, note, part),
                )  # fmt: skip
                break
            except BeingWritten:
                if overwrite:
                    raise
                note(f"waiting for another process, which writes {path}")
                sleep(1)
        else:
            note(f"checking {path}")
            files = TokenFiles.open(path)
            files.check_tokenizer(words)
            if files.source != source:
                raise ValueError(
                    f"{path} holds tokens of {files.source!r}, not {source!r}; choose another "
                    "folder, or --overwrite"
                )
        parts[part] = files
    return LMData(parts["train"], parts["valid"], words)


def _learnt(
    wanted: str, known: Path | None, texts: Callable[[], Iterable[str]], note: Note
) -> Tokenizer:
    """The BPE of ``known`` token files, or a new one; ``wanted`` is "bpe:N"."""
    digits = wanted.removeprefix(LEARN)
    if not digits.isdecimal():
        raise ValueError(f"tokenizer must be like bpe:4096; got {wanted!r}")
    if known is None or not known.exists():
        note(f"learning {digits} tokens")
        return train_bpe(texts(), int(digits))
    words = load_tokenizer(known)
    if vocabulary_size(words) != int(digits):
        raise ValueError(
            f"{known} holds tokens of a vocabulary of {vocabulary_size(words)}, not {digits}; "
            "choose another folder, or --overwrite"
        )
    return words


def _say(note: Note, part: str, documents: int, tokens: int) -> None:
    note(f"{part}: {documents:,} documents, {tokens:,} tokens")


def _every_hundredth(documents: Iterable[str], held_out: bool) -> Iterator[str]:
    number = -1
    for number, document in enumerate(documents):
        if (number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out:
            yield document
    if held_out and number < HELD_OUT_EVERY - 1:
        raise ValueError(
            f"the text has {number + 1} documents, too few to keep every {HELD_OUT_EVERY}th for "
            "validation; name another text with validation= (--validation)"
        )
