"""What the commands share: options, each of one name, type and meaning, and what reads them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from resval_lens.analyses.cli import completion
from resval_lens.analyses.cli.completion import of_task, one_of, one_or_file
from resval_lens.analyses.cli.console import Lines, err
from resval_lens.analyses.tasks import ENDINGS, TASKS
from resval_lens.notes import Note

PROMPTS, MODEL, MEMORY = "Prompts", "Model", "Memory"
"""Parts of a command's help: each has columns of its own, so that one long option squeezes few."""


def on_device(name: str | None) -> str | None:
    """Reads ``--device``: a device of torch that is there, or ``"auto"``; None where a shell asks
    for completion.

    Raises:
        ValueError: torch does not know it, cannot run models on it, or does not find it.
    """
    if name in (None, "cpu", "auto"):  # torch need not be loaded
        return name
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type in ("meta", "cpu"):
        raise ValueError(f"device must be one of cpu, cuda, cuda:1, mps, ..., auto; got {name!r}")
    backend: Any = getattr(torch, device.type, None)  # torch.cuda, torch.mps, torch.xpu
    there = backend is not None and backend.is_available()
    count = backend.device_count() if there else 0
    if (device.index or 0) >= count:
        found = f"{count} of its kind" if count else "none of its kind"
        raise ValueError(f"device {name!r} is not available: torch {torch.__version__} has {found}")
    return name


def one_known(option: str, names: Sequence[str]) -> Callable[[str | None], str | None]:
    """Reads an option that is one of ``names``, or None.

    Raises:
        ValueError: another.
    """

    def read(text: str | None) -> str | None:
        if text is not None and text not in names:
            raise ValueError(f"{option} must be one of {', '.join(names)}; got {text!r}")
        return text

    return read


def how_many(text: str | int) -> int:
    """Reads ``--prompts``.

    Raises:
        typer.BadParameter: no whole number, such as a file of prompts.
    """
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a whole number; --prompts is the number of prompts. For your own "
            "prompts use --task FILE"
        ) from None


# What a command prints and writes.
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr, results only.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout instead of tables.")
]
Out = Annotated[Path, typer.Option("--out", help="Folder for JSON, CSV and figures.")]
MaybeOut = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for JSON, CSV and figures.", show_default="none is written"),
]

# Chance and machine.
_SEED = "Seed of all random draws."
Seed = Annotated[int, typer.Option(help=_SEED)]
MaybeSeed = Annotated[int | None, typer.Option(help=_SEED, show_default="0")]
Device = Annotated[
    str,
    typer.Option(
        help="Where models run: cpu, cuda, cuda:1, mps; auto: each layer where there is room "
        "(GPUs, memory, disk).",
        callback=on_device,
        autocompletion=one_of(*completion.DEVICES),
        rich_help_panel=MODEL,
    ),
]

# Models, how they are loaded, and what they are measured on.
_NAMED = (
    "A language model or a classifier: a shipped name (stories-small-values, values, ...), a "
    "folder (a saved model, a training run, a Hugging Face folder), a .gguf file, user/name on "
    "the hub, or a name that TransformerLens knows, like gpt2."
)
Model = Annotated[
    str,
    typer.Argument(
        help=_NAMED, autocompletion=one_or_file(*completion.MODELS, endings=completion.MODEL_FILES)
    ),
]
MaybeModel = Annotated[
    str | None,
    typer.Argument(
        help=_NAMED,
        show_default="the shipped classifiers",
        autocompletion=one_or_file(*completion.MODELS, endings=completion.MODEL_FILES),
    ),
]
LanguageModel = Annotated[
    Path,
    typer.Argument(
        help=_NAMED.replace(" or a classifier", "").replace(", values", ""),
        autocompletion=one_or_file(*completion.LANGUAGE_MODELS, endings=completion.MODEL_FILES),
    ),
]
DType = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help=f"Compute in {', '.join(completion.DTYPES)}.",
        show_default="as the model was saved; float32 of other formats",
        callback=one_known("dtype", completion.DTYPES),
        autocompletion=one_of(*completion.DTYPES),
        rich_help_panel=MODEL,
    ),
]
Fold = Annotated[
    bool,
    typer.Option(
        "--fold",
        help="Process weights as TransformerLens does: fold norms, centre, fold biases.",
        rich_help_panel=MODEL,
    ),
]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--setting",
        metavar="NAME=VALUE",
        help="Setting that a model's files do not hold; repeat for several.",
        show_default="none",
        autocompletion=one_of(*(f"{name}=" for name in completion.SETTINGS)),
        rich_help_panel=MODEL,
    ),
]
Prompts = Annotated[
    int,
    typer.Option(
        help="How many prompts.", parser=how_many, metavar="INTEGER", rich_help_panel=PROMPTS
    ),
]
Sequences = Annotated[int, typer.Option(help="How many test sequences.")]
Trials = Annotated[int, typer.Option(help="How many trials.")]
MaybeTrials = Annotated[int | None, typer.Option(help="How many trials.", show_default="1000")]
Length = Annotated[int, typer.Option(help="Tokens of a sequence.")]
MaybeLength = Annotated[int | None, typer.Option(help="Tokens of a sequence.", show_default="50")]
Temperature = Annotated[float, typer.Option(help="Temperature of the softmax.")]
Tau3 = Annotated[float, typer.Option(help="Strength of a constructed head's output (nats).")]
General = Annotated[
    bool | None,
    typer.Option(
        "--general/--stories",
        help="General prompts, or those of the stories; for "
        + ", ".join(task.name for task in TASKS.values() if task.has_general)
        + ".",
        show_default="general for converted models",
        rich_help_panel=PROMPTS,
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="; ".join(f"{task.name}: {task.title}" for task in TASKS.values())
        + f"; or a file of your own ({', '.join(ENDINGS)}).",
        show_default="the first that the model can read",
        autocompletion=one_or_file(*TASKS, endings=ENDINGS),
        rich_help_panel=PROMPTS,
    ),
]
Chat = Annotated[
    bool,
    typer.Option(
        "--chat",
        help="Format prompts as chat messages, by the tokenizer's chat template.",
        rich_help_panel=PROMPTS,
    ),
]
SeveralTokens = Annotated[
    bool,
    typer.Option(
        "--several-tokens",
        help="Allow answers of several tokens; the first token that differs counts.",
        rich_help_panel=PROMPTS,
    ),
]
CorruptedBy = Annotated[
    str | None,
    typer.Option(
        help="How corrupted prompts differ: "
        + "; ".join(f"{task.name} {', '.join(task.corruptions)}" for task in TASKS.values())
        + ".",
        show_default="the task's first",
        autocompletion=of_task(lambda task: task.corruptions),
        rich_help_panel=PROMPTS,
    ),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="Metric for scoring edges, choosing circuits and comparing models: "
        + "; ".join(f"{task.name} {', '.join(task.metrics)}" for task in TASKS.values())
        + ".",
        show_default="the task's first",
        autocompletion=of_task(lambda task: task.metrics),
    ),
]
Draws = Annotated[
    int, typer.Option(help="Random draws of as many others without a role, for each role.")
]
Against = Annotated[
    str | None,
    typer.Option(help="Name of the runs that others are tested against.", show_default="first"),
]
Layers = Annotated[str | None, typer.Option(help="Layers, like 0,2,-1 or 1-3.", show_default="all")]
Heads = Annotated[str | None, typer.Option(help="Heads, like 0,2,-1 or 1-3.", show_default="all")]
Prepend = Annotated[
    str,
    typer.Option(
        help="Token before each prompt: auto (as the model and its tokenizer say), none, bos, eos, "
        "or one by name.",
        autocompletion=one_of(*completion.PREPENDED),
        rich_help_panel=PROMPTS,
    ),
]

FLOWING = (
    "Which of q, k, v flow, like v or qk (empty: none), with settings in brackets, like "
    "'v(mix=pair, own=2, carried=0)'."
)
Streams = Annotated[str, typer.Option(help=FLOWING, autocompletion=one_of(*completion.STREAMS))]
MaybeStreams = Annotated[
    str | None,
    typer.Option(
        "--streams",
        help=FLOWING,
        show_default="those that the model was saved with",
        autocompletion=one_of(*completion.STREAMS),
        rich_help_panel=MODEL,
    ),
]


def words(text: str) -> list[str]:
    """What stands between commas: ``"classic, values"`` is two words; empty ones are left out."""
    return [word.strip() for word in text.split(",") if word.strip()]


def folder_words(streams: Any) -> str:
    """Streams as words that may be a folder's name; ``classic`` if there are none.

    >>> from resval_lens.streams import parse_streams
    >>> folder_words(parse_streams("v(mix=pair, own=2, carried=0)"))
    'v-mix-pair-own-2.0-carried-0.0'
    """
    from resval_lens.streams import shorthand

    return re.sub(r"[^\w.]+", "-", shorthand(streams)).strip("-") or "classic"


def only_for(what: str, **given: object) -> None:
    """Raises ValueError for an option that was given, though it is for ``what``."""
    for name, value in given.items():
        if value is not None and value is not False:
            shown = f"--{name}" if value is True else f"--{name} {value}"
            raise ValueError(f"{shown} is for {what}")


def only_with_train(**given: object) -> None:
    """Raises ValueError for an option that was given without --train."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"--{name} {value} is for training: add --train")


def writable(folder: Path) -> None:
    """Raises ValueError now rather than after minutes of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to {folder}: permission denied")


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
    from resval_lens.io.checkpoint import SHIPPED_MODELS
    from resval_lens.io.files import read_json

    path = SHIPPED_MODELS.get(str(folder), folder) / "provenance.json"
    record = read_json(path, "a model's provenance") if path.is_file() else {}
    seed = record.get("run", {}).get("seed") if isinstance(record, dict) else None
    return seed if isinstance(seed, int) else None


@contextmanager
def notes(quiet: bool) -> Iterator[Note]:
    """Says what is being done, while it is; silence if ``quiet``.

    One line that is rewritten, or where stderr is no terminal a line every few seconds.
    """
    if quiet:
        yield lambda text: None
    elif err.is_terminal:
        with err.status("") as status:
            yield status.update
    else:
        lines = Lines()
        with lines:
            yield lines.say


def tell_left_out(left_out: Sequence[str], quiet: bool) -> None:
    """Says on stderr which words prompts do without."""
    if left_out and not quiet:
        some = ", ".join(left_out[:5]) + (", ..." if left_out[5:] else "")
        count = f"{len(left_out)} words are" if len(left_out) > 1 else "1 word is"
        err.print(
            f"note: {count} not one token with this tokenizer and left out of prompts: {some}",
            highlight=False, markup=False,
        )  # fmt: skip
