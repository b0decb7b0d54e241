"""What a user typed -> overrides: parsed by Hydra, checked by us, split into choices of groups and values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from mmrun.errors import UserError, nearest
from mmrun.options import ENCODER, groups, options
from mmrun.sources import number_groups, percentile, split_threshold
from mmrun.spec import SWEEP_WORDS

CALIBRATE_FROM = "clip.calibrate_from"  # its value names a run, and most names have a = in them
ONE_WORD = re.compile(
    r"""(?!(true|false|nan|inf)$)(\.{0,2}/)?[a-z_][\w./-]*|["'].*|choice\(.*\)|""", re.I | re.A
)


def parse(overrides: Sequence[str]) -> list[Override]:
    """Each word as an override; UserError for one that is none, or that a single point cannot take."""
    parser = OverridesParser.create()
    parsed: list[Override] = []
    seen: dict[tuple[str, bool], str] = {}
    for text in overrides:
        try:
            override = parser.parse_override(_quoted(text))
            value = None if override.value_type is None else override.value()
        except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
            raise _no_override(text) from error
        key = override.key_or_group
        if not all(key.replace("/", ".").split(".")):
            raise _no_override(text)
        once = (
            key,
            isinstance(value, dict),
        )  # fusion=attention and fusion={heads: 2} are two things
        if once in seen:
            raise UserError(
                f"{key} is given twice", given=f"{seen[once]} {text}", remedy="Keep one of them."
            )
        seen[once] = text
        if key in SWEEP_WORDS:
            raise UserError(
                f"{key}= belongs to a sweep",
                given=text,
                remedy="A sweep is mmrun train -m ...; seed=N is another seed of a single run.",
            )
        if key == "hydra" or key.startswith(("hydra.", "hydra/")):
            raise UserError(
                "Hydra only composes here; it launches nothing and makes no directories",
                given=text,
                remedy="Use outputs=DIR for the folder and name=NAME for the run.",
            )
        parsed.append(override)
    return parsed


def _quoted(text: str) -> str:
    """The override with its value in quotes where Hydra's grammar does not know its letters, or it names a run."""
    key, equals, value = text.partition("=")
    if equals and key.lstrip("+") == CALIBRATE_FROM:
        run = value.strip()
        plain = ONE_WORD.fullmatch(run) is not None
        return text if plain else f"{key}={QuotedString(run, Quote.single).with_quotes()}"
    plain = value.isascii() or not value.isprintable() or any(each in value for each in "\"'\\$")
    return text if plain else f'{key}{equals}"{value}"'


def single(parsed: list[Override]) -> list[Override]:
    """The overrides, none of which has several values."""
    for override in parsed:
        if override.is_sweep_override():
            raise UserError(
                f"{override.key_or_group} has several values",
                given=typed(override),
                remedy="Give one value, or make it a sweep with mmrun train -m.",
            )
    return parsed


def typed(override: Override) -> str:
    """The override as the user typed it."""
    return override.input_line or ""


def _no_override(text: str) -> UserError:
    remedy = "Write KEY=VALUE, e.g. fusion=attention or optimizer.lr=0.01"
    if any(each in text for each in " ,:{}[]()'\"$"):
        remedy += "; a value with special characters is quoted twice: 'name=\"a, b\"'"
    return UserError("this is no override", given=text or "nothing", remedy=f"{remedy}.")


def split(parsed: Sequence[Override], dirs: tuple[str, ...]) -> tuple[list[str], list[Override]]:
    """Choices of groups, checked and rewritten for Hydra, and overrides of values."""
    chosen: list[str] = []
    values: list[Override] = []
    known = groups(dirs)
    for override in parsed:
        key = override.key_or_group
        head = key.split("/", 1)[0]
        value = override.value() if override.value_type is not None else None
        if isinstance(value, dict) or (head not in known and "/" not in key):
            values.append(override)
            continue
        if head not in known:
            raise UserError(
                f"there is no group {head}", given=typed(override), remedy=nearest(head, known)
            )
        if head not in groups() and head != "experiment":
            raise UserError(
                f"mmrun has no group {head}, so nothing would read it",
                given=typed(override),
                remedy=f"Put your option into one of: {', '.join(groups())}.",
            )
        if override.is_delete() or override.is_add() or override.is_force_add():
            raise UserError(
                f"{key} is always there; its option can only be replaced",
                given=typed(override),
                remedy=f"Write {key}=OPTION.",
            )
        chosen.append(f"{key}={_checked_option(key, override, dirs)}")
    return chosen, values


def _checked_option(key: str, override: Override, dirs: tuple[str, ...]) -> str:
    """The option that an override of a group names, quoted where it is a number."""
    group, _, modality = key.partition("/")
    given = typed(override)
    if group == ENCODER and not modality:
        raise UserError(
            "encoders are chosen per modality",
            given=given,
            remedy="Write encoder/MODALITY=OPTION, e.g. encoder/image=cnn.",
        )
    if group != ENCODER and modality:
        raise UserError(f"{group} has no parts", given=given, remedy=f"Write {group}=OPTION.")
    option = typed(override).split("=", 1)[1].strip().strip("'\"")
    known = options(group, dirs)
    split = split_threshold(group, option)
    if split is not None and (option in known or split[0] in known):
        return f"'{option}'"
    if option in known or (group == "experiment" and option == "null"):
        return option
    raise unknown_option(group, option, given, dirs)


def unknown_option(group: str, option: str, given: str, dirs: tuple[str, ...]) -> UserError:
    """The error for an option that a group does not have, with the nearest names."""
    remedy = nearest(option, options(group, dirs))
    if group in number_groups():
        remedy += f" A threshold works too: {group}=0.5, {group}=value_0.1 or, a percentile above 0 and up to 100, {group}=p90."
    return UserError(
        f"there is no {group} called {option or 'nothing'}", given=given, remedy=remedy
    )


def canonical_choice(group: str, option: str, config: dict[str, Any], dirs: tuple[str, ...]) -> str:
    """A choice as one would type it: none, 0.5 or p90 for the default law, value_0.1 for another."""
    split = None if option in options(group, dirs) else split_threshold(group, option)
    law = split[0] if split else option
    threshold = config.get("threshold")
    if isinstance(threshold, int | float):
        text = f"{float(threshold):.15g}"
    elif percentile(threshold) is not None:
        text = str(threshold)
    else:
        return law
    return text if law == number_groups().get(group) else f"{law}_{text}"


def hydra_word(value: Any) -> str:
    """A value of a YAML file in Hydra's own grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(hydra_word, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{hydra_word(each)}' for key, each in value.items())}}}"
    text = str(value)
    if isinstance(value, str) and any(each in text for each in " ,:{}[]()'\"\\=#"):
        escaped = text.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return text
