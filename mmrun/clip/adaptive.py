"""Scalings whose threshold follows the norms of earlier steps."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from mmrun.clip.scaling import Scaling
from mmrun.clip.step import Gradients


class Adaptive(Scaling):
    """c_u follows from the unit's own history, which ``fields`` names and ``follow`` moves on.

    A unit whose norm is 0 or not finite learns nothing at that step. During a warm-up of the threshold, and at
    threshold infinity, it learns and clips nothing.
    """

    @abstractmethod
    def follow(
        self, norms: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(thresholds in force [U], what the state becomes); pure, and only asked of finite norms above 0.

        Args:
            norms: p-norms of the units [U]; where one is 0 or not finite, 1 stands for it, and what
                follows from it is dropped.
            state: the fields, [U, ...].
        """

    def limits(self, norms: Tensor, gradients: Gradients) -> Tensor:
        """The thresholds in force [U]; the state moves on."""
        plan = gradients.plan
        state = self.memory.on(plan.device, plan.wide)
        ok = torch.isfinite(norms) & (norms > 0)
        limits, new = self.follow(torch.where(ok, norms, 1.0), state)
        self.memory.keep(ok, new)
        if self.current == math.inf:
            return torch.full_like(limits, math.inf)
        return limits
