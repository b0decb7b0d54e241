"""One modality of a folder of arrays: its shape by kind, its statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmrun.datasets._files import ROWS_AT_ONCE
from mmrun.errors import UserError
from mmrun.spec import Kind, ModalitySpec

# One sample of each kind, as the documentation writes it.
AXES: dict[str, tuple[str, ...]] = {
    "image": ("C", "H", "W"),
    "spectrogram": ("F", "T"),
    "waveform": ("T",),
    "text": ("T",),
    "sequence": ("T", "F"),
    "vector": ("F",),
    "frames": ("T", "C", "H", "W"),
}
# The axis that keeps its own mean and standard deviation.
FEATURE_AXIS = {"image": "C", "spectrogram": "F", "sequence": "F", "vector": "F", "frames": "C"}


class Input:
    """One modality as stored, with its spec.

    Args:
        name: of the modality.
        settings: its kind, and the shape of one sample where the file has another.
        values: {split: [N, ...]} as stored.

    Raises:
        UserError: where shapes and kind, or the splits, disagree.
    """

    def __init__(
        self, name: str, settings: Mapping[str, Any], values: Mapping[str, NDArray[Any]]
    ) -> None:
        if extra := set(settings) - {"kind", "shape"}:
            raise UserError(
                f"modality {name} has settings that arrays does not know",
                given=", ".join(sorted(extra)),
                remedy="It takes kind and shape.",
            )
        kind = cast(Kind, settings["kind"])
        self.values = {
            split: _shaped(name, kind, settings.get("shape"), stored)
            for split, stored in values.items()
        }
        shape = self.values["train"].shape[1:]
        for split, stored in self.values.items():
            if stored.shape[1:] != shape:
                raise UserError(
                    f"the samples of modality {name} differ in shape between splits",
                    given=f"train {list(shape)}, {split} {list(stored.shape[1:])}",
                )
            if len(stored) == 0:
                raise UserError(f"modality {name} has no sample in {split}")
        vocabulary = self._vocabulary(name) if kind == "text" else 0
        self.spec = ModalitySpec(
            name=name, kind=kind, shape=shape, vocabulary=vocabulary, padded=kind == "text"
        )

    def tensor(self, split: str) -> Tensor:
        """The stored array of a split, without a copy where torch knows its type."""
        stored = self.values[split]
        if stored.dtype.kind == "u" and stored.dtype.itemsize > 1:
            stored = stored.astype(np.int64 if self.spec.kind == "text" else np.float32)
        elif not stored.dtype.isnative:
            stored = stored.astype(stored.dtype.newbyteorder("="))
        return torch.from_numpy(stored)

    def statistics(self, rows: NDArray[np.int64], *, enabled: bool) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation over the training rows, which broadcast to one sample; None for text.

        A feature that never varies keeps its size: its standard deviation counts as 1.
        """
        if self.spec.kind == "text":
            return None
        axes = AXES[self.spec.kind]
        kept = [k for k, axis in enumerate(axes) if axis == FEATURE_AXIS.get(self.spec.kind)]
        over = tuple(k + 1 for k in range(len(axes)) if k not in kept)
        shape = [size if k in kept else 1 for k, size in enumerate(self.spec.shape)]
        parts: list[NDArray[np.float64]] = []
        for start in range(0, len(rows), ROWS_AT_ONCE):
            chunk = self.values["train"][rows[start : start + ROWS_AT_ONCE]].astype(np.float64)
            mean = chunk.mean(axis=(0, *over), keepdims=True)
            spread = ((chunk - mean) ** 2).mean(axis=(0, *over), keepdims=True)
            parts.append(np.stack([np.full_like(mean, len(chunk)), mean, spread]))
        weight, means, spreads = np.stack(parts, axis=1)
        mean = np.average(means, axis=0, weights=weight)
        # Variance within the chunks and between them; a sum of squares would cancel.
        variance = np.average(spreads + (means - mean) ** 2, axis=0, weights=weight)
        sd = np.sqrt(variance)
        sd = np.where(sd < 1e-6 * (1 + np.abs(mean)), 1.0, sd)
        if not enabled:
            mean, sd = np.zeros_like(mean), np.ones_like(sd)
        return (
            torch.tensor(mean, dtype=torch.float32).reshape(shape),
            torch.tensor(sd, dtype=torch.float32).reshape(shape),
        )

    def _vocabulary(self, name: str) -> int:
        low, high = 0, 0
        for split, stored in self.values.items():
            if stored.dtype.kind not in "iu":
                raise UserError(
                    f"modality {name} is text, but {split} does not hold whole numbers",
                    given=stored.dtype,
                    remedy="Store the ids of the tokens, 0 for padding.",
                )
            low, high = min(low, int(stored.min())), max(high, int(stored.max()))
        if low < 0:
            raise UserError(f"modality {name} is text with a negative id", given=low)
        return high + 1


def _shaped(name: str, kind: Kind, shape: Any, stored: NDArray[Any]) -> NDArray[Any]:
    """The stored array [N, ...] with samples of the shape of their kind."""
    axes = AXES[kind]
    sample = stored.shape[1:]
    if shape is not None:
        wanted = _whole_numbers(name, shape)
        if int(np.prod(wanted)) != int(np.prod(sample)):
            raise UserError(
                f"dataset.modalities.{name}.shape does not fit the file",
                given=f"{list(wanted)}, file {list(stored.shape)}",
                remedy="The first axis of the file counts the samples.",
            )
        sample = wanted
    elif kind == "image" and len(sample) == 2:
        sample = (1, *sample)
    if len(sample) != len(axes):
        raise UserError(
            f"modality {name} is {kind}, whose samples are [{', '.join(axes)}]",
            given=f"file {list(stored.shape)}",
            remedy=f"Give the shape: 'dataset.modalities.{name}="
            f"{{kind: {kind}, shape: [{', '.join(axes)}]}}', with numbers.",
        )
    if 0 in sample:
        raise UserError(
            f"the samples of modality {name} are empty", given=f"file {list(stored.shape)}"
        )
    return stored.reshape(len(stored), *sample)


def _whole_numbers(name: str, shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UserError(
            f"dataset.modalities.{name}.shape is a list of whole numbers",
            given=shape,
            remedy="Such as [1,28,28].",
        )
    return sizes
