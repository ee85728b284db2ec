"""What is measured while a language model trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import dropwhile, takewhile
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from resval_lens.analyses.results.result import plain
from resval_lens.analyses.studies.ioi import ioi_scores
from resval_lens.analyses.tasks.pairs import draw_ioi
from resval_lens.tasks import stories
from resval_lens.tasks.ioi import IOIBatch, IOIPrompt, encode, paper_prompts
from resval_lens.tasks.text import end_of_text
from resval_lens.training.lm import Evaluate, Rows
from resval_lens.training.lm_run import LMRun
from resval_lens.transformer import ResValTransformer


def validation_loss(
    model: ResValTransformer, rows: Rows, n_rows: int = 256, chunk: int = 16
) -> float:
    """Mean cross-entropy in nats over the targets of the first ``n_rows`` rows.

    Args:
        chunk: rows run at once, fewer where their logits would be more than 2²⁸.
    """
    n_rows = min(n_rows, len(rows))
    chunk = max(1, min(chunk, 2**28 // (model.cfg.n_ctx * model.cfg.d_vocab)))
    total, count = 0.0, 0
    for first in range(0, n_rows, chunk):
        tokens, targets = rows.batch(np.arange(first, min(first + chunk, n_rows)))
        with torch.no_grad():
            device = model.cfg.device
            total += float(model(tokens.to(device), targets=targets.to(device)))
        count += int((targets >= 0).sum())
    return total / count


def ioi_sets(
    tokenizer: Tokenizer, rows: str, generated: bool, n_prompts: int = 200
) -> tuple[dict[str, IOIBatch], dict[str, str]]:
    """Sets of IOI prompts by name; and those that this tokenizer cannot say, with the reason.

    ``paper``: the four sentences, both orders. For models of generated stories also ``seen`` and
    ``unseen``: names, frames and objects that training text may hold, or never holds. For others
    ``general`` prompts, of names that are one token each.

    Args:
        rows: ``packed`` puts the end of text before each prompt, as a story's beginning has there.
    """
    prepend = end_of_text(tokenizer) if rows == "packed" else None
    drawn: dict[str, Callable[[], list[IOIPrompt]]] = {
        "paper": lambda: [prompt for pair in paper_prompts() for prompt in pair]
    }
    if generated:
        for name in ("seen", "unseen"):
            drawn[name] = partial(stories.ioi_prompts, n_prompts, 0, name, name, name)
    else:
        drawn["general"] = lambda: draw_ioi(tokenizer, n_prompts, 0, "general").prompts
    encoded, unsaid = {}, {}
    for name, prompts in drawn.items():
        try:
            encoded[name] = encode(prompts(), tokenizer, prepend)
        except ValueError as error:  # a name of several tokens
            unsaid[name] = str(error)
    return encoded, unsaid


def first_words(rows: Rows, tokenizer: Tokenizer, count: int = 4, most: int = 12) -> list[int]:
    """The tokens of the first document's first ``count`` words, ``most`` of them at most."""
    end, tokens = end_of_text(tokenizer), rows.batch(np.arange(1))[0][0].tolist()
    document = list(takewhile(lambda token: token != end, dropwhile(lambda t: t == end, tokens)))
    most = min(most, len(document), max(1, len(tokens) // 2))
    for number in range(1, most + 1):
        if len(tokenizer.decode(document[:number]).split()) > count:
            return document[: number - 1]
    return document[:most]


def evaluation(
    run: LMRun, valid: Rows, sets: Mapping[str, IOIBatch], tokenizer: Tokenizer
) -> Evaluate:
    """Validation loss, IOI scores of each set and a sample, for ``train_lm``.

    The sample goes on from the first words of the validation text, ``sample_begins``.
    """
    first = first_words(valid, tokenizer)
    beginning = [end_of_text(tokenizer)] if run.rows == "packed" else []
    beginning += first
    begins = tokenizer.decode(first)

    def measure(model: ResValTransformer, step: int) -> dict[str, Any]:
        metrics: dict[str, Any] = {"valid_loss": validation_loss(model, valid)}
        if sets:
            metrics["ioi"] = {name: plain(ioi_scores(model, batch)) for name, batch in sets.items()}
        torch.manual_seed(run.seed)
        tokens: Any = model.generate(
            torch.tensor([beginning], device=model.cfg.device),
            max_new_tokens=min(60, model.cfg.n_ctx - len(beginning)),
            temperature=0.7, top_k=50, stop_at_eos=False, return_type="tokens", verbose=False,
        )  # fmt: skip
        metrics["sample"] = tokenizer.decode(tokens[0].tolist())
        metrics["sample_begins"] = begins  # what of it was given
        return metrics

    return measure
