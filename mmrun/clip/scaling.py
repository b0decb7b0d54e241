"""Laws that multiply each unit's gradient by a coefficient that follows from its norm.

Three choices make such a law: the granularity (``per``), the threshold in force (``limits``), the response
(``respond``). One pass reads the norms, one multiplies; every statistic follows from norms and coefficients.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from mmrun.clip.law import Law, Stats, positive
from mmrun.clip.layout import Gradients, Per
from mmrun.errors import UserError, nearest


class Scaling(Law):
    """g_u -> s(n_u, c_u) g_u for each unit u, where n_u is its p-norm and c_u its threshold.

    Args:
        threshold: as the law says.
        per: the unit: everything (``global``), each scope (``modality``) or each parameter (``tensor``).
        p: order of the norm that is compared with the threshold, > 0; infinity is the largest element.
        record_every: as in ``Law``.

    Raises:
        UserError: a number out of range, or a granularity that does not exist.
    """

    def __init__(
        self, *, threshold: float, per: Per = "global", p: float = 2.0, record_every: int = 1
    ) -> None:
        super().__init__(threshold=threshold, record_every=record_every)
        if per not in get_args(Per):
            raise UserError(
                f"clip={self.algorithm} has no such clip.per",
                given=per,
                remedy=nearest(str(per), get_args(Per)),
            )
        self.per: Per = per
        self.p = positive("p", p)

    def limits(self, norms: Tensor) -> Tensor | float:  # noqa: ARG002 (for laws that adapt)
        """The threshold in force: one number, or one per unit [U]. norms: p-norms of the units [U]."""
        return self.threshold

    def respond(self, norms: Tensor, limits: Tensor | float) -> Tensor:
        """The coefficients, where norms and limits broadcast: a hard cap, exactly 1 up to the limit."""
        # A norm that is not finite counts as 0, so its unit passes: c / inf = 0 would make 0 * inf = NaN.
        finite = torch.nan_to_num(norms, nan=0.0, posinf=0.0)
        return torch.nan_to_num(limits / finite, nan=1.0, posinf=1.0).clamp_(max=1.0)

    def in_force(self, gradients: Gradients, limits: Tensor | float) -> Tensor:
        """The thresholds to log, [1 + S]: for everything, for each scope.

        By itself for laws whose limit is one number; ``threshold`` stands for everything.
        """
        if isinstance(limits, Tensor):
            raise NotImplementedError(f"{type(self).__name__} adapts, and must say in_force")
        return gradients.plan.constant(self.threshold, *[limits] * len(gradients.plan.scopes))

    def clip(self, gradients: Gradients) -> Stats:
        """One norm pass (two unless p is 2), one multiplication."""
        plan = gradients.plan
        raw = gradients.norms()  # [N]
        # Coefficients in the precision that multiplies, so that "changed" means what was multiplied.
        own = raw if self.p == 2 else gradients.norms(self.p)  # [N]
        no_payer = plan.constant(*[1.0] * len(plan.scopes))
        if self.per == "tensor":
            limits = self.limits(own)
            factors = self.respond(own, limits).to(plan.dtype)  # [N]
            coefficients, payer = factors, no_payer
        else:
            joint = gradients.join(own, self.p)  # [1 + S]
            if self.per == "modality":
                limits = self.limits(joint[1:])
                factors = self.respond(joint[1:], limits).to(plan.dtype)  # [S]
                coefficients, payer = factors.index_select(0, plan.owners), no_payer
            else:
                limits = self.limits(joint[:1])
                # The global one, then what each scope needs alone: [1 + S].
                factors = self.respond(joint, limits).to(plan.dtype)
                coefficients = factors[0]
                payer = coefficients / factors[1:]
        gradients.multiply(factors, self.per)
        clipped = raw * coefficients
        return Stats(
            raw=raw,
            clipped=clipped,
            inner=raw * clipped,
            changed=plan.sizes * raw.sign() * (coefficients != 1),
            threshold=self.in_force(gradients, limits),
            payer=payer,
            elements=plan.elements,
            member=plan.member,
            dtype=plan.dtype,
        )
