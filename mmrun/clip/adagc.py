"""AdaGC: each parameter is clipped to a multiple of the running mean of its own clipped norm."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from mmrun.clip.law import count, decay, positive
from mmrun.clip.layout import Per
from mmrun.clip.memory import Field
from mmrun.clip.scaling import Scaling
from mmrun.clip.step import Gradients, usable


class AdaGC(Scaling):
    """g_u -> g_u min(1, r m_u / n_u), then m_u -> beta m_u + (1 - beta) of the clipped norm.

    During the first ``warmup_steps`` steps the global norm is clipped to ``absolute``, and m_u is the least clipped norm
    of the unit. Source: Wang et al. 2025, arXiv 2502.11034, Algorithm 1, and the AdaGC class of its Megatron patch
    (whose numbers are r 1.04, beta 0.99, and a warm-up that is one step longer). Deviations: a gradient of 0 teaches
    nothing (there m_u becomes 0 and the parameter stands still for good); a unit that had no gradient during
    the warm-up passes with its first one, which m_u then starts from.

    Args:
        threshold: r, a ratio, > 0; infinity is "off".
        per: the unit: global, modality or tensor, as in ``Scaling``.
        beta: weight of the past, from 0 to below 1.
        warmup_steps: steps of the warm-up; those without any gradient, or with a non-finite one, do not count.
        absolute: bound on the global norm during the warm-up, in units of the gradient's L2 norm; infinity is none.

    Raises:
        UserError: a number out of range, or an option that does not exist.
    """

    algorithm: ClassVar[str] = "adagc"
    granularities: ClassVar[tuple[Per, ...]] = ("global", "modality", "tensor")

    def __init__(
        self,
        threshold: float,
        *,
        per: Per = "tensor",
        beta: float = 0.98,
        warmup_steps: int = 100,
        absolute: float = 1.0,
    ) -> None:
        super().__init__(threshold, per=per)
        self.beta = decay("beta", beta)
        self.warmup_steps = count("warmup_steps", warmup_steps)
        self.absolute = positive("absolute", absolute)

    def fields(self) -> dict[str, Field]:
        """The mean, infinity before the first norm, and how many steps there have been."""
        return {"mean": Field(math.inf), "steps": Field()}

    def limits(self, norms: Tensor, gradients: Gradients) -> Tensor:
        """The bound r m_u; during the warm-up the unit's share of ``absolute``, in proportion to its norm."""
        plan = gradients.plan
        state = self.memory.on(plan.device, plan.wide)
        mean, steps = state["mean"], state["steps"]
        whole = norms if self.per == "global" else gradients.joint()[:1]
        warm = steps < self.warmup_steps
        # A step that is not finite passes as it is: a share of 0 would not let it. 0 * infinity is no bound.
        share = torch.where(usable(whole), self.absolute / whole, 1.0)
        shared = torch.nan_to_num(norms * share, nan=math.inf, posinf=math.inf)
        limits = torch.where(warm, shared, self.current * mean)
        if self.is_off:
            limits = torch.full_like(limits, math.inf)
        clipped = torch.minimum(norms, limits)
        # A mean that has infinity in it would never bound.
        late = torch.where(torch.isinf(mean), clipped, self.beta * mean + (1 - self.beta) * clipped)
        mean = torch.where(warm, torch.minimum(mean, clipped), late)
        self.memory.keep(self.teaches(norms, gradients), {"mean": mean})
        self.memory.keep(gradients.teaches(whole).expand_as(steps), {"steps": steps + 1})
        return limits
