"""Quantile tracking: a threshold that moves geometrically until a set share of norms is below it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from mmrun.clip.adaptive import Adaptive
from mmrun.clip.law import finite
from mmrun.clip.layout import Per
from mmrun.clip.memory import Field
from mmrun.errors import UserError


class Quantile(Adaptive):
    """g_u -> g_u min(1, c_u / n_u), then c_u -> c_u exp(-rate ([n_u <= c_u] - gamma)): c_u tends to the gamma-quantile.

    One number of state where AutoClip keeps a window. Source: Andrew et al. 2019, arXiv 1905.03871, Algorithm 1, without
    its noise and of whole gradients, where theirs are those of single users.

    Args:
        threshold: gamma, the share of norms that shall pass, in (0, 1]; infinity is "off", and learns as 1 does.
        per: the unit, as in ``Scaling``.
        p: order of the norm.
        rate: step of ln c, > 0: at most that much a step.
        initial: c at the start, in units of the gradient's p-norm, > 0.
        lowest: c never falls below it, > 0.

    Raises:
        UserError: a number out of range, or an option that does not exist.
    """

    algorithm: ClassVar[str] = "quantile"

    def __init__(
        self,
        threshold: float,
        *,
        per: Per = "global",
        p: float = 2.0,
        rate: float = 0.2,
        initial: float = 0.1,
        lowest: float = 1e-12,
    ) -> None:
        super().__init__(threshold, per=per, p=p)
        if 1 < self.threshold < math.inf:
            raise UserError(
                "clip.threshold is the share of norms that shall pass",
                given=threshold,
                remedy="Give a number above 0, up to 1; or .inf for no bound.",
            )
        self.rate = finite("rate", rate)
        self.initial = finite("initial", initial)
        self.lowest = finite("lowest", lowest)

    def fields(self) -> dict[str, Field]:
        """The bound c."""
        return {"limit": Field(self.initial)}

    def follow(
        self, norms: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The bound c as it was, and as it is then."""
        limit = state["limit"]
        # During a warm-up of the engine c is learnt for the time after it.
        gamma = min(self.threshold if self.is_off else self.current, 1.0)
        passes = (norms <= limit).to(limit.dtype)
        moved = limit * torch.exp(-self.rate * (passes - gamma))
        return limit, {"limit": moved.clamp_(min=self.lowest)}
