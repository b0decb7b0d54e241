"""Diagnostics: what is measured of a training on request, and never changes it. One file each. Contract.

``Diagnostics(scopes, modalities, **knobs)`` has ``columns`` (names that it adds to metrics.csv, fixed from the start) and is called
at three places, on every rank alike:

- ``due(step)``: is this optimizer step measured? If so, on the last micro-batch of the step,
  ``before(aside, batch)`` on the weights that it starts from and ``after(aside, batch)`` on those that it ends with: each
  returns {name: 0-dim tensor}. ``aside`` gives the gradient of the training loss and leaves no trace: ``.grad``, buffers
  and random numbers stay what they were. Every rank measures its own share of the batch; means over ranks go to
- ``logged(values) -> {column: value}``, on the host;
- ``fetched(steps, rows) -> {column: value}``: what gradients.csv gets, whenever it has been fetched anyway.

``state_dict`` goes into checkpoints. The base class measures nothing, and so does ``conf/diagnostics/none.yaml``.

To add one: ``mmrun/diagnostics/x.py`` with a class ``X(Diagnostics)`` and ``conf/diagnostics/x.yaml``. The tests find it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from mmrun.batch import Batch
from mmrun.diagnostics._aside import Aside

Array = NDArray[Any]
Scopes = Mapping[str, Mapping[str, nn.Parameter]]


class Diagnostics:
    """What is measured of a training; by itself nothing.

    Args:
        scopes: {scope: {parameter name: Parameter}}; every trainable parameter once.
        modalities: their names.
    """

    columns: tuple[str, ...] = ()

    def __init__(self, scopes: Scopes, modalities: Sequence[str]) -> None:
        self.scopes = scopes
        self.modalities = tuple(modalities)

    def due(self, step: int) -> bool:  # noqa: ARG002 (contract)
        """Whether to measure at this optimizer step, counted from 1."""
        return False

    def before(self, aside: Aside, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002 (contract)
        """Measured on the weights that a step starts from."""
        return {}

    def after(self, aside: Aside, batch: Batch) -> dict[str, Tensor]:  # noqa: ARG002 (contract)
        """Measured on the weights that the same step ends with, on the same batch."""
        return {}

    def logged(self, values: Mapping[str, float]) -> dict[str, float]:
        """{column: value} from what was measured at one step."""
        return dict(values)

    def fetched(self, steps: Array, rows: Mapping[str, Array]) -> dict[str, float]:  # noqa: ARG002
        """{column: value} from the rows {column: [T]} of the last T steps; also at steps that are not due."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know of the steps before its checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
