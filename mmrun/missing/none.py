"""No fill: an absent modality stays absent, and the fusion works with the others."""

from __future__ import annotations

from mmrun.missing import Missing


class NoFill(Missing):
    """Absent stays absent: no input, no token, no loss is added."""
