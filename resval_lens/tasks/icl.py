"""In-context classification of object-label pairs (Reddy 2024, arXiv 2312.03002).

A sequence holds N object-label pairs and a query object, 2N + 1 tokens; the answer is the query's
label. arXiv 2412.15113, sections 2 and 3, trains its two-layer transformers on it. A token is

    [ one-hot position (2·n_max + 1) | content (D) ]

with positions counted from a random shift, so that only relative position means anything.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from resval_lens.checks import check_whole

TASKS = {"test": "Test", "ic": "IC", "ic2": "IC2", "iw": "IW"}
"""The test distributions (:meth:`ICLTask.tests`), and what they are called."""
MEANING = {
    "test": "as in training",
    "ic": "fresh classes",
    "ic2": "known classes, new labels",
    "iw": "only memory helps",
}


@dataclass(frozen=True)
class ICLTask:
    """What a sequence looks like. The defaults are the training distribution of the paper.

    Attributes:
        n_classes: K, classes of objects; class c has label c mod L.
        n_labels: L.
        n_pairs: N, object-label pairs before the query.
        burstiness: B, copies of each class in a bursty context; 0 makes no context bursty.
        p_bursty: p_B, the share of sequences whose context holds N/B classes with distinct
            labels, B copies each, the query's among them. In the others the N classes and the
            query's are drawn independently.
        p_fresh: p_C, the share of sequences of classes that were never seen: n_fresh object
            vectors drawn fresh for each batch (with the old label vectors). Always bursty.
        label_shift: context labels, and the right answer, are (c + shift) mod L; fresh classes
            keep theirs.
        noise: ε; an object is (μ_c + ε·η)/√(1+ε²), η ~ N(0, 1/D), redrawn for each instance.
        content: D, dimensions of object and label vectors, μ ~ N(0, 1/D).
        n_max: pairs for which there are positions: 2·n_max + 1 of them.
        n_fresh: fresh classes in a batch.

    Raises:
        ValueError: an impossible setting, named with its value.
    """

    n_classes: int = 512
    n_labels: int = 32
    n_pairs: int = 8
    burstiness: int = 2
    p_bursty: float = 0.5
    p_fresh: float = 0.5
    label_shift: int = 0
    noise: float = 0.1
    content: int = 85
    n_max: int = 32
    n_fresh: int = 128

    def __post_init__(self) -> None:
        for name in ("n_classes", "n_labels", "n_pairs", "content", "n_max", "n_fresh"):
            check_whole(name, getattr(self, name), 1)
        for name in ("p_bursty", "p_fresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1; got {getattr(self, name)!r}")
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise must be a finite number from 0 up; got {self.noise!r}")
        for name in ("n_classes", "n_fresh"):
            if getattr(self, name) % self.n_labels:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be a multiple of n_labels={self.n_labels}"
                )
        if self.n_pairs > self.n_max:
            raise ValueError(f"n_pairs={self.n_pairs} must be at most n_max={self.n_max}")
        if not isinstance(self.burstiness, int) or self.burstiness < 0:
            raise ValueError(
                f"burstiness must be a whole number from 0 up; got {self.burstiness!r}"
            )
        if not isinstance(self.label_shift, int):
            raise ValueError(f"label_shift must be a whole number; got {self.label_shift!r}")
        if self.burstiness == 0:
            if self.p_bursty or self.p_fresh:
                raise ValueError(
                    "burstiness=0 needs p_bursty=0 and p_fresh=0 (fresh classes are always "
                    f"bursty); got p_bursty={self.p_bursty}, p_fresh={self.p_fresh}"
                )
            return
        if self.n_pairs % self.burstiness:
            raise ValueError(
                f"n_pairs={self.n_pairs} must be divisible by burstiness={self.burstiness}"
            )
        if self.n_distinct > self.n_labels:
            raise ValueError(
                f"n_pairs/burstiness={self.n_distinct} distinct labels are more than "
                f"n_labels={self.n_labels}"
            )

    @property
    def n_distinct(self) -> int:
        """Classes in a bursty context, N/B."""
        return self.n_pairs // self.burstiness if self.burstiness else self.n_pairs

    @property
    def n_tokens(self) -> int:
        """2N + 1."""
        return 2 * self.n_pairs + 1

    @property
    def n_positions(self) -> int:
        """Dimensions of the position part, 2·n_max + 1."""
        return 2 * self.n_max + 1

    @property
    def d_input(self) -> int:
        """Dimensions of a token."""
        return self.n_positions + self.content

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def tests(self) -> dict[str, ICLTask]:
        """The four test distributions of Reddy (2024) and the paper's section 3.3.

        ``test``: as in training. ``ic``: fresh classes. ``ic2``: known classes, other labels.
        ``iw``: nothing in the context helps, only what was memorised in training.
        """
        return {
            "test": self,
            "ic": replace(self, p_bursty=1.0, p_fresh=1.0),
            "ic2": replace(self, p_bursty=1.0, p_fresh=0.0, label_shift=self.label_shift + 1),
            "iw": replace(self, burstiness=0, p_bursty=0.0, p_fresh=0.0),
        }


class ICLBatch(NamedTuple):
    """Sequences and everything known about them.

    ``context`` and ``query`` are class numbers; fresh classes count on from n_classes.
    """

    inputs: Float[Tensor, "batch pos d_input"]
    targets: Int[Tensor, " batch"]
    context: Int[Tensor, "batch pair"]
    context_labels: Int[Tensor, "batch pair"]
    query: Int[Tensor, " batch"]
    bursty: Bool[Tensor, " batch"]
    fresh: Bool[Tensor, " batch"]
    shift: Int[Tensor, " batch"]


class ICLWorld:
    """The object and label vectors of one run, from which batches are drawn."""

    def __init__(self, task: ICLTask, generator: Generator) -> None:
        self.task = task
        scale = task.content**-0.5
        self.labels = torch.randn(task.n_labels, task.content, generator=generator) * scale
        self.objects = torch.randn(task.n_classes, task.content, generator=generator) * scale

    def batch(self, size: int, generator: Generator, task: ICLTask | None = None) -> ICLBatch:
        """``size`` sequences of ``task`` (by default the world's own), drawn from ``generator``.

        Raises:
            ValueError: a size below 1, or a task of other vectors than this world's.
        """
        task = task or self.task
        if size < 1:
            raise ValueError(f"a batch holds at least 1 sequence; got size={size!r}")
        same = ("n_classes", "n_labels", "content", "n_max")
        for name in same:
            if getattr(task, name) != getattr(self.task, name):
                raise ValueError(
                    f"{name}={getattr(task, name)} differs from the world's "
                    f"{getattr(self.task, name)}"
                )
        n, d, scale = task.n_pairs, task.content, task.content**-0.5
        rand = torch.rand(2, size, generator=generator)
        fresh = rand[0] < task.p_fresh
        bursty = (rand[1] < task.p_bursty) | fresh
        context, query = self._draw_classes(task, size, fresh, bursty, generator)
        labels = torch.cat([context, query[:, None]], dim=1) % task.n_labels
        if task.label_shift:
            shifted = (labels + task.label_shift) % task.n_labels
            labels = torch.where(fresh[:, None], labels, shifted)

        means = self.objects
        if task.p_fresh:
            means = torch.cat([means, torch.randn(task.n_fresh, d, generator=generator) * scale])
        # [batch, pair + query, content]: (μ + ε·η)/√(1+ε²), with the factors taken out
        weight = (1 + task.noise**2) ** -0.5
        objects = torch.randn(size, n + 1, d, generator=generator).mul_(task.noise * scale * weight)
        which = torch.cat([context, query[:, None]], dim=1)
        objects.add_(means[which], alpha=weight)

        start = task.n_positions
        inputs = torch.zeros(size, task.n_tokens, task.d_input)
        inputs[:, 0::2, start:] = objects
        inputs[:, 1::2, start:] = self.labels[labels[:, :-1]]
        shift = torch.randint(start - task.n_tokens + 1, (size,), generator=generator)
        position = shift[:, None] + torch.arange(task.n_tokens)
        inputs.scatter_(2, position[..., None], 1.0)
        return ICLBatch(inputs, labels[:, -1], context, labels[:, :-1], query, bursty, fresh, shift)

    def _draw_classes(
        self, task: ICLTask, size: int, fresh: Tensor, bursty: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Classes of the context [size, pair] and of the query [size]."""
        n, k, labels = task.n_pairs, task.n_classes, task.n_labels
        loose = torch.randint(k, (size, n + 1), generator=generator)
        if not task.burstiness:
            return loose[:, :-1], loose[:, -1]
        # N/B distinct labels, for each a class that has it, B copies of each in any order.
        label = torch.rand(size, labels, generator=generator).topk(task.n_distinct).indices
        tier = torch.rand(size, task.n_distinct, generator=generator)
        tiers = torch.where(fresh, task.n_fresh // labels, k // labels)[:, None]
        offset = torch.where(fresh, k, 0)[:, None]
        classes = offset + label + labels * (tier * tiers).long().minimum(tiers - 1)
        copies = classes.repeat(1, task.burstiness)
        order = torch.rand(size, n, generator=generator).argsort(1)
        context = copies.gather(1, order)
        chosen = torch.randint(n, (size, 1), generator=generator)
        query = context.gather(1, chosen)[:, 0]
        return (
            torch.where(bursty[:, None], context, loose[:, :-1]),
            torch.where(bursty, query, loose[:, -1]),
        )
