"""Adaptive coordinate-wise clipping (ACClip): an element is cut where its running mean is large beside its running size."""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from mmrun.clip.buckets import in_parts
from mmrun.clip.elements import Elementwise
from mmrun.clip.law import decay, nonnegative, within
from mmrun.clip.layout import Per
from mmrun.clip.step import Gradients, InForce, usable


class Coordinate(Elementwise):
    """g_i -> g_i min(1, c tau_i / (|m_i| + eps)), m_i and tau_i being running means of g_i and of |g_i|.

    m_i <- beta1 m_i + (1 - beta1) g_i and tau_i^alpha <- beta2 tau_i^alpha + (1 - beta2) |g_i|^alpha come first; neither
    is corrected for its start at 0. Source: Zhang et al. 2020 (ACClip), arXiv 1912.03194, for heavy-tailed noise. There
    it is m_i that is cut and steps; here g_i, as momentum is the optimizer's. A parameter whose gradient is all zeros
    or not finite passes and learns nothing.

    Args:
        threshold: c, the multiple of tau_i that the mean is held to; infinity is "off".
        alpha: power of the size that is averaged, from 1 to 2.
        beta1: weight of the past in m, from 0 to below 1.
        beta2: weight of the past in tau^alpha, from 0 to below 1.
        eps: added to |m_i|, 0 or more.

    Raises:
        UserError: a number out of range, or a sparse gradient.
    """

    algorithm: ClassVar[str] = "coordinate"
    remembers: ClassVar[tuple[str, ...]] = ("mean", "power")
    per: Per = "tensor"

    def __init__(
        self,
        threshold: float,
        *,
        alpha: float = 1.0,
        beta1: float = 0.9,
        beta2: float = 0.99,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(threshold)
        self.alpha = within("alpha", alpha, 1.0, 2.0, ends=True)
        self.beta1 = decay("beta1", beta1)
        self.beta2 = decay("beta2", beta2)
        self.eps = nonnegative("eps", eps)

    def clip(self, gradients: Gradients) -> InForce:
        """It bounds neither a norm nor an element, so that the threshold in force is infinity."""
        plan, alpha, beta1, beta2 = gradients.plan, self.alpha, self.beta1, self.beta2
        state = self.remembered(gradients)
        norms = gradients.norms()
        each = gradients.each(usable(norms)), gradients.each(gradients.teaches(norms))
        parts = zip(gradients.open(), state["mean"], state["power"], *each, strict=True)
        for g, mean, power, ok, learnt in in_parts(parts):
            wide = g.to(mean.dtype)
            sizes = wide.abs().pow_(alpha)
            m, tau = beta1 * mean + (1.0 - beta1) * wide, beta2 * power + (1.0 - beta2) * sizes
            mean.copy_(torch.where(learnt, m, mean))
            power.copy_(torch.where(learnt, tau, power))
            if self.is_off:
                continue
            factors = tau ** (1.0 / alpha) * self.current / (m.abs() + self.eps)
            # 0 / 0 with eps 0, where no element has had a gradient so far.
            factors = factors.nan_to_num_(nan=1.0).clamp_(max=1.0)
            g.copy_(torch.where(ok, wide * factors, wide))
        return InForce(plan.filled(math.inf, 1 + len(plan.scopes)), plan.no_payer)
