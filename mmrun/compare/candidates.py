"""Which thresholds would have acted on these norms, how often, and how hard? Numbers alone.

A candidate c is a percentile of the norms n, rounded as one would type it. It clips mean(n > c) of the
recorded steps, and the mean of its coefficient min(1, c / n) over all of them says how hard.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmrun.errors import UserError
from mmrun.runs import verdict

Array = NDArray[np.float64]

RAW, UPDATE = "grad/norm", "update/norm"  # what clip.on=gradient and clip.on=update clip
QUANTILES = (50, 75, 90, 95, 99)
CALM_QUANTILES = (50, 75, 90)  # of a run that diverged: above them its last steps begin
EXPLODED = 10.0  # times the median of the calm norms before it
VANISHING = 0.001  # of the squared norm
DIGITS = 3  # of a threshold: its share of steps stays that of the percentile
_EARLY, _LATE = 0.1, 0.5  # the first tenth of the steps, the last half
_FEWEST = 50  # steps, for a median of the first tenth to say anything


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A threshold worth trying.

    Args:
        name: the percentile that it is, p50 to p99.
        threshold: its number.
        clipped: share of the steps that it would have clipped.
        coefficient: mean over all steps of clipped norm / raw norm.
    """

    name: str
    threshold: float
    clipped: float
    coefficient: float


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Norms of one scope, or of everything together, and what would clip them.

    Args:
        name: the scope; empty for everything together.
        norms: finite norms, in the order of the steps [N].
        share: median part of the squared norm.
        candidates: by percentile; none where that is 0, for 0 is no threshold.
    """

    name: str
    norms: Array
    share: float
    candidates: tuple[Candidate, ...]

    @property
    def vanishing(self) -> bool:
        """Is it so small that no threshold on everything together is about it?"""
        return self.share < VANISHING


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run recorded of its norms.

    Args:
        column: which norm, ``grad/norm`` or ``update/norm``.
        everything: of all parameters together.
        scopes: of each scope, in the order recorded.
        last_step: the step of the last row.
        nonfinite: rows whose norm is no finite number; they are left out.
        exploded: rows of a run that diverged whose norm had exploded; they are left out too.
    """

    column: str
    everything: Scope
    scopes: tuple[Scope, ...]
    last_step: int
    nonfinite: int
    exploded: int = 0


def measure(columns: Mapping[str, Array], *, diverged: bool = False) -> Measured:
    """Norms and candidates from the columns of gradients.csv: of the update where that was clipped.

    Args:
        columns: those of gradients.csv.
        diverged: whether the run did: then steps whose norm had exploded count for nothing.

    Raises:
        UserError: no column of norms, or nothing finite and above 0 in them.
    """
    column = UPDATE if UPDATE in columns else RAW
    if column not in columns:
        names = ", ".join(columns)
        raise UserError(f"gradients.csv has no column {RAW}", given=names or "no columns")
    steps = columns.get("step", columns[column][:0])
    steps = steps[np.isfinite(steps)]
    last_step = int(steps.max()) if steps.size else columns[column].size
    exploded, quantiles = 0, QUANTILES
    if diverged:
        wild = explosions(columns[column])
        columns = {name: values[~wild] for name, values in columns.items()}
        exploded, quantiles = int(wild.sum()), CALM_QUANTILES
    values = columns[column]
    # The block of a run takes raw norms; of whatever is clipped, shares are made in the same way.
    known = {RAW + n.removeprefix(column): v for n, v in columns.items() if n.startswith(column)}
    shares = verdict.clip_block(known, algorithm="none")["scopes"]
    whole = _scope("", values, 1.0, quantiles)
    if not whole.norms.size:
        raise UserError(
            f"no {column} in gradients.csv is finite",
            given=f"{values.size} rows",
            remedy="The run went wrong from its first step on: try a smaller learning rate.",
        )
    if not whole.candidates:
        raise UserError(
            f"nearly every {column} in gradients.csv is 0",
            given=f"{values.size} rows",
            remedy="There is nothing to clip.",
        )
    names = verdict.scope_names(known)
    return Measured(
        column=column,
        everything=whole,
        scopes=tuple(
            _scope(n, columns[f"{column}/{n}"], shares[n]["share"] or 0.0, quantiles) for n in names
        ),
        last_step=last_step,
        nonfinite=int(values.size - whole.norms.size),
        exploded=exploded,
    )


def explosions(norms: Array) -> NDArray[np.bool_]:
    """Which norms are more than 10 times the median of the calm ones before them [N]?

    Those that exploded are no part of the median, so that it stays where it was however long they last.
    """
    wild = np.zeros(norms.size, dtype=bool)
    calm: list[float] = []  # sorted
    for step, norm in enumerate(norms.tolist()):
        if not 0 < norm < np.inf:
            continue
        if calm and norm > EXPLODED * calm[len(calm) // 2]:
            wild[step] = True
        else:
            insort(calm, norm)
    return wild


def _scope(name: str, values: Array, share: float, quantiles: tuple[int, ...]) -> Scope:
    norms = values[np.isfinite(values)]
    return Scope(name=name, norms=norms, share=share, candidates=candidates(norms, quantiles))


def candidates(norms: Array, quantiles: tuple[int, ...] = QUANTILES) -> tuple[Candidate, ...]:
    """The percentiles of finite norms [N] as thresholds, and what each would have done."""
    if not norms.size:
        return ()
    values = [typed(float(value)) for value in np.percentile(norms, quantiles)]
    return tuple(
        Candidate(
            name=f"p{quantile}",
            threshold=value,
            clipped=float(np.mean(norms > value)),
            coefficient=float(np.mean(value / np.maximum(norms, value))),
        )
        for quantile, value in zip(quantiles, values, strict=True)
        if value > 0
    )


def typed(value: float) -> float:
    """A number with as many digits as one would type."""
    return float(f"{value:.{DIGITS}g}")


def spread(norms: Array) -> float:
    """p99 / p50: how far the longest norms are from the usual one; infinite where the usual one is 0."""
    usual, longest = np.percentile(norms, (50, 99))
    return float(longest / usual) if usual > 0 else float("inf")


def early_and_late(norms: Array) -> tuple[Array, Array]:
    """Norms of the first tenth of the steps and of the last half; both empty where there are too few to tell."""
    n = norms.size
    if n < _FEWEST:
        return norms[:0], norms[:0]
    return norms[: int(_EARLY * n)], norms[n - int(_LATE * n) :]
