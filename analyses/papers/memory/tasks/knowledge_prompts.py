"""Prompts that set what the context says against what is known from training.

    , A B1 , A B1 , A B2 , A

The context says how often B1 and B2 followed A; the bigrams say π_b(B1 | A) and π_b(B2 | A). A
transformer that holds log π_b in its feed-forward layer and adds a sharp induction head of strength
τ has logits of B1 and B2 that differ by both (arXiv 2412.11459, Proposition 3),

    log π_b(B1 | A) − log π_b(B2 | A)  +  τ · (n1 − n2)/(n1 + n2),

with n1 and n2 their counts in the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from resval_lens.analyses.papers.memory.tasks.bigrams import Bigrams
from resval_lens.checks import check_whole

Answers = Literal["following", "any"]


@dataclass(frozen=True, eq=False)
class KnowledgePrompts:
    """Prompts of one length, 3(n1 + n2) + 2, and what they are made of.

    Attributes:
        tokens: , A B , A B ... , A: the last one is A, and so is no first one. (The first position
            can only attend to itself, where A would match A.)
        query: A of each prompt.
        first, second: B1 and B2.
        filler: the token before each A.
        n_first, n_second: n1 and n2, how often B1 and B2 follow A.
    """

    tokens: Int[Tensor, "prompt pos"]
    query: Int[Tensor, " prompt"]
    first: Int[Tensor, " prompt"]
    second: Int[Tensor, " prompt"]
    filler: Int[Tensor, " prompt"]
    n_first: int
    n_second: int

    @property
    def context_margin(self) -> float:
        """(n1 − n2)/(n1 + n2), the share of B1 after A minus that of B2."""
        return (self.n_first - self.n_second) / (self.n_first + self.n_second)

    def global_margin(self, bigrams: Bigrams, floor: float = 0.0) -> Float[Tensor, " prompt"]:
        """log π_b(B1 | A) − log π_b(B2 | A), in nats, float64; ±∞ or NaN where one or both are 0.

        Args:
            floor: what counts as the probability of a bigram that is rarer.

        Raises:
            ValueError: a floor outside 0 to 1.
        """
        logs = bigrams.log_conditional(floor)
        return logs[self.query, self.first] - logs[self.query, self.second]


def knowledge_prompts(
    bigrams: Bigrams,
    n_first: int,
    n_second: int,
    n: int,
    generator: Generator,
    *,
    answers: Answers = "following",
    shuffled: bool = False,
    queries: Sequence[int] | None = None,
    filler: int | None = None,
    triggers: Sequence[int] = (),
) -> KnowledgePrompts:
    """``n`` prompts in which B1 follows A ``n_first`` times and B2 ``n_second`` times.

    A is drawn ~ π_u among the tokens that have enough followers, then B1 and B2 uniformly, then the
    filler uniformly. All four differ.

    Args:
        answers: "following": B1 and B2 are among the tokens v with π_b(v | A) > 0; "any": any are.
        shuffled: B1 and B2 follow in random order, another for each prompt; else B1 all its times
            before B2.
        queries: token ids among which A is drawn; None is all.
        filler: a token id, the same in all prompts, such as a comma's; None draws one each.
        triggers: token ids that are never drawn as the filler.

    Raises:
        ValueError: a count below 0 or both 0, n below 1, another word for ``answers``, a token id
            that is none or a filler among the triggers, fewer than 4 tokens left for fillers, or no
            query with two followers.
    """
    for name, value, least in (("n_first", n_first, 0), ("n_second", n_second, 0), ("n", n, 1)):
        check_whole(name, value, least)
    if not n_first + n_second:
        raise ValueError("n_first and n_second must not both be 0")
    if answers not in get_args(Answers):
        raise ValueError(f"answers must be 'following' or 'any'; got {answers!r}")
    v = bigrams.d_vocab
    given = (() if filler is None else (filler,)) + tuple(queries or ()) + tuple(triggers)
    for token in given:
        if not 0 <= token < v:
            raise ValueError(f"token ids must be from 0 to below {v}; got {token}")
    fillers = torch.ones(v, dtype=torch.bool)
    fillers[list(triggers)] = False
    if filler is not None:
        if not fillers[filler]:
            raise ValueError(f"filler={filler} must not be one of the triggers")
        fillers = torch.arange(v) == filler
    elif fillers.sum() < 4:  # A, B1 and B2 may be three of them
        raise ValueError(
            f"fillers need at least 4 of {v} tokens that are not triggers; got {int(fillers.sum())}"
        )

    # [A, B]: which answers there are, of which none is A or the filler that is given.
    possible = bigrams.conditional > 0 if answers == "following" else torch.ones(v, v).bool()
    possible.fill_diagonal_(False)
    weights = bigrams.unigram
    if filler is not None:
        possible[:, filler] = False
        weights[filler] = 0
    if queries is not None:
        weights = torch.zeros(v, dtype=torch.float64).index_copy(
            0, torch.tensor(queries, dtype=torch.int64), weights[list(queries)]
        )
    weights = weights * (possible.sum(1) >= 2)
    if not weights.any():
        raise ValueError(
            f"no query ever occurs and has two tokens that can follow it, with queries={queries} "
            f"and filler={filler}"
        )
    query = torch.multinomial(weights, n, replacement=True, generator=generator)
    first, second = torch.multinomial(possible[query].double(), 2, generator=generator).unbind(1)
    rest = fillers.repeat(n, 1)
    if filler is None:
        rest.scatter_(1, torch.stack([query, first, second], 1), False)
    filled = torch.multinomial(rest.double(), 1, generator=generator)[:, 0]

    is_first = torch.arange(n_first + n_second).repeat(n, 1) < n_first
    if shuffled:
        is_first = is_first.gather(1, torch.rand(is_first.shape, generator=generator).argsort(1))
    answer = torch.where(is_first, first[:, None], second[:, None])
    lead = torch.stack([filled, query], 1)  # [prompt, 2]: , A
    context = torch.cat([lead[:, None].expand(-1, answer.shape[1], -1), answer[..., None]], 2)
    tokens = torch.cat([context.flatten(1), lead], 1)
    return KnowledgePrompts(tokens, query, first, second, filled, n_first, n_second)
