"""Clipping by the root mean square: g_u -> g_u / max(1, rms(g_u) / d) for each unit u."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from mmrun.clip.layout import Per
from mmrun.clip.scaling import Scaling
from mmrun.clip.step import Gradients


class BlockRMS(Scaling):
    """g_u -> g_u / max(1, rms(g_u) / d): norm clipping at d sqrt(elements of u), whatever the size of the unit.

    Source: Shazeer, Stern 2018 (Adafactor), arXiv 1804.04235, section 6, "update clipping"; ``optax.clip_by_block_rms``.
    There it is the update that is clipped: ``clip.on=update`` does that. Of a raw gradient d must fit its scale.

    Args:
        threshold: d, in units of a gradient's element; infinity is "off".
        per: the unit, as in ``Scaling``.

    Raises:
        UserError: a number out of range, or an option that does not exist.
    """

    algorithm: ClassVar[str] = "block_rms"

    def __init__(self, threshold: float, *, per: Per = "tensor") -> None:
        super().__init__(threshold, per=per)

    def limits(self, norms: Tensor, gradients: Gradients) -> Tensor | float:  # noqa: ARG002 (signature)
        """The bound d sqrt(elements) [U]; elements of absent gradients do not count."""
        if self.is_off:
            return self.current
        return self.current * gradients.unit_sizes(self.per).sqrt()
