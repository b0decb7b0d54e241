"""Command line -> points: the only package that calls Hydra's compose API and its override parser. No torch.

Every combination of group choices is composed once by Hydra; value overrides are then applied to it by Hydra's own
code. Mistakes are found here, before anything exists: unknown groups, options and keys come with
the nearest names. ``overrides`` is what was typed, ``groups`` the composition, ``values`` the settings on top.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmrun.compose.groups import (
    PREFERENCES,
    compose_groups,
    preferences,
    preferring,
    searchpath,
)
from mmrun.compose.overrides import canonical_number, outside_id, parse, single, split, typed
from mmrun.compose.values import apply_values, opened, sentence
from mmrun.errors import UserError, nearest
from mmrun.options import ENCODER, checked_dirs, conf_dir
from mmrun.sources import preferred, register
from mmrun.spec import Point

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


def point(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Point:
    """The one point that a command line without sweep syntax stands for.

    Args:
        overrides: as typed, e.g. ``["fusion=attention", "clip=0.5"]``.
        config_dirs: folders of the user's own configs (``--config-dir``).

    Raises:
        UserError: for anything in the overrides that does not name a point.
    """
    dirs = checked_dirs(config_dirs)
    parsed = single(parse(overrides))
    chosen, values = split(parsed, dirs)
    config, choices = compose_groups(tuple(chosen), tuple(preferring(values)), dirs)
    config = apply_values(config, values, dirs)
    resolved = _resolve(config)
    _finish_dataset(resolved, choices)
    if "clip" in choices:
        choices["clip"] = canonical_number("clip", choices["clip"], resolved["clip"], dirs)
    resolved["outputs"] = _text(resolved, "outputs")
    name = _text(resolved, "name") if resolved["name"] else _name(parsed, choices)
    return Point(
        config=resolved,
        choices=dict(sorted(choices.items())),
        overrides=tuple(overrides),
        name=name,
        config_dirs=dirs,
    )


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
        rewritten = [opened(value, base, dirs) for value in values]
    return [*searchpath(dirs), *chosen, *rewritten]


def _nothing(_config: DictConfig) -> None:
    """Composing was all that was asked for."""


def _text(config: dict[str, Any], key: str) -> str:
    """A setting that is text; a number that was meant as text becomes it."""
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value):
        raise UserError(f"{key} is text", given=repr(value), remedy=f"Write {key}=NAME.")
    return str(value)


def _resolve(config: DictConfig) -> dict[str, Any]:
    try:
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = error.full_key or "the config"
        raise UserError(f"{key} cannot be resolved", remedy=sentence(error)) from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _finish_dataset(config: dict[str, Any], choices: dict[str, str]) -> None:
    """Name the modalities in use, drop the encoders of the others and the dataset's preferences."""
    dataset = config["dataset"]
    for preference in PREFERENCES:
        dataset.pop(preference, None)
    modalities = list(dataset.get("modalities") or {})
    use = dataset.get("use", "all")
    wanted = modalities if use == "all" else [use] if isinstance(use, str) else use
    if not isinstance(wanted, list) or (modalities and not wanted):
        raise UserError(
            "dataset.use names modalities", given=use, remedy="Write all, or e.g. [image,text]."
        )
    for name in wanted:
        if name not in modalities:
            raise UserError(
                f"the dataset has no modality {name}",
                given=f"dataset.use={use}",
                remedy=nearest(str(name), modalities),
            )
    if len(set(wanted)) < len(wanted):
        raise UserError("dataset.use names a modality twice", given=use, remedy="Once is enough.")
    dataset["use"] = [name for name in modalities if name in wanted]
    encoders = config.get(ENCODER) or {}
    for name in modalities:
        if name not in dataset["use"]:
            encoders.pop(name, None)
            choices.pop(f"{ENCODER}/{name}", None)
    config[ENCODER] = encoders


def _name(parsed: Sequence[Override], choices: dict[str, str]) -> str:
    """The overrides that change what is learnt, or the dataset where there are none."""
    words = [typed(o) for o in parsed if not outside_id(o.key_or_group)]
    return ",".join(words) or choices.get("dataset", "run")
