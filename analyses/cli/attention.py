"""``resval-lens attention``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from resval_lens.analyses.cli.console import err
from resval_lens.analyses.cli.interventions import indices
from resval_lens.analyses.cli.loading import load_options
from resval_lens.analyses.cli.options import (
    Chat,
    Device,
    DType,
    Fold,
    General,
    Heads,
    Json,
    Layers,
    MaybeLength,
    MaybeSeed,
    MaybeStreams,
    Model,
    Out,
    Prepend,
    Quiet,
    Setting,
    SeveralTokens,
    TaskName,
    notes,
    only_for,
    writable,
)
from resval_lens.analyses.cli.reporting import report
from resval_lens.analyses.cli.text_options import Text, documents

if TYPE_CHECKING:
    from torch import Tensor

    from resval_lens.transformer import ResValTransformer

LENGTH = 100
"""Tokens of a text that are shown if nothing else is asked for."""


def attention_command(
    model: Model = "stories-small-values",
    text: Text = None,
    length: MaybeLength = None,
    layers: Layers = None,
    heads: Heads = None,
    seed: MaybeSeed = None,
    task: TaskName = None,
    general: General = None,
    several_tokens: SeveralTokens = False,
    chat: Chat = False,
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
    """Show what each head attends to, on any text: one page with all heads.

    attention.html opens offline: every head small, one large; point at a token and it shows what
    the token attends to and what attends to it. Of a model with a value stream it also shows what
    each source token brings: own values and the link's. The text is --text (its first 100 tokens,
    or --length), else the first prompt of --task. With --out page.html only the page is written.

    Example: `resval-lens attention stories-small-values --text "Once upon a time there was a cat."`
    """
    from resval_lens.analyses.attribution.sources import attention
    from resval_lens.analyses.display import show_attention
    from resval_lens.analyses.studies.attention import AttentionOnText
    from resval_lens.analyses.tasks import Asked
    from resval_lens.analyses.tasks.problem import pose
    from resval_lens.io.provenance import within
    from resval_lens.runtime import one_thread
    from resval_lens.streams import shorthand

    chosen_layers, chosen_heads = indices(layers, "layers"), indices(heads, "heads")
    how = load_options(streams, device, dtype, fold, setting)
    with notes(quiet) as note, one_thread():
        note("model")
        if text is None:
            only_for("--text", length=length)
            asked = Asked(seed, None, general, prepend, several_tokens, chat)
            posed = pose(model, 1, asked, task, how)
            end = int(posed.pairs.answers[0]) + 1
            loaded, prompt, tokens = posed.model, posed.pairs.clean[:, :end], posed.tokens()[:end]
        else:
            only_for(
                "prompts of a task: leave --text out",
                seed=seed,
                task=task,
                general=general,
                chat=chat,
            )
            loaded = how.load(model).model
            prompt, tokens = _typed(loaded, text, length, prepend, quiet)
        folder, page = (None, to) if to.suffix == ".html" else (to, to / "attention.html")
        writable(page.parent)
        note("attention")
        found = attention(loaded, prompt)
        name = within(str(model))
        study = AttentionOnText.of(
            name, shorthand(loaded.cfg.streams), tokens, found, chosen_layers, chosen_heads
        )
        shown = show_attention(
            list(found.patterns), tokens, chosen_heads, layers=chosen_layers, norms=found.norms
        )
    html = _page(name, len(tokens), found.norms is not None, shown.body)
    report(study, folder, "attention", as_json=as_json, pages={page: lambda document: html})


def _page(name: str, length: int, links: bool, body: str) -> str:
    from resval_lens.analyses.display.page import page, words

    title = f"Attention of {name}"
    brings = (
        " Below the tokens: what the head writes from each source token, of the layer's own values "
        "and of those that its value link brings."
        if links
        else ""
    )
    return page(
        title,
        f"<h1>{words(title)}</h1><p>Every head on a text of {length} tokens. A row is a query, and "
        "its weights on keys sum to 1; layers count from 0, and a1.h2 is head 2 of layer 1. Choose "
        f"a head to see it large, and a token to see its row in every head.{brings}</p>{body}",
    )


def _typed(
    model: ResValTransformer, text: str, length: int | None, prepend: str, quiet: bool
) -> tuple[Tensor, list[str]]:
    """The text's tokens [1, pos], and what they stand for.

    Raises:
        ValueError: no tokenizer, no text, or a length that the context has no room for.
    """
    import torch

    from resval_lens.tasks.ioi import token_ids
    from resval_lens.tasks.leading import leading_token

    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        raise ValueError("this model has no tokenizer; a text cannot be put into its tokens")
    room = model.cfg.n_ctx
    most = min(LENGTH, room) if length is None else length
    if not 1 <= most <= room:
        raise ValueError(f"length must be from 1 to n_ctx={room}; got {length}")
    own = token_ids(tokenizer, next(iter(documents(text)), ""))
    if not own:
        raise ValueError(f"--text {text!r} has no tokens; expected a text, or a file of one")
    lead = leading_token(model, prepend)
    ids = own if lead is None else [lead, *own]
    if len(ids) > most and not quiet:
        err.print(
            f"note: the first {most} of {len(ids)} tokens are shown (--length)", highlight=False
        )
    ids = ids[:most]
    tokens = [tokenizer.decode([each]) for each in ids]
    return torch.tensor([ids], device=model.cfg.device), tokens
