"""Learning rates as functions of the step."""

from __future__ import annotations

import math
from typing import Literal, get_args

Schedule = Literal["constant", "cosine", "wsd"]


def learning_rate(
    step: int, *, peak: float, steps: int, schedule: Schedule, warmup: int, cooldown: int
) -> float:
    """The learning rate of ``step`` (counted from 1 to ``steps``).

    Warm-up rises linearly, peak · step / warmup. Then

        constant   peak
        cosine     peak · ½ (1 + cos(π t)), t from 0 after warm-up to 1 at the end
        wsd        peak (warm-up, stable, decay)

    and over the last ``cooldown`` steps the rate that the schedule has where they begin falls
    linearly to 0.

    Raises:
        ValueError: an unknown schedule; warm-up and cooldown together longer than the run.
    """
    if schedule not in get_args(Schedule):
        raise ValueError(f"schedule must be one of {get_args(Schedule)}; got {schedule!r}")
    if warmup + cooldown > steps:
        raise ValueError(f"warmup={warmup} and cooldown={cooldown} are longer than steps={steps}")
    if step <= warmup:
        return peak * step / warmup

    def shape(at: int) -> float:
        if schedule != "cosine":
            return peak
        return peak * 0.5 * (1 + math.cos(math.pi * (at - warmup) / max(1, steps - warmup)))

    begins = steps - cooldown
    if step <= begins:
        return shape(step)
    return shape(begins) * (steps - step) / cooldown
