"""synthetic: vectors whose share of the answer, noise and tails are yours to set, per modality.

Every class, or part of one, has a random direction in each modality; a sample is that direction plus noise. How the
class is spread over the modalities is ``interaction``:

- redundant: each modality carries the whole class, each in its own noise;
- unique: each carries another part of it (a digit of the class number), all are needed for the whole;
- synergistic: each carries a code that is random by itself, the class is the sum of the codes modulo the number of
  classes; all modalities but one say nothing (two classes and two modalities: XOR).

The vocabulary (redundant, unique, synergistic) is that of partial information decomposition: Williams and Beer 2010.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mmrun.datasets import Dataset, MemorySplit, SplitName
from mmrun.datasets._knobs import chosen, declared, settings_of, stream, within
from mmrun.datasets._labels import long_tail, replaced
from mmrun.errors import UserError
from mmrun.spec import DatasetSpec, ModalitySpec

SHARES = {"train": 0.6, "val": 0.15, "test": 0.25}
OUTLIER = 20.0  # times the noise of an outlying sample
SETTINGS = {
    "dim": 16,
    "signal": 1.0,
    "noise": 0.5,
    "tail": math.inf,
    "outliers": 0.0,
    "scale": 1.0,
}


class Synthetic(Dataset):
    """Vectors of any number of modalities, with a known way in which they carry the class.

    Args:
        seed: decides directions, samples and noise.
        use: "all", or the modalities to train on; the class is still spread over all of ``modalities``.
        modalities: {name: "vector", or {kind: vector, dim, signal, noise, tail, outliers, scale}}: width; length of a
            class's direction; standard deviation of the noise per feature; degrees of freedom of its Student t (inf
            is Gaussian; not rescaled, so the variance is infinite at 2 and below); share of samples with 20 times the
            noise; factor on everything, as of unequal units.
        samples: in the three splits together.
        classes: number of classes.
        interaction: how the modalities carry the class, see the module.
        imbalance: training samples of class 0 over those of the last class, exponential between.
        label_noise: share of the training labels replaced by another class.
    """

    def __init__(
        self,
        *,
        seed: int,
        modalities: Mapping[str, Any],
        use: str | Sequence[str] = "all",
        samples: int = 2000,
        classes: int = 8,
        interaction: Literal["redundant", "unique", "synergistic"] = "redundant",
        imbalance: float = 1.0,
        label_noise: float = 0.0,
    ) -> None:
        within("classes", classes, 2)
        within("samples", samples, 4 * classes)
        within("imbalance", imbalance, 1)
        within("label_noise", label_noise, 0, 1)
        settings = {name: _checked(name, entry) for name, entry in declared(modalities).items()}
        if not settings:
            raise UserError(
                "dataset.modalities is empty",
                remedy="Give at least one: 'dataset.modalities={a: vector, b: vector}'.",
            )
        if interaction == "synergistic" and len(settings) < 2:
            raise UserError("interaction=synergistic needs two modalities", given=len(settings))
        if interaction == "unique" and classes < 2 ** len(settings):
            raise UserError(
                "interaction=unique needs two classes or more for each modality's part",
                given=f"classes={classes}, {len(settings)} modalities",
                remedy=f"Give dataset.classes={2 ** len(settings)} or more, or fewer modalities.",
            )
        names = chosen(use, list(settings))

        self._splits: dict[str, MemorySplit] = {}
        first = 0
        for split, share in SHARES.items():
            n = round(share * samples)
            labels = np.arange(n) % classes  # balanced
            codes = _codes(
                labels, len(settings), classes, interaction, stream(seed, "codes", split)
            )
            of = dict(zip(settings, codes, strict=True))
            inputs = {
                name: _vectors(of[name], classes, settings[name], seed, name, split)
                for name in names
            }
            rows = np.arange(n)
            if split == "train":
                rows = long_tail(labels, imbalance, stream(seed, "imbalance"))
                labels = replaced(labels, label_noise, classes, stream(seed, "label_noise"))
            self._splits[split] = MemorySplit(
                {name: torch.from_numpy(values[rows]) for name, values in inputs.items()},
                torch.from_numpy(labels[rows]),
                group=torch.from_numpy(first + rows),
            )
            first += n
        counts = torch.bincount(self._splits["train"].target, minlength=classes)
        self.spec = DatasetSpec(
            modalities={
                name: ModalitySpec(name=name, kind="vector", shape=(settings[name]["dim"],))
                for name in names
            },
            target="class",
            classes=classes,
            class_counts=tuple(counts.tolist()),
            sizes={name: len(split) for name, split in self._splits.items()},
        )

    def split(self, name: SplitName) -> MemorySplit:
        """The samples of one split."""
        return self._splits[name]


def _checked(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """A modality's settings with defaults, in range."""
    settings = settings_of(name, entry, SETTINGS)
    if settings["kind"] != "vector":
        raise UserError(f"modality {name} of synthetic is a vector", given=settings["kind"])
    prefix = f"modalities.{name}"
    if not isinstance(settings["dim"], int):
        raise UserError(f"dataset.{prefix}.dim is a whole number", given=settings["dim"])
    within(f"{prefix}.dim", settings["dim"], 1)
    within(f"{prefix}.signal", settings["signal"], 0)
    within(f"{prefix}.noise", settings["noise"], 0)
    within(f"{prefix}.tail", settings["tail"], above=0, infinite=True)
    within(f"{prefix}.outliers", settings["outliers"], 0, 1)
    within(f"{prefix}.scale", settings["scale"], above=0)
    return settings


def _codes(
    labels: NDArray[np.int64],
    modalities: int,
    classes: int,
    interaction: str,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """What each modality knows of the class, [M, N], each in [0, classes)."""
    if interaction == "redundant":
        return np.tile(labels, (modalities, 1))
    if interaction == "unique":
        base = math.ceil(round(classes ** (1 / modalities), 9))
        return np.stack([labels // base**place % base for place in range(modalities)])
    codes = rng.integers(0, classes, (modalities, len(labels)))
    codes[-1] = (labels - codes[:-1].sum(axis=0)) % classes
    return codes


def _vectors(
    codes: NDArray[np.int64],
    classes: int,
    settings: Mapping[str, Any],
    seed: int,
    name: str,
    split: str,
) -> NDArray[np.float32]:
    """Inputs [N, dim] of one modality: the direction of each sample's code, plus noise."""
    directions = stream(seed, name, "directions").standard_normal((classes, settings["dim"]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rng = stream(seed, name, split)
    shape = (len(codes), settings["dim"])
    gaussian, tail = rng.standard_normal(shape), settings["tail"]
    unit = gaussian if math.isinf(tail) else gaussian / np.sqrt(rng.chisquare(tail, shape) / tail)
    outlying = stream(seed, name, split, "outliers").random(len(codes)) < settings["outliers"]
    noise = settings["noise"] * np.where(outlying, OUTLIER, 1.0)[:, None] * unit
    return (settings["scale"] * (settings["signal"] * directions[codes] + noise)).astype(np.float32)
