"""How heavy is the tail of the gradient norms? Hill's estimator over the last steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 10  # norms in the tail; the standard error is then a third of the estimate


def hill(values: NDArray[np.floating[Any]], k: int) -> float:
    """Hill's alpha = k / sum_(i <= k) log(x_(i) / x_(k+1)), x_(1) >= x_(2) >= ...

    For P(X > x) ~ C x^-alpha. Its standard error is about alpha / sqrt(k), for independent values. inf where the k + 1
    largest are one number.

    Args:
        values: [N] above 0, N > k.
        k: how many of the largest are the tail.

    Source: Hill 1975, "A simple general approach to inference about the tail of a distribution", Annals of Statistics
    3(5), 1163-1174.
    """
    largest = np.sort(np.partition(values, len(values) - k - 1)[-(k + 1) :])
    mean = float(np.log(largest[1:] / largest[0]).mean())
    return 1.0 / mean if mean > 0 else math.inf


class TailIndex:
    """Hill's alpha of the last ``window`` norms of each column; norms that are 0 or not finite are left out.

    It assumes independent norms of one distribution. Those of a training drift and depend on each other: a window in which
    the norm falls tenfold has a heavy tail by that alone. And it is an index of norms over steps, not that of the gradient
    noise, for which Simsekli et al. 2019 (arXiv 1901.06053) found alpha-stable laws with alpha < 2; whether it has such
    tails is disputed (see Battash and Lindenbaum 2023, arXiv 2303.02749). The two are not to be compared.

    Args:
        columns: how many there are.
        window: norms kept of each.
        share: of them that is the tail.
    """

    def __init__(self, columns: int, *, window: int, share: float) -> None:
        self.window = window
        self.share = share
        self.norms = np.empty((0, columns))

    def extend(self, norms: NDArray[np.floating[Any]]) -> None:
        """Take up the norms of further steps, [T, columns]."""
        self.norms = np.concatenate([self.norms, norms])[-self.window :]

    def values(self) -> list[float | None]:
        """The index by column; None where the tail has too few norms to say."""
        return [self._of(column) for column in self.norms.T]

    def _of(self, norms: NDArray[np.floating[Any]]) -> float | None:
        counted = norms[np.isfinite(norms) & (norms > 0)]
        k = int(self.share * len(counted))
        return hill(counted, k) if k >= LEAST else None
