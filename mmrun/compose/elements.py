"""An axis of a sweep -> its values, each an override of its own."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override
from hydra.core.override_parser.types import Sweep as SweepSyntax
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from mmrun.compose.interval import interval_of
from mmrun.compose.overrides import CALIBRATE_FROM, hydra_word, parse, typed
from mmrun.errors import UserError, nearest
from mmrun.options import groups, options
from mmrun.sources import number_groups

MOST_POINTS = 100_000


def elements(override: Override, dirs: tuple[str, ...]) -> list[Override]:
    """An axis as overrides of one value each; of an interval, the middle."""
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
    elif isinstance(value, IntervalSweep):
        group = override.key_or_group.split("/")[0]
        if group in groups(dirs) and group not in number_groups():
            raise UserError(
                f"the options of {group} are no numbers",
                given=typed(override),
                remedy=f"Name them: {override.key_or_group}={','.join(list(options(group, dirs))[:3])}.",
            )
        spanned = interval_of(value, typed(override))
        texts = [spanned.text(spanned.middle)]
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
    return [_as_typed(each) for each in parse_each(f"{key}={text}" for text in texts)]


def of_block(key: str, value: Any) -> Override:
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


def parse_each(texts: Iterable[str]) -> list[Override]:
    """Each text as an override of its own; the same key may come again."""
    return [parse([text])[0] for text in texts]


def shown(override: Override) -> str:
    """The value of an element, as names show it."""
    return typed(override).partition("=")[2].strip().strip("'\"")


def is_mapping(override: Override) -> bool:
    """Whether the value is settings by name."""
    return override.value_type is not None and isinstance(override.value(), dict)
