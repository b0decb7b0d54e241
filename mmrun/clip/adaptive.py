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

    A unit learns nothing where its norm is 0, and no unit does at a step that is not finite throughout: under the
    engine's default policy such a step is made 0 as a whole. While the threshold is infinite (an engine's warm-up), a
    law learns and clips nothing.
    """

    @abstractmethod
    def follow(
        self, norms: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(thresholds in force [U], what the state becomes); pure.

        Args:
            norms: p-norms of the units [U]; 0 for a unit that learns nothing: what its state becomes is dropped, and
                its threshold is what another gradient would have met.
            state: the fields, [U, ...].
        """

    def limits(self, norms: Tensor, gradients: Gradients) -> Tensor:
        """The thresholds in force [U]; the state moves on."""
        plan = gradients.plan
        state = self.memory.on(plan.device, plan.wide)
        ok = self.teaches(norms, gradients)
        limits, new = self.follow(torch.where(ok, norms, 0.0), state)
        self.memory.keep(ok, new)
        return torch.full_like(limits, math.inf) if self.is_off else limits
