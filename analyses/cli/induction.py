"""``resval-lens induction``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resval_lens.analyses.cli.loading import load_options
from resval_lens.analyses.cli.options import (
    Device,
    DType,
    Fold,
    Json,
    MaybeLength,
    MaybeModel,
    MaybeSeed,
    MaybeStreams,
    Out,
    Prepend,
    Quiet,
    Setting,
    notes,
    writable,
)
from resval_lens.analyses.cli.reporting import report
from resval_lens.analyses.cli.text_options import Text, documents
from resval_lens.analyses.cli.training_options import Runs

if TYPE_CHECKING:
    from resval_lens.training.icl_run import ICLRun
    from resval_lens.training.recorded import RecordedRun

TEXT_LENGTH = 512
"""Tokens of a row of --text, as of the in-context score of arXiv 2209.11895."""


def induction_command(
    model: MaybeModel = None,
    runs: Runs = None,
    rows: Annotated[int, typer.Option(help="Rows of random tokens for a language model.")] = 50,
    length: MaybeLength = None,
    text: Text = None,
    rows_of_text: Annotated[int, typer.Option("--text-rows", help="Rows of --text.")] = 16,
    seed: MaybeSeed = None,
    prepend: Prepend = "auto",
    streams: MaybeStreams = None,
    dtype: DType = None,
    fold: Fold = False,
    setting: Setting = None,
    device: Device = "cpu",
    to: Out = Path("out"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the heads that copy from the context; do they need the links?

    A language model reads --length random tokens twice. The command shows scores of its heads, and
    the loss where tokens repeat, as trained and with links ablated. With --text it adds the same
    where a text repeats, in rows of up to 512 tokens, and the in-context score. For classifiers
    (a variant beside classic, a run's folder, or all of --runs) it shows attention during training
    (Reddy's measures) and when each measure emerges, by variant; no model is run.

    Example: `resval-lens induction stories-small-values`
    """
    from resval_lens.analyses.studies.induction import induction_study
    from resval_lens.analyses.studies.story_loss import text_rows
    from resval_lens.io.provenance import within
    from resval_lens.runtime import one_thread
    from resval_lens.tasks.leading import leading_token

    recorded = _classifier_runs(model, runs)
    if recorded is not None:
        led = None if prepend == "auto" else prepend
        for option, given in (
            ("--length", length),
            ("--text", text),
            ("--seed", seed),
            ("--prepend", led),
            ("--streams", streams),
            ("--dtype", dtype),
            ("--fold", fold or None),
            ("--setting", setting or None),
        ):
            if given is not None:
                raise ValueError(f"{option} is for language models; these are recorded runs")
        writable(to)
        from resval_lens.analyses.comparison.attention_in_training import attention_in_training

        report(attention_in_training(recorded), to, "induction", as_json=as_json)
        return
    with notes(quiet) as note, one_thread():
        loaded = load_options(streams, device, dtype, fold, setting).load(str(model)).model
        writable(to)
        alone = loaded.tokenizer is None and prepend == "auto"
        bos = None if alone else leading_token(loaded, prepend)
        read = None
        if text is not None:
            read = text_rows(loaded, documents(text), rows_of_text, TEXT_LENGTH)
        study = induction_study(
            loaded,
            name=within(str(model)),
            n=rows,
            length=length,
            seed=seed or 0,
            bos=bos,
            text=read,
            note=note,
        )
    report(study, to, "induction", as_json=as_json)


def _classifier_runs(model: str | None, runs: Path | None) -> list[RecordedRun[ICLRun]] | None:
    """The training runs that are asked for; None for a language model."""
    from resval_lens.analyses.comparison.icl_emergence import paper_runs
    from resval_lens.load import is_classifier_run
    from resval_lens.training.icl_run import ICLRun
    from resval_lens.training.recorded import load_run, load_runs

    if model is not None and is_classifier_run(Path(model)):
        return [load_run(Path(model), ICLRun)]
    every = load_runs(ICLRun, runs)
    if model is None:
        return paper_runs(every) if runs is None else every
    names = list(dict.fromkeys(recorded.run.name for recorded in every))
    if model in names:
        return [recorded for recorded in every if recorded.run.name in ("classic", model)]
    if runs is not None:
        raise ValueError(f"{runs} holds no runs of {model!r}; there are {', '.join(names)}")
    return None
