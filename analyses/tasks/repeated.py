"""Induction on random tokens, which asks nothing of a tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resval_lens.analyses.tasks.task import DRAWN, Asked
from resval_lens.analyses.tasks.text import AnswerTask

if TYPE_CHECKING:
    from resval_lens.analyses.tasks.problem import Problem
    from resval_lens.load import Loaded
    from resval_lens.transformer import ResValTransformer


class RepeatedTokens(AnswerTask):
    """Going on with what came before, in random tokens: Olsson et al. 2022 (arXiv 2209.11895).

        A B C D E F G H A B C → D

    ``length`` distinct tokens, drawn evenly from those that the tokenizer has (without one: all of
    the model's) without special ones, come a second time, up to the one before the answer. In
    corrupted prompts the answer was another token where it first stood (``other-answer``, the wrong
    answer), or the one before it was (``no-match``).
    """

    name = "repeated-tokens"
    title = "induction on random tokens"
    corruptions = ("other-answer", "no-match")
    positions = ("before", "answer", "end")
    length = 24

    def draw(self, loaded: Loaded, count: int, asked: Asked = DRAWN) -> Problem:
        import torch

        from resval_lens.analyses.tasks.problem import Problem
        from resval_lens.hooks.prompts import PromptPairs
        from resval_lens.tasks.leading import leading_token

        model, kind, seed = loaded.model, self.corruption(loaded, asked), asked.seed or 0
        bare = model.tokenizer is None and asked.prepend == "auto"
        lead = None if bare else leading_token(model, asked.prepend)
        vocabulary = _vocabulary(model)
        n, before = self.length, int(lead is not None)
        if 2 * n + before > model.cfg.n_ctx or len(vocabulary) < n + 2:
            raise ValueError(
                f"{loaded.name} on {self.title}: prompts of up to {2 * n + before} tokens, of "
                f"{n + 2} kinds; its context is {model.cfg.n_ctx}, its vocabulary "
                f"{len(vocabulary)}"
            )
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.stack(
            [torch.randperm(len(vocabulary), generator=generator)[: n + 2] for _ in range(count)]
        )
        drawn = torch.tensor(vocabulary)[drawn]  # [prompt, n + 2]
        at = n // 2  # everywhere the same, so that positions mean the same
        first, wrong, other = drawn[:, :n], drawn[:, n], drawn[:, n + 1]
        changed = first.clone()
        changed[:, at if kind == "other-answer" else at - 1] = (
            wrong if kind == "other-answer" else other
        )
        again = first[:, :at]
        rows = [torch.cat([half, again], 1) for half in (first, changed)]
        if lead is not None:
            rows = [torch.cat([torch.full((count, 1), lead), row], 1) for row in rows]
        positions = {"before": at - 1 + before, "answer": at + before, "end": n + at - 1 + before}
        pairs = PromptPairs(
            rows[0],
            rows[1],
            next(iter(self.measures(model).values())),
            torch.stack([first[:, at], wrong], 1),
            name=f"{self.title}, {kind}",
            groups=torch.zeros(count, dtype=torch.long),
        )
        where = {name: torch.full((count,), at) for name, at in positions.items()}
        return Problem(
            loaded.name, model, self, kind, seed, pairs.to(model.cfg.device), where, lead=lead
        )


def _vocabulary(model: ResValTransformer) -> list[int]:
    """Tokens of text: d_vocab may be padded beyond them, and not all special ones have a role."""
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        return list(range(model.cfg.d_vocab))
    added = tokenizer.added_tokens_decoder.items()
    special = {*tokenizer.all_special_ids, *(token for token, own in added if own.special)}
    known = set(tokenizer.get_vocab().values()) - special
    return sorted(token for token in known if token < model.cfg.d_vocab)
