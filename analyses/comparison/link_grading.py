"""A link scaled down by degrees, and what that costs on each task.

arXiv 2412.15113, section 6.1, predicts of connections that skip a stage: performance follows the
strength and number of those that are left on IC and IC2, and not on IW. With c from 1 to 0:

    link                own + c · link
    link, norm kept     (own + c · link) · ‖own + link‖ / ‖own + c · link‖
    link, dimensions    own + link in a share c of its dimensions, drawn once, 0 in the others
    own                 c · own + link
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from resval_lens.analyses.comparison.layer_one import Heads, LayerOne
from resval_lens.analyses.comparison.link_controls import accuracy, has_links, norm_kept
from resval_lens.tasks.icl import ICLBatch

GRADES = tuple(round(1 - i / 10, 1) for i in range(11))
"""c, from as trained to none."""
GRADED = ("link", "link, norm kept", "link, dimensions", "own")
"""What is scaled; of a model without links its own part alone."""
Curves = Mapping[str, Mapping[str, tuple[float, ...]]]
"""Accuracy at each of ``GRADES``, by what is scaled and task."""


def grade(what: str, c: float, own: Heads, link: Heads, order: Tensor) -> Tensor:
    """The total with ``what`` scaled by ``c``; ``order``: of dimensions, the first c are kept."""
    if what == "link":
        return own + c * link
    if what == "link, norm kept":
        return norm_kept(own + c * link, own + link)
    if what == "link, dimensions":
        kept = torch.zeros(link.shape[-1])
        kept[order[: round(c * len(order))]] = 1
        return own + kept * link
    return c * own + link


def grading(
    layers: Mapping[str, LayerOne], tests: Mapping[str, ICLBatch], seed: int = 0
) -> dict[str, dict[str, tuple[float, ...]]]:
    """Accuracy at each of ``GRADES``, by what is scaled and task.

    Args:
        layers: of each test, :func:`~resval_lens.analyses.comparison.layer_one.layer_one`.
        seed: draws the order in which dimensions go.
    """
    cfg = next(iter(layers.values())).model.cfg
    order = torch.randperm(cfg.d_head, generator=torch.Generator().manual_seed(seed))

    def edit(what: str, c: float) -> Callable[[Heads, Heads], Tensor]:
        return lambda own, link: grade(what, c, own, link, order)

    return {
        what: {
            task: tuple(accuracy(layers[task], edit(what, c), batch.targets) for c in GRADES)
            for task, batch in tests.items()
        }
        for what in (GRADED if has_links(cfg) else GRADED[-1:])
    }
