"""No clipping: gradients pass and are measured."""

from __future__ import annotations

import math
from typing import ClassVar

from mmrun.clip.law import Law
from mmrun.clip.step import Gradients, InForce


class Unclipped(Law):
    """g -> g: nothing changes, and everything that other laws report is reported.

    Its threshold is infinity, so that one compares it with other laws as their limit.
    """

    algorithm: ClassVar[str] = "none"

    def __init__(self) -> None:
        super().__init__(math.inf)

    def clip(self, gradients: Gradients) -> InForce:
        """Nothing is bounded."""
        plan = gradients.plan
        return InForce(plan.filled(math.inf, 1 + len(plan.scopes)), plan.no_payer)
