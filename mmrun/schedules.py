"""Learning-rate schedules: the share of the learning rate at a step, as a function of the step alone.

Each takes (optimizer, total_steps, knobs) and returns a ``LambdaLR``. The share is computed from the step and the total, never stored: a resumed run
with more epochs follows the schedule of its new length from the step at which it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mmrun.errors import UserError


def constant(optimizer: Optimizer, total_steps: int) -> LambdaLR:  # noqa: ARG001 (contract)
    """Share 1 at every step."""
    return LambdaLR(optimizer, lambda step: 1.0)  # noqa: ARG005 (contract)


def cosine(optimizer: Optimizer, total_steps: int, *, final: float = 0.0) -> LambdaLR:
    """Share from 1 to ``final`` along half a cosine.

    Source: Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5 with one period.
    """
    _check_shares(final=final)
    return LambdaLR(optimizer, lambda step: _along_cosine(1.0, final, step / max(1, total_steps)))


def warmup_cosine(
    optimizer: Optimizer, total_steps: int, *, warmup: float = 0.1, final: float = 0.0
) -> LambdaLR:
    """Share from 1/w to 1 over the first w steps in a line, then to ``final`` along half a cosine."""
    _check_shares(warmup=warmup, final=final)
    rising = round(warmup * total_steps)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return _along_cosine(1.0, final, (step - rising) / max(1, total_steps - rising))

    return LambdaLR(optimizer, share)


def onecycle(
    optimizer: Optimizer,
    total_steps: int,
    *,
    warmup: float = 0.3,
    start: float = 0.04,
    final: float = 4e-6,
) -> LambdaLR:
    """Share from ``start`` up to 1 and down to ``final``, both along half a cosine.

    Source: Smith and Topin 2018 (arXiv 1708.07120), annealed by cosines as in
    ``torch.optim.lr_scheduler.OneCycleLR(cycle_momentum=False)``, whose numbers it gives.
    """
    _check_shares(warmup=warmup, start=start, final=final)
    peak = warmup * total_steps - 1
    end = total_steps - 1

    def share(step: int) -> float:
        if step < peak:
            return _along_cosine(start, 1.0, step / peak)
        return _along_cosine(1.0, final, (step - peak) / max(1, end - peak))

    return LambdaLR(optimizer, share)


def step(
    optimizer: Optimizer, total_steps: int, *, at: list[float], factor: float = 0.1
) -> LambdaLR:
    """Share multiplied by ``factor`` once for each entry of ``at`` that training has passed."""
    for share in at:
        _check_shares(at=share)
    milestones = [round(share * total_steps) for share in at]
    law: Callable[[int], float] = lambda now: factor ** sum(now >= m for m in milestones)  # noqa: E731
    return LambdaLR(optimizer, law)


def _along_cosine(begin: float, end: float, progress: float) -> float:
    return end + (begin - end) / 2 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def _check_shares(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"schedule.{name} is a share", given=value, remedy="Give 0 to 1.")
