"""linear: a regression y = sum_m x_m . w_m + bias whose every step can be checked by hand.

The inputs of training samples are whole numbers from -2 to 2, the weights are those of the config: without noise, the
targets are exact. Validation has halves between them and the test quarters, so that no splits share a sample.
With one linear head and the loss ``mean((prediction - y)**2)``, the gradient is ``2/N X^T (X w - y)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmrun.datasets import Dataset, MemorySplit, SplitName
from mmrun.datasets._knobs import chosen, declared, stream, within
from mmrun.errors import UserError
from mmrun.spec import DatasetSpec, ModalitySpec

# (how many inputs there are, the smallest), one apart: -2 ... 2; -1.5 ... 1.5; -1.75 ... 1.25
INPUTS = {"train": (5, -2.0), "val": (4, -1.5), "test": (4, -1.75)}


class Linear(Dataset):
    """Least squares with known weights.

    Args:
        seed: decides inputs and noise.
        use: "all", or the modalities to train on; the target depends on all of ``modalities``.
        modalities: {name: {kind: vector, weights: [w1, w2, ...]}}; as many features as weights.
        bias: added to every target.
        noise: standard deviation of Gaussian noise on the targets.
        samples: for training; half as many for validation, and again for test.
    """

    def __init__(
        self,
        *,
        seed: int,
        modalities: Mapping[str, Any],
        use: str | Sequence[str] = "all",
        bias: float = 0.0,
        noise: float = 0.0,
        samples: int = 32,
    ) -> None:
        within("samples", samples, 2)
        within("noise", noise, 0)
        settings = declared(modalities)
        if not settings:
            raise UserError(
                "dataset.modalities is empty",
                remedy="Give one: 'dataset.modalities={a: {kind: vector, weights: [1, -2]}}'.",
            )
        weights = {name: _weights(name, entry) for name, entry in settings.items()}
        names = chosen(use, list(settings))

        self._splits: dict[str, MemorySplit] = {}
        first = 0
        for split, n in {"train": samples, "val": samples // 2, "test": samples // 2}.items():
            choices, smallest = INPUTS[split]
            inputs = {
                name: smallest + stream(seed, name, split).integers(0, choices, (n, len(w)))
                for name, w in weights.items()
            }
            target = bias + noise * stream(seed, "noise", split).standard_normal(n)
            for name, w in weights.items():
                target = target + inputs[name] @ w
            self._splits[split] = MemorySplit(
                {name: torch.from_numpy(inputs[name].astype(np.float32)) for name in names},
                torch.from_numpy(target.astype(np.float32)).unsqueeze(1),  # [N, 1]
                group=torch.arange(first, first + n),
            )
            first += n
        self.spec = DatasetSpec(
            modalities={
                name: ModalitySpec(name=name, kind="vector", shape=(len(weights[name]),))
                for name in names
            },
            target="value",
            target_shape=(1,),
            sizes={name: len(split) for name, split in self._splits.items()},
        )

    def split(self, name: SplitName) -> MemorySplit:
        """The samples of one split."""
        return self._splits[name]


def _weights(name: str, settings: Mapping[str, Any]) -> NDArray[np.float64]:
    """The weights of one modality, [F]."""
    if settings["kind"] != "vector" or set(settings) - {"kind", "weights"}:
        raise UserError(
            f"modality {name} of linear is {{kind: vector, weights: [...]}}", given=dict(settings)
        )
    given = settings.get("weights")
    numbers = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    if not numbers or not all(
        isinstance(w, int | float) and not isinstance(w, bool) and np.isfinite(w) for w in numbers
    ):
        raise UserError(
            f"dataset.modalities.{name}.weights is a list of numbers",
            given=given,
            remedy="Such as [1.0, -2.0].",
        )
    return np.array(numbers, dtype=np.float64)
