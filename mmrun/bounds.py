"""The bounds on features and on gradients into encoders: a number, or a percentile that becomes one before training."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmrun.clip.percentile import percentile_in
from mmrun.errors import UserError


class Bound(nn.Module):
    """A number above 0; infinity is off.

    Args:
        value: the bound in force.
    """

    percentile: float | None = None

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    @property
    def on(self) -> bool:
        """Whether it bounds anything, or will."""
        return self.percentile is not None or self.value < math.inf


class Calibrated(Bound):
    """A percentile of what is measured on the initial weights; off until then.

    The number is part of the model: it is saved and loaded with the weights.

    Args:
        percentile: 0 < p <= 100.
    """

    def __init__(self, percentile: float) -> None:
        super().__init__(math.inf)
        self.percentile = percentile

    def get_extra_state(self) -> Tensor:
        """The number; float64, whatever the weights are."""
        return torch.tensor(self.value, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take up a number."""
        self.value = float(state)


def bound(key: str, given: float | str) -> Bound:
    """What a setting stands for.

    Args:
        key: below ``model``, for messages.
        given: a number above 0, or ``pNN``.

    Raises:
        UserError: it is neither.
    """
    percentile = percentile_in(given)
    if percentile is not None:
        return Calibrated(percentile)
    if isinstance(given, str) or not given > 0:
        raise UserError(
            f"model.{key} is a bound",
            given=given,
            remedy="Give a number above 0, .inf for off, or a percentile from above p0 to p100, such as p99.",
        )
    return Bound(float(given))
