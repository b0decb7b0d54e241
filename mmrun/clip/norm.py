"""Norm clipping: g_u -> g_u min(1, c_u / ||g_u||_p) for each unit u."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from mmrun.clip.bounded import Bounded, Budget, Split
from mmrun.clip.law import nonnegative
from mmrun.clip.layout import Per


class Norm(Bounded):
    """g_u -> g_u min(1, c_u / ||g_u||_p): a gradient longer than c_u is shortened to c_u, direction kept.

    Source: Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063, Algorithm 1. With ``eps=1e-6`` and ``per=global`` the numbers
    are those of ``torch.nn.utils.clip_grad_norm_``, which divides by the norm plus 1e-6 and so shortens even
    a gradient of length c; by itself (eps 0) that one keeps its bits. ``per=tensor budget=each`` is Keras's ``clipnorm``.

    Args:
        threshold, per, p, budget, split: as in ``Bounded``.
        eps: added to the norm that divides, >= 0.

    Raises:
        UserError: a number out of range, or an option that does not exist.
    """

    algorithm: ClassVar[str] = "norm"

    def __init__(
        self,
        threshold: float | str,
        *,
        per: Per = "global",
        p: float = 2.0,
        budget: Budget = "total",
        split: Split = "equal",
        eps: float = 0.0,
    ) -> None:
        super().__init__(threshold, per=per, p=p, budget=budget, split=split)
        self.eps = nonnegative("eps", eps)

    def respond(self, norms: Tensor, limits: Tensor | float) -> Tensor:
        """min(1, c / (n + eps)), exactly 1 where that is not below 1 or the norm is not finite."""
        return super().respond(norms + self.eps if self.eps else norms, limits)
