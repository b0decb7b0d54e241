"""Gradient noise: normal noise whose variance falls from step to step is added to the gradient."""

from __future__ import annotations

import math
from numbers import Integral
from typing import ClassVar

import torch

from mmrun.clip.elements import refuse_sparse
from mmrun.clip.law import Law, nonnegative
from mmrun.clip.memory import Field
from mmrun.clip.normal import normal
from mmrun.clip.shards import part
from mmrun.clip.step import Gradients, InForce, usable
from mmrun.errors import UserError


class Noise(Law):
    """g -> g + N(0, eta / (1 + t)^decay) for each element, t being how many steps there were before.

    The noise follows from seed, t and a parameter's name alone: it is the same on every rank and after a restart,
    whatever other parameters there are, and torch's own random numbers stay as they are. A step that is not finite or
    all zeros does not count. A parameter whose gradient is all zeros or not finite gets no noise. It bounds
    nothing, and lengthens most gradients. Source: Neelakantan et al. 2015, arXiv 1511.06807, equation 1.

    Args:
        threshold: eta, the variance at the first step. Infinity is "off", as for every law: no noise.
        decay: how fast the variance falls, 0 or more.
        seed: of the noise.

    Raises:
        UserError: a number out of range, or a sparse gradient.
    """

    algorithm: ClassVar[str] = "noise"

    def __init__(self, threshold: float, *, decay: float = 0.55, seed: int = 0) -> None:
        super().__init__(threshold)
        self.decay = nonnegative("decay", decay)
        if isinstance(seed, bool) or not isinstance(seed, Integral):
            raise UserError("clip.seed is a whole number", given=seed, remedy="Give e.g. 0.")
        self.seed = int(seed)

    def fields(self) -> dict[str, Field]:
        """t, of the whole."""
        return {"steps": Field()}

    def clip(self, gradients: Gradients) -> InForce:
        """Nothing is bounded. During a warm-up there is no noise."""
        refuse_sparse(gradients, self.algorithm)
        plan = gradients.plan
        counted = gradients.teaches(gradients.joint()[:1])
        ok = gradients.each(usable(gradients.norms()))
        steps = self.memory.on(plan.device, plan.wide)["steps"]
        now = steps[0].clone()
        self.memory.keep(counted, {"steps": steps + 1.0})
        tensors = (
            gradients.open()
        )  # also while it is off: statistics are of the same pieces at every step
        if not self.is_off:
            deviation = (self.current / (1.0 + now) ** self.decay).sqrt()
            for i, g, noisy in zip(plan.present, tensors, ok, strict=True):
                name = f"{plan.layout.names[i]} {part(plan.layout.parameters[i])}"
                noise = normal(f"{self.seed} {name}", now, g)
                noise *= torch.where(noisy, deviation.to(g.device, non_blocking=True), 0.0)
                g.copy_(torch.where(noisy, g + noise, g))
        return InForce(plan.filled(math.inf, 1 + len(plan.scopes)), plan.no_payer)
