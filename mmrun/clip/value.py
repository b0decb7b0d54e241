"""Value clipping: each element of the gradient is clamped to [-c, c]."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import (
    Tensor,
    _foreach_clamp_max_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_clamp_min_,  # pyright: ignore[reportPrivateImportUsage]
)

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
        """One pass over memory, and some over a cache that tell what it did."""
        plan, c = gradients.plan, self.current

        def clamp(tensors: list[Tensor]) -> None:
            if c > torch.finfo(tensors[0].dtype).max:
                return  # a bound that the dtype cannot hold bounds nothing: clamp_ would refuse it
            if len(tensors) == 1:
                tensors[0].clamp_(-c, c)  # one pass; torch's clip_grad_value_ takes two
            else:
                _foreach_clamp_max_(tensors, c)
                _foreach_clamp_min_(tensors, -c)

        gradients.change(clamp)
        return InForce(plan.filled(c, 1 + len(plan.scopes)), plan.no_payer)
