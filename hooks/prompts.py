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
from resval_lens.norm import is_hooked
from resval_lens.transformer import ResValTransformer

Metric = Callable[[Tensor, Tensor], Tensor]


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
    """Clean prompts beside their corrupted twins, and what is asked of them.

    Attributes:
        clean: tokens [prompt, pos], or a classifier's continuous tokens [prompt, pos, d_model].
        corrupted: the twins, of the same shape.
        metric: see the module; one number for each prompt.
        labels: what the metric compares with, [prompt, ...].
        last: the position of each prompt's answer, where prompts of unequal length are padded on
            the right; by default the last position.
        name: of the data set, which is recorded beside every number.

    Raises:
        ValueError: twins of another shape, or labels or positions that do not fit the prompts.
    """

    clean: Tensor
    corrupted: Tensor
    metric: Metric
    labels: Tensor
    last: Int[Tensor, " prompt"] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        for name in ("clean", "corrupted", "labels"):
            if not isinstance(getattr(self, name), Tensor):
                raise ValueError(
                    f"{name} must be a tensor; got {type(getattr(self, name)).__name__} (prompts "
                    "of unequal length are padded on the right, and `last` says where they end)"
                )
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
            ValueError: the metric gives another shape than one number a prompt, NaN or infinity.
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
            if not value.isfinite().all():
                first = int((~value.isfinite()).nonzero()[0])
                raise ValueError(f"the metric gives {value[first].item()} for prompt {first}")
            values.append(value if value.is_floating_point() else value.float())
        return torch.stack(values)

    def to(self, device: Any) -> PromptPairs:
        """The same on another device."""
        tensors = ("clean", "corrupted", "labels", "last")
        moved = {n: getattr(self, n).to(device) for n in tensors if getattr(self, n) is not None}
        return replace(self, **moved)


def ready(model: ResValTransformer, pairs: PromptPairs) -> PromptPairs:
    """The prompts on the model's device.

    Raises:
        ValueError: prompts that this model cannot read, by what they have and it takes.
    """
    if isinstance(model, ICLClassifier):
        if pairs.last is not None:
            raise ValueError("a classifier answers at the last position; leave out `last`")
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


def right_padding(model: ResValTransformer) -> dict[str, Any]:
    """What a model call needs so that nothing that leads a row is taken for padding.

    A tokenizer that pads on the left would have TransformerLens mask it.
    """
    return {} if isinstance(model, ICLClassifier) else {"padding_side": "right"}


VANISHING = 1e-5


def vanishes(first: float, second: float) -> bool:
    """Whether the gap between two metrics is rounding, in parts of the larger one."""
    return abs(first - second) <= VANISHING * max(abs(first), abs(second))


def answer_logits(
    model: ResValTransformer, inputs: Tensor, answers: Int[Tensor, " row"]
) -> Float[Tensor, "row d_vocab"]:
    """Logits at each row's answer position; the others are not computed.

    Args:
        inputs: tokens, or a classifier's continuous tokens (it answers at the last position).
    """
    if isinstance(model, ICLClassifier):
        return model(inputs)
    residual = model(inputs, stop_at_layer=model.cfg.n_layers, **right_padding(model))
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
    logits = apply_softcap(
        model.unembed(model.unembed_input(last)), model.cfg.output_logits_soft_cap
    )
    return logits[:, 0]
