"""A language model in the time that is left, as ``train lm tinystories-8m`` trains it, in bf16.

On generated stories, or on these mixed with text from a file; loss and IOI every few hundred steps.
The weights come back in bfloat16 in a file of less than 16 MB, which the vocabulary is chosen for:
the 50,257 tokens of GPT-2 take 26 MB alone; the stories' own 2,048, or 4,096 learnt from the
mixture, one or two.
"""

import argparse
import copy
import shutil
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import torch

from resval_lens import ResValTransformer
from resval_lens.analyses.comparison.lm_progress import evaluation, ioi_sets
from resval_lens.io.checkpoint import save_model
from resval_lens.io.tokenizers import END_OF_DOCUMENT
from resval_lens.models.language_models import language_model_config, preset
from resval_lens.tasks import stories
from resval_lens.tasks.text import read_texts, vocabulary_size
from resval_lens.tasks.text.token_files import checksum, read_meta
from resval_lens.training.lm import train_lm
from resval_lens.training.lm_data import LMData, prepare
from resval_lens.training.lm_run import LMRun
from tests.benchmarks.gpu.record import Record, wait_for_turn

NAME = "tinystories-8m"
STORIES = 150_000
SMALL = {"n_layers": 2, "d_model": 32, "n_heads": 4, "d_head": 8, "d_mlp": 64, "n_ctx": 48}
HELD_OUT_EVERY = 100
CLOSING_SECONDS = 3.0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(train(Path(folder)))


def train(folder: Path) -> bool:
    """Whether something went wrong; ``folder`` is for what is not to be kept."""
    prepared: list[LMData] = []

    def text(given: argparse.Namespace) -> None:
        count = 300 if given.small else STORIES
        prepared.append(data(folder, Path(given.more[1]) if given.more[1:] else None, count))

    turn = wait_for_turn(text)
    (found,) = prepared
    variant = turn.more[0]
    cfg = language_model_config(
        NAME, "v" if variant == "values" else "", carry="raw" if variant == "values" else None,
        d_vocab=vocabulary_size(found.tokenizer), **SMALL if turn.small else {},
    )  # fmt: skip
    settings = preset(NAME).training | {"precision": "bf16"}
    if turn.small:
        settings |= {"steps": 4, "batch": 4}
    run = LMRun(
        f"{NAME}-{variant}", cfg.to_json(), checksum(read_meta(found.train.folder)),
        evaluate_every=2 if turn.small else 400, snapshot_every=10**6, **settings,
    )  # fmt: skip
    record = Record(f"language-model-{variant}", turn, run=run.to_dict(), stories=STORIES)
    rows, valid = found.rows(run.rows, cfg.n_ctx)
    sets, unsaid = ioi_sets(found.tokenizer, run.rows, generated=True)
    record.settings |= {"rows": len(rows), "tokens": found.train.n_tokens, "no_prompts": unsaid}
    measure = evaluation(run, valid, sets, found.tokenizer)

    def evaluate(model: ResValTransformer, step: int) -> dict[str, Any]:
        metrics = measure(model, step)
        keep(model, step, found.tokenizer.to_str(), folder, turn.out / f"{variant}.zip")
        return metrics

    def progress(step: int, metrics: dict[str, Any] | None) -> None:
        if metrics and "valid_loss" in metrics:
            record.add(f"step {step}", metrics)

    def training() -> dict[str, Any]:
        model = train_lm(
            run, rows, folder / "run", evaluate=evaluate, progress=progress,
            should_stop=lambda: turn.seconds_left < CLOSING_SECONDS,
        )  # fmt: skip
        peak = torch.cuda.max_memory_allocated() if turn.device.type == "cuda" else None
        return {"all_steps": model is not None, "peak_bytes": peak}

    record.attempt("end", training)
    return record.failed


def data(folder: Path, path: Path | None, count: int) -> LMData:
    """Tokens of stories, or of the documents of ``path`` and as many stories in turn, then more."""
    if path is None:
        return prepare("stories", folder / "tokens", n_stories=count)
    documents = list(read_texts(path))
    held_out = documents[::HELD_OUT_EVERY]
    trained = [x for number, x in enumerate(documents) if number % HELD_OUT_EVERY]
    for name, own, n, seed in (("train", trained, count, 0), ("valid", held_out, len(held_out), 1)):
        with (folder / f"{name}.txt").open("w") as file:
            file.writelines(mixed(own, islice(stories.stories(seed), n)))
    return prepare(
        str(folder / "train.txt"), folder / "tokens", "bpe:4096", str(folder / "valid.txt")
    )


def mixed(documents: list[str], generated: Iterator[str]) -> Iterator[str]:
    for pair in zip_longest(documents, generated):
        yield from (f"{text}\n{END_OF_DOCUMENT}\n" for text in pair if text is not None)


def keep(model: Any, step: int, tokenizer: str, folder: Path, archive: Path) -> None:
    """The model in bfloat16 as ``archive``, in place of an earlier step's."""
    config = copy.copy(model.cfg)
    config.dtype, config.device = torch.bfloat16, "cpu"
    weights = {name: x.detach().cpu().bfloat16() for name, x in model.named_parameters()}
    save_model(
        folder / "model", "ResValTransformer", config.to_json(), weights, {"step": step},
        overwrite=True, tokenizer={"tokenizer.json": tokenizer},
    )  # fmt: skip
    made = shutil.make_archive(str(folder / "model"), "zip", folder / "model")
    shutil.copy(made, archive.with_suffix(".partial"))
    archive.with_suffix(".partial").replace(archive)


if __name__ == "__main__":
    main()
