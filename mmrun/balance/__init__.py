"""Balance: methods that change how modalities share the gradient. One file each. Contract.

``losses(batch, output) -> {name: scalar}`` adds losses; ``combine(gradients)`` turns the gradients of
each loss {loss: {parameter name: Tensor}} into one {parameter name: Tensor} (asked for when
``per_loss`` is True, which makes the module optimise manually); ``scales() -> {scope: 0-dim
tensor}`` multiplies scopes of the gradient before the clip. The base class is the identity of
each, and so is ``conf/balance/none.yaml``.

To add one: ``mmrun/balance/x.py`` with a class ``X(Balance)`` that overrides what it changes, and
``conf/balance/x.yaml``. It composes with every clip law. The tests find it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from mmrun.batch import Batch, Output


class Balance:
    """How modalities share the gradient; by itself the identity."""

    per_loss: ClassVar[bool] = False

    def losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:  # noqa: ARG002 (contract)
        """Further losses {name: scalar}, summed with the objective's."""
        return {}

    def combine(self, gradients: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """One gradient {parameter: Tensor} from those of each loss: their sum."""
        total: dict[str, Tensor] = {}
        for by_parameter in gradients.values():
            for name, gradient in by_parameter.items():
                total[name] = total[name] + gradient if name in total else gradient
        return total

    def scales(self) -> dict[str, Tensor]:
        """{scope: 0-dim tensor} that multiply the gradient before the clip; none by itself."""
        return {}
