"""Adaptive gradient clipping: each unit's gradient is bounded in proportion to its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor

from mmrun.clip.anatomy import NO_ANATOMY, Anatomy
from mmrun.clip.law import finite
from mmrun.clip.layout import Per, Plan, Scopes
from mmrun.clip.scaling import Scaling
from mmrun.clip.step import Gradients, InForce
from mmrun.errors import UserError, nearest

OFTEN = ("objective",)  # excluded by default, where it is there


class AGC(Scaling):
    """g_u -> g_u min(1, lambda max(||w_u||, eps) / ||g_u||) for each output row u of weights w.

    Source: Brock et al. 2021, arXiv 2102.06171, equation 3, with the floor under the weight norm and the last layer left
    out as in section 4.1. Rows are by output: of Linear, Conv, Embedding, and of the stacked projections of an LSTM or
    an attention the first dimension, of a transposed convolution the second, unless it has several groups
    (``mmrun.clip.anatomy``). Only modules tell which is one: call it with them, not with their parameters or an
    optimizer, where there are transposed convolutions.

    Args:
        threshold: lambda, the largest ratio of gradient norm to weight norm; infinity is "off".
        per: the unit, as in ``Scaling``; the paper's is ``unit``.
        eps: the least weight norm, > 0: weights of 0 must be able to move.
        exclude: scopes, parameters as <name> or <scope>/<name>, or patterns with * of any: these pass, and count in
            no norm that bounds others. A model may lack the scope ``objective``.

    Raises:
        UserError: a number out of range, or an option that does not exist; what is excluded is not there, at
            the first bind.
    """

    algorithm: ClassVar[str] = "agc"

    def __init__(
        self,
        threshold: float,
        *,
        per: Per = "unit",
        eps: float = 1e-3,
        exclude: Sequence[str] = OFTEN,
    ) -> None:
        super().__init__(threshold, per=per)
        self.eps = finite("eps", eps)
        if isinstance(exclude, str) or not all(isinstance(each, str) for each in exclude):
            raise UserError(
                "clip.exclude is a list of scopes, parameters, or patterns of these",
                given=exclude,
                remedy="Write e.g. clip.exclude=[objective], or [] to exclude nothing.",
            )
        self.exclude = tuple(exclude)
        self._checked = False
        self._kept: list[float] = []  # 1 for a parameter that is clipped, 0 for one that passes [N]

    def bind(self, scopes: Scopes, anatomy: Anatomy = NO_ANATOMY) -> None:
        """Bind, and find what is excluded."""
        super().bind(scopes, anatomy)
        layout = self.layout
        known: list[tuple[str, ...]] = []
        for k, name in zip(layout.owners, layout.names, strict=True):
            scope = layout.scopes[k]
            known.append((scope, name, name.removeprefix(f"{scope}/")))
        self._kept = [
            float(not any(_matches(each, names) for each in self.exclude)) for names in known
        ]
        every = {*layout.scopes, *(name for names in known for name in names)}
        for each in self.exclude:
            # Only once: what a loop calls it with may lack a part now and then.
            if not (self._checked or each in OFTEN or _matches(each, every)):
                self._layout = None  # the next call is told the same
                raise UserError(
                    "clip.exclude matches no scope and no parameter",
                    given=each,
                    remedy=nearest(each, every),
                )
        self._checked = True

    def limits(self, norms: Tensor, gradients: Gradients) -> Tensor:  # noqa: ARG002 (signature)
        """The bound lambda max(||w||, eps), infinity for what is excluded [U]."""
        limits = self._of_weights(gradients.weight_norms(self.per))
        if all(self._kept):
            return limits
        plan = gradients.plan
        kept = self._kept_in(plan)
        return torch.where(
            plan.expand_to_rows(kept, "tensor") if self.per == "unit" else kept, limits, math.inf
        )

    def clip(self, gradients: Gradients) -> InForce:
        """As every scaling; where a unit is many parameters, those that are excluded are no part of it."""
        if self.per in ("tensor", "unit") or all(self._kept):
            return super().clip(gradients)
        plan = gradients.plan
        kept = self._kept_in(plan)

        def joint(norms: Tensor) -> Tensor:
            return plan.join(torch.where(kept, norms, 0.0), "tensor", self.p)  # [1 + S]

        clipped = (plan.member & kept).any(-1)  # [1 + S]
        limits = self._of_weights(joint(gradients.weight_norms("tensor")))
        limits = torch.where(clipped, limits[:1] if self.per == "global" else limits, math.inf)
        norms = joint(gradients.norms())
        factors = self.respond(norms, limits).to(plan.dtype)
        of_units = factors[:1] if self.per == "global" else factors[1:]
        gradients.multiply(torch.where(kept, plan.expand(of_units, self.per), 1.0), "tensor")
        if self.per == "global":
            wide = factors.to(plan.wide)
            return InForce(limits, torch.where(norms[1:] > 0, wide[0] / wide[1:], 1.0))
        return InForce(plan.join(limits[1:], self.per, self.p), plan.no_payer)

    def _of_weights(self, norms: Tensor) -> Tensor:
        return self.current * norms.clamp(min=self.eps)

    def _kept_in(self, plan: Plan) -> Tensor:
        return plan.constants(self._kept) > 0


def _matches(pattern: str, names: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)
