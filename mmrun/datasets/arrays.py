"""arrays: your own data, as .npy files in folders named after the modalities.

    root/image/train_data.npy   root/image/test_data.npy   root/image/val_data.npy (optional)
    root/audio/...
    root/train_labels.npy       root/test_labels.npy       root/val_labels.npy (with val files)
    root/train_groups.npy ...   (optional: speaker, patient, source of each sample)

A file's name starts with its split. Files are memory-mapped and never unpickled; numbers become float32, scaled
with the statistics of the training samples, as batches are drawn. Without val files, validation is split off train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmrun.batch import Batch
from mmrun.datasets import Dataset, SplitName
from mmrun.datasets._files import Folder
from mmrun.datasets._input import Input
from mmrun.datasets._knobs import chosen, declared, stream, within
from mmrun.errors import UserError
from mmrun.spec import DatasetSpec

MOST_CLASSES_PER_SAMPLE = 10  # beyond that, labels are numbers of something else


class Arrays(Dataset):
    """Own data from .npy files.

    Args:
        seed: decides which samples or groups are held out for validation.
        use: "all", or the modalities to train on; the files of the others are not read.
        root: the folder.
        modalities: {name of a folder in root: kind, or {kind, shape}}; ``shape`` of one sample where the file is flat.
        val_share: share of the training samples held out for validation; unused where there are val files.
        val_by: hold out samples at random, or whole groups. "auto": groups, where there are groups files and the test
            groups are not in train.
        normalise: zero mean and unit standard deviation by the statistics of the training samples: per feature of a
            vector or sequence, per band of a spectrogram, per channel of an image; or "none".
        target: what the labels are; "auto": values where they are floating-point numbers, else classes.
        class_names: names of the classes, in the order of their labels; may be empty.

    Raises:
        UserError: for whatever is missing in the folder or disagrees.
    """

    def __init__(
        self,
        *,
        seed: int,
        use: str | Sequence[str] = "all",
        root: str = "",
        modalities: Mapping[str, Any] | None = None,
        val_share: float = 0.2,
        val_by: Literal["auto", "random", "group"] = "auto",
        normalise: Literal["standard", "none"] = "standard",
        target: Literal["auto", "class", "value"] = "auto",
        class_names: Sequence[str] = (),
    ) -> None:
        within("val_share", val_share, above=0, below=1)
        folder = Folder(root)
        kinds = declared(modalities or {})
        if not kinds:
            raise folder.undeclared()
        names = chosen(use, list(kinds))
        files = folder.splits(names)

        labels = folder.labels(files, target)
        inputs = {name: Input(name, kinds[name], folder.inputs(name, files)) for name in names}
        for name, modality in inputs.items():
            for split, values in modality.values.items():
                if len(values) != len(labels[split]):
                    raise UserError(
                        f"{split} has {len(labels[split])} labels but {len(values)} samples of {name}",
                        given=folder.path,
                        remedy="Row i of every file of a split must be the same sample.",
                    )
        groups, real_groups = folder.groups({split: len(labels[split]) for split in files})
        if "val" in files and real_groups:
            _check_apart(groups)
        rows = {split: torch.arange(len(labels[split])) for split in files}
        if "val" not in files:
            known = groups if real_groups else None
            train, val = _held_out(
                len(labels["train"]), known, val_share, val_by, stream(seed, "val")
            )
            rows["train"], rows["val"] = torch.from_numpy(train), torch.from_numpy(val)

        self._splits: dict[str, ArraysSplit] = {}
        self._scales = {
            name: inputs[name].statistics(rows["train"].numpy(), enabled=normalise == "standard")
            for name in names
        }
        for split in ("train", "val", "test"):
            source = split if split in files else "train"
            self._splits[split] = ArraysSplit(
                {name: inputs[name].tensor(source) for name in names},
                self._scales,
                torch.from_numpy(labels[source])[rows[split]],
                rows[split],
                torch.from_numpy(groups[source])[rows[split]],
                padded=tuple(name for name in names if inputs[name].spec.padded),
            )
        sizes = {name: len(split) for name, split in self._splits.items()}
        specs = {name: modality.spec for name, modality in inputs.items()}
        if labels["train"].ndim > 1:
            self.spec = DatasetSpec(
                modalities=specs,
                target="value",
                target_shape=labels["train"].shape[1:],
                sizes=sizes,
            )
        else:
            classes = _classes(labels, list(class_names))
            counts = torch.bincount(self._splits["train"].target, minlength=classes)
            self.spec = DatasetSpec(
                modalities=specs,
                target="class",
                classes=classes,
                class_counts=tuple(counts.tolist()),
                class_names=tuple(class_names),
                sizes=sizes,
            )

    def split(self, name: SplitName) -> ArraysSplit:
        """The samples of one split."""
        return self._splits[name]

    def prepare(self, modality: str, values: Tensor) -> Tensor:
        """Raw samples [N, *shape] of a modality as the encoder gets them, scaled like the training samples."""
        return _scaled(values, self._scales[modality])


class ArraysSplit:
    """Some rows of stored arrays, made float32 and scaled as they are read.

    Args:
        inputs: {modality: [N', *shape]} as stored, usually memory-mapped.
        scales: {modality: (mean, sd)}, which broadcast to one sample; not for text.
        target: [N] or [N, D].
        rows: int64 [N], where the samples are in ``inputs``.
        group: int64 [N].
        padded: the modalities whose id 0 is padding.
    """

    def __init__(
        self,
        inputs: Mapping[str, Tensor],
        scales: Mapping[str, tuple[Tensor, Tensor] | None],
        target: Tensor,
        rows: Tensor,
        group: Tensor,
        *,
        padded: tuple[str, ...] = (),
    ) -> None:
        self.inputs, self.scales, self.padded = dict(inputs), dict(scales), padded
        self.target, self.rows, self.group = target, rows, group

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: Tensor) -> Batch:
        """The samples at ``index`` (int64 [B]), as one batch."""
        rows = self.rows[index]
        inputs = {
            name: _scaled(stored[rows], self.scales[name]) for name, stored in self.inputs.items()
        }
        there = torch.ones(len(rows), dtype=torch.bool, device=self.target.device)
        return Batch(
            inputs,
            dict.fromkeys(inputs, there),
            {name: inputs[name] != 0 for name in self.padded},
            self.target[index],
            index,
        )

    def to(self, device: torch.device | str) -> ArraysSplit:
        """The same split with its tensors on ``device``, still as stored."""
        return ArraysSplit(
            {name: stored.to(device) for name, stored in self.inputs.items()},
            {
                name: None if scale is None else (scale[0].to(device), scale[1].to(device))
                for name, scale in self.scales.items()
            },
            self.target.to(device),
            self.rows.to(device),
            self.group,
            padded=self.padded,
        )


def _scaled(stored: Tensor, scale: tuple[Tensor, Tensor] | None) -> Tensor:
    """Stored samples [B, ...] as the encoder gets them: ids where there is no scale, else (x - mean) / sd."""
    return stored.long() if scale is None else (stored.float() - scale[0]) / scale[1]


def _check_apart(groups: Mapping[str, NDArray[np.int64]]) -> None:
    """UserError where groups {split: [N]} of given val files are in train too."""
    shared = np.intersect1d(groups["train"], groups["val"])
    if len(shared):
        raise UserError(
            "val_groups.npy has groups that are in train_groups.npy too",
            given=f"{len(shared)} of {len(np.unique(groups['val']))}",
            remedy="Keep the samples of a group in one of the two, "
            "or take the groups files away where the groups do not matter.",
        )


def _held_out(
    n: int,
    groups: Mapping[str, NDArray[np.int64]] | None,
    share: float,
    by: Literal["auto", "random", "group"],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows for training and rows for validation, out of n; groups {split: [N]} where they are known."""
    if by == "group" and groups is None:
        raise UserError(
            "dataset.val_by=group needs to know the groups",
            given="no train_groups.npy",
            remedy="Add {train,test}_groups.npy (one entry per sample), or use dataset.val_by=random.",
        )
    if by == "auto":
        # Speakers of the test that also speak in train: validation should be like the test.
        shared = groups is not None and np.isin(groups["test"], groups["train"]).any()
        by = "random" if groups is None or shared else "group"
    if by == "random" or groups is None:
        n_val = min(max(round(share * n), 1), n - 1)
        order = rng.permutation(n)
        if n_val < 1:
            raise UserError("train has too few samples to hold some out", given=n)
        return np.sort(order[n_val:]), np.sort(order[:n_val])
    names, sizes = np.unique(groups["train"], return_counts=True)
    if len(names) < 2:
        raise UserError(
            "train has one group only: none can be held out for validation",
            remedy="Use dataset.val_by=random, or add val files.",
        )
    order = rng.permutation(len(names))
    held = np.cumsum(sizes[order])[:-1]  # at least one group stays in train
    count = int(np.abs(held - share * n).argmin()) + 1
    val = np.isin(groups["train"], names[order[:count]])
    return np.flatnonzero(~val), np.flatnonzero(val)


def _classes(labels: Mapping[str, NDArray[np.int64]], names: list[str]) -> int:
    """Number of classes: of the names, else what the training labels say; every label must be below it."""
    train = labels["train"]
    if len(names) == 1 or (train == train[0]).all():
        raise UserError(
            "train_labels.npy has a single class: there is nothing to tell apart",
            given=f"{train[0]}, {len(train)} times",
            remedy="For values to predict, use dataset.target=value.",
        )
    classes = len(names) or int(train.max()) + 1
    if not names and classes > MOST_CLASSES_PER_SAMPLE * len(train):
        raise UserError(
            "a label in train_labels.npy is far beyond the number of samples",
            given=f"{classes - 1}, {len(train)} samples",
            remedy="Number the classes from 0 on: the highest label decides how many there are.",
        )
    for split, values in labels.items():
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= classes:
            raise UserError(
                f"a label in {split}_labels.npy is out of range",
                given=low if low < 0 else high,
                remedy=f"Labels are 0 to {classes - 1}: "
                + ("dataset.class_names says so." if names else "train has no higher one."),
            )
    return classes
