"""Command line -> the points of a sweep: every combination of values, as Hydra's own sweeper makes them, and seeds; or a space."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hydra.core.override_parser.types import Override

from mmrun.compose.axes import SEED, Axes, block_of, first_point, no_intervals, points_of, read
from mmrun.compose.base import base_of
from mmrun.compose.elements import MOST_POINTS, shown
from mmrun.compose.space import space
from mmrun.errors import UserError
from mmrun.options import checked_dirs
from mmrun.spec import MULTIRUN, SWEEPER, Point, Sweep, outside_id

GRID = "grid"  # the option of the group sweeper that takes every combination


def is_sweep(words: Sequence[str], config_dirs: Sequence[str] = ()) -> bool:
    """Whether a command line means several points: ``-m``, ``seeds=``, a sweeper, or an experiment whose axes are not all fixed."""
    if any(word in MULTIRUN or word.startswith("seeds=") for word in words):
        return True
    pairs = (word.partition("=") for word in words)
    given = {key.strip(): value.strip().strip("'\"") for key, _, value in pairs}
    if given.get(SWEEPER, GRID) != GRID:
        return True
    block = block_of(given.get("experiment"), checked_dirs(config_dirs))
    return any((SEED if key == "seeds" else key) not in given for key in block)


def sweep(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Sweep:
    """All points that a command line stands for; a ``Space`` where a sweeper chooses among them.

    The first axis varies slowest, the seeds fastest. Points that are equal but for their words are taken once.

    Args:
        overrides: as typed, without ``-m``.
        config_dirs: folders of the user's own configs.

    Raises:
        UserError: for anything that names no point; nothing exists then.
    """
    axes = read(overrides, config_dirs)
    if axes.may_sample:
        first = first_point(axes)
        if first.config[SWEEPER]:
            return space(axes, first)
        for key, spanned in axes.intervals.items():
            if spanned.step is None:
                raise no_intervals(key, f"{key}={spanned.typed}")
    return _grid(axes)


def _grid(axes: Axes) -> Sweep:
    total = 1
    for key, values in axes.values.items():
        total *= len(values)
        if total > MOST_POINTS:
            raise UserError(
                f"these are more than {MOST_POINTS} points", given=_typed_axis(key, values)
            )
    unique: dict[str, tuple[Point, tuple[Override, ...]]] = {}
    repeated: list[str] = []
    idle: set[str] = set()
    rows = itertools.product(*axes.values.values())
    for point, values in zip(points_of(axes, axes.values), rows, strict=True):
        _, kept = unique.setdefault(point.id, (point, values))
        if kept is not values:
            repeated.append(point.name)
            idle |= {key for key, a, b in zip(axes.values, kept, values, strict=True) if a is not b}
    axes.recorded.check_used()
    points = tuple(point for point, _ in unique.values())
    return Sweep(
        name=axes.name or "_".join(base_of(axes, points[0])),
        points=points,
        axes={key: tuple(map(shown, values)) for key, values in axes.values.items()},
        overrides=axes.words,
        config_dirs=axes.dirs,
        rerun=axes.rerun,
        repeated=tuple(repeated),
        # Another spelling of a law is told by the name; what is outside the id may need a word.
        idle=tuple(sorted(key for key in idle if outside_id(key) or key == "trainer")),
    )


def _typed_axis(key: str, values: Sequence[Override]) -> str:
    """An axis as one would type it, for messages."""
    return f"{key}={','.join(map(shown, values[:5]))}{',...' if len(values) > 5 else ''}"
