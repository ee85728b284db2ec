"""What shell completion offers: names known without importing torch, so that it answers at once.

A test holds each of them equal to what the commands accept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from resval_lens.analyses.cli.reproducible import REPRODUCIBLE
from resval_lens.analyses.tasks import TASKS, Task
from resval_lens.models.presets import ICL_VARIANTS, MEMORY_VARIANTS, PAPER_VARIANTS

LANGUAGE_MODELS = ("stories-small-classic", "stories-small-values")
MODELS = (*LANGUAGE_MODELS, *PAPER_VARIANTS)
"""Models that ship: language models, and a classifier of each of the paper's variants."""
MODEL_FILES = (".gguf", ".pt")
PRESETS = ("stories-small", "stories-nanochat", "tinystories-8m", "llama-1b")
SPECS = ("reference", "paper")
RESULTS = tuple(REPRODUCIBLE)
CLASSIFIER_VARIANTS = tuple(ICL_VARIANTS)
SIMPLIFIED_VARIANTS = tuple(MEMORY_VARIANTS)
AXES = ("layer", "position", "head")
DIRECTIONS = ("denoise", "noise")
SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z",
         "pattern", "attn_scores", "v_local", "v_link")  # fmt: skip
"""Hook points that are patched most; ``patch --site`` takes any other, too."""
IMAGES = ("png", "svg", "pdf")
PREPENDED = ("auto", "none", "bos", "eos")
STREAMS = ("q", "k", "v", "qk", "qv", "kv", "qkv")
CARRIES = ("raw", "sum")
DATA = ("stories", "tinystories")
PRECISIONS = ("fp32", "bf16", "fp16")
TRACKERS = ("tensorboard", "wandb")
UNITS = ("characters", "words")
TRIGGERS = ("fixed", "drawn")
SIMILARITIES = ("dot", "pearson", "manhattan", "euclidean")
SEPARATIONS = ("identity", "softmax", "argmax")
READINGS = ("paper", "notebook")
HARNESS_TASKS = ("arc_easy", "arc_challenge", "piqa", "openbookqa", "hellaswag")
DTYPES = ("float32", "float64", "bfloat16", "float16")
SETTINGS = ("heads", "softcap", "step")
"""What formats of other models ask for."""
DEVICES = ("cpu", "cuda", "mps", "auto")

Completion = Callable[[str], list[str]]


def one_of(*names: str) -> Completion:
    """Completes one of ``names``."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def one_or_file(*names: str, endings: Iterable[str]) -> Completion:
    """Completes one of ``names``, or the path of a file that ends so; folders on the way to it."""

    def complete(incomplete: str) -> list[str]:
        folder, slash, begun = incomplete.rpartition("/")
        try:
            there = sorted(Path(folder + slash).iterdir())
        except OSError:
            there = []
        found = [
            folder + slash + path.name + "/" * path.is_dir()
            for path in there
            if path.name.startswith(begun)
            and (path.suffix in endings or path.is_dir())
            and not (path.name.startswith(".") and not begun)
        ]
        return [*(name for name in names if name.startswith(incomplete)), *found]

    return complete


def some_of(*names: str) -> Completion:
    """Completes the last of several ``names``, comma-separated; none twice."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        left = [name for name in names if name.startswith(last) and name not in given]
        return [f"{before}{comma}{name}" for name in left]

    return complete


def of_task(
    names: Callable[[Task], Iterable[str]], how: Callable[..., Completion] = one_of
) -> Callable[[Any, str], list[str]]:
    """Completes, as ``how`` does, the names that the task has which ``--task`` names.

    Those of every task where none is named, or one that there is not. ``ctx``, which typer knows
    by its name, is click's context, no ``typer.Context``.
    """

    def complete(ctx: Any, incomplete: str) -> list[str]:
        asked = TASKS.get(ctx.params.get("task") or "")
        tasks = TASKS.values() if asked is None else [asked]
        return how(*dict.fromkeys(name for task in tasks for name in names(task)))(incomplete)

    return complete
