"""AdaGN: each unit's gradient is normalised, then given a length that Adam's rule makes of its norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from mmrun.clip.adaptive import Adaptive
from mmrun.clip.law import decay, nonnegative
from mmrun.clip.layout import Per
from mmrun.clip.memory import Field
from mmrun.clip.normalize import to_length


class AdaGN(Adaptive):
    """g_u -> a_u g_u / n_u with a_u = c m_u / (sqrt(v_u) + eps), m and v running means of n_u and n_u^2 without bias.

    A norm like its predecessors gives length c. 0 stays 0; short gradients are lengthened.
    Source: Huang et al. 2025 (Stable-SPAM), arXiv 2502.17055, section 4, and stablespam.py. Deviation: there the resets of
    Adam's moments also restart the step count of these means; here each unit counts its own steps.

    Args:
        threshold: c, what the length is multiplied by; infinity is "off".
        per: the unit, as in ``Scaling``.
        beta1: weight of the past in the mean of the norm, from 0 to below 1.
        beta2: the same for the squared norm.
        eps: added to the root of the mean square, >= 0, in the gradient's units.

    Raises:
        UserError: a number out of range, or an option that does not exist.
    """

    algorithm: ClassVar[str] = "adagn"

    def __init__(
        self,
        threshold: float,
        *,
        per: Per = "tensor",
        beta1: float = 0.7,
        beta2: float = 0.9,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(threshold, per=per)
        self.beta1 = decay("beta1", beta1)
        self.beta2 = decay("beta2", beta2)
        self.eps = nonnegative("eps", eps)

    def fields(self) -> dict[str, Field]:
        """Running means of norm and squared norm, from 0, and how many norms there have been."""
        return {"mean": Field(), "square": Field(), "seen": Field()}

    def follow(
        self, norms: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The lengths, and the means with this norm in them."""
        seen = state["seen"] + 1
        mean = self.beta1 * state["mean"] + (1 - self.beta1) * norms
        square = self.beta2 * state["square"] + (1 - self.beta2) * norms * norms
        m = mean / (1 - self.beta1**seen)
        v = square / (1 - self.beta2**seen)
        lengths = self.current * m / (v.sqrt() + self.eps)
        # 0 / 0 with eps 0 and no norm so far: it would make the whole threshold NaN.
        return lengths.nan_to_num_(nan=0.0), {"mean": mean, "square": square, "seen": seen}

    def respond(self, norms: Tensor, limits: Tensor | float) -> Tensor:
        """The length over n, 1 where there is nothing to normalise or it is off."""
        return to_length(norms, limits)
