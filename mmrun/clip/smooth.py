"""Smooth clipping: g_u -> g_u / (1 + ||g_u||_p / c_u), which has no kink."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mmrun.clip.bounded import Bounded


class Smooth(Bounded):
    """g_u -> g_u / (1 + ||g_u||_p / c_u): always shorter than c_u, half of it at length c_u, and never quite unchanged.

    Source: Bu et al. 2022 (AUTO-S), arXiv 2206.07136, section 4, and Yang et al. 2022 (NSGD), arXiv 2206.13033, where
    a gradient becomes g / (n + gamma). This is c times that with gamma = c, so that a short gradient passes nearly
    as it is; and of whole gradients, where theirs are those of single samples.

    Args:
        threshold, per, p, budget, split: as in ``Bounded``.

    Raises:
        UserError: a number out of range, or an option that does not exist.
    """

    algorithm: ClassVar[str] = "smooth"

    def respond(self, norms: Tensor, limits: Tensor | float) -> Tensor:
        """1 / (1 + n / c), exactly 1 where n is 0 or not finite, or c infinite."""
        ok = (norms > 0) & (norms < torch.inf)
        return torch.where(ok, 1.0 / (1.0 + norms / limits), 1.0)
