"""A bound as a percentile of what was measured: ``p99``."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from mmrun.errors import UserError

_WORD = re.compile(r"p(\d+(?:\.\d+)?)", re.ASCII)
MOST_SPREAD = 100.0  # p99 / p50 beyond which no percentile stands for what comes


def percentile_in(word: object) -> float | None:
    """NN of a word ``pNN``, 0 < NN <= 100; None for anything else.

    >>> percentile_in("p99.9"), percentile_in("p0"), percentile_in("q99"), percentile_in(0.5)
    (99.9, None, None, None)
    """
    found = _WORD.fullmatch(word) if isinstance(word, str) else None
    p = float(found[1]) if found else 0.0
    return p if 0 < p <= 100 else None


def bound_at(p: float, values: NDArray[np.floating], key: str) -> float:
    """The p-th percentile of sizes >= 0 [N], linear between two of them, as a bound.

    The spread is that of the sizes above 0: a feature after a ReLU is 0 half of the time.

    Args:
        p: 0 < p <= 100.
        values: what was measured; at least one.
        key: the setting, for messages.

    Raises:
        UserError: a size is not finite, all are 0, the percentile is 0, or p99 / p50 is above ``MOST_SPREAD``.
    """
    given = f"p{p:g}"
    sizes = np.asarray(values, dtype=np.float64)
    if not np.isfinite(sizes).all():
        raise UserError(
            f"{key} cannot be calibrated: not all that it bounds is finite on the initial weights",
            given=given,
            remedy="Give a number, and look at the data's scale.",
        )
    above = sizes[sizes > 0]
    if above.size == 0:
        raise UserError(
            f"{key} cannot be calibrated: all that it bounds is 0 on the initial weights",
            given=given,
            remedy="Give a number.",
        )
    p50, p99 = np.percentile(above, (50, 99))
    if p99 / p50 > MOST_SPREAD:
        raise UserError(
            f"{key} cannot be calibrated: the p99 of what it bounds is {p99 / p50:.3g} times the p50",
            given=given,
            remedy=f"No percentile stands for a spread above {MOST_SPREAD:g}: give a number.",
        )
    bound = float(np.percentile(sizes, p))
    if bound == 0:
        zeros = 100 * (1 - above.size / sizes.size)
        raise UserError(
            f"{key} cannot be calibrated: {zeros:.3g} % of what it bounds is 0",
            given=given,
            remedy="Give a higher percentile, or a number.",
        )
    return bound
