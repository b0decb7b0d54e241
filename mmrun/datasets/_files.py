"""Reading a folder of .npy files, with one clear error for whatever is wrong in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmrun.errors import UserError
from mmrun.spec import KINDS

SPLITS = ("train", "val", "test")
ROWS_AT_ONCE = 1024  # of files larger than memory


class Folder:
    """A folder of .npy files by modality and split.

    Args:
        root: its path, as the user gave it.
    """

    def __init__(self, root: str) -> None:
        if not root:
            raise UserError(
                "this dataset reads a folder of yours, and none is given",
                remedy="Add dataset.root=FOLDER.",
            )
        self.path = Path(root).expanduser()
        if not self.path.is_dir():
            problem = "is a file, not a folder" if self.path.exists() else "does not exist"
            raise UserError(
                f"dataset.root {problem}",
                given=self.path.absolute(),
                remedy="Give the folder that holds a folder per modality.",
            )

    def undeclared(self) -> UserError:
        """The error for empty ``modalities``: what there is, and what to type."""
        found = self._folders()
        if not found:
            return UserError(
                "dataset.root has no folder of a modality",
                given=self.path,
                remedy="Put each modality's train*.npy and test*.npy in a folder named after it.",
            )
        typed = ", ".join(f"{name}: KIND" for name in found)
        return UserError(
            "dataset.modalities is empty",
            given=f"folders in {self.path}: {', '.join(found)}",
            remedy=f"Say what they are: 'dataset.modalities={{{typed}}}', KIND one of {', '.join(KINDS)}.",
        )

    def splits(self, names: Sequence[str]) -> list[str]:
        """The splits that are on disk: train, test, and val when there is anything of it."""
        for name in names:
            if not (self.path / name).is_dir():
                found = ", ".join(self._folders()) or "no folder"
                raise UserError(
                    f"modality {name} has no folder in dataset.root",
                    given=self.path / name,
                    remedy=f"Found: {found}.",
                )
        has_val = any(self._starting("val", name) for name in names)
        has_val |= (self.path / "val_labels.npy").exists()
        return [split for split in SPLITS if split != "val" or has_val]

    def inputs(self, name: str, splits: Sequence[str]) -> dict[str, NDArray[Any]]:
        """{split: [N, ...]} of one modality, memory-mapped."""
        values: dict[str, NDArray[Any]] = {}
        for split in splits:
            found = self._starting(split, name)
            if len(found) != 1:
                listed = ", ".join(sorted(path.name for path in (self.path / name).iterdir()))
                problem = "more than one file" if found else "no file"
                raise UserError(
                    f"modality {name} has {problem} {split}*.npy",
                    given=self.path / name,
                    remedy=f"Found: {listed or 'nothing'}.",
                )
            values[split] = read(found[0], numbers=True)
        return values

    def labels(
        self, splits: Sequence[str], target: Literal["auto", "class", "value"]
    ) -> dict[str, NDArray[Any]]:
        """{split: int64 [N] classes or float32 [N, D] values}."""
        raw = {split: self._of_split(split, "labels") for split in splits}
        floating = raw["train"].dtype.kind == "f"
        as_value = target == "value" or (target == "auto" and floating)
        return {
            split: _values(values, split) if as_value else _class_ids(values, split)
            for split, values in raw.items()
        }

    def groups(self, sizes: Mapping[str, int]) -> tuple[dict[str, NDArray[np.int64]], bool]:
        """{split: int64 [N]}, one number per group over all splits; and whether there are files.

        Without files each sample is its own group.
        """
        there = [split for split in sizes if (self.path / f"{split}_groups.npy").exists()]
        if not there:
            own = np.split(np.arange(sum(sizes.values())), np.cumsum(list(sizes.values()))[:-1])
            return dict(zip(sizes, own, strict=True)), False
        raw: dict[str, NDArray[Any]] = {}
        for split, n in sizes.items():
            raw[split] = self._of_split(split, "groups", numbers=False)
            if raw[split].shape != (n,):
                raise UserError(
                    f"{split}_groups.npy does not fit the {n} labels of {split}",
                    given=f"shape {list(raw[split].shape)}",
                    remedy="It has one entry per sample.",
                )
        codes = np.unique(np.concatenate(list(raw.values())), return_inverse=True)[1]
        parts = np.split(codes.astype(np.int64), np.cumsum(list(sizes.values()))[:-1])
        return dict(zip(sizes, parts, strict=True)), True

    def _of_split(self, split: str, what: str, *, numbers: bool = True) -> NDArray[Any]:
        path = self.path / f"{split}_{what}.npy"
        if not path.is_file():
            found = sorted(path.name for path in self.path.glob("*.npy"))
            raise UserError(
                f"{split} has no {what} file",
                given=path,
                remedy=f"Found: {', '.join(found) or 'no .npy file'}.",
            )
        return read(path, numbers=numbers)

    def _folders(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir() if path.is_dir())

    def _starting(self, split: str, name: str) -> list[Path]:
        return sorted((self.path / name).glob(f"{split}*.npy"))


def read(path: Path, *, numbers: bool) -> NDArray[Any]:
    """An array from a .npy file, memory-mapped and never unpickled."""
    try:
        # Copy on write: torch wants memory that it may write to, and the file stays as it is. Unlike numpy.load, this
        # knows no other format than .npy.
        array = np.lib.format.open_memmap(path, mode="c")
    except (ValueError, OSError, EOFError, SyntaxError, TokenError) as error:
        if "Python objects" in str(error):
            raise UserError(
                "the file holds Python objects, which are never loaded",
                given=path,
                remedy="Save plain numbers with numpy.save.",
            ) from error
        raise UserError(
            "the file is not a complete .npy array",
            given=path,
            remedy="Write it with numpy.save, or copy it again.",
        ) from error
    if array.ndim == 0:
        raise UserError("the file holds a single number, not an array", given=path)
    if numbers and array.dtype.kind not in "biuf":
        raise UserError("the file does not hold numbers", given=f"{path}, {array.dtype}")
    wrong = _not_finite(array)
    if wrong:
        raise UserError(
            "the file has values that are not finite",
            given=f"{path}, {wrong} of {array.size}",
            remedy="Replace NaN, infinity and what is too large for float32.",
        )
    return array


def _not_finite(array: NDArray[Any]) -> int:
    """How many values are no finite float32, which is what numbers become."""
    if array.dtype.kind != "f":
        return 0
    count = 0
    with np.errstate(over="ignore"):
        for start in range(0, len(array), ROWS_AT_ONCE):
            chunk = array[start : start + ROWS_AT_ONCE].astype(np.float32)
            count += int(np.count_nonzero(~np.isfinite(chunk)))
    return count


def _class_ids(values: NDArray[Any], split: str) -> NDArray[np.int64]:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or len(values) == 0:
        raise UserError(
            f"{split}_labels.npy is not one class per sample",
            given=f"shape {list(values.shape)}",
            remedy="Class labels are [N]; for values to predict, use dataset.target=value.",
        )
    ids = values.astype(np.int64)
    if not (ids == values).all():
        raise UserError(
            f"{split}_labels.npy holds fractions, which are no classes",
            remedy="Use dataset.target=value.",
        )
    return ids


def _values(values: NDArray[Any], split: str) -> NDArray[np.float32]:
    if values.ndim not in (1, 2) or len(values) == 0:
        raise UserError(
            f"{split}_labels.npy does not hold values [N] or [N, D]",
            given=f"shape {list(values.shape)}",
        )
    return values.astype(np.float32).reshape(len(values), -1)
