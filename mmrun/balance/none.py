"""No balancing: every modality gets the gradient that the objective gives it."""

from __future__ import annotations

from mmrun.balance import Balance


class NoBalance(Balance):
    """g -> g: no further losses, the sum of gradients, no scales."""
