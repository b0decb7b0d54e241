"""A lower bound: gradients that are shorter than it are raised to it."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from mmrun.clip.layout import Per
from mmrun.clip.scaling import Scaling
from mmrun.clip.step import usable


class Floor(Scaling):
    """g_u -> g_u max(1, f / n_u) for each unit u: the lower bound that clipping does not give; 0 stays 0.

    People believe that clipping cures vanishing gradients; with this they can test it. No option of its own: the
    engine puts it behind any law.

    Args:
        threshold: f, in units of the gradient's p-norm.
        per: the unit, as in ``Scaling``.
        p: order of the norm.
    """

    algorithm: ClassVar[str] = "floor"

    def __init__(self, threshold: float, *, per: Per = "global", p: float = 2.0) -> None:
        super().__init__(threshold, per=per, p=p)

    def respond(self, norms: Tensor, limits: Tensor | float) -> Tensor:
        """max(1, f / n), 1 where n is 0 or not finite."""
        ok = usable(norms)
        return torch.where(ok, limits / torch.where(ok, norms, math.inf), 1.0).clamp_(min=1.0)
