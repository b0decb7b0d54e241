"""Clip21: what is clipped is the difference from the last gradient that was passed on, not the gradient."""

from __future__ import annotations

from typing import ClassVar

import torch

from mmrun.clip.buckets import in_parts
from mmrun.clip.elements import Elementwise
from mmrun.clip.layout import Per
from mmrun.clip.scaling import Scaling
from mmrun.clip.step import Gradients, InForce, usable


class Clip21(Elementwise, Scaling):
    """v_u <- v_u + d_u min(1, c / ||d_u||_p) with d_u = g_u - v_u, for each unit u; g_u -> v_u.

    A gradient that stays what it is gets through in full after some steps, where other laws cut it for ever. Source:
    Khirirat et al. 2023 (Clip21), arXiv 2305.18929, where each worker does so before gradients are averaged. Done
    after that, as here, it limits how fast the gradient changes. It may lengthen a gradient: v lags behind one that
    shrinks. A unit whose gradient is all zeros or not finite passes and learns nothing; a parameter without a gradient
    takes no part.

    Args:
        threshold: c, in units of the gradient's p-norm; infinity is "off".
        per: the unit: ``global``, ``modality`` or ``tensor``.
        p: order of the norm.

    Raises:
        UserError: a number out of range, or a sparse gradient.
    """

    algorithm: ClassVar[str] = "clip21"
    remembers: ClassVar[tuple[str, ...]] = ("v",)
    granularities: ClassVar[tuple[Per, ...]] = ("global", "modality", "tensor")

    def __init__(self, threshold: float, *, per: Per = "global", p: float = 2.0) -> None:
        super().__init__(threshold, per=per, p=p)

    def clip(self, gradients: Gradients) -> InForce:
        """The threshold in force bounds the difference."""
        plan, per = gradients.plan, self.per
        passed_on = self.remembered(gradients)["v"]
        norms = gradients.unit_norms(per, self.p)
        acts = gradients.each(plan.expand(usable(norms), per))
        learns = gradients.each(plan.expand(gradients.teaches(norms), per))
        tensors = gradients.open()
        differences = [g.to(v.dtype) - v for g, v in zip(tensors, passed_on, strict=True)]
        lengths = gradients.measure(differences, self.p)
        if per != "tensor":
            joint = plan.join(lengths, "tensor", self.p)
            lengths = joint[1:] if per == "modality" else joint[:1]
        factors = gradients.each(plan.expand(self.respond(lengths, self.current), per))
        parts = zip(tensors, passed_on, differences, factors, acts, learns, strict=True)
        for g, v, difference, factor, acting, learnt in in_parts(parts):
            # Not v + (g - v) where all of the difference passes: g keeps its bits.
            moved = torch.where(factor < 1.0, v + difference.mul_(factor), g)
            v.copy_(torch.where(learnt, moved, v))
            g.copy_(torch.where(acting, moved, g))
        return InForce(plan.filled(self.current, 1 + len(plan.scopes)), plan.no_payer)
