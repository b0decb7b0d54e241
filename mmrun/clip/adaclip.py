"""AdaClip of Stable-SPAM: elements above the running mean of their tensor's largest element are scaled down below it."""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from mmrun.clip.buckets import in_parts
from mmrun.clip.elements import at_least_float32, largest
from mmrun.clip.law import Law, decay
from mmrun.clip.layout import Per
from mmrun.clip.memory import Field
from mmrun.clip.step import Gradients, InForce, usable


class AdaClip(Law):
    """With M = max|g|, T <- beta T + (1 - beta) M and c = threshold T / (1 - beta^t): where |g_i| > c, g_i -> g_i c / M.

    M, T and t are each parameter's own; t counts the gradients that it learnt from. Elements up to c stay, so that one
    that is just above c may end below them. Source: Huang et al. 2025 (Stable-SPAM), arXiv 2502.17055, whose AdaGN
    follows: ``Chain(AdaClip(1.0), AdaGN(1.0))``. A parameter whose gradient is all zeros or not finite passes and
    learns nothing.

    Args:
        threshold: multiple of the mean that passes; infinity is "off".
        beta: weight of the past in T, from 0 to below 1.

    Raises:
        UserError: a number out of range.
    """

    algorithm: ClassVar[str] = "adaclip"
    per: Per = "tensor"

    def __init__(self, threshold: float, *, beta: float = 0.999) -> None:
        super().__init__(threshold)
        self.beta = decay("beta", beta)

    def fields(self) -> dict[str, Field]:
        """T, not corrected for its start at 0, and t."""
        return {"mean": Field(), "seen": Field()}

    def clip(self, gradients: Gradients) -> InForce:
        """One pass more than a scaling takes, for the largest elements."""
        plan, beta = gradients.plan, self.beta
        highest = gradients.norms(math.inf)
        ok, learnt = usable(highest), gradients.teaches(highest)
        highest = torch.where(ok, highest, 1.0)
        state = self.memory.on(plan.device, plan.wide)
        seen = state["seen"] + 1.0
        mean = beta * state["mean"] + (1.0 - beta) * highest
        self.memory.keep(learnt, {"mean": mean, "seen": seen})
        bounds = self.current * mean / (1.0 - beta**seen)
        over = ok & (highest > bounds)
        bounds = torch.where(ok, bounds, math.inf)
        factors = torch.where(over, bounds / highest, 1.0)
        parts = zip(gradients.open(), gradients.each(bounds), gradients.each(factors), strict=True)
        for g, bound, factor in in_parts(parts):
            wide = g.to(at_least_float32(g.dtype))
            g.copy_(torch.where(wide.abs() > bound, wide * factor, wide))
        return InForce(largest(gradients, bounds), plan.no_payer)
