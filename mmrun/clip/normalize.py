"""Normalisation: g_u -> c_u g_u / (||g_u||_p + eps), whatever the length of the gradient."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mmrun.clip.bounded import Bounded, Budget, Split
from mmrun.clip.law import nonnegative
from mmrun.clip.layout import Per
from mmrun.clip.step import usable

# A coefficient multiplies in float32, where a larger one is infinite.
LARGEST = torch.finfo(torch.float32).max


class Normalize(Bounded):
    """g_u -> c_u g_u / (||g_u||_p + eps): every gradient gets the length c_u, short ones too; 0 stays 0.

    It is where clipping goes as its threshold falls, with the learning rate raised in turn.
    Source: Cutkosky, Mehta 2020, arXiv 2002.03305, Algorithm 1, of the gradient instead of its momentum;
    ``optax.normalize_by_update_norm``.

    Args:
        threshold, per, p, budget, split: as in ``Bounded``; infinity does not normalise.
        eps: added to the norm, >= 0, in the gradient's units: far below it a gradient is scaled by c / eps.

    Raises:
        UserError: a number out of range, or an option that does not exist.
    """

    algorithm: ClassVar[str] = "normalize"

    def __init__(
        self,
        threshold: float | str,
        *,
        per: Per = "global",
        p: float = 2.0,
        budget: Budget = "total",
        split: Split = "equal",
        eps: float = 1e-6,
    ) -> None:
        super().__init__(threshold, per=per, p=p, budget=budget, split=split)
        self.eps = nonnegative("eps", eps)

    def respond(self, norms: Tensor, limits: Tensor | float) -> Tensor:
        """The length c over n + eps, 1 where there is nothing to normalise by."""
        return to_length(norms, limits, self.eps)


def to_length(norms: Tensor, limits: Tensor | float, eps: float = 0.0) -> Tensor:
    """The coefficient c / (n + eps) where n is finite and above 0, and c is finite; elsewhere 1."""
    ok = usable(norms)
    wanted = limits / (torch.where(ok, norms, 1.0) + eps)
    return torch.where(ok & (wanted < torch.inf), wanted, 1.0).clamp_(max=LARGEST)
