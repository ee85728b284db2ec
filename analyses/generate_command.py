"""``resval-lens generate``."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from resval_lens.analyses.options import load_language_model

HALF = "\N{REPLACEMENT CHARACTER}"
"""What a decoder puts for a character of which it has only some bytes."""


def generate_command(
    model: Annotated[Path, typer.Argument(help="A saved language model.")],
    prompt: Annotated[str, typer.Argument(help="What the text begins with; may be empty.")] = "",
    tokens: Annotated[
        int | None, typer.Option(help="How many new ones at most; as many as fit the context.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw among the likeliest that hold this probability.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    texts: Annotated[int, typer.Option(help="How many to write, one after the other.")] = 1,
    run_with: Annotated[
        str | None, typer.Option(help="Run the weights with these streams instead; '' for none.")
    ] = None,
    bos: Annotated[
        bool, typer.Option(help="Put the end of text before the prompt, as packed rows do.")
    ] = True,
) -> None:
    """Write text, shown as it is written, up to the end of text.

    Example: `resval-lens generate runs/lm/stories-small-v-raw-seed0/model "Once upon a time"`
    """
    import torch

    from resval_lens.generation import stream_tokens

    if texts < 1:
        raise ValueError(f"texts must be 1 or more; got {texts}")
    loaded = load_language_model(model)
    if run_with is not None:
        loaded = loaded.with_streams(run_with)
    tokenizer: Any = loaded.tokenizer
    end = tokenizer.eos_token_id
    ids = ([end] if bos or not prompt else []) + tokenizer.encode(prompt, add_special_tokens=False)
    room = loaded.cfg.n_ctx - len(ids)
    if room < 1:
        raise ValueError(
            f"the prompt has {len(ids)} tokens; n_ctx={loaded.cfg.n_ctx} leaves no room to write"
        )
    for number in range(texts):
        torch.manual_seed(seed + number)
        drawn = stream_tokens(
            loaded, torch.tensor([ids]), room if tokens is None else tokens,
            temperature=temperature, top_k=top_k, top_p=top_p,
        )  # fmt: skip
        given = ids[1:] if ids[0] == end else ids
        written: list[int] = []
        shown = tokenizer.decode(given)
        sys.stdout.write(prompt)
        for token in itertools.chain(drawn, (None,)):
            if token is not None and token != end:
                written.append(int(token))
            # With what is before, as some tokenizers put spaces between tokens only.
            text = tokenizer.decode(given + written)
            if token is None or token == end or not text.endswith(HALF):
                sys.stdout.write(text[len(shown) :])
                sys.stdout.flush()
                shown = text
            if token is None or token == end:
                break
        sys.stdout.write("\n" if number == texts - 1 else "\n\n")
