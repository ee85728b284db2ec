"""Gradients that float16 can hold.

Its numbers end at 65,504, and below 6·10⁻⁵ they lose bits; a metric's gradient spans more than
that, and where a metric is almost flat (a probability near 1) all of it lies below. So the gradient
is enlarged by a power of two where it enters the model, and divided by it where it is read.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resval_lens.hooks.prompts import wide

LARGEST = 10
"""The largest gradient of a logit is made 2¹⁰ at most: six doublings are left for what grows on its
way back (in SmolLM2-135M three; its smallest medians, 2·10⁻⁷, come to 2·10⁻⁴)."""


class Enlarged:
    """The power of two by which one backward pass is enlarged: 1 unless the model is of float16."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.factor = dtype, 1.0

    def enter(self, logits: Tensor) -> None:
        """Enlarges the gradient of these logits, which are of float32."""
        if self.dtype == torch.float16 and logits.requires_grad:
            logits.register_hook(self._enlarge)

    def _enlarge(self, gradient: Tensor) -> Tensor:
        largest = gradient.abs().max().item()
        if 0 < largest < math.inf:
            # Within float32, whose smallest numbers are below 1 / its largest.
            self.factor = 2.0 ** min(LARGEST - math.ceil(math.log2(largest)), 126)
        return gradient * self.factor

    def read(self, gradient: Tensor, name: str) -> Tensor:
        """A gradient as it is, in float32 at least.

        Raises:
            ValueError: it is too large for float16.
        """
        if self.dtype != torch.float16:
            return wide(gradient)
        if not gradient.isfinite().all():
            raise ValueError(
                f"the gradient at {name} is too large for float16; score edges in bfloat16 or "
                "float32"
            )
        return wide(gradient) / self.factor
