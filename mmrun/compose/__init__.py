"""Command line -> points: the only package that calls Hydra's compose API and its override parser. No torch.

Every combination of group choices is composed once by Hydra; value overrides are then applied to it by Hydra's own
code. Mistakes are found here, before anything exists: unknown groups, options and keys come with
the nearest names. ``overrides`` is what was typed, ``groups`` the composition, ``values`` the settings on top, ``points`` all
of it together, ``sweep`` many of them.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import OverrideType
from omegaconf import DictConfig, OmegaConf

from mmrun.compose.groups import compose_groups, preferences, preferring, searchpath
from mmrun.compose.overrides import hydra_word, parse, single, split, typed
from mmrun.compose.points import point
from mmrun.compose.sweep import is_sweep, sweep
from mmrun.compose.values import SCOPES, apply_values, opened
from mmrun.errors import UserError, nearest
from mmrun.options import checked_dirs, conf_dir, groups
from mmrun.sources import preferred, register
from mmrun.spec import outside_id

__all__ = ["changes", "hydra_answers", "is_sweep", "point", "resumable", "sweep"]

# What Hydra answers, and what it takes after it: nothing, one of some words, or anything.
ANYTHING = ("ANYTHING",)
HYDRA_FLAGS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("--cfg", "-c"), ("job", "hydra", "all")),
    **dict.fromkeys(
        ("--info", "-i"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    ),
    **dict.fromkeys(("--package", "-p"), ANYTHING),
    **dict.fromkeys(("--hydra-help", "--resolve"), ()),
}


def changes(overrides: Sequence[str]) -> dict[str, Any]:
    """{dotted key: value} of plain overrides, for a run that already has its config."""
    found: dict[str, Any] = {}
    for override in parse(overrides):
        if override.type is not OverrideType.CHANGE or override.is_sweep_override():
            raise UserError("this sets no single value", given=typed(override))
        found[override.key_or_group] = override.value()
    return found


def resumable(overrides: Sequence[str]) -> dict[str, Any]:
    """``changes`` that leave a run what it is: keys outside the id, and ``trainer.max_*``.

    Raises:
        UserError: a key that would make it another run.
    """
    found = changes(overrides)
    for key, value in found.items():
        if key in ("outputs", "name"):
            raise UserError(
                "resuming leaves a run where it is, and its name as it is",
                given=f"{key}={value}",
                remedy="Move or rename the folder itself.",
            )
        if key in groups() and outside_id(key):
            raise UserError(
                "resuming changes settings, and keeps the option of every group",
                given=f"{key}={value}",
                remedy=f"Set one as {key}.KEY=VALUE, or train a new run.",
            )
        if not outside_id(key) and not key.startswith("trainer.max_"):
            raise UserError(
                f"{key} would make it another run",
                given=f"{key}={value}",
                remedy="Resuming takes trainer.max_* and what does not change the numbers; "
                "train a new run for anything else.",
            )
    return found


def hydra_answers(arguments: Sequence[str], config_dirs: Sequence[str] = ()) -> None:
    """Let Hydra itself answer what ``HYDRA_FLAGS`` ask, with the overrides rewritten for it.

    Raises:
        UserError: a flag or a value that Hydra does not know, or a wrong override.
    """
    from hydra import main

    dirs = checked_dirs(config_dirs)
    flags: list[str] = []
    words: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-"):
            words.append(argument)
            continue
        flag, equals, value = argument.partition("=")
        if flag not in HYDRA_FLAGS:
            raise UserError(
                "train has no such flag", given=argument, remedy=nearest(flag, HYDRA_FLAGS)
            )
        known = HYDRA_FLAGS[flag]
        if flag in ("--info", "-i") and not equals and (not rest or rest[0] not in known):
            value = "all"
        elif known and not equals:
            value = rest.pop(0) if rest else ""
        if known and known != ANYTHING and value not in known:
            remedy = nearest(value, known)
            raise UserError(f"{flag} cannot show this", given=value or "nothing", remedy=remedy)
        flags += [flag, value] if known else [argument]
    rewritten = full_overrides(words, dirs)
    register()
    said = io.StringIO()
    saved, sys.argv = sys.argv, ["mmrun train", *flags, *rewritten]
    try:
        with contextlib.redirect_stderr(said):
            main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(_nothing)()
    except SystemExit as error:
        if not error.code:
            return
        last = (said.getvalue().strip() or "no reason given").rpartition("\n")[2]
        asked = " ".join(arguments)
        raise UserError("Hydra cannot answer this", given=asked, remedy=f"{last}.") from error
    finally:
        sys.argv = saved


def full_overrides(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[str]:
    """The overrides in a form that a plain Hydra composition of conf/config.yaml takes.

    Leaves ``preferred`` set for the dataset that they choose.
    """
    dirs = checked_dirs(config_dirs)
    chosen, values = split(single(parse(overrides)), dirs)
    preferred.set(preferences(tuple(chosen), tuple(preferring(values)), dirs))
    rewritten: list[str] = []
    if values:
        base, _ = compose_groups(tuple(chosen), tuple(preferring(values)), dirs)
        own = [value for value in values if value.key_or_group.startswith(f"clip.{SCOPES}")]
        rewritten = [opened(value, base, dirs) for value in values if value not in own]
        if own:  # Hydra would put a knob in the place of the law that it belongs to
            scopes = OmegaConf.to_container(apply_values(base, own, dirs).clip[SCOPES])
            rewritten += [f"~clip.{SCOPES}", f"++clip.{SCOPES}={hydra_word(scopes)}"]
    return [*searchpath(dirs), *chosen, *rewritten]


def _nothing(_config: DictConfig) -> None:
    """Composing was all that was asked for."""
