"""Value clipping: each element of the gradient is clamped to [-c, c]."""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from mmrun.clip.law import Law
from mmrun.clip.step import Gradients, InForce


class Value(Law):
    """g_i -> min(max(g_i, -c), c) for each element i, so the direction may change.

    NaN stays NaN; an infinite element becomes c, so it shows in ``norm`` but not in ``norm_clipped``.
    Source: ``torch.nn.utils.clip_grad_value_``, ``optax.clip``.

    Args:
        threshold: c, in units of a gradient's element; infinity is "off".

    Raises:
        UserError: a number out of range.
    """

    algorithm: ClassVar[str] = "value"

    def clip(self, gradients: Gradients) -> InForce:
        """One pass clamps; a copy of each scope from before tells what it did."""
        plan, threshold = gradients.plan, self.current
        for g in gradients.open():
            # A bound that the dtype cannot hold bounds nothing: clamp_ would refuse it.
            c = threshold if threshold <= torch.finfo(g.dtype).max else math.inf
            g.clamp_(-c, c)  # one pass; torch's clip_grad_value_ takes two
        return InForce(plan.filled(threshold, 1 + len(plan.scopes)), plan.no_payer)
