"""Command line -> points: the only module that calls Hydra's compose API and its override parser. No torch.

Every combination of group choices is composed once by Hydra; value overrides are then applied to it by Hydra's own
code. Mistakes are found here, before anything exists: unknown groups, options and keys come with
the nearest names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmrun.errors import UserError, nearest
from mmrun.options import ENCODER, conf_dir, groups, options
from mmrun.sources import (
    Preferred,
    number_groups,
    preferred,
    register,
    split_number,
)
from mmrun.spec import (
    KINDS,
    MODALITY_NAME,
    NOT_IN_ID,
    NOT_IN_ID_TRAINER,
    NOT_IN_ID_TRAINER_PREFIX,
    RESERVED_SCOPES,
    Point,
)

PREFERENCES = ("encoders", "objective")  # keys of a dataset's YAML that say what it prefers
SWEEP_WORDS = ("seeds", "rerun", "sweep")


def point(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Point:
    """The one point that a command line without sweep syntax stands for.

    Args:
        overrides: as typed, e.g. ``["fusion=attention", "clip=0.5"]``.
        config_dirs: folders of the user's own configs (``--config-dir``).

    Raises:
        UserError: for anything in the overrides that does not name a point.
    """
    dirs = _checked_dirs(config_dirs)
    parsed = _parse(overrides)
    for override in parsed:
        if override.is_sweep_override():
            raise UserError(
                f"{override.key_or_group} has several values",
                given=override.input_line,
                remedy="Give one value: this command trains a single point.",
            )
    chosen, values = _split(parsed, dirs)
    config, choices = _compose_groups(tuple(chosen), tuple(_dataset_values(values)), dirs)
    config = _apply_values(config, values)
    resolved = _resolve(config)
    _finish_dataset(resolved, choices)
    if "clip" in choices:
        choices["clip"] = _canonical_number("clip", choices["clip"], resolved["clip"])
    name = resolved.get("name") or _name(parsed, choices)
    return Point(
        config=resolved,
        choices=dict(sorted(choices.items())),
        overrides=tuple(overrides),
        name=str(name),
        config_dirs=dirs,
    )


def changes(overrides: Sequence[str]) -> dict[str, Any]:
    """{dotted key: value} of plain overrides, for a run that already has its config."""
    found: dict[str, Any] = {}
    for override in _parse(overrides):
        if override.type is not OverrideType.CHANGE or override.is_sweep_override():
            raise UserError("this sets no single value", given=override.input_line)
        found[override.key_or_group] = override.value()
    return found


def resumable(overrides: Sequence[str]) -> dict[str, Any]:
    """``changes`` that leave a run what it is: keys outside the id, and ``trainer.max_*``.

    Raises:
        UserError: a key that would make it another run.
    """
    found = changes(overrides)
    for key, value in found.items():
        if not _outside_id(key) and not key.startswith("trainer.max_"):
            raise UserError(
                f"{key} would make it another run",
                given=f"{key}={value}",
                remedy="Resuming takes trainer.max_* and what does not change the numbers; "
                "train a new run for anything else.",
            )
    return found


def hydra_answers(arguments: Sequence[str], config_dirs: Sequence[str] = ()) -> None:
    """Let Hydra itself answer ``--cfg``, ``--info`` and ``--hydra-help``, with the overrides rewritten for it."""
    from hydra import main

    dirs = _checked_dirs(config_dirs)
    flags: list[str] = []
    words: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--cfg", "-c", "--package", "-p", "--info", "-i") and "=" not in argument:
            value = next(rest, None)
            flags += [argument] if value is None else [argument, value]
        elif argument.startswith("-"):
            flags.append(argument)
        else:
            words.append(argument)
    rewritten = full_overrides(words, dirs)
    sys.argv = ["mmrun train", *flags, *rewritten]
    main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(_nothing)()


def full_overrides(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[str]:
    """The overrides in a form that a plain Hydra composition of conf/config.yaml takes.

    Leaves ``preferred`` set for the dataset that they choose.
    """
    dirs = _checked_dirs(config_dirs)
    chosen, values = _split(_parse(overrides), dirs)
    base, _ = _compose_groups(tuple(chosen), tuple(_dataset_values(values)), dirs)
    preferred.set(_preferences(tuple(chosen), tuple(_dataset_values(values)), dirs))
    return [*_searchpath(dirs), *chosen, *(_opened(value, base) for value in values)]


def _nothing(_config: DictConfig) -> None:
    """Composing was all that was asked for."""


def _checked_dirs(config_dirs: Sequence[str]) -> tuple[str, ...]:
    for folder in config_dirs:
        if not Path(folder).is_dir():
            raise UserError(
                "--config-dir is no folder",
                given=folder,
                remedy="Give a folder with groups in it, e.g. DIR/fusion/mine.yaml.",
            )
    return tuple(str(Path(folder).resolve()) for folder in config_dirs)


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed: list[Override] = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except (OverrideParseException, HydraException) as error:
            raise UserError(
                "this is no override",
                given=text,
                remedy="Write KEY=VALUE, e.g. fusion=attention or optimizer.lr=0.01.",
            ) from error
        key = override.key_or_group
        if key in SWEEP_WORDS:
            raise UserError(
                f"{key}= belongs to a sweep",
                given=text,
                remedy="This command trains a single point; set seed=N for another seed.",
            )
        if key == "hydra" or key.startswith(("hydra.", "hydra/")):
            raise UserError(
                "Hydra only composes here; it launches nothing and makes no directories",
                given=text,
                remedy="Use outputs=DIR for the folder and name=NAME for the run.",
            )
        parsed.append(override)
    return parsed


def _split(parsed: Sequence[Override], dirs: tuple[str, ...]) -> tuple[list[str], list[Override]]:
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
                f"there is no group {head}", given=override.input_line, remedy=nearest(head, known)
            )
        if override.is_delete() or override.is_add() or override.is_force_add():
            raise UserError(
                f"{key} is always there; its option can only be replaced",
                given=override.input_line,
                remedy=f"Write {key}=OPTION.",
            )
        chosen.append(f"{key}={_checked_option(key, override, dirs)}")
    return chosen, values


def _checked_option(key: str, override: Override, dirs: tuple[str, ...]) -> str:
    """The option that an override of a group names, quoted where it is a number."""
    group, _, modality = key.partition("/")
    given = override.input_line
    if group == ENCODER and not modality:
        raise UserError(
            "encoders are chosen per modality",
            given=given,
            remedy="Write encoder/MODALITY=OPTION, e.g. encoder/image=cnn.",
        )
    if group != ENCODER and modality:
        raise UserError(f"{group} has no parts", given=given, remedy=f"Write {group}=OPTION.")
    option = override.input_line.split("=", 1)[1].strip().strip("'\"")
    known = options(group, dirs)
    if option in known or (group == "experiment" and option == "null"):
        return option
    numbered = split_number(group, option)
    if numbered is not None and numbered[0] in known:
        return f"'{option}'"
    remedy = nearest(option, known)
    if group in number_groups():
        remedy += f" A number works too: {key}=0.5 or {key}=value_0.1."
    raise UserError(f"there is no {group} called {option or 'nothing'}", given=given, remedy=remedy)


def _dataset_values(values: Sequence[Override]) -> list[str]:
    return [v.input_line for v in values if v.key_or_group.startswith("dataset.")]


def _searchpath(dirs: tuple[str, ...]) -> list[str]:
    """User folders come after mmrun's own: they add options and replace none."""
    if not dirs:
        return []
    listed = ",".join(f"'file://{folder}'" for folder in dirs)
    return [f"hydra.searchpath=['mmrun://',{listed}]"]


def _run_hydra(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    register()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="mmrun"):
            composed = hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(
            "this config cannot be composed", given=" ".join(overrides), remedy=_sentence(error)
        ) from error
    choices = {
        str(group): str(option)
        for group, option in composed.hydra.runtime.choices.items()
        if option is not None and not str(group).startswith("hydra/") and group != "preferred"
    }
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    return composed, choices


@lru_cache(maxsize=256)
def _preferences(
    chosen: tuple[str, ...], dataset_values: tuple[str, ...], dirs: tuple[str, ...]
) -> Preferred:
    """What the chosen dataset prefers, found by composing it alone."""
    mentioned = {c.split("=", 1)[0] for c in chosen if c.startswith(f"{ENCODER}/")}
    mentioned |= _experiment_encoders(chosen, dirs)
    lone = [c for c in chosen if c.split("=", 1)[0] in ("dataset", "experiment")]
    token = preferred.set(
        Preferred({"objective": "classification", **dict.fromkeys(sorted(mentioned))}, dirs)
    )
    try:
        config, _ = _run_hydra([*_searchpath(dirs), *lone])
    finally:
        preferred.reset(token)
    if not isinstance(config.get("dataset"), DictConfig):
        raise UserError("a dataset is a mapping with modalities", given=" ".join(lone))
    if dataset_values:
        config = _apply_values(config, _parse(dataset_values))
    dataset = OmegaConf.to_container(config.dataset, resolve=False)
    assert isinstance(dataset, dict)
    modalities = _kinds(dataset.get("modalities") or {})
    wanted: dict[str, Any] = dataset.get("encoders") or {}
    by_kind = OmegaConf.to_container(OmegaConf.load(conf_dir() / "kinds.yaml"))
    assert isinstance(by_kind, dict)
    for key in mentioned:
        name = key.removeprefix(f"{ENCODER}/")
        if name not in modalities:
            raise UserError(
                f"the dataset has no modality {name}",
                given=next((c for c in chosen if c.startswith(key)), key),
                remedy=nearest(name, modalities),
            )
    choices: dict[str, str | None] = {"objective": str(dataset.get("objective", "classification"))}
    for name, kind in modalities.items():
        option = wanted.get(name) or by_kind.get(kind)
        if option is None and f"{ENCODER}/{name}" not in mentioned:
            raise UserError(
                f"no encoder takes {kind} by default",
                given=f"modality {name}",
                remedy=f"Choose one with {ENCODER}/{name}=OPTION.",
            )
        choices[f"{ENCODER}/{name}"] = None if option is None else str(option)
    return Preferred(choices, dirs)


def _experiment_encoders(chosen: Sequence[str], dirs: tuple[str, ...]) -> set[str]:
    """Encoder groups that the chosen experiment's file overrides: their modalities must be listed."""
    found: set[str] = set()
    for choice in chosen:
        group, _, option = choice.partition("=")
        path = options("experiment", dirs).get(option) if group == "experiment" else None
        if path is None:
            continue
        loaded = OmegaConf.to_container(OmegaConf.load(path))
        entries: list[Any] = loaded.get("defaults", []) if isinstance(loaded, dict) else []
        for entry in entries:
            for key in entry if isinstance(entry, dict) else ():
                word = str(key).removeprefix("override").strip().lstrip("/")
                if word.startswith(f"{ENCODER}/"):
                    found.add(word)
    return found


def _kinds(modalities: Any) -> dict[str, str]:
    """{modality: kind} from a dataset's ``modalities``, names and kinds checked."""
    if not isinstance(modalities, dict):
        raise UserError(
            "dataset.modalities is a mapping of names to kinds",
            given=modalities,
            remedy="Write e.g. dataset.modalities={left:image,right:vector}.",
        )
    kinds: dict[str, str] = {}
    for name, entry in modalities.items():
        kind = str(entry.get("kind", "vector") if isinstance(entry, dict) else entry)
        if MODALITY_NAME.fullmatch(str(name)) is None:
            raise UserError(
                "a modality's name is a lower-case word",
                given=name,
                remedy="Use letters, digits and _, a letter first.",
            )
        if name in RESERVED_SCOPES:
            raise UserError(
                f"{name} is the name of a scope, not free for a modality",
                given=name,
                remedy=f"Reserved: {', '.join(RESERVED_SCOPES)}.",
            )
        if kind not in KINDS:
            raise UserError(
                f"modality {name} has an unknown kind", given=kind, remedy=nearest(kind, KINDS)
            )
        kinds[str(name)] = kind
    return kinds


@lru_cache(maxsize=256)
def _composed_groups(
    chosen: tuple[str, ...], dataset_values: tuple[str, ...], dirs: tuple[str, ...]
) -> tuple[DictConfig, dict[str, str]]:
    token = preferred.set(_preferences(chosen, dataset_values, dirs))
    try:
        return _run_hydra([*_searchpath(dirs), *chosen])
    finally:
        preferred.reset(token)


def _compose_groups(
    chosen: tuple[str, ...], dataset_values: tuple[str, ...], dirs: tuple[str, ...]
) -> tuple[DictConfig, dict[str, str]]:
    """The config of a combination of choices, composed once; a copy that the caller may change."""
    config, choices = _composed_groups(chosen, dataset_values, dirs)
    return deepcopy(config), dict(choices)


def _apply_values(config: DictConfig, values: Sequence[Override]) -> DictConfig:
    """Value overrides on a composed config, by Hydra's own code, after a check of their keys."""
    OmegaConf.set_struct(config, True)
    for override in values:
        key = override.key_or_group
        try:
            rewritten = OverridesParser.create().parse_overrides([_opened(override, config)])
            before = OmegaConf.select(config, key, throw_on_missing=False)
            ConfigLoaderImpl._apply_overrides_to_config(rewritten, config)
            after = OmegaConf.select(config, key, throw_on_missing=False)
            if isinstance(before, float) and type(after) is int and not _share_or_count(key):
                OmegaConf.update(config, key, float(after))  # 1 and 1.0 are one setting, one id
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(
                f"{override.key_or_group} cannot be set so",
                given=override.input_line,
                remedy=_sentence(error),
            ) from error
    return config


def _share_or_count(key: str) -> bool:
    """Whether 1 and 1.0 differ for a setting: one batch, or all of them."""
    return key.startswith(("trainer.limit_", "trainer.val_check_interval"))


def _opened(override: Override, config: DictConfig) -> str:
    """The override's text, with ``++`` where it adds to an empty (so open) mapping; unknown keys are refused."""
    text = override.input_line
    if override.is_add() or override.is_force_add():
        return text
    key = override.key_or_group
    node: Any = config
    path: list[str] = []
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            raise UserError(
                f"{'.'.join(path)} is a value, not a mapping", given=text, remedy="Set it whole."
            )
        if len(node) == 0 and path:
            return f"++{text}"
        if part not in node:
            inside = ".".join(path)
            remedy = nearest(part, [str(k) for k in node])
            raise UserError(
                f"{inside or 'the config'} has no key {part}", given=text, remedy=remedy
            )
        node = node._get_node(part)
        path.append(part)
    opens = isinstance(node, DictConfig) and len(node) == 0 and not override.is_delete()
    return f"++{text}" if opens else text


def _resolve(config: DictConfig) -> dict[str, Any]:
    try:
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError("the config has an open end", remedy=_sentence(error)) from error
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
    dataset["use"] = [name for name in modalities if name in wanted]
    encoders = config.get(ENCODER) or {}
    for name in modalities:
        if name not in dataset["use"]:
            encoders.pop(name, None)
            choices.pop(f"{ENCODER}/{name}", None)
    config[ENCODER] = encoders


def _canonical_number(group: str, option: str, config: dict[str, Any]) -> str:
    """A choice as one would type it: none, 0.5 for the default law, value_0.1 for another."""
    law = (split_number(group, option) or (option, 0.0))[0]
    threshold = config.get("threshold")
    if not isinstance(threshold, int | float):
        return law
    number = f"{float(threshold):g}"
    return number if law == number_groups().get(group) else f"{law}_{number}"


def _name(parsed: Sequence[Override], choices: dict[str, str]) -> str:
    """The overrides that change what is learnt, or the dataset where there are none."""
    words = [o.input_line for o in parsed if not _outside_id(o.key_or_group)]
    return ",".join(words) or choices.get("dataset", "run")


def _outside_id(key: str) -> bool:
    head, _, leaf = key.partition(".")
    if head == "trainer":
        return leaf in NOT_IN_ID_TRAINER or leaf.startswith(NOT_IN_ID_TRAINER_PREFIX)
    return head in NOT_IN_ID


def _sentence(error: BaseException) -> str:
    """The first lines of Hydra's own message, which name the key, on one line."""
    cause = error.__cause__ if error.__cause__ is not None else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return " ".join(lines[:3]) or os.strerror(0)
