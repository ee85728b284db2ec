"""What the commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resval_lens.analyses.console import err

if TYPE_CHECKING:
    from resval_lens.transformer import ResValTransformer

Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, results only.")]


def numbers(text: str, name: str = "seeds", negative: bool = False) -> list[int]:
    """Whole numbers from ``"0,1,2"`` or ``"0-3"``; with ``negative`` from ``"0,2,-1"``, too.

    Raises:
        ValueError: anything else, or none.
    """
    like = "0,2,-1" if negative else "0,1,2"
    try:
        first, dash, last = text.partition("-")
        if dash and (first.strip().isdecimal() or not negative):
            found = list(range(int(first), int(last) + 1))
        else:
            found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"{name} must be numbers like {like} or 0-3; got {text!r}") from None
    if not found:
        raise ValueError(f"{name} must name at least one number; got {text!r}")
    return found


def writable(folder: Path) -> None:
    """Raises OSError now rather than after minutes of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to {folder}: permission denied")


def load_language_model(folder: Path) -> ResValTransformer:
    """A saved model with its tokenizer.

    Raises:
        ValueError: there is none, or it has no tokenizer.
    """
    from resval_lens.transformer import ResValTransformer

    model = ResValTransformer.from_pretrained(folder)
    if model.tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer.json; a prompt cannot be put into its tokens")
    return model


def pairs_by_seed(first: Sequence[Path], second: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Saved models of the same training seed; of single ones, or without seeds, in order.

    Raises:
        ValueError: more models of one kind than of the other, and their seeds do not say which
            belong together.
    """
    seeds = [[_seed(folder) for folder in folders] for folders in (first, second)]
    known = all(None not in each and len(set(each)) == len(each) for each in seeds)
    if known and set(seeds[0]) & set(seeds[1]):
        by_seed = dict(zip(seeds[1], second, strict=True))
        return [
            (one, by_seed[seed])
            for seed, one in zip(seeds[0], first, strict=True)
            if seed in by_seed
        ]
    if len(first) != len(second):
        raise ValueError(
            f"{len(first)} models of one kind and {len(second)} of the other, without seeds to "
            "pair them by; give as many of each"
        )
    return list(zip(first, second, strict=True))


def _seed(folder: Path) -> int | None:
    from resval_lens.checkpoint import SHIPPED_MODELS
    from resval_lens.files import read_json

    path = SHIPPED_MODELS.get(str(folder), folder) / "provenance.json"
    record = read_json(path, "a model's provenance") if path.is_file() else {}
    seed = record.get("run", {}).get("seed") if isinstance(record, dict) else None
    return seed if isinstance(seed, int) else None


@contextmanager
def notes(quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line that says what is being done, while it is; silence if ``quiet``."""
    if quiet:
        yield lambda text: None
        return
    with err.status("") as status:
        yield status.update
