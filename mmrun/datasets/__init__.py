"""Datasets: one file each. Contract, and how to add one.

``Dataset(*, seed, use, **knobs)`` has ``spec: DatasetSpec`` and ``split(name) -> Split`` for "train",
"val" and "test". ``use`` is the tuple of modalities to train on, a subset of the YAML's
``modalities`` (in the dataset's order); ``spec.modalities`` names just those. ``seed`` (the
config's ``data_seed``) decides splits and noise. The constructor reads and checks the data and
raises ``UserError`` for anything that the user can mend; it writes nothing.

A ``Split`` has ``len()``, ``batch(index: Tensor) -> Batch`` (batched indexing: no per-sample Python),
``to(device)`` and ``group`` (int64 [N]: samples that share a group, such as views of one digit or clips of one
speaker, are not independent). Validation is never test. A dataset that makes its splits puts no group into two of
them; where train and test come as files that share groups, so may train and a validation held out of it.

``prepare(modality, values) -> values`` is what ``mmrun predict`` needs: samples as the user has them
become what the encoder gets. A dataset that scales its files scales new samples alike.

To add one: ``mmrun/datasets/x.py`` with a class ``X(Dataset)`` and ``conf/dataset/x.yaml``: a first
comment line that says what it is, ``_target_``, ``batch_size``, ``use: all``, ``modalities``
{name: kind, or a mapping with a ``kind``}, the preferences ``encoders`` {modality: option} and
``objective``, then the knobs. The tests find it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

from mmrun.batch import Batch
from mmrun.spec import DatasetSpec

SplitName = Literal["train", "val", "test"]


class Split(Protocol):
    """Some samples of a dataset, served by batched indexing."""

    group: Tensor

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> Batch:
        """The samples at ``index`` (int64 [B]), as one batch."""
        ...

    def to(self, device: torch.device | str) -> Split:
        """The same split with its tensors on ``device``, where it holds any."""
        ...


class Dataset(ABC):
    """Samples of several modalities in three disjoint splits."""

    spec: DatasetSpec

    @abstractmethod
    def split(self, name: SplitName) -> Split:
        """The samples of one split."""

    def prepare(self, modality: str, values: Tensor) -> Tensor:
        """Raw samples [N, *shape] of a modality as the encoder gets them: int64 ids of text, else float32."""
        return values.long() if self.spec.modalities[modality].kind == "text" else values.float()


class MemorySplit:
    """A split held in memory as one tensor per modality.

    Args:
        inputs: {modality: [N, ...]}.
        target: [N], [N, D] or [N, 0].
        group: int64 [N]; each sample its own group when not given.
        present: {modality: Bool [N]}; all present when not given.
        mask: {modality: Bool [N, T]} of the padded modalities.
    """

    def __init__(
        self,
        inputs: Mapping[str, Tensor],
        target: Tensor,
        *,
        group: Tensor | None = None,
        present: Mapping[str, Tensor] | None = None,
        mask: Mapping[str, Tensor] | None = None,
    ) -> None:
        n = len(target)
        here = present or {}
        self.inputs = dict(inputs)
        self.present = {
            name: here.get(name, torch.ones(n, dtype=torch.bool)) for name in self.inputs
        }
        self.mask = dict(mask or {})
        self.target = target
        self.group = torch.arange(n) if group is None else group

    def __len__(self) -> int:
        return len(self.target)

    def batch(self, index: Tensor) -> Batch:
        """The samples at ``index`` (int64 [B]), as one batch."""
        return Batch(
            {name: values[index] for name, values in self.inputs.items()},
            {name: flags[index] for name, flags in self.present.items()},
            {name: flags[index] for name, flags in self.mask.items()},
            self.target[index],
            index,
        )

    def to(self, device: torch.device | str) -> MemorySplit:
        """The same split with its tensors on ``device``."""

        def moved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: values.to(device) for name, values in tensors.items()}

        return MemorySplit(
            moved(self.inputs),
            self.target.to(device),
            group=self.group,
            present=moved(self.present),
            mask=moved(self.mask),
        )
