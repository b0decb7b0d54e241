"""Which samples go where, and which labels they show: stratified splits, long tails, label noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def stratified(labels: Ints, shares: Sequence[float], rng: np.random.Generator) -> list[Ints]:
    """Rows of disjoint splits, each with the same mix of classes; the last takes what is left.

    shares: of each split but the last. Rows come sorted.
    """
    parts: list[list[Ints]] = [[] for _ in range(len(shares) + 1)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.round(np.cumsum(shares) * len(rows)).astype(int)
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]


def long_tail(labels: Ints, ratio: float, rng: np.random.Generator) -> Ints:
    """Rows to keep so that class c has n_max * ratio**(-c / (C - 1)) samples, at least one; sorted.

    ratio: samples of the first class over those of the last; 1 keeps every row.

    Source: Cui et al. 2019, "Class-balanced loss based on effective number of samples", section 5.1.
    """
    if ratio == 1:
        return np.arange(len(labels))
    counts = np.bincount(labels)
    place = np.linspace(0, 1, len(counts))
    wanted = np.maximum(1, np.round(counts.max() * ratio**-place)).astype(int)
    kept = [
        rng.permutation(np.flatnonzero(labels == label))[: wanted[label]]
        for label in range(len(counts))
    ]
    return np.sort(np.concatenate(kept))


def replaced(labels: Ints, share: float, classes: int, rng: np.random.Generator) -> Ints:
    """Labels of which a share, drawn at random, is replaced by another class."""
    rows = rng.permutation(len(labels))
    shift = rng.integers(1, classes, len(labels)) if classes > 1 else np.zeros(len(labels), int)
    changed = labels.copy()
    rows = rows[: round(share * len(labels))]
    changed[rows] = (labels[rows] + shift[rows]) % classes
    return changed
