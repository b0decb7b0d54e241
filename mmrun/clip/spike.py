"""Spike clipping: an element that is far above the root of its own running mean square is cut down to a multiple of it."""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from mmrun.clip.buckets import in_parts
from mmrun.clip.elements import Elementwise, largest
from mmrun.clip.law import count, decay
from mmrun.clip.layout import Per
from mmrun.clip.memory import Field
from mmrun.clip.step import Gradients, InForce, usable


class Spike(Elementwise):
    """g_i -> sign(g_i) min(|g_i|, sqrt(theta v_i)); then v_i <- beta v_i + (1 - beta) g_i^2 of what is left of g_i.

    Source: Huang et al. 2025 (SPAM), arXiv 2501.06842, which uses Adam's second moment for v; here it is the law's
    own, so that it goes with any optimizer. As there, v is that of before the step and not corrected for its start
    at 0. Unlike there, an element with v_i = 0, which never had a gradient, passes: its bound of 0 would hold it for
    good. A parameter whose gradient is all zeros or not finite passes and learns nothing.

    Args:
        threshold: theta, the multiple of an element's mean square that passes; infinity is "off".
        beta: weight of the past in v, from 0 to below 1.
        warmup_steps: gradients of a parameter that are learnt from before it is clipped.

    Raises:
        UserError: a number out of range, or a sparse gradient.
    """

    algorithm: ClassVar[str] = "spike"
    remembers: ClassVar[tuple[str, ...]] = ("v",)
    per: Per = "tensor"

    def __init__(self, threshold: float, *, beta: float = 0.999, warmup_steps: int = 20) -> None:
        super().__init__(threshold)
        self.beta = decay("beta", beta)
        self.warmup_steps = count("warmup_steps", warmup_steps)

    def fields(self) -> dict[str, Field]:
        """How many gradients of each parameter were learnt from."""
        return {"seen": Field()}

    def clip(self, gradients: Gradients) -> InForce:
        """The threshold in force is the largest bound of an element."""
        plan, theta, beta = gradients.plan, self.current, self.beta
        squares = self.remembered(gradients)["v"]
        norms = gradients.norms()
        ok = gradients.teaches(norms)
        seen = self.memory.on(plan.device, plan.wide)["seen"]
        acts = usable(norms) & (seen >= self.warmup_steps)
        self.memory.keep(ok, {"seen": seen + 1})
        highest = gradients.measure(squares, math.inf)
        bounds = torch.where(acts & (highest > 0), (highest * theta).sqrt(), math.inf)
        parts = zip(
            gradients.open(), squares, gradients.each(ok), gradients.each(acts), strict=True
        )
        for g, v, learnt, acting in in_parts(parts):
            bound = torch.where(acting & (v > 0), (v * theta).sqrt_(), math.inf)
            g.clamp_(-bound, bound)
            wide = g.to(v.dtype)
            v.copy_(torch.where(learnt, beta * v + (1.0 - beta) * wide * wide, v))
        return InForce(largest(gradients, bounds), plan.no_payer)
