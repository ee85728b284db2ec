"""Capitals and countries: their task, prompts that say another country, and what a model answers.

Oslo Norway Athens Vietnam Hanoi Vietnam Athens ...
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from resval_lens.analyses.papers.memory.construction import run_heads
from resval_lens.analyses.papers.memory.model.model import MemoryTransformer
from resval_lens.analyses.papers.memory.tasks.analogies import Pair, analogy_task
from resval_lens.analyses.papers.memory.tasks.bigrams import Bigrams
from resval_lens.analyses.papers.memory.tasks.triggers import TriggerTask
from resval_lens.analyses.papers.memory.training import batch_logits

Number = TypeVar("Number")

OVERRIDE = 2
"""Mentions after which it is asked, capital by capital, whom the model believes."""


@dataclass(frozen=True, eq=False)
class AnalogyPrompts:
    """Prompts C1 K1 A B ... C2 K2 A B, C3 K3 A: what does the model say after A?

    Attributes:
        tokens: each A B, and the last A, comes after another capital and its own country.
        query: A, a capital.
        own: its country.
        said: B, the country that the context gives it.
    """

    tokens: Int[Tensor, "prompt pos"]
    query: Int[Tensor, " prompt"]
    own: Int[Tensor, " prompt"]
    said: Int[Tensor, " prompt"]


def capitals_task(
    pairs: Sequence[Pair],
    n_triggers: int = 5,
    length: int = 128,
    leak: float = 0.0,
    zipf: float = 1.0,
) -> TriggerTask:
    """``analogy_task`` with capitals of which the k-th is ∝ k^−zipf as frequent as the first.

        π_b(capital k | country) = k^−zipf / Σ_j j^−zipf,  π_u = half of it; countries' as theirs

    With zipf = 0, capitals are equally frequent, and one of 116 comes back in 128 tokens too
    rarely for an induction head to form soon.

    Raises:
        ValueError: as ``analogy_task``; a zipf below 0 or not finite.
    """
    if not 0 <= zipf < float("inf"):
        raise ValueError(f"zipf must be a finite number from 0 up; got {zipf!r}")
    task = analogy_task(pairs, n_triggers, length, leak)
    n, conditional = len(pairs), task.bigrams.conditional
    weights = torch.arange(1, n + 1, dtype=torch.float64) ** -zipf
    weights /= weights.sum()
    conditional[n:, :n] = weights
    unigram = torch.cat([weights, weights @ conditional[:n, n:]]) / 2
    bigrams = Bigrams.from_probabilities(task.bigrams.tokens, unigram, conditional)
    return replace(task, bigrams=bigrams)


def own_countries(task: TriggerTask) -> Int[Tensor, " capital"]:
    """The country of each capital, the token that most often follows it.

    Raises:
        ValueError: the task is none of :func:`capitals_task`.
    """
    n = 0 if task.candidates is None else len(task.candidates)
    if not n or task.candidates != tuple(range(n)) or task.never_output != "likeliest":
        raise ValueError("task must be of capitals and countries: its triggers are the capitals")
    return task.bigrams.conditional[:n].argmax(1)


def analogy_prompts(
    task: TriggerTask,
    times: int,
    generator: Generator,
    *,
    right: bool = False,
    each: int = 2,
    queries: Sequence[int] | None = None,
) -> AnalogyPrompts:
    """``each`` prompts of every query, in which B follows A ``times`` times.

    B is uniform among the countries but A's own, or, ``right``, A's own. The other capitals are
    uniform among those that are no queries (where every capital is one: but A) and whose country
    is neither A's nor B.

    Args:
        queries: capitals that are asked; None is all.

    Raises:
        ValueError: times below 0, each below 1, no capital left to stand between.
    """
    if times < 0 or each < 1:
        raise ValueError(f"times must be 0 or more and each 1 or more; got {times} and {each}")
    owns = own_countries(task)
    n, v = len(owns), task.bigrams.d_vocab
    asked = torch.arange(n) if queries is None else torch.tensor(list(queries))
    query = asked.repeat(each)
    own = owns[query]
    wrong = torch.zeros(len(query), v, dtype=torch.float64)
    wrong[:, n:] = 1
    wrong.scatter_(1, own[:, None], 0)
    said = own if right else torch.multinomial(wrong, 1, generator=generator)[:, 0]

    others = torch.ones(len(query), n, dtype=torch.float64)
    if queries is not None:
        others[:, asked] = 0
    others[(owns[None] == own[:, None]) | (owns[None] == said[:, None])] = 0
    if not (others.sum(1) > 0).all():
        raise ValueError(
            f"of {n} capitals none is left to stand between; at least 3 with other countries, and "
            "one that is no query, are needed"
        )
    between = torch.multinomial(others, times + 1, replacement=True, generator=generator)
    block = torch.stack([between, owns[between], query[:, None].expand_as(between)], 2)
    answers = said[:, None, None].expand(-1, times + 1, 1)
    tokens = torch.cat([block, answers], 2).flatten(1)[:, :-1]
    return AnalogyPrompts(tokens, query, own, said)


@dataclass(frozen=True)
class Answers(Generic[Number]):
    """What the model says after A: means over prompts, or of several seeds a Spread.

    Attributes:
        own, said: its country, the context's: share that have the largest logit.
        p_own, p_said: their probabilities.
        margin: logit of the context's less that of its own (nats).
        context_wins: share in which that is above 0.
    """

    own: Number
    said: Number
    p_own: Number
    p_said: Number
    margin: Number
    context_wins: Number


@dataclass(frozen=True)
class Looks:
    """Where the heads look, means.

    Attributes:
        previous: from each B to the A before it.
        target: from the last A to all B.
    """

    previous: float
    target: float


@dataclass(frozen=True)
class Capital:
    """What the model knows of a capital, means over prompts.

    Attributes:
        frequency: share of this capital among all.
        frequent: whether it is among the most frequent, which make up half of all occurrences.
        p_own, top1: P(own country | capital) without context about it; whether it is the largest.
        overridden: whether another country has the largest logit that was said ``OVERRIDE`` times.
    """

    capital: str
    frequency: float
    frequent: bool
    p_own: float
    top1: float
    overridden: float


@torch.no_grad()
def answer_summary(model: MemoryTransformer, prompts: AnalogyPrompts) -> Answers[float]:
    """:class:`Answers` to the prompts."""
    last = batch_logits(model, prompts.tokens)[:, -1].double()
    rows, top, p = torch.arange(len(last)), last.argmax(-1), last.softmax(-1)
    margin = last[rows, prompts.said] - last[rows, prompts.own]
    found = (
        top == prompts.own,
        top == prompts.said,
        p[rows, prompts.own],
        p[rows, prompts.said],
        margin,
        margin > 0,
    )
    return Answers(*(float(x.double().mean()) for x in found))


@torch.no_grad()
def attention_to_said(model: MemoryTransformer, prompts: AnalogyPrompts) -> Looks:
    """:class:`Looks` on prompts that say something at least once."""
    alpha, beta, _ = run_heads(model, prompts.tokens)
    places = torch.arange(3, prompts.tokens.shape[1] - 1, 4)  # of B
    return Looks(
        previous=float(alpha[:, places, places - 1].double().mean()),
        target=float(beta[:, -1, places].sum(-1).double().mean()),
    )


@torch.no_grad()
def with_unknown(
    model: MemoryTransformer, tokens: Sequence[int], generator: Generator
) -> MemoryTransformer:
    """A copy that has never seen ``tokens``: their embeddings are drawn fresh."""
    copy = deepcopy(model)
    W_E, chosen = copy.embed.W_E, list(tokens)
    drawn = torch.randn(len(chosen), W_E.shape[1], generator=generator)
    W_E[chosen] = drawn.to(W_E) * copy.cfg.embed_std
    return copy


@torch.no_grad()
def by_capital(
    model: MemoryTransformer, task: TriggerTask, generator: Generator, each: int = 8
) -> list[Capital]:
    """Every :class:`Capital`, the most frequent first; ``each`` prompts of one."""
    n = len(own_countries(task))
    prompts = analogy_prompts(task, 0, generator, each=each)
    last = batch_logits(model, prompts.tokens)[:, -1].double()
    p_own = last.softmax(-1)[torch.arange(len(last)), prompts.own]
    top1 = last.argmax(-1) == prompts.own
    prompts = analogy_prompts(task, OVERRIDE, generator, each=each)
    overridden = batch_logits(model, prompts.tokens)[:, -1].argmax(-1) == prompts.said
    found = [x.double().view(each, n).mean(0).tolist() for x in (p_own, top1, overridden)]
    frequency = task.bigrams.unigram[:n] / task.bigrams.unigram[:n].sum()
    order = frequency.argsort(descending=True, stable=True)
    before = torch.zeros_like(frequency)
    before[order] = frequency[order].cumsum(0) - frequency[order]
    return [
        Capital(
            task.bigrams.tokens[i],
            float(frequency[i]),
            bool(before[i] < 0.5 - 1e-9),
            *(means[i] for means in found),
        )
        for i in order.tolist()
    ]
