"""What an intervention is measured on: clean prompts, their corrupted twins, and a metric.

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
from transformer_lens.utilities import apply_softcap

from resval_lens.attention import Carried
from resval_lens.classifier import ICLClassifier
from resval_lens.transformer import ResValTransformer

Metric = Callable[[Tensor, Tensor], Tensor]


def logit_difference(
    logits: Float[Tensor, "prompt d_vocab"], labels: Int[Tensor, "prompt 2"]
) -> Float[Tensor, " prompt"]:
    """logit(first label) − logit(second label): IO − S, with labels (IO, S)."""
    chosen = logits.gather(1, labels)
    return chosen[:, 0] - chosen[:, 1]


def probability(
    logits: Float[Tensor, "prompt d_vocab"], labels: Int[Tensor, "prompt label"]
) -> Float[Tensor, " prompt"]:
    """Probability of the first label: P(IO), with labels (IO, S)."""
    return logits.softmax(-1).gather(1, labels[:, :1])[:, 0]


def margin(
    logits: Float[Tensor, "prompt d_vocab"], labels: Int[Tensor, "prompt label"]
) -> Float[Tensor, " prompt"]:
    """logit(first label) − max over the others: the right label against the best wrong one."""
    chosen = logits.gather(1, labels)
    return chosen[:, 0] - chosen[:, 1:].max(1).values


def negative_kl(
    logits: Float[Tensor, "prompt d_vocab"], labels: Float[Tensor, "prompt d_vocab"]
) -> Float[Tensor, " prompt"]:
    """−KL(P ‖ Q) in nats, P from the logits in ``labels`` (the clean run's), Q from ``logits``.

    Negative, so that more is better, as with the other metrics; 0 on the clean run itself.
    """
    p, q = labels.log_softmax(-1), logits.log_softmax(-1)
    return -(p.exp() * (p - q)).sum(-1)


@dataclass(frozen=True)
class PromptPairs:
    """Clean prompts beside their corrupted twins, and what is asked of them.

    Attributes:
        clean: tokens [prompt, pos], or a classifier's continuous tokens [prompt, pos, d_model].
        corrupted: the twins, of the same shape.
        metric: see the module; one number for each prompt.
        labels: what the metric compares with, [prompt, ...].
        last: the position of each prompt's answer, where prompts of unequal length are padded on
            the right; by default the last position.

    Raises:
        ValueError: twins of another shape, or labels or positions that do not fit the prompts.
    """

    clean: Tensor
    corrupted: Tensor
    metric: Metric
    labels: Tensor
    last: Int[Tensor, " prompt"] | None = None

    def __post_init__(self) -> None:
        if self.clean.ndim not in (2, 3) or 0 in self.clean.shape:
            raise ValueError(
                "clean must be tokens [prompt, pos] or a classifier's [prompt, pos, d_model]; got "
                f"{list(self.clean.shape)}"
            )
        if self.clean.shape != self.corrupted.shape:
            raise ValueError(
                f"clean is {list(self.clean.shape)} and corrupted {list(self.corrupted.shape)}; "
                "each prompt's twin must have its length"
            )
        if len(self.labels) != len(self):
            raise ValueError(f"{len(self)} prompts need as many labels; got {len(self.labels)}")
        if self.last is None:
            return
        if self.last.shape != (len(self),):
            raise ValueError(f"last must hold a position for each of the {len(self)} prompts; got "
                             f"{list(self.last.shape)}")  # fmt: skip
        beyond = self.last[(self.last < 0) | (self.last >= self.length)]
        if len(beyond):
            raise ValueError(
                f"last: {beyond[0].item()} is beyond the prompts' {self.length} tokens"
            )

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
        return torch.full((len(self),), self.length - 1, device=self.clean.device)

    def rows(self, which: Any) -> PromptPairs:
        """Some of the prompts: a slice, or indices."""
        return replace(
            self,
            clean=self.clean[which],
            corrupted=self.corrupted[which],
            labels=self.labels[which],
            last=None if self.last is None else self.last[which],
        )

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

        Raises:
            ValueError: the metric gives another shape than one number a prompt, or NaN.
        """
        values = []
        for part in logits.split(len(self)):
            value = self.metric(part, self.labels)
            if not isinstance(value, Tensor) or value.shape != (len(self),):
                shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"the metric must give one number for each of the {len(self)} prompts; got "
                    f"{shape}"
                )
            if value.isnan().any():
                raise ValueError(
                    f"the metric gives NaN for prompt {int(value.isnan().nonzero()[0])}"
                )
            values.append(value)
        return torch.stack(values)


def answer_logits(
    model: ResValTransformer, inputs: Tensor, answers: Int[Tensor, " row"]
) -> Float[Tensor, "row d_vocab"]:
    """Logits at each row's answer position; the others are not computed.

    Args:
        inputs: tokens, or a classifier's continuous tokens (it answers at the last position).
    """
    if isinstance(model, ICLClassifier):
        return model(inputs)
    # A tokenizer that pads on the left would have TransformerLens mask what leads a row.
    residual = model(inputs, stop_at_layer=model.cfg.n_layers, padding_side="right")
    return read_out(model, residual, answers)


def resumed_logits(
    model: ResValTransformer,
    residual: Float[Tensor, "row pos d_model"],
    layer: int,
    carried: Carried,
    answers: Int[Tensor, " row"],
    **kwargs: Any,
) -> Float[Tensor, "row d_vocab"]:
    """:func:`answer_logits` from the residual stream before ``layer``."""
    if model.cfg.positional_embedding_type == "shortformer":  # added in every layer
        shape = torch.zeros(residual.shape[:2], dtype=torch.long, device=residual.device)
        kwargs = {"shortformer_pos_embed": model.pos_embed(shape), **kwargs}
    residual = model.run_blocks(residual, layer, None, carried, **kwargs)
    return read_out(model, residual, answers)


def read_out(
    model: ResValTransformer,
    residual: Float[Tensor, "row pos d_model"],
    answers: Int[Tensor, " row"],
) -> Float[Tensor, "row d_vocab"]:
    """Logits at each row's answer position, from the residual stream after the last layer."""
    if isinstance(model, ICLClassifier):
        return model.readout(residual[:, -1])
    rows = torch.arange(len(residual), device=residual.device)
    last = residual[rows, answers.to(residual.device)][:, None]  # [row, 1, d_model]
    if model.cfg.normalization_type is not None:
        last = model.ln_final(last)
    logits = apply_softcap(model.unembed(last), model.cfg.output_logits_soft_cap)
    return logits[:, 0]
