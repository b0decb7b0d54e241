"""Clipping to a multiple of the running mean of the norms that were let through."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from mmrun.clip.adaptive import Adaptive
from mmrun.clip.law import decay, positive
from mmrun.clip.layout import Per
from mmrun.clip.memory import Field


class EMA(Adaptive):
    """g_u -> g_u min(1, c_u / n_u) with c_u = ratio * m_u, then m_u -> beta m_u + (1 - beta) min(n_u, c_u).

    m_u starts at the first clipped norm. It follows clipped norms: of raw ones, a few outliers would take the bound with
    them. A ratio at or below 1 can only fall. Source: common practice; AdaGC (arXiv 2502.11034) has it per
    parameter, with a warm-up of its own: ``clip=adagc``.

    Args:
        threshold: the ratio, > 0; infinity is "off".
        per: the unit, as in ``Scaling``.
        p: order of the norm.
        beta: weight of the past, from 0 to below 1.
        initial: bound before the first norm, in units of the gradient's p-norm; infinity lets it pass.

    Raises:
        UserError: a number out of range, or an option that does not exist.
    """

    algorithm: ClassVar[str] = "ema"

    def __init__(
        self,
        threshold: float,
        *,
        per: Per = "global",
        p: float = 2.0,
        beta: float = 0.99,
        initial: float = math.inf,
    ) -> None:
        super().__init__(threshold, per=per, p=p)
        self.beta = decay("beta", beta)
        self.initial = positive("initial", initial)

    def fields(self) -> dict[str, Field]:
        """The running mean; 0 before the first norm."""
        return {"ema": Field()}

    def follow(
        self, norms: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The ratio times the mean, and the mean with this step's clipped norm in it."""
        ema = state["ema"]
        begun = ema > 0
        limits = torch.where(begun, self.current * ema, math.inf if self.is_off else self.initial)
        clipped = torch.minimum(norms, limits)
        mean = torch.where(begun, self.beta * ema + (1 - self.beta) * clipped, clipped)
        return limits, {"ema": mean}
