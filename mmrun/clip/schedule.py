"""What a threshold is multiplied by as a training goes on."""

from __future__ import annotations

import math
from typing import Literal

from mmrun.clip.law import count
from mmrun.errors import UserError

Schedule = Literal["constant", "linear", "cosine", "exponential"]


def factor(schedule: Schedule, end: float, step: int, *, warmup: int, total: int | None) -> float:
    """The factor at a step, counted from 0: infinity during the warm-up, then from 1 to ``end`` at the last step.

    Args:
        schedule: how it gets there; ``constant`` stays at 1.
        end: the factor at the last step, and after it.
        step: which one.
        warmup: steps at the start.
        total: steps of the training, the warm-up's too; None for a constant.
    """
    if step < warmup:
        return math.inf
    if schedule == "constant":
        return 1.0
    assert total is not None
    last = max(total - 1 - warmup, 1)
    share = min((step - warmup) / last, 1.0)
    if schedule == "linear":
        return 1.0 + (end - 1.0) * share
    if schedule == "cosine":
        return end + (1.0 - end) * (1.0 + math.cos(math.pi * share)) / 2.0
    return end**share


def length(schedule: Schedule, total: int | None) -> int | None:
    """The steps of a training, which all but a constant must know.

    Raises:
        UserError: they are missing, or no whole number from 1.
    """
    if total is not None:
        return count("total_steps", total, least=1)
    if schedule != "constant":
        raise UserError(
            "a schedule needs to know how long the training is",
            given=f"schedule={schedule}",
            remedy="Give total_steps, the number of optimizer steps.",
        )
    return None
