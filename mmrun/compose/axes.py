"""Command line -> axes: what varies and through which values, what is fixed, and the points of a choice among them.

Sweep syntax beside Hydra's lists and functions: ``seeds=N``, ``sweep=NAME``, ``rerun=stale|true``, and the ``sweep:`` block of
an experiment's file, ``{clip: [none, 0.5], optimizer.lr: [0.1, 0.3], seeds: 3}``, whose axes the command line can replace.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast, get_args

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from mmrun.compose.calibration import RecordedNorms
from mmrun.compose.elements import MOST_POINTS, elements, is_mapping, of_block, parse_each, shown
from mmrun.compose.groups import SWEEP_BLOCK, experiment_files, preferring
from mmrun.compose.interval import Interval, interval_of
from mmrun.compose.overrides import parse, split, typed
from mmrun.compose.points import Template, lone_name
from mmrun.errors import UserError
from mmrun.options import checked_dirs
from mmrun.spec import SWEEP_WORDS, SWEEPER, Point, Rerun

NO_AXES = ("sweep", "rerun", "name", "experiment", "outputs", SWEEPER)  # in an experiment's block
SEED = "seed"


@dataclass(frozen=True, kw_only=True)
class Axes:
    """A command line, read.

    Args:
        slots: fixed overrides, and keys of axes, in the order in which they are applied.
        values: {key: overrides of one value each}, the slowest axis first; the seeds are last.
        intervals: {key: what it spans} of the axes that are an ``interval()`` or a ``range()``. An interval's one value is its middle.
        words: the overrides as typed, without ``-m``.
        dirs: folders of the user's own configs.
        name: of the sweep, where it was given one.
        rerun: which finished points are made again.
        may_sample: whether something names a sweeper.
        recorded: norms of earlier runs.
    """

    slots: tuple[Override | str, ...]
    values: Mapping[str, Sequence[Override]]
    intervals: Mapping[str, Interval]
    words: tuple[str, ...]
    dirs: tuple[str, ...]
    name: str | None
    rerun: Rerun
    may_sample: bool
    recorded: RecordedNorms = field(default_factory=RecordedNorms)


def read(overrides: Sequence[str], config_dirs: Sequence[str]) -> Axes:
    """What a command line varies, and what it fixes.

    Raises:
        UserError: for anything that is no axis.
    """
    dirs = checked_dirs(config_dirs)
    words, rest = _sweep_words(overrides)
    parsed = parse(rest)
    # fusion=attention and fusion={heads: 2} are two things: only the first can be an axis of its name.
    named = {o.key_or_group: o for o in parsed if not is_mapping(o)}
    if "name" in named:
        remedy = "Points are named after what varies; sweep=NAME names the sweep."
        raise UserError("the points of a sweep name themselves", given="name=", remedy=remedy)
    block = _experiment_block(named.get("experiment"), dirs)
    seeds = words.get("seeds") or (None if SEED in named else block.get("seeds"))
    block.pop("seeds", None)
    may_sample = any(key.split(".")[0] in (SWEEPER, "experiment") for key in named)
    values: dict[str, list[Override]] = {}
    intervals: dict[str, Interval] = {}

    def vary(key: str, override: Override) -> None:
        spanned = override.value() if override.is_sweep_override() else None
        if isinstance(spanned, IntervalSweep) and not may_sample:
            raise no_intervals(key, typed(override))
        values[key] = elements(override, dirs)
        if isinstance(spanned, IntervalSweep | RangeSweep):
            intervals[key] = interval_of(spanned, typed(override))

    slots: list[Override | str] = []
    for key, value in block.items():
        vary(key, named.get(key) or of_block(key, value))
        slots += [] if key in named else [key]
    for override in parsed:
        key = override.key_or_group
        if override.is_sweep_override() and key not in values:
            vary(key, override)
        slots.append(key if key in values and override is named.get(key) else override)
    axes = Axes(
        slots=tuple(slots),
        values=values,
        intervals=intervals,
        words=tuple(overrides),
        dirs=dirs,
        name=_name(words.get("sweep")),
        rerun=_rerun(words.get("rerun", "false")),
        may_sample=may_sample,
    )
    return axes if seeds is None else _with_seeds(axes, seeds, named.get(SEED))


def _with_seeds(axes: Axes, seeds: Any, first: Override | None) -> Axes:
    """With the seeds that are counted from the first, or from the config's own."""
    if SEED in axes.values:
        raise UserError(
            "seeds= counts from one seed", given=f"seeds={seeds}", remedy="Give seed=N or none."
        )
    base = first_point(axes).config[SEED]
    counted = parse_each(f"{SEED}={base + k}" for k in range(_count(seeds)))
    slots = (*(slot for slot in axes.slots if slot is not first), SEED)
    return replace(axes, slots=slots, values={**axes.values, SEED: counted})


def no_intervals(key: str, given: str) -> UserError:
    """The error for an interval where every combination is meant."""
    return UserError(
        "a grid has no intervals",
        given=given,
        remedy=f"Give values, {key}=0.1,1,10, or {key}=range(1,10,3); sweeper=optuna searches intervals.",
    )


def first_point(axes: Axes) -> Point:
    """The point of every axis's first value."""
    return points_of(axes, {key: values[:1] for key, values in axes.values.items()})[0]


def points_of(axes: Axes, values: Mapping[str, Sequence[Override]]) -> list[Point]:
    """The points of all combinations in order; of those that differ in values only, one is composed.

    Args:
        axes: what is fixed, and where the axes are applied.
        values: {key of every axis: overrides of one value each}, the slowest first.
    """
    fixed = [slot for slot in axes.slots if isinstance(slot, Override)]
    halves = {id(o): split([o], axes.dirs) for o in [*fixed, *itertools.chain(*values.values())]}
    rows: list[dict[str, Override]] = [
        dict(zip(values, combination, strict=True))
        for combination in itertools.product(*values.values())
    ]
    lines = [[s if isinstance(s, Override) else row[s] for s in axes.slots] for row in rows]
    settings = [list(itertools.chain(*(halves[id(o)][1] for o in line))) for line in lines]
    templates: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = {}
    for number, line in enumerate(lines):
        chosen = tuple(itertools.chain(*(halves[id(o)][0] for o in line)))
        templates.setdefault((chosen, tuple(preferring(settings[number]))), []).append(number)
    made: dict[int, Point] = {}
    for (chosen, _), numbers in templates.items():  # one after another: few configs at a time
        template = Template(chosen, settings[numbers[0]], axes.dirs, axes.recorded)
        for number in numbers:
            words = tuple(typed(override) for override in lines[number])
            name = ",".join(f"{key}={shown(value)}" for key, value in rows[number].items())
            made[number] = template.point(
                settings[number], words, name or lone_name(lines[number]) or "point"
            )
    return [made[number] for number in range(len(rows))]


def _sweep_words(overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """({seeds, sweep, rerun: value}, the overrides without them)."""
    words: dict[str, str] = {}
    rest: list[str] = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if key not in SWEEP_WORDS or not equals:
            rest.append(text)
            continue
        if key in words:
            raise UserError(f"{key} is given twice", given=f"{key}={words[key]} {text}")
        if not value.strip():
            raise UserError(f"{key}= wants a value", given=text)
        words[key] = value.strip()
    return words, rest


def _experiment_block(experiment: Override | None, dirs: tuple[str, ...]) -> dict[str, Any]:
    """What the chosen experiment sweeps; several experiments at once must sweep nothing of their own."""
    if experiment is None:
        return {}
    chosen = [shown(each) for each in elements(experiment, dirs)]
    blocks = {option: block_of(option, dirs) for option in chosen}
    if len(blocks) == 1:
        return blocks[chosen[0]]
    for option, block in blocks.items():
        if block:
            raise UserError(
                f"experiment {option} sweeps by itself",
                given=typed(experiment),
                remedy=f"Train it alone: experiment={option}.",
            )
    return {}


def block_of(option: str | None, dirs: tuple[str, ...]) -> dict[str, Any]:
    """The ``sweep:`` block of an experiment, over those of the experiments that it builds on; empty without one."""
    found: dict[str, Any] = {}
    for path, content in experiment_files(option or "", dirs):
        block = content.get(SWEEP_BLOCK) or {}
        if not isinstance(block, dict) or not all(isinstance(key, str) for key in block):
            raise UserError(
                "a sweep: block is a mapping of keys to their values",
                given=path,
                remedy="E.g. sweep: {clip: [none, 0.5], optimizer.lr: [0.1, 0.3], seeds: 3}.",
            )
        for key in NO_AXES:
            if key in block:
                raise UserError(f"{key} is no axis", given=f"{path}: {key}: {block[key]}")
        found |= cast("dict[str, Any]", block)
    return found


def _count(text: Any) -> int:
    if not str(text).isdecimal() or not 1 <= int(text) <= MOST_POINTS:
        raise UserError("seeds= is a number of seeds", given=text, remedy="E.g. seeds=5.")
    return int(text)


def _name(given: str | None) -> str | None:
    from mmrun.runs.layout import slug  # the package takes 15 ms, and few sweeps are given a name

    if given is not None and given != slug(given):
        raise UserError(
            "a sweep's name is that of one folder",
            given=f"sweep={given}",
            remedy=f"E.g. sweep={slug(given).strip('._') or 'mine'}; outputs=DIR says where.",
        )
    return given


def _rerun(text: str) -> Rerun:
    known = get_args(Rerun)
    if text.lower() not in known:
        raise UserError(
            "rerun says which finished points to make again",
            given=f"rerun={text}",
            remedy="rerun=stale: those of another version or commit of mmrun; rerun=true: all.",
        )
    return cast("Rerun", text.lower())
