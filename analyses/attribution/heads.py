"""What attention heads do on random tokens that come twice, and what that is worth in loss.

    [BOS] r₁ r₂ … r_n r₁ r₂ … r_n

A token's second occurrence can be predicted only by looking back, so that the loss there says how
well a model copies from its context, and attention says which heads do it (Olsson et al. 2022,
arXiv 2209.11895).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.utilities import LocallyOverridenDefaults

from resval_lens.hooks import freeze, mean_link_activations
from resval_lens.hooks.ablate import Edit
from resval_lens.hooks.prompts import prompts_within, wide
from resval_lens.runtime import evaluating
from resval_lens.transformer import ResValTransformer

OLSSON = {"early": 50, "late": 500, "context": 512}
"""Positions of the in-context learning score of arXiv 2209.11895, in a context of 512."""

MAX_TOKENS = 2_048
"""Fewer than elsewhere: every position's logits, or every head's whole pattern, are held."""


T = TypeVar("T")


@dataclass(frozen=True)
class RepeatedTokens:
    """Rows of tokens, each a sequence twice over, maybe with one token before it.

    Attributes:
        tokens: [sequence, pos], pos being 2·length or 2·length + 1.
        length: of the sequence that comes twice.

    Raises:
        ValueError: rows of another form, a length below 2, or a token that a sequence has twice.
    """

    tokens: Int[Tensor, "sequence pos"]
    length: int

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"length must be 2 or more; got {self.length}")
        if self.start not in (0, 1) or not len(self.tokens):
            raise ValueError(
                f"tokens must be rows of {2 * self.length} or {2 * self.length + 1} for "
                f"length={self.length}; got {list(self.tokens.shape)}"
            )
        first, second = self.tokens[:, self.start :].chunk(2, 1)
        if not first.equal(second):
            raise ValueError(f"each row must hold a sequence of {self.length} twice over")
        if first.sort(1).values.diff(dim=1).eq(0).any():
            raise ValueError("a sequence must have each of its tokens once")

    @property
    def start(self) -> int:
        """The position of r₁: how many tokens stand before the sequence."""
        return self.tokens.shape[1] - 2 * self.length


def repeated_tokens(
    model: ResValTransformer,
    generator: torch.Generator,
    n: int = 50,
    length: int | None = None,
    bos: int | None = None,
    among: Sequence[int] | None = None,
) -> RepeatedTokens:
    """``n`` rows of random tokens, twice over; see the module.

    A row's tokens are drawn uniformly and without replacement, so that each has one earlier
    occurrence in the second half and none in the first.

    Args:
        generator: of the CPU.
        length: of the sequence that comes twice; by default 50, or what the context has room for.
        bos: a token to put before every row, such as the end of text.
        among: the tokens to draw from; by default all but ``bos`` and the tokenizer's special ones.

    Raises:
        ValueError: ``n`` below 1, ``length`` below 2 or too long for the context, a ``bos`` that
            the vocabulary does not have, or too few tokens to draw from.
    """
    cfg = model.cfg
    _check_language_model(model)
    if n < 1:
        raise ValueError(f"n must be 1 or more; got {n}")
    if bos is not None and not 0 <= bos < cfg.d_vocab:
        raise ValueError(f"bos={bos} is not in the vocabulary of {cfg.d_vocab} tokens")
    before = [] if bos is None else [bos]
    room = (cfg.n_ctx - len(before)) // 2
    length = min(50, room) if length is None else length
    if not 2 <= length <= room:
        raise ValueError(
            f"length must lie between 2 and {room}, which n_ctx={cfg.n_ctx} has room for twice; "
            f"got {length}"
        )
    tokens = torch.tensor(candidates(model, bos, among))
    if len(tokens) < length:
        raise ValueError(f"{len(tokens)} tokens to draw from are too few for length={length}")
    drawn = torch.rand(n, len(tokens), generator=generator).topk(length, 1).indices
    once = tokens[drawn]
    led = torch.tensor(before, dtype=torch.long).expand(n, -1)
    return RepeatedTokens(torch.cat([led, once, once], 1), length)


def candidates(
    model: ResValTransformer, bos: int | None = None, among: Sequence[int] | None = None
) -> list[int]:
    """The tokens that :func:`repeated_tokens` draws from, in order."""
    if among is not None:
        return sorted(set(among))
    size, special = model.cfg.d_vocab, {bos}
    if model.tokenizer is not None:
        size = min(size, len(model.tokenizer))
        special |= set(model.tokenizer.all_special_ids)
    return [token for token in range(size) if token not in special]


@dataclass(frozen=True)
class HeadScores(Generic[T]):
    """Something of each head score: a mean attention weight, between 0 and 1.

    - ``previous``: from a token to the one before it, A[i, i − 1] (all tokens but the first);
    - ``duplicate``: from a token's second occurrence to its first;
    - ``prefix_matching``: from a token's second occurrence to the token after its first: the
      induction score.
    """

    previous: T
    duplicate: T
    prefix_matching: T

    def __iter__(self) -> Iterator[T]:
        return iter((self.previous, self.duplicate, self.prefix_matching))


@torch.no_grad()
def head_scores(
    model: ResValTransformer, repeated: RepeatedTokens, max_tokens: int = MAX_TOKENS
) -> HeadScores[Float[Tensor, "layer head"]]:
    """:class:`HeadScores` of every head on tokens that come twice, in evaluation mode, on the CPU.

    Args:
        max_tokens: rows × positions of one model call, one row at least.

    Raises:
        ValueError: ``max_tokens`` below 1, or a classifier.
    """
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    first, length = repeated.start, repeated.length
    summed = torch.zeros(3, model.cfg.n_layers, model.cfg.n_heads, dtype=torch.float64)
    with measuring(model):
        for rows in chunks(model, repeated.tokens, max_tokens):
            _, cache = model.run_with_cache(rows, names_filter=names, return_type=None)
            for layer, name in enumerate(names):
                pattern = cache[name].cpu().double()  # [sequence, head, query, key]
                again = pattern[:, :, first + length :]  # queries: each token's second occurrence
                scored = (
                    pattern.diagonal(-1, 2, 3),
                    again.diagonal(first, 2, 3),
                    again.diagonal(first + 1, 2, 3),
                )
                summed[:, layer] += torch.stack([x.mean(-1).sum(0) for x in scored])
    return HeadScores(*(summed / len(repeated.tokens)).float())


@dataclass(frozen=True)
class RepeatedLoss(Generic[T]):
    """Loss in nats of the tokens r₂ … r_n, where they come first and again (second).

    r₁ is left out: when it comes again, nothing has told that the sequence starts again.
    """

    first: T
    second: T

    def __iter__(self) -> Iterator[T]:
        return iter((self.first, self.second))


def repeated_loss(
    model: ResValTransformer, repeated: RepeatedTokens, max_tokens: int = MAX_TOKENS
) -> RepeatedLoss[Float[Tensor, " token"]]:
    """Each token's mean :class:`RepeatedLoss`, through the model's hooks (edits of links count).

    Args:
        max_tokens: rows × positions of one model call, one row at least.

    Raises:
        ValueError: as :func:`token_losses`.
    """
    losses = token_losses(model, repeated.tokens, max_tokens).mean(0)
    start, length = repeated.start, repeated.length
    # The loss of a row's token i stands at i − 1.
    return RepeatedLoss(losses[start : start + length - 1], losses[start + length :])


@torch.no_grad()
def token_losses(
    model: ResValTransformer, tokens: Int[Tensor, "row pos"], max_tokens: int = MAX_TOKENS
) -> Float[Tensor, "row pos-1"]:
    """−log P(token | those before it) in nats, of every token of a row but the first.

    In evaluation mode, through the hooked model (so that edits count), on the CPU.

    Raises:
        ValueError: ``max_tokens`` below 1, rows too long for the context, or a classifier.
    """
    parts = []
    with measuring(model):
        for rows in chunks(model, tokens, max_tokens):
            logits = wide(model(rows)[:, :-1])  # [row, pos − 1, d_vocab]
            targets = rows[:, 1:].to(logits.device)
            parts.append(F.cross_entropy(logits.mT, targets, reduction="none").cpu())
    return torch.cat(parts)


@torch.no_grad()
def link_means(
    model: ResValTransformer, tokens: Int[Tensor, "row pos"], max_tokens: int = MAX_TOKENS
) -> Edit:
    """Mean-ablation: a link carries its mean at that position over ``tokens``, in any number.

    Raises:
        ValueError: a model without links, ``max_tokens`` below 1, or rows too long for the context.
    """
    _check_rows(model, tokens, max_tokens)
    with measuring(model):
        own = torch.ones_like(tokens, dtype=torch.bool)
        return freeze(mean_link_activations(model, tokens, mask=own, max_tokens=max_tokens))


@dataclass(frozen=True)
class ICLScore:
    """Loss late minus loss early in the context, in nats: negative where context helps."""

    score: float
    early: int
    late: int
    early_loss: float
    late_loss: float


def icl_score(
    model: ResValTransformer,
    tokens: Int[Tensor, "row pos"],
    early: int | None = None,
    late: int | None = None,
    max_tokens: int = MAX_TOKENS,
) -> ICLScore:
    """The in-context learning score of arXiv 2209.11895, of rows of text.

    Args:
        tokens: rows without padding.
        early, late: of the tokens numbered so (from 0) the mean losses are compared; by default 50
            and 500 of 512, scaled to the rows' length and rounded down.

    Raises:
        ValueError: not 1 ≤ early < late < the rows' length; ``max_tokens`` below 1, rows too long
            for the context, or a classifier.
    """
    length = tokens.shape[1]
    early, late = (
        max(1, OLSSON[name] * length // OLSSON["context"]) if given is None else given
        for name, given in (("early", early), ("late", late))
    )
    if not 1 <= early < late < length:
        raise ValueError(
            f"early and late must be tokens 1 to {length - 1} of a row, in this order; got "
            f"early={early}, late={late}"
        )
    losses = token_losses(model, tokens, max_tokens).mean(0)
    before, after = losses[early - 1].item(), losses[late - 1].item()
    return ICLScore(after - before, early, late, before, after)


@contextmanager
def measuring(model: ResValTransformer) -> Iterator[None]:
    """Evaluation mode; every token counts, even where a tokenizer pads on the left."""
    with evaluating(model), LocallyOverridenDefaults(model, padding_side="right"):
        yield


def chunks(
    model: ResValTransformer, tokens: Int[Tensor, "row pos"], max_tokens: int
) -> tuple[Tensor, ...]:
    """Rows that fit one model call, one at least.

    Raises:
        ValueError: rows too long for the context, ``max_tokens`` below 1, or a classifier.
    """
    _check_rows(model, tokens, max_tokens)
    return tokens.split(prompts_within(max_tokens, tokens.shape[1]))


def _check_rows(model: ResValTransformer, tokens: Tensor, max_tokens: int) -> None:
    _check_language_model(model)
    prompts_within(max_tokens, 1)
    if tokens.shape[1] > model.cfg.n_ctx:
        raise ValueError(f"rows of {tokens.shape[1]} tokens do not fit n_ctx={model.cfg.n_ctx}")


def _check_language_model(model: ResValTransformer) -> None:
    if not model.reads_tokens:
        raise ValueError(f"{model.kind} reads vectors; this needs a language model")
    if model.cfg.attention_dir != "causal":
        raise ValueError(f"this needs causal attention; the model's is {model.cfg.attention_dir!r}")
