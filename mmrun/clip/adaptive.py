"""Scalings whose threshold follows the norms of earlier steps."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from mmrun.clip.scaling import Scaling
from mmrun.clip.step import Gradients, usable


class Adaptive(Scaling):
    """c_u follows from the unit's own history, which ``fields`` names and ``follow`` moves on.

    ``Gradients.teaches`` says when a unit learns; a finite one that does not is clipped as if it did. While the threshold
    is infinite (an engine's warm-up), a law learns and clips nothing.
    """

    @abstractmethod
    def follow(
        self, norms: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(thresholds in force [U], what the state becomes); pure.

        Args:
            norms: p-norms of the units [U]; 0 for one that is not finite: what its state becomes is dropped, and its
                threshold is what another gradient would have met.
            state: the fields, [U, ...].
        """

    def limits(self, norms: Tensor, gradients: Gradients) -> Tensor:
        """The thresholds in force [U]; the state moves on."""
        plan = gradients.plan
        state = self.memory.on(plan.device, plan.wide)
        limits, new = self.follow(torch.where(usable(norms), norms, 0.0), state)
        self.memory.keep(self.teaches(norms, gradients), new)
        return torch.full_like(limits, math.inf) if self.is_off else limits
