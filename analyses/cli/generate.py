"""``resval-lens generate``."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resval_lens.analyses.cli.loading import load_language_model, load_options
from resval_lens.analyses.cli.options import (
    Device,
    DType,
    Fold,
    Json,
    LanguageModel,
    MaybeStreams,
    Prepend,
    Quiet,
    Seed,
    Setting,
    Temperature,
)
from resval_lens.analyses.cli.reporting import report

if TYPE_CHECKING:
    from torch import Tensor

HALF = "\N{REPLACEMENT CHARACTER}"
"""What a decoder puts for a character of which it has only some bytes."""


def generate_command(
    model: LanguageModel,
    prompt: Annotated[str, typer.Argument(help="Start of the text; may be empty.")] = "",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="New tokens at most.", show_default="as many as fit the context"),
    ] = None,
    temperature: Temperature = 1.0,
    top_k: Annotated[
        int | None,
        typer.Option(help="Draw among the k likeliest tokens.", show_default="all of them"),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Draw among the likeliest tokens with this total probability.",
            show_default="all of it",
        ),
    ] = None,
    seed: Seed = 0,
    texts: Annotated[int, typer.Option(help="Number of texts, one after the other.")] = 1,
    prepend: Prepend = "auto",
    streams: MaybeStreams = None,
    dtype: DType = None,
    fold: Fold = False,
    setting: Setting = None,
    device: Device = "cpu",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Generate text and show it token by token, up to the end of text.

    Temperature 0 takes the likeliest token. Each further text uses the next seed.
    With --json, texts are printed when they are complete.

    Example: `resval-lens generate stories-small-values "Once upon a time"`
    """
    import torch

    from resval_lens.analyses.studies.generated import Generated, Written
    from resval_lens.io.provenance import within
    from resval_lens.lens.generation import stream_tokens
    from resval_lens.tasks.leading import leading_token, named_token

    if texts < 1:
        raise ValueError(f"texts must be 1 or more; got {texts}")
    loaded = load_language_model(model, load_options(streams, device, dtype, fold, setting))
    tokenizer: Any = loaded.tokenizer
    lead = leading_token(loaded, prepend)
    if lead is None and not prompt:  # something must be there to go on from
        lead = tokenizer.bos_token_id
        lead = tokenizer.eos_token_id if lead is None else lead
    before = [] if lead is None else [lead]
    given = tokenizer.encode(prompt, add_special_tokens=False)
    ids = before + given
    room = loaded.cfg.n_ctx - len(ids)
    if room < 1:
        raise ValueError(
            f"the prompt has {len(ids)} tokens; n_ctx={loaded.cfg.n_ctx} leaves no room to write"
        )
    written = []
    for number in range(texts):
        torch.manual_seed(seed + number)
        drawn = stream_tokens(
            loaded, torch.tensor([ids]), room if max_new_tokens is None else max_new_tokens,
            temperature=temperature, top_k=top_k, top_p=top_p,
        )  # fmt: skip
        text = prompt
        if not as_json:
            sys.stdout.write(prompt)
        for piece in _pieces(tokenizer, given, drawn):
            text += piece
            if not as_json:
                sys.stdout.write(piece)
                sys.stdout.flush()
        written.append(Written(seed + number, text))
        if not as_json:
            sys.stdout.write("\n" if number == texts - 1 else "\n\n")
    if as_json:
        study = Generated(within(str(model)), prompt, named_token(loaded, lead), written)
        report(study, None, "generate", as_json=True)


def _pieces(tokenizer: Any, given: list[int], drawn: Iterator[Tensor]) -> Iterator[str]:
    """The text that each new token adds, up to the end of text; half a character waits."""
    written: list[int] = []
    shown = tokenizer.decode(given)
    for token in itertools.chain(drawn, (None,)):
        number = tokenizer.eos_token_id if token is None else int(token)
        ends = number == tokenizer.eos_token_id
        if not ends:
            written.append(number)
        # With what is before, as some tokenizers put spaces between tokens only.
        text = tokenizer.decode(given + written)
        if ends or not text.endswith(HALF):
            yield text[len(shown) :]
            shown = text
        if ends:
            return
