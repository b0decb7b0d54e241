"""Norm clipping: g_u -> g_u min(1, c_u / ||g_u||_p) for each unit u."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, get_args

from torch import Tensor

from mmrun.clip.layout import Per, Scopes
from mmrun.clip.scaling import Scaling
from mmrun.errors import UserError, nearest

Budget = Literal["total", "each"]


class Norm(Scaling):
    """g_u -> g_u min(1, c_u / ||g_u||_p): a gradient longer than c_u is shortened to c_u, direction kept.

    Source: Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063, Algorithm 1. With ``eps=1e-6`` and ``per=global`` the numbers
    are those of ``torch.nn.utils.clip_grad_norm_``, which divides by the norm plus 1e-6 and so shortens even
    a gradient of length c; by itself (eps 0) that one keeps its bits. ``per=tensor budget=each`` is Keras's ``clipnorm``.

    Args:
        threshold: c, in units of the gradient's p-norm; infinity is "off".
        p: order of the norm, > 0; infinity is the largest element.
        per: the unit: everything (``global``), each scope (``modality``) or each parameter (``tensor``).
        budget: what c is shared by. ``total``: each of K units gets c / K^(1/p), so that the whole gradient's p-norm is
            at most c however it is cut up; ``each``: every unit gets c. K counts the units with trainable
            parameters when the law is bound, whether or not they have a gradient at a step.
        eps: added to the norm that divides, >= 0.
        record_every: as in ``Law``.

    Raises:
        UserError: a number out of range, or an option that does not exist.
    """

    algorithm: ClassVar[str] = "norm"

    def __init__(
        self,
        *,
        threshold: float,
        p: float = 2.0,
        per: Per = "global",
        budget: Budget = "total",
        eps: float = 0.0,
        record_every: int = 1,
    ) -> None:
        super().__init__(threshold=threshold, per=per, p=p, record_every=record_every)
        if budget not in get_args(Budget):
            raise UserError(
                "there is no such clip.budget",
                given=budget,
                remedy=nearest(str(budget), get_args(Budget)),
            )
        if not 0 <= float(eps) < math.inf:
            raise UserError(
                "clip.eps must be 0 or more, and finite", given=eps, remedy="Give 0 or 1e-6."
            )
        self.budget: Budget = budget
        self.eps = float(eps)
        self._limit = self.threshold

    def bind(self, scopes: Scopes) -> None:
        """Bind, and share the threshold out to the units."""
        super().bind(scopes)
        units = max(self.layout.units(self.per), 1)
        self._limit = self.threshold
        if self.budget == "total":
            self._limit *= float(units) ** (-1.0 / self.p)
        if self._limit == 0:
            raise UserError(
                "clip.p is so small that the share of each unit is 0",
                given=f"p={self.p:g}, {units} units",
                remedy="Give a larger clip.p, or clip.budget=each.",
            )

    def limits(self, norms: Tensor) -> float:  # noqa: ARG002 (the threshold does not adapt)
        """c, or each unit's share of it."""
        return self._limit

    def respond(self, norms: Tensor, limits: Tensor | float) -> Tensor:
        """min(1, c / (n + eps)), exactly 1 where that is not below 1 or the norm is not finite."""
        return super().respond(norms + self.eps if self.eps else norms, limits)
