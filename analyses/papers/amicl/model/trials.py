"""Trials for AMICL: pairs in context, the last of them to be completed.

    o₁ l₁  o₂ l₂  …  o_m l_m  o_q 0        q is one of 1..m; what is asked for is l_q

Source: arXiv 2412.15113, section 2.1. With more to it on request: fillers between object and label,
look-alikes with labels of their own, a last label that is not quite masked.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from resval_lens.analyses.papers.amicl.model.memory import READINGS, Reading
from resval_lens.checks import check_whole, is_number


class Trials(NamedTuple):
    """Sequences, and what is known about them.

    ``labels`` are the label vectors of the pairs of the context, without their duplicates left
    out; ``classes`` the classes of the same pairs; ``query`` says which of them the last pair
    repeats.
    """

    inputs: Float[Tensor, "batch pos d"]
    labels: Float[Tensor, "batch pair d"]
    classes: Int[Tensor, "batch pair"]
    query: Int[Tensor, " batch"]

    @property
    def targets(self) -> Float[Tensor, "batch d"]:
        """The label vectors that should be recalled."""
        return self.labels[torch.arange(len(self.query), device=self.query.device), self.query]

    @property
    def right(self) -> Bool[Tensor, "batch pair"]:
        """Whether a pair of the context has the label that is asked for."""
        return self.classes == self.classes.gather(1, self.query[:, None])


@dataclass(frozen=True)
class PairTask:
    """What a trial looks like. The defaults are the paper's.

    Each trial draws classes of its own: object means μ and labels l ~ N(0, 1/d). m pairs are drawn
    with replacement, the last pair repeats one of them, uniformly, and its label is masked (0). An
    object is (μ + ε·η)/√(1 + ε²), with η drawn fresh for each instance. Only the vectors that occur
    are drawn; the distribution is the same.

    Attributes:
        d: dimensions of a token.
        length: s, tokens of a sequence: m + 1 pairs.
        classes: K.
        noise: ε.
        reading: ``paper`` (its text): η ~ N(0, 1/d). ``notebook`` (the authors' code): η has the
            standard deviation 1/d, by √d too little, and one class is never drawn, so that there
            are K − 1.
        gap: tokens ~ N(0, 1/d), new everywhere, between an object and its label; a pair then takes
            2 + gap tokens.
        distractors: n, look-alikes of each object. Classes come in families of n + 1 and a context
            holds whole families, in any order: whatever is asked for, n other pairs of the context
            look like it and have other labels.
        likeness: ρ, the cosine between object means of a family: √ρ·(its own) + √(1−ρ)·(each
            one's own); 1 makes them the same object with different labels. Of distractors only.
        cue: c, how well the last label is seen: x_s = c·l + √(1−c²)·ξ, ξ ~ N(0, 1/d); but 0, as in
            the paper, masks it: x_s = 0.

    Raises:
        ValueError: an impossible setting, named with its value.
    """

    d: int = 100
    length: int = 20
    classes: int = 512
    noise: float = 0.1
    reading: Reading = "paper"
    gap: int = 0
    distractors: int = 0
    likeness: float = 0.5
    cue: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (
            ("d", 1),
            ("length", 1),
            ("classes", 1),
            ("gap", 0),
            ("distractors", 0),
        ):
            check_whole(name, getattr(self, name), least)
        if not is_number(self.noise) or not 0 <= self.noise < math.inf:
            raise ValueError(f"noise must be a finite number from 0 up; got {self.noise!r}")
        for name in ("likeness", "cue"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"{name} must lie between 0 and 1; got {value!r}")
        if not self.distractors and self.likeness != PairTask.likeness:
            raise ValueError(
                f"likeness={self.likeness!r} is of distractors; expected distractors from 1 up"
            )
        if self.reading not in READINGS:
            expected = ", ".join(READINGS)
            raise ValueError(f"reading must be one of {expected}; got {self.reading!r}")
        if self.length % self.step or self.length < 2 * self.step:
            raise ValueError(
                f"length must be a multiple of {self.step}, the tokens of a pair, from "
                f"{2 * self.step} up; got {self.length}"
            )
        family = self.distractors + 1
        if self.n_pairs % family:
            raise ValueError(
                f"distractors={self.distractors} needs a multiple of {family} pairs before the "
                f"last; length={self.length} has {self.n_pairs}"
            )
        if self.classes % family:
            raise ValueError(
                f"classes={self.classes} must be a multiple of {family}, a class and its "
                f"{self.distractors} distractors"
            )
        if self.n_families < 1:
            raise ValueError(
                f"classes={self.classes} leaves none to draw: the notebook never draws one of them"
            )

    @property
    def step(self) -> int:
        """Tokens of a pair, 2 + gap."""
        return 2 + self.gap

    @property
    def n_pairs(self) -> int:
        """m, pairs before the last."""
        return self.length // self.step - 1

    @property
    def n_families(self) -> int:
        """Families that are drawn; without distractors each is one class."""
        return self.classes // (self.distractors + 1) - (self.reading == "notebook")

    @property
    def noise_variance(self) -> float:
        """E‖ε·η‖²: ε² in the paper's reading, ε²/d in the notebook's."""
        return self.noise**2 / (1 if self.reading == "paper" else self.d)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON."""
        return asdict(self)

    def draw(self, size: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Trials:
        """``size`` trials, on the generator's device.

        Raises:
            ValueError: a size that is not a whole number from 1 up.
        """
        check_whole("size", size, 1)
        m, d, device = self.n_pairs, self.d, generator.device
        kind: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
        family, member = self._classes(size, generator)
        query = torch.randint(m, (size, 1), generator=generator, device=device)
        family, member = (torch.cat([x, x.gather(1, query)], 1) for x in (family, member))
        classes = family * (self.distractors + 1) + member
        n_classes = self.n_families * (self.distractors + 1)

        labels = _shared(classes, n_classes, d, kind)
        own, common = 1.0, 0.0
        if self.distractors:
            own, common = math.sqrt(1 - self.likeness), math.sqrt(self.likeness)
        scale = (1 + self.noise**2) ** -0.5
        inputs = torch.empty(size, m + 1, self.step, d, device=device, dtype=dtype)
        objects = torch.randn(size, m + 1, d, **kind)
        objects.mul_(scale * math.sqrt(self.noise_variance / d))
        objects.add_(_shared(classes, n_classes, d, kind), alpha=scale * own)
        if common:
            objects.add_(_shared(family, self.n_families, d, kind), alpha=scale * common)
        inputs[:, :, 0] = objects
        if self.gap:
            fillers = torch.randn(size, m + 1, self.gap, d, **kind)
            inputs[:, :, 1:-1] = fillers.mul_(d**-0.5)
        inputs[:, :, -1] = labels
        inputs[:, -1, -1] *= self.cue
        if 0 < self.cue < 1:
            blur = torch.randn(size, d, **kind)
            inputs[:, -1, -1] += blur.mul_(math.sqrt((1 - self.cue**2) / d))
        return Trials(inputs.flatten(1, 2), labels[:, :-1], classes[:, :-1], query[:, 0])

    def _classes(self, size: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Family and place in it of each pair of the context, [size, m]."""
        each, device = self.distractors + 1, generator.device
        groups = self.n_pairs // each
        drawn = torch.randint(self.n_families, (size, groups), generator=generator, device=device)
        family = drawn.repeat_interleave(each, dim=1)
        member = torch.arange(each, device=device).repeat(groups).expand(size, -1)
        if each > 1:
            order = torch.rand(family.shape, generator=generator, device=device).argsort(1)
            family, member = family.gather(1, order), member.gather(1, order)
        return family, member


def _shared(index: Tensor, n: int, d: int, kind: dict[str, Any]) -> Tensor:
    """Vectors ~ N(0, 1/d) [batch, pair, d], one for each index [batch, pair] of a row, from n."""
    batch, pairs = index.shape
    # The last pair repeats one of those before it, so pairs − 1 vectors are enough.
    if n > pairs - 1:
        index = (index[:, :, None] == index[:, None, :]).byte().argmax(-1)
        n = pairs - 1
    table = torch.randn(batch, n, d, **kind).mul_(d**-0.5)
    rows = index + torch.arange(batch, device=index.device)[:, None] * n
    return table.flatten(0, 1).index_select(0, rows.flatten()).view(batch, pairs, d)


def exact(output: Float[Tensor, "batch d"], trials: Trials) -> Bool[Tensor, " batch"]:
    """Whether the output is the label vector, to the last bit; what argmax can do."""
    return (output == trials.targets).all(-1)


def nearest(
    output: Float[Tensor, "batch d_out"],
    trials: Trials,
    by: Literal["euclidean", "cosine"] = "euclidean",
    candidates: Float[Tensor, "batch pair d_out"] | None = None,
) -> Bool[Tensor, " batch"]:
    """Whether the output is nearest to the right one of the labels in the context.

    By Euclidean distance, or by the angle: outputs of ``identity`` and ``softmax`` have any
    length. The paper looked at attention matrices of these only and names no candidates; here they
    are the labels that stand in the context. An output of zeros, nothing recalled, has the
    shortest label nearest, and no angle: by it, wrong.

    Args:
        candidates: what the labels should become, if not themselves (hetero-association).

    Raises:
        ValueError: an unknown ``by``; outputs of another number or d than the candidates.
    """
    if by not in ("euclidean", "cosine"):
        raise ValueError(f"by must be 'euclidean' or 'cosine'; got {by!r}")
    vectors = trials.labels if candidates is None else candidates
    if output.shape != (len(vectors), vectors.shape[-1]):
        raise ValueError(
            f"output must be [{len(vectors)}, {vectors.shape[-1]}], as the candidates are; "
            f"got {list(output.shape)}"
        )
    closeness = torch.einsum("bpd,bd->bp", vectors, output)
    square = vectors.square().sum(-1)
    # Of −½‖c − o‖² and of cos(c, o) what is the same for all candidates is left out.
    closeness = closeness - square / 2 if by == "euclidean" else closeness / square.sqrt()
    best = closeness.argmax(-1, keepdim=True)
    right = trials.right.gather(1, best)[:, 0]
    return right if by == "euclidean" else right & output.any(-1)
