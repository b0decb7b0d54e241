"""No clipping: gradients pass and are measured."""

from __future__ import annotations

import math
from typing import ClassVar

from mmrun.clip.law import Law, Stats
from mmrun.clip.layout import Gradients


class Unclipped(Law):
    """g -> g: nothing changes, and everything that other laws report is reported.

    Its threshold is infinity, so that one compares it with other laws as their limit.

    Args:
        record_every: as in ``Law``.
    """

    algorithm: ClassVar[str] = "none"

    def __init__(self, *, record_every: int = 1) -> None:
        super().__init__(threshold=math.inf, record_every=record_every)

    def clip(self, gradients: Gradients) -> Stats:
        """One norm pass, nothing written."""
        plan = gradients.plan
        raw = gradients.norms()
        scopes = len(plan.scopes)
        return Stats(
            raw=raw,
            clipped=raw,
            inner=raw * raw,
            changed=plan.nothing,
            threshold=plan.constant(*[math.inf] * (1 + scopes)),
            payer=plan.constant(*[1.0] * scopes),
            elements=plan.elements,
            member=plan.member,
            dtype=plan.dtype,
        )
