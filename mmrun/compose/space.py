"""What a command line spans for a sweeper that chooses: its dimensions, and the points of a choice.

``clip.threshold=tag(log,interval(0.01,10))`` and ``range()`` are intervals, ``fusion=concat,attention`` and ``clip=none,0.5`` choices,
of groups or of values. A trial is a value of every dimension; its points are those of the sweep's seeds, made as those of a grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmrun.compose.axes import SEED, Axes, points_of
from mmrun.compose.base import base_of
from mmrun.compose.elements import parse_each, shown
from mmrun.compose.interval import Interval
from mmrun.compose.overrides import typed
from mmrun.errors import UserError
from mmrun.options import groups
from mmrun.spec import SWEEPER, Point, Sweep

MOST_EXAMPLES = 32  # combinations of choices that are all composed before anything exists


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Some values, as typed, none of which is between others."""

    values: tuple[str, ...]


Dimension = Interval | Choice
Value = str | float


@dataclass(frozen=True, kw_only=True)
class Space(Sweep):
    """A sweep whose points are made as they are asked for; ``points`` are examples, one of every choice at least.

    Args:
        dimensions: {key: what it spans}.
        seeds: of every trial; () where it has one point, with the config's own.
        base: hash of what all trials share: the config without the dimensions.
        sweeper: the config of who chooses.
        made: the command line that points are made of.
    """

    dimensions: Mapping[str, Dimension]
    seeds: tuple[int, ...]
    base: str
    sweeper: Mapping[str, Any]
    made: Axes

    def points_of(
        self, values: Mapping[str, Value], seeds: Sequence[int] | None = None
    ) -> tuple[Point, ...]:
        """The points of a trial, one per seed. seeds: others than the space's own.

        Raises:
            UserError: the values do not go together.
        """
        words = {key: self.text(key, value) for key, value in values.items()}
        chosen = {
            key: [_element(self.made, key, words[key])] for key in self.made.values if key != SEED
        }
        seeds = self.seeds if seeds is None else seeds
        if seeds:
            chosen[SEED] = parse_each(f"{SEED}={seed}" for seed in seeds)
        return tuple(points_of(self.made, chosen))

    def text(self, key: str, value: Value) -> str:
        """A value of a dimension as one would type it."""
        dimension = self.dimensions[key]
        if isinstance(dimension, Interval):
            return dimension.text(float(value))
        return str(value)


def space(axes: Axes, first: Point) -> Space:
    """The space that a command line spans. first: the point of every axis's first value.

    Raises:
        UserError: it spans nothing, or a choice in it names no point; nothing exists then.
    """
    config: dict[str, Any] = first.config
    for key in axes.values:
        if key.split(".")[0] == SWEEPER:
            raise UserError(
                f"{key} is no axis: one sweeper chooses",
                given=f"{key}={','.join(map(shown, axes.values[key]))}",
                remedy="Give one value; another sweep=NAME has another sweeper.",
            )
    if axes.rerun != "false":
        raise UserError(
            "a study keeps its trials",
            given=f"rerun={axes.rerun}",
            remedy="Begin another one: sweep=NAME.",
        )
    dimensions = {key: _dimension(axes, key) for key in axes.values if key != SEED}
    if not dimensions:
        raise UserError(
            "there is nothing to choose from",
            given=f"{SWEEPER}={first.choices[SWEEPER]}",
            remedy="Span something, e.g. clip.threshold=tag(log,interval(0.01,10)) or fusion=concat,attention.",
        )
    people, digest = base_of(axes, first)
    seeds = tuple(int(shown(each)) for each in axes.values.get(SEED, ()))
    made = Space(
        name=axes.name or f"{people}_{first.choices[SWEEPER]}_{digest}",
        points=(first,),
        axes={key: _typed_dimension(each) for key, each in dimensions.items()}
        | ({SEED: tuple(map(str, seeds))} if seeds else {}),
        overrides=axes.words,
        config_dirs=axes.dirs,
        dimensions=dimensions,
        seeds=seeds,
        base=digest,
        sweeper=config[SWEEPER],
        made=axes,
    )
    one = seeds[:1] or None
    examples = [made.points_of(values, one)[0] for values in _examples(dimensions, axes)]
    axes.recorded.check_used()
    return replace(made, points=tuple({point.id: point for point in examples}.values()))


def _dimension(axes: Axes, key: str) -> Dimension:
    return axes.intervals.get(key) or Choice(
        values=tuple(dict.fromkeys(map(shown, axes.values[key])))
    )


def _examples(dimensions: Mapping[str, Dimension], axes: Axes) -> list[dict[str, Value]]:
    """Every combination of the choices of groups with the first of the others; where those are many, every choice once."""
    tried = {
        key: [each.middle] if isinstance(each, Interval) else list(each.values)
        for key, each in dimensions.items()
    }
    known = groups(axes.dirs)
    of_groups = [key for key in tried if key.split("/")[0] in known]
    first = {key: values[0] for key, values in tried.items()}
    alone = [first | {key: value} for key, values in tried.items() for value in values]
    total = 1
    for key in of_groups:
        total *= len(tried[key])
    if total > MOST_EXAMPLES:
        return alone
    combined = itertools.product(*(tried[key] for key in of_groups))
    rows = [first | dict(zip(of_groups, row, strict=True)) for row in combined]
    return rows + [values for values in alone if values not in rows]


def _element(axes: Axes, key: str, text: str) -> Any:
    """The value as an override: one that stands in the command line as it stands there."""
    for override in axes.values[key]:
        if shown(override) == text:
            return override
    prefix = typed(axes.values[key][0]).partition("=")[0]
    return parse_each([f"{prefix}={text}"])[0]


def _typed_dimension(dimension: Dimension) -> tuple[str, ...]:
    """What is spanned as one would type it: an interval, or values."""
    if isinstance(dimension, Choice):
        return dimension.values
    return (dimension.typed,)
