"""Laws that multiply each unit's gradient by a coefficient that follows from its norm.

Three choices make such a law: the granularity (``per``), the threshold in force (``limits``), the response
(``respond``). One pass reads the norms, one multiplies; every statistic follows from norms and coefficients.
"""

from __future__ import annotations

from typing import ClassVar, get_args

import torch
from torch import Tensor

from mmrun.clip.law import Law, positive
from mmrun.clip.layout import Per
from mmrun.clip.step import Gradients, InForce
from mmrun.errors import UserError, nearest

LEAST_P = 0.05  # below it K^(1/p) of a million elements leaves float64


class Scaling(Law):
    """g_u -> s(n_u, c_u) g_u for each unit u, where n_u is its p-norm and c_u its threshold.

    Args:
        threshold: as the law says.
        per: the unit: everything (``global``), each scope (``modality``), each parameter (``tensor``), or each
            output row of a parameter (``unit``: a vector is one unit).
        p: order of the norm that is compared with the threshold, > 0; infinity is the largest element.

    Raises:
        UserError: a number out of range, or a granularity that the law does not have.
    """

    granularities: ClassVar[tuple[Per, ...]] = get_args(Per)

    def __init__(self, threshold: float, *, per: Per = "global", p: float = 2.0) -> None:
        super().__init__(threshold)
        if per not in self.granularities:
            others = ", ".join(self.granularities)
            given = per in get_args(Per)
            raise UserError(
                f"clip={self.algorithm} has no clip.per={per}",
                remedy=f"It has {others}." if given else nearest(str(per), self.granularities),
            )
        self.per = per
        self.p = positive("p", p)
        if self.p < LEAST_P:
            raise UserError(
                "clip.p is so small that a norm of many elements is no number",
                given=p,
                remedy=f"Give {LEAST_P:g} or more.",
            )

    def limits(self, norms: Tensor, gradients: Gradients) -> Tensor | float:  # noqa: ARG002 (for laws that adapt)
        """The threshold in force: one number, or one per unit [U]. norms: p-norms of the units [U]."""
        return self.current

    def respond(self, norms: Tensor, limits: Tensor | float) -> Tensor:
        """The coefficients, where norms and limits broadcast: a hard cap, exactly 1 up to the limit."""
        # A norm that is not finite counts as 0, so its unit passes: c / inf = 0 would make 0 * inf = NaN.
        finite = torch.nan_to_num(norms, nan=0.0, posinf=0.0)
        return torch.nan_to_num(limits / finite, nan=1.0, posinf=1.0).clamp_(max=1.0)

    def teaches(self, norms: Tensor, gradients: Gradients) -> Tensor:
        """Which units [U] a law that remembers norms learns from: see ``Gradients.teaches``."""
        return gradients.teaches(norms)

    def clip(self, gradients: Gradients) -> InForce:
        """One norm pass (two unless p is 2), one multiplication."""
        plan, per = gradients.plan, self.per
        # Coefficients in the precision that multiplies, so that "changed" means what was multiplied.
        if per != "global":
            norms = gradients.unit_norms(per, self.p)
            limits = self.limits(norms, gradients)
            gradients.multiply(self.respond(norms, limits).to(plan.dtype), per)
            if not isinstance(limits, Tensor):
                limits = plan.filled(limits, len(norms))
            return InForce(plan.join(limits, per, self.p), plan.no_payer)
        joint = gradients.joint(self.p)  # [1 + S]
        limits = self.limits(joint[:1], gradients)
        # The global one, then what each scope needs alone: [1 + S].
        factors = self.respond(joint, limits).to(plan.dtype)
        gradients.multiply(factors[:1], per)
        if not isinstance(limits, Tensor):
            limits = plan.filled(limits, 1)
        # 0 / 0: it alone would have become 0 as well. A scope without a gradient pays nothing.
        wide = factors.to(plan.wide)
        payer = torch.nan_to_num(wide[0] / wide[1:], nan=1.0)
        return InForce(limits.expand(len(joint)), torch.where(joint[1:] > 0, payer, 1.0))
