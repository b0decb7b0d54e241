"""Command line -> the points of a sweep: every combination of values, as Hydra's own sweeper makes them, and seeds.

Sweep syntax beside Hydra's lists and functions: ``seeds=N``, ``sweep=NAME``, ``rerun=stale|true``, and the ``sweep:`` block of
an experiment's file, ``{clip: [none, 0.5], optimizer.lr: [0.1, 0.3], seeds: 3}``, whose axes the command line can replace.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, cast, get_args

from hydra.core.override_parser.types import ChoiceSweep, Glob, Override
from hydra.core.override_parser.types import Sweep as SweepSyntax
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from mmrun.compose.calibration import RecordedNorms
from mmrun.compose.groups import SWEEP_BLOCK, experiment_files, preferring
from mmrun.compose.overrides import CALIBRATE_FROM, hydra_word, parse, split, typed
from mmrun.compose.points import Template, lone_name
from mmrun.errors import UserError, nearest
from mmrun.options import ENCODER, checked_dirs, groups, options
from mmrun.spec import MULTIRUN, SWEEP_WORDS, Point, Rerun, Sweep, config_id, outside_id

MOST_POINTS = 100_000
NO_AXES = ("sweep", "rerun", "name", "experiment", "outputs")  # in an experiment's block
SEED, DATA_SEED = "seed", "data_seed"


def is_sweep(words: Sequence[str], config_dirs: Sequence[str] = ()) -> bool:
    """Whether a command line means several points: ``-m``, ``seeds=``, or an experiment whose axes are not all fixed."""
    if any(word in MULTIRUN or word.startswith("seeds=") for word in words):
        return True
    pairs = (word.partition("=") for word in words)
    given = {key.strip(): value.strip().strip("'\"") for key, _, value in pairs}
    block = _block(given.get("experiment"), checked_dirs(config_dirs))
    return any((SEED if key == "seeds" else key) not in given for key in block)


def sweep(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Sweep:
    """All points that a command line stands for.

    The first axis varies slowest, the seeds fastest. Points that are equal but for their words are taken once.

    Args:
        overrides: as typed, without ``-m``.
        config_dirs: folders of the user's own configs.

    Raises:
        UserError: for anything that names no point; nothing exists then.
    """
    dirs = checked_dirs(config_dirs)
    words, rest = _sweep_words(overrides)
    parsed = parse(rest)
    # fusion=attention and fusion={heads: 2} are two things: only the first can be an axis of its name.
    named = {o.key_or_group: o for o in parsed if not _is_mapping(o)}
    if "name" in named:
        remedy = "Points are named after what varies; sweep=NAME names the sweep."
        raise UserError("the points of a sweep name themselves", given="name=", remedy=remedy)
    block = _experiment_block(named.get("experiment"), dirs)
    seeds = words.get("seeds") or (None if SEED in named else block.get("seeds"))
    block.pop("seeds", None)
    recorded = RecordedNorms()
    axes: dict[str, list[Override]] = {}
    slots: list[Override | str] = []  # fixed overrides and keys of axes, as they are applied
    for key, value in block.items():
        axes[key] = _elements(named.get(key) or _of_block(key, value), dirs)
        slots += [] if key in named else [key]
    for override in parsed:
        key = override.key_or_group
        if override.is_sweep_override() and key not in axes:
            axes[key] = _elements(override, dirs)
        slots.append(key if key in axes and override is named.get(key) else override)
    if seeds is not None:
        if SEED in axes:
            raise UserError(
                "seeds= counts from one seed", given=f"seeds={seeds}", remedy="Give seed=N or none."
            )
        base = _points(slots, axes, dirs, recorded, first=True)[0].config[SEED]
        slots = [slot for slot in slots if slot is not named.get(SEED)]
        axes[SEED] = _parse_each(f"{SEED}={base + k}" for k in range(_count(seeds)))
        slots.append(SEED)
    total = 1
    for key, values in axes.items():
        total *= len(values)
        if total > MOST_POINTS:
            raise UserError(
                f"these are more than {MOST_POINTS} points", given=_typed_axis(key, values)
            )
    unique: dict[str, tuple[Point, tuple[Override, ...]]] = {}
    repeated: list[str] = []
    idle: set[str] = set()
    made = zip(_points(slots, axes, dirs, recorded), itertools.product(*axes.values()), strict=True)
    for point, values in made:
        _, kept = unique.setdefault(point.id, (point, values))
        if kept is not values:
            repeated.append(point.name)
            idle |= {key for key, a, b in zip(axes, kept, values, strict=True) if a is not b}
    recorded.check_used()
    points = tuple(point for point, _ in unique.values())
    return Sweep(
        name=_name(words.get("sweep")) or _default_name(points[0], slots, axes),
        points=points,
        axes={key: tuple(map(_shown, values)) for key, values in axes.items()},
        overrides=tuple(overrides),
        config_dirs=dirs,
        rerun=_rerun(words.get("rerun", "false")),
        repeated=tuple(repeated),
        # Another spelling of a law is told by the name; what is outside the id may need a word.
        idle=tuple(sorted(key for key in idle if outside_id(key) or key == "trainer")),
    )


def _parse_each(texts: Any) -> list[Override]:
    """Each text as an override of its own; the same key may come again."""
    return [parse([text])[0] for text in texts]


def _typed_axis(key: str, values: Sequence[Override]) -> str:
    """An axis as one would type it, for messages."""
    return f"{key}={','.join(map(_shown, values[:5]))}{',...' if len(values) > 5 else ''}"


def _points(
    slots: Sequence[Override | str],
    axes: Mapping[str, Sequence[Override]],
    dirs: tuple[str, ...],
    recorded: RecordedNorms,
    *,
    first: bool = False,
) -> list[Point]:
    """The points in order; of those that differ in values only, one is composed.

    Args:
        slots: fixed overrides, and keys of axes, in the order in which they are applied.
        axes: {key: overrides of one value each}, the slowest first.
        dirs: folders of the user's own configs.
        recorded: norms of earlier runs.
        first: whether the first point is all that is wanted.
    """
    fixed = [slot for slot in slots if isinstance(slot, Override)]
    halves = {id(o): split([o], dirs) for o in [*fixed, *itertools.chain(*axes.values())]}
    rows: list[dict[str, Override]] = [
        dict(zip(axes, combination, strict=True))
        for combination in itertools.product(*axes.values())
    ][: 1 if first else None]
    lines = [[s if isinstance(s, Override) else row[s] for s in slots] for row in rows]
    values = [list(itertools.chain(*(halves[id(o)][1] for o in line))) for line in lines]
    templates: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = {}
    for number, line in enumerate(lines):
        chosen = tuple(itertools.chain(*(halves[id(o)][0] for o in line)))
        templates.setdefault((chosen, tuple(preferring(values[number]))), []).append(number)
    made: dict[int, Point] = {}
    for (chosen, _), numbers in templates.items():  # one after another: few configs at a time
        template = Template(chosen, values[numbers[0]], dirs, recorded)
        for number in numbers:
            words = tuple(typed(override) for override in lines[number])
            name = ",".join(f"{key}={_shown(value)}" for key, value in rows[number].items())
            made[number] = template.point(
                values[number], words, name or lone_name(lines[number]) or "point"
            )
    return [made[number] for number in range(len(rows))]


def _is_mapping(override: Override) -> bool:
    return override.value_type is not None and isinstance(override.value(), dict)


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
    chosen = [_shown(each) for each in _elements(experiment, dirs)]
    blocks = {option: _block(option, dirs) for option in chosen}
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


def _block(option: str | None, dirs: tuple[str, ...]) -> dict[str, Any]:
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


def _of_block(key: str, value: Any) -> Override:
    """An axis of a ``sweep:`` block as an override; a string is what one would type."""
    if isinstance(value, dict):
        inner = next(iter(value), "KEY")
        remedy = f"Write {key}.{inner}: [...]."
        raise UserError("an axis is one key with its values", given=f"sweep: {key}", remedy=remedy)
    values = [hydra_word(each) for each in value] if isinstance(value, list) else [value]
    if not values:
        raise UserError("an axis needs a value", given=f"sweep: {key}: []")
    text = ",".join(each if isinstance(each, str) else hydra_word(each) for each in values)
    if key == CALIBRATE_FROM and isinstance(value, list):  # a comma alone belongs to a name
        text = f"choice({text})"
    return parse([f"{key}={text}"])[0]


def _elements(override: Override, dirs: tuple[str, ...]) -> list[Override]:
    """An axis as overrides of one value each."""
    if not override.is_sweep_override():
        return [override]
    key, value = override.get_key_element(), override.value()
    if isinstance(value, Glob):
        group = override.key_or_group.split("/")[0]
        if group not in groups(dirs):
            raise UserError(
                "glob() is for groups", given=typed(override), remedy=nearest(group, groups(dirs))
            )
        texts = value.filter(sorted(options(group, dirs)))
        if not texts:
            raise UserError(
                "no option answers to that",
                given=typed(override),
                remedy=nearest("", options(group, dirs)),
            )
    elif isinstance(value, ChoiceSweep) and any(
        isinstance(v, Glob | SweepSyntax) for v in value.list
    ):
        raise UserError(
            "glob(), range() and the like stand alone, not in a list",
            given=typed(override),
            remedy=f"Write out the values: {key}=A,B,C.",
        )
    elif not override.is_discrete_sweep():
        raise UserError(
            "a grid has no intervals",
            given=typed(override),
            remedy=f"Give values, {key}=0.1,1,10, or {key}=range(1,10,3).",
        )
    else:
        try:
            texts = list(itertools.islice(override.sweep_string_iterator(), MOST_POINTS + 1))
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise UserError(
                "this sweep cannot be expanded", given=typed(override), remedy=f"{error}."
            ) from error
    if not texts:
        raise UserError("an axis needs a value", given=typed(override))
    if override.key_or_group == CALIBRATE_FROM:  # read as it stands, without Hydra's backslashes
        texts = [re.sub(r"\\(.)", r"\1", text) for text in texts]
    return [_as_typed(each) for each in _parse_each(f"{key}={text}" for text in texts)]


def _as_typed(override: Override) -> Override:
    """The override with a text that a person would type: Hydra puts a backslash before a colon."""
    value = override.value()
    if "\\" not in typed(override) or not isinstance(value, str):
        return override
    with contextlib.suppress(UserError):
        plain = parse([f"{override.get_key_element()}={value}"])[0]
        if not plain.is_sweep_override() and plain.value() == value:
            return plain
    return override


def _shown(override: Override) -> str:
    """The value of an element, as names show it."""
    return typed(override).partition("=")[2].strip().strip("'\"")


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


def _default_name(
    first: Point, slots: Sequence[Override | str], axes: Mapping[str, Sequence[Override]]
) -> str:
    """A name for people and a hash of the base config and the axes' keys: another value or seed continues the same sweep."""
    config = deepcopy(first.config)
    known = groups(first.config_dirs)
    dropped: set[str] = set()  # nodes that follow from an axis; what was set in them by hand counts
    for key in (*axes, SEED):
        head, _, part = key.partition("/")
        if key == "experiment":
            dropped |= set(config)
            config = {}
        elif head == ENCODER and part:
            config.get(ENCODER, {}).pop(part, None)
            dropped.add(f"{ENCODER}.{part}")
        elif head in known and "." not in key and not any(map(_is_mapping, axes.get(key, ()))):
            for follows in (head, *((ENCODER, "objective") if head == "dataset" else ())):
                config.pop(follows, None)
                dropped.add(follows)
        else:
            *path, leaf = key.split(".")
            node: Any = config
            for name in path:
                node = node.get(name, {}) if isinstance(node, dict) else {}
            if isinstance(node, dict):
                node.pop(leaf, None)
            for follows in ("scopes", "laws") if key.startswith("clip.") else ():
                config.get("clip", {}).pop(follows, None)  # they may start from the axis's value
                dropped.add(f"clip.{follows}")
    fixed = [slot for slot in slots if isinstance(slot, Override)]
    if not any(override.key_or_group == DATA_SEED for override in fixed):
        config.pop(DATA_SEED, None)
    by_hand = sorted(
        f"{o.key_or_group}={o.value() if o.value_type is not None else None!r}"
        for o in fixed
        if any(f"{o.key_or_group.replace('/', '.')}.".startswith(f"{node}.") for node in dropped)
    )
    keys = sorted({key for key in axes if not outside_id(key)} | {SEED})
    text = f"{config_id(config)} {keys} {by_hand}" if by_hand else f"{config_id(config)} {keys}"
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    people = first.choices.get("experiment") or ",".join(key for key in axes if key != SEED)
    return f"{(people or ('seeds' if axes else 'sweep'))[:80]}_{digest}"
