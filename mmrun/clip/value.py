"""Value clipping: each element is clamped to [-c, c]."""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from mmrun.clip.law import Law, Stats
from mmrun.clip.layout import Gradients


class Value(Law):
    """g_i -> min(max(g_i, -c), c) for each element i, so the direction may change.

    NaN stays NaN; an infinite element becomes c, so it shows in ``norm`` but not in ``norm_clipped``.
    Source: ``torch.nn.utils.clip_grad_value_``, ``optax.clip``.

    Args:
        threshold: c, in units of a gradient's element; infinity is "off".
        record_every: as in ``Law``.

    Raises:
        UserError: a number out of range.
    """

    algorithm: ClassVar[str] = "value"

    def __init__(self, *, threshold: float, record_every: int = 1) -> None:
        super().__init__(threshold=threshold, record_every=record_every)

    def clip(self, gradients: Gradients) -> Stats:
        """One pass clamps; a copy of each scope from before tells what it did."""
        plan = gradients.plan
        before = gradients.copies()  # S of [elements]
        for g in gradients.tensors:
            # A bound that the dtype cannot hold bounds nothing: clamp_ would refuse it.
            c = self.threshold if self.threshold <= torch.finfo(g.dtype).max else math.inf
            g.clamp_(-c, c)  # one pass; torch's clip_grad_value_ takes two
        after = gradients.copies()
        raw, clipped = plan.norms(before), plan.norms(after)  # [S]
        # Not from the norms of raw, clipped and their difference: that cancels where much is cut off.
        pairs = zip(before, after, strict=True)
        inner = plan.gather([(b * a).sum() for b, a in pairs])
        # sign is 0 for NaN: an element that stays NaN did not change.
        signs = plan.norms([b.sub_(a).sign_() for b, a in zip(before, after, strict=True)])
        return Stats(
            raw=raw,
            clipped=clipped,
            inner=inner,
            changed=(
                signs * signs
            ).round(),  # the 1-norm would say it, but is 5 times slower on a CPU
            threshold=plan.constant(*[self.threshold] * (1 + len(plan.scopes))),
            payer=plan.constant(*[1.0] * len(plan.scopes)),
            elements=plan.elements,
            member=plan.scope_member,
            dtype=plan.dtype,
        )
