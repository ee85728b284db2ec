"""What an intervention is measured on: clean prompts, corrupted prompts, and a metric.

    pairs = PromptPairs.from_text(
        model,
        "When Mary and John went out, John gave a ball to",
        "When Mary and John went out, Mary gave a ball to",
        (" Mary", " John"),
    )
    pairs = PromptPairs(tokens, corrupted, logit_difference, torch.stack([io, subject], 1))

A metric takes the logits at each prompt's answer position, [prompt, d_vocab], and the prompts'
labels, [prompt, ...], and gives one number for each prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from resval_lens.hooks.padding import (
    Mask,
    first_own,
    last_own,
    moved,
    own_tokens,
    refuse_padding_around,
    refuse_unmasked,
)
from resval_lens.hooks.texts import Answers, Texts, answer_tokens, encoded_pairs
from resval_lens.host import HookedTransformer
from resval_lens.lens.norm import is_hooked
from resval_lens.lens.unembed import wide
from resval_lens.transformer import ResValTransformer

Metric = Callable[[Tensor, Tensor], Tensor]

MAX_TOKENS = 16_384
"""Rows × positions, padding included, that one model call has at most."""


def logit_difference(
    logits: Float[Tensor, "prompt d_vocab"], labels: Int[Tensor, "prompt 2"]
) -> Float[Tensor, " prompt"]:
    """logit(first label) − logit(second label): IO − S, with labels (IO, S).

    Raises:
        ValueError: labels of another shape, or that are no logits' numbers (as the others do).
    """
    _check_labels(logits, labels, 2, 2)
    chosen = logits.gather(1, labels)
    return chosen[:, 0] - chosen[:, 1]


def probability(
    logits: Float[Tensor, "prompt d_vocab"], labels: Int[Tensor, "prompt label"]
) -> Float[Tensor, " prompt"]:
    """Probability of the first label: P(IO), with labels (IO, S)."""
    _check_labels(logits, labels, 1)
    return logits.softmax(-1).gather(1, labels[:, :1])[:, 0]


def log_probability(
    logits: Float[Tensor, "prompt d_vocab"], labels: Int[Tensor, "prompt label"]
) -> Float[Tensor, " prompt"]:
    """log of :func:`probability`, in nats: log P(IO), with labels (IO, S)."""
    _check_labels(logits, labels, 1)
    return logits.log_softmax(-1).gather(1, labels[:, :1])[:, 0]


def against(others: Int[Tensor, " other"]) -> Metric:
    """The metric logit(first label) − mean over the other tokens: IO − all other names.

    The logit difference is as large where the model would say neither; this one and
    :func:`log_probability` say whether it names anyone.

    Args:
        others: tokens; a prompt's first label, if it is among them, is left out of its mean.

    Raises:
        ValueError: nothing but a prompt's first label to compare with, or no numbers of logits.
    """
    if others.ndim != 1 or others.is_floating_point() or not len(others):
        raise ValueError(f"others must be tokens [other]; got {others.dtype} {list(others.shape)}")

    def first_against_others(logits: Tensor, labels: Tensor) -> Tensor:
        _check_labels(logits, labels, 1)
        tokens = others.to(logits.device)
        _check_labels(logits, tokens[None], 1)
        counted = tokens != labels[:, :1]  # [prompt, other]
        if not counted.any(1).all():
            raise ValueError(f"others holds only the first label of a prompt: {others.tolist()}")
        first = logits.gather(1, labels[:, :1])[:, 0]
        return first - (logits[:, tokens] * counted).sum(1) / counted.sum(1)

    return first_against_others


def margin(
    logits: Float[Tensor, "prompt d_vocab"], labels: Int[Tensor, "prompt label"]
) -> Float[Tensor, " prompt"]:
    """logit(first label) − max over the others: the right label against the best wrong one."""
    _check_labels(logits, labels, 2)
    chosen = logits.gather(1, labels)
    return chosen[:, 0] - chosen[:, 1:].max(1).values


def negative_kl(
    logits: Float[Tensor, "prompt d_vocab"], labels: Float[Tensor, "prompt d_vocab"]
) -> Float[Tensor, " prompt"]:
    """−KL(P ‖ Q) in nats, P from the logits in ``labels`` (the clean run's), Q from ``logits``.

    Negative, so that more is better, as with the other metrics; 0 on the clean run itself, where
    its gradient is 0, too: score edges by "eap-ig" or "exact", not by "eap".
    """
    p, q = labels.log_softmax(-1), logits.log_softmax(-1)
    return -(p.exp() * (p - q)).sum(-1)


def _check_labels(logits: Tensor, labels: Tensor, least: int, most: int | None = None) -> None:
    if labels.ndim != 2 or labels.shape[1] < least or labels.shape[1] > (most or labels.shape[1]):
        wanted = str(least) if most == least else f"{least} or more"
        raise ValueError(f"this metric takes labels [prompt, {wanted}]; got {list(labels.shape)}")
    if labels.is_floating_point():
        raise ValueError(f"labels must be whole numbers; got {labels.dtype}")
    outside = labels[(labels < 0) | (labels >= logits.shape[1])]
    if len(outside):
        raise ValueError(f"labels: {outside[0].item()} is not among 0 to {logits.shape[1] - 1}")


@dataclass(frozen=True)
class PromptPairs:
    """Clean prompts beside their corrupted prompts, and what is asked of them.

    Prompts of unequal length are padded on either side, and ``mask`` says which tokens are theirs:
    every number is then that of each prompt run alone. Where a result counts positions, these are
    the columns of the rows as given, padding included.

    Attributes:
        clean: tokens [prompt, pos], or a classifier's continuous tokens [prompt, pos, d_model].
        corrupted: of the same shape; each corrupted prompt is as long as its prompt.
        metric: see the module; one number for each prompt.
        labels: what the metric compares with, [prompt, ...].
        last: the position of each prompt's answer; by default the last that is its own.
        name: of the data set, which is recorded beside every number.
        mask: True (or 1) at each prompt's own tokens, those of its corrupted prompt, too: a
            tokenizer's ``attention_mask``. By default all up to ``last``.
        groups: a number for each prompt; in prompts of one number a position means the same, so
            that a mean over them does, too.

    Raises:
        ValueError: corrupted prompts of another shape, or labels, positions, a mask or groups that
            do not fit the prompts.
    """

    clean: Tensor
    corrupted: Tensor
    metric: Metric
    labels: Tensor
    last: Int[Tensor, " prompt"] | None = None
    name: str = ""
    mask: Mask | None = None
    groups: Int[Tensor, " prompt"] | None = None

    def __post_init__(self) -> None:
        for name in ("clean", "corrupted", "labels"):
            if not isinstance(getattr(self, name), Tensor):
                raise ValueError(
                    f"{name} must be a tensor; got {type(getattr(self, name)).__name__}. Text "
                    "becomes tokens by PromptPairs.from_text(model, clean, corrupted, answers); "
                    "rows of unequal length are padded, and mask= says which tokens are theirs"
                )
        if self.clean.ndim not in (2, 3) or 0 in self.clean.shape:
            raise ValueError(
                "clean must be tokens [prompt, pos] or a classifier's [prompt, pos, d_model]; got "
                f"{list(self.clean.shape)}"
            )
        if self.clean.shape != self.corrupted.shape:
            raise ValueError(
                f"clean is {list(self.clean.shape)} and corrupted {list(self.corrupted.shape)}; "
                "each corrupted prompt must have its prompt's length"
            )
        if self.labels.ndim == 0 or len(self.labels) != len(self):
            raise ValueError(
                f"labels must be [prompt, ...], for {len(self)} prompts; got "
                f"{list(self.labels.shape)}"
            )
        for name, meant in (("last", "a position"), ("groups", "a whole number")):
            each = getattr(self, name)
            if each is None:
                continue
            wrong = not isinstance(each, Tensor) or each.is_floating_point()
            if wrong or each.shape != (len(self),):
                found = list(each.shape) if isinstance(each, Tensor) else type(each).__name__
                raise ValueError(
                    f"{name} must hold {meant} for each of the {len(self)} prompts, [prompt]; got "
                    f"{found}"
                )
        if self.last is not None:
            beyond = self.last[(self.last < 0) | (self.last >= self.length)]
            if len(beyond):
                raise ValueError(f"last: {beyond[0].item()} is not among 0 to {self.length - 1}")
        if self.mask is None:
            return
        mask = own_tokens(self.mask, self.clean)
        object.__setattr__(self, "mask", mask)
        rows = torch.arange(len(self), device=mask.device)
        outside = ~mask[rows, self.answers.to(mask.device)]
        if outside.any():
            row = int(outside.int().argmax())
            raise ValueError(
                f"last: row {row} would be answered at {int(self.answers[row])}, where mask has "
                "padding"
            )

    @classmethod
    def from_text(
        cls,
        model: ResValTransformer,
        clean: Texts,
        corrupted: Texts,
        answers: Answers,
        metric: Metric = logit_difference,
        *,
        prepend_bos: bool | None = None,
        groups: Int[Tensor, " prompt"] | None = None,
        name: str = "",
    ) -> PromptPairs:
        """Pairs of prompts that are text, of any lengths.

        Args:
            clean, corrupted: one prompt or several.
            answers: what the metric compares, one or several for each prompt, in its order:
                ``(" Mary", " John")`` for the logit difference Mary − John. Each is one token.
            prepend_bos: put the tokenizer's beginning of text before each prompt; by default as
                the model does (``cfg.default_prepend_bos``).
            groups: as of the class.

        Raises:
            ValueError: a model without a tokenizer, a corrupted prompt of another length than its
                prompt, an answer that is not one token.
        """
        tokens, others, mask = encoded_pairs(model, clean, corrupted, prepend_bos)
        labels = answer_tokens(model, clean, answers)
        return cls(tokens, others, metric, labels, None, name, mask, groups)

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def length(self) -> int:
        """Positions of a prompt, padding included."""
        return self.clean.shape[1]

    @property
    def answers(self) -> Int[Tensor, " prompt"]:
        """The position of each prompt's answer."""
        if self.last is not None:
            return self.last
        if self.mask is not None:
            return last_own(self.mask)
        return torch.full((len(self),), self.length - 1, device=self.clean.device)

    @property
    def first(self) -> Int[Tensor, " prompt"]:
        """The position of each prompt's first token."""
        if self.mask is None:
            return torch.zeros(len(self), dtype=torch.long, device=self.clean.device)
        return first_own(self.mask)

    def aligned(self) -> PromptPairs:
        """The prompts with what pads them on their right: each begins at position 0."""
        if self.mask is None:
            return self
        first = self.first
        mask = moved(self.mask, first)
        width = int(mask.any(0).sum())
        return replace(
            self,
            clean=moved(self.clean, first)[:, :width],
            corrupted=moved(self.corrupted, first)[:, :width],
            last=self.answers - first.to(self.answers.device),
            mask=mask[:, :width],
        )

    def rows(self, which: Any) -> PromptPairs:
        """Some of the prompts: a slice, or indices."""
        return self._each(lambda x: x[which])

    def within(self, max_tokens: int) -> list[PromptPairs]:
        """In parts of at most ``max_tokens`` positions, padding included, or one prompt.

        Raises:
            ValueError: below 1.
        """
        return self.split(prompts_within(max_tokens, self.length))

    def split(self, size: int) -> list[PromptPairs]:
        """In parts of at most ``size`` prompts.

        Raises:
            ValueError: a size below 1.
        """
        if size < 1:
            raise ValueError(f"a part holds at least 1 prompt; got size={size!r}")
        return [self.rows(slice(i, i + size)) for i in range(0, len(self), size)]

    def flipped(self) -> PromptPairs:
        """Clean and corrupted exchanged; labels as they were (what was right stays right)."""
        return replace(self, clean=self.corrupted, corrupted=self.clean)

    def measure(self, logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, "repeat prompt"]:
        """The metric of each prompt, of logits whose rows are the prompts, over and over.

        In float32 at least: the metric is given no narrower logits.

        Raises:
            ValueError: the metric gives another shape than one number a prompt, NaN or infinity.
        """
        values = []
        labels = self.labels.to(logits.device)
        for part in wide(logits).split(len(self)):
            try:
                value = self.metric(part, labels)
            except (IndexError, TypeError) as error:
                raise ValueError(
                    f"the metric takes the answers' logits and the labels, {list(part.shape)} and "
                    f"{list(labels.shape)} here; it raised {type(error).__name__}: {error}"
                ) from error
            if not isinstance(value, Tensor) or value.shape != (len(self),):
                shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"the metric must give one number for each of the {len(self)} prompts, of "
                    f"their logits {list(part.shape)}; got {shape}"
                )
            if not value.isfinite().all():
                first = int((~value.isfinite()).nonzero()[0])
                raise ValueError(f"the metric gives {value[first].item()} for prompt {first}")
            values.append(wide(value))
        return torch.stack(values)

    def to(self, device: Any) -> PromptPairs:
        """The same on another device."""
        return self._each(lambda x: x.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> PromptPairs:
        """With all that belongs to the prompts changed alike."""
        names = ("clean", "corrupted", "labels", "last", "mask", "groups")
        own: dict[str, Any] = {name: getattr(self, name) for name in names}
        changed: dict[str, Any] = {n: change(x) for n, x in own.items() if x is not None}
        return replace(self, **changed)


def prompts_within(max_tokens: int, length: int) -> int:
    """How many prompts of ``length`` positions are run at once: within ``max_tokens``, or one.

    Raises:
        ValueError: ``max_tokens`` below 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be 1 or more; got {max_tokens!r}")
    return max(1, max_tokens // length)


def check_model(model: Any) -> None:
    """Raises ValueError for anything but a ResValTransformer, such as a stock model."""
    if not isinstance(model, ResValTransformer):
        stock = isinstance(model, HookedTransformer)
        made = "ResValTransformer.from_hooked(model, share_weights=True) makes it one"
        raise ValueError(
            f"model must be a ResValTransformer; got {type(model).__name__}"
            + (f" ({made})" if stock else "")
        )


def ready(model: ResValTransformer, pairs: PromptPairs) -> PromptPairs:
    """The prompts on the model's device, each beginning at position 0 (:meth:`.aligned`).

    Raises:
        ValueError: another kind of model, or prompts that this model cannot read, by what they have
            and it takes.
    """
    check_model(model)
    if not isinstance(pairs, PromptPairs):
        raise ValueError(f"pairs must be PromptPairs; got {type(pairs).__name__}")
    if model.answers_last:
        if pairs.last is not None or pairs.mask is not None:
            raise ValueError(f"{model.kind} answers at the last position; leave out last and mask")
        return pairs.to(model.cfg.device)
    for name in ("clean", "corrupted"):
        tokens = getattr(pairs, name)
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise ValueError(
                f"{name} must be tokens [prompt, pos]; got {tokens.dtype} {list(tokens.shape)}"
            )
        outside = tokens[(tokens < 0) | (tokens >= model.cfg.d_vocab)]
        if len(outside):
            raise ValueError(
                f"{name}: token {outside[0].item()} is not among 0 to {model.cfg.d_vocab - 1}"
            )
        if pairs.mask is None:
            refuse_unmasked(model, tokens, name, ends=pairs.last is None)
    positions = torch.arange(pairs.length, device=pairs.answers.device)
    own = positions <= pairs.answers[:, None] if pairs.mask is None else pairs.mask
    refuse_padding_around(model, own)
    pairs = pairs.aligned()
    if pairs.length > model.cfg.n_ctx:
        raise ValueError(f"prompts of {pairs.length} tokens do not fit n_ctx={model.cfg.n_ctx}")
    return pairs.to(model.cfg.device)


def refuse_hooks(model: ResValTransformer, ending: str = "") -> None:
    """Raises ValueError if a hook is on a hook point whose name ends so."""
    for name, point in model.hook_dict.items():
        if name.endswith(ending) and is_hooked(point):
            raise ValueError(
                f"a hook on {name} would meet some activations twice or not at all; run the model "
                "without (with_streams(...) where links should be missing)"
            )


VANISHING = 1e-5


def vanishes(first: float, second: float) -> bool:
    """Whether the gap between two metrics is rounding, in parts of the larger one."""
    return abs(first - second) <= VANISHING * max(abs(first), abs(second))
