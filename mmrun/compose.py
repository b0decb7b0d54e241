"""Command line -> points: the only module that calls Hydra's compose API and its override parser. No torch.

Every combination of group choices is composed once by Hydra; value overrides are then applied to it by Hydra's own
code. Mistakes are found here, before anything exists: unknown groups, options and keys come with
the nearest names.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from mmrun.errors import UserError, nearest
from mmrun.options import ENCODER, checked_dirs, conf_dir, groups, options
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

YAML_INFINITY = (".inf", "+.inf", "-.inf")  # words to Hydra's command line, numbers in our files
PREFERENCES = ("encoders", "objective")  # keys of a dataset's YAML that say what it prefers
PREFERRING = tuple(f"dataset.{key}" for key in ("modalities", *PREFERENCES))
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
SWEEP_WORDS = ("seeds", "rerun", "sweep")


def point(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Point:
    """The one point that a command line without sweep syntax stands for.

    Args:
        overrides: as typed, e.g. ``["fusion=attention", "clip=0.5"]``.
        config_dirs: folders of the user's own configs (``--config-dir``).

    Raises:
        UserError: for anything in the overrides that does not name a point.
    """
    dirs = checked_dirs(config_dirs)
    parsed = _single(_parse(overrides))
    chosen, values = _split(parsed, dirs)
    config, choices = _compose_groups(tuple(chosen), tuple(_preferring(values)), dirs)
    config = _apply_values(config, values, dirs)
    resolved = _resolve(config)
    _finish_dataset(resolved, choices)
    if "clip" in choices:
        choices["clip"] = _canonical_number("clip", choices["clip"], resolved["clip"])
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
    for override in _parse(overrides):
        if override.type is not OverrideType.CHANGE or override.is_sweep_override():
            raise UserError("this sets no single value", given=_typed(override))
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
    words, sys.argv = sys.argv, ["mmrun train", *flags, *rewritten]
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
        sys.argv = words


def full_overrides(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[str]:
    """The overrides in a form that a plain Hydra composition of conf/config.yaml takes.

    Leaves ``preferred`` set for the dataset that they choose.
    """
    dirs = checked_dirs(config_dirs)
    chosen, values = _split(_single(_parse(overrides)), dirs)
    preferred.set(_preferences(tuple(chosen), tuple(_preferring(values)), dirs))
    opened: list[str] = []
    if values:
        base, _ = _compose_groups(tuple(chosen), tuple(_preferring(values)), dirs)
        opened = [_opened(value, base, dirs) for value in values]
    return [*_searchpath(dirs), *chosen, *opened]


def _nothing(_config: DictConfig) -> None:
    """Composing was all that was asked for."""


def _parse(overrides: Sequence[str]) -> list[Override]:
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


def _quoted(text: str) -> str:
    """The override with its value in quotes where it has letters that Hydra's grammar does not know."""
    key, equals, value = text.partition("=")
    plain = value.isascii() or not value.isprintable() or any(each in value for each in "\"'\\$")
    return text if plain else f'{key}{equals}"{value}"'


def _single(parsed: list[Override]) -> list[Override]:
    """The overrides, none of which has several values."""
    for override in parsed:
        if override.is_sweep_override():
            raise UserError(
                f"{override.key_or_group} has several values",
                given=_typed(override),
                remedy="Give one value: this command trains a single point.",
            )
    return parsed


def _typed(override: Override) -> str:
    """The override as the user typed it."""
    return override.input_line or ""


def _no_override(text: str) -> UserError:
    remedy = "Write KEY=VALUE, e.g. fusion=attention or optimizer.lr=0.01"
    if any(each in text for each in " ,:{}[]()'\"$"):
        remedy += "; a value with special characters is quoted twice: 'name=\"a, b\"'"
    return UserError("this is no override", given=text or "nothing", remedy=f"{remedy}.")


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
                f"there is no group {head}", given=_typed(override), remedy=nearest(head, known)
            )
        if override.is_delete() or override.is_add() or override.is_force_add():
            raise UserError(
                f"{key} is always there; its option can only be replaced",
                given=_typed(override),
                remedy=f"Write {key}=OPTION.",
            )
        chosen.append(f"{key}={_checked_option(key, override, dirs)}")
    return chosen, values


def _checked_option(key: str, override: Override, dirs: tuple[str, ...]) -> str:
    """The option that an override of a group names, quoted where it is a number."""
    group, _, modality = key.partition("/")
    given = _typed(override)
    if group == ENCODER and not modality:
        raise UserError(
            "encoders are chosen per modality",
            given=given,
            remedy="Write encoder/MODALITY=OPTION, e.g. encoder/image=cnn.",
        )
    if group != ENCODER and modality:
        raise UserError(f"{group} has no parts", given=given, remedy=f"Write {group}=OPTION.")
    option = _typed(override).split("=", 1)[1].strip().strip("'\"")
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


def _preferring(values: Sequence[Override]) -> list[str]:
    """The overrides of values that the defaults of other groups follow from."""
    return [_typed(v) for v in values if v.key_or_group.startswith(PREFERRING)]


def _searchpath(dirs: tuple[str, ...]) -> list[str]:
    """User folders come after mmrun's own: they add options and replace none."""
    if not dirs:
        return []
    listed = ",".join(f"'file://{folder}'" for folder in dirs)
    return [f"hydra.searchpath=['mmrun://',{listed}]"]


def _run_hydra(overrides: Sequence[str], name: str = "config") -> tuple[DictConfig, dict[str, str]]:
    register()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="mmrun"):
            composed = hydra_compose(name, overrides=list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
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
    chosen: tuple[str, ...], preferring: tuple[str, ...], dirs: tuple[str, ...]
) -> Preferred:
    """What the chosen dataset prefers, found by composing it alone."""
    mentioned = {c.split("=", 1)[0] for c in chosen if c.startswith(f"{ENCODER}/")}
    mentioned |= _experiment_encoders(chosen, dirs)
    lone = dict(c.split("=", 1) for c in chosen if c.split("=", 1)[0] in ("dataset", "experiment"))
    token = preferred.set(
        Preferred({"objective": "classification", **dict.fromkeys(sorted(mentioned))}, dirs)
    )
    try:
        if "experiment" in lone:  # it may choose the dataset
            words = [f"{group}={option}" for group, option in lone.items()]
            config, _ = _run_hydra([*_searchpath(dirs), *words])
        else:
            config = _lone_dataset(lone.get("dataset") or _default_option("dataset"), dirs)
    finally:
        preferred.reset(token)
    if not isinstance(config.get("dataset"), DictConfig):
        raise UserError("a dataset is a mapping with modalities", given=lone)
    if preferring:
        config = _apply_values(config, _parse(preferring), dirs)
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


def _lone_dataset(option: str, dirs: tuple[str, ...]) -> DictConfig:
    """A dataset's config under its own key; a file without a defaults list needs no composing (40 ms)."""
    loaded = OmegaConf.load(options("dataset", dirs)[option])
    if "defaults" not in loaded:
        return OmegaConf.create({"dataset": loaded})
    if option in options("dataset"):
        return _run_hydra(_searchpath(dirs), f"dataset/{option}")[0]
    # Hydra looks for what it composes first in conf/ alone: a user's file must be chosen.
    return _run_hydra([*_searchpath(dirs), f"dataset={option}"])[0]


def _default_option(group: str) -> str:
    """The option of a group that conf/config.yaml names."""
    for entry in OmegaConf.load(conf_dir() / "config.yaml").defaults:
        if isinstance(entry, DictConfig) and group in entry:
            return str(entry[group])
    raise KeyError(group)


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
    chosen: tuple[str, ...], preferring: tuple[str, ...], dirs: tuple[str, ...]
) -> tuple[DictConfig, dict[str, str]]:
    token = preferred.set(_preferences(chosen, preferring, dirs))
    try:
        return _run_hydra([*_searchpath(dirs), *chosen])
    finally:
        preferred.reset(token)


def _compose_groups(
    chosen: tuple[str, ...], preferring: tuple[str, ...], dirs: tuple[str, ...]
) -> tuple[DictConfig, dict[str, str]]:
    """The config of a combination of choices, composed once; a copy that the caller may change."""
    config, choices = _composed_groups(chosen, preferring, dirs)
    return deepcopy(config), dict(choices)


def _apply_values(
    config: DictConfig, values: Sequence[Override], dirs: tuple[str, ...]
) -> DictConfig:
    """Value overrides on a composed config, by Hydra's own code, after a check of their keys."""
    OmegaConf.set_struct(config, True)
    empty = tuple(_empty_mappings(config))  # still open when an override has put something in
    for override in values:
        key = override.key_or_group
        try:
            opened = _opened(override, config, dirs, empty)
            before = _value(config, key)
            rewritten = OverridesParser.create().parse_overrides([opened])
            ConfigLoaderImpl._apply_overrides_to_config(rewritten, config)
            after = _value(config, key)
            if isinstance(before, float) and type(after) is int and not _share_or_count(key):
                OmegaConf.update(config, key, float(after))  # 1 and 1.0 are one setting, one id
            if isinstance(before, float) and str(after).lower() in YAML_INFINITY:
                OmegaConf.update(config, key, float(str(after).replace(".", "")))
        except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
            raise UserError(
                f"{key} cannot be set so", given=_typed(override), remedy=_sentence(error)
            ) from error
    return config


def _value(config: DictConfig, key: str) -> Any:
    """What is under a key; None for an interpolation that leads nowhere, which ``_resolve`` refuses."""
    try:
        return OmegaConf.select(config, key, throw_on_missing=False)
    except InterpolationResolutionError:
        return None


def _share_or_count(key: str) -> bool:
    """Whether 1 and 1.0 differ for a setting: one batch, or all of them."""
    return key.startswith(("trainer.limit_", "trainer.val_check_interval"))


def _opened(
    override: Override, config: DictConfig, dirs: tuple[str, ...], empty: Sequence[str] = ()
) -> str:
    """The override's text, with ``++`` where it adds to a mapping that is there to be filled.

    Args:
        override: of a value.
        config: what it applies to.
        dirs: folders of the user's own configs.
        empty: keys of mappings that take any key, though other overrides may have filled them.

    Raises:
        UserError: a key that the config does not have, or one that cannot be deleted.
    """
    text, key = _typed(override), override.key_or_group
    path = key.split(".")
    if override.is_delete():
        parent = OmegaConf.select(config, key.rpartition(".")[0]) if len(path) > 2 else None
        if not isinstance(parent, DictConfig) or "_target_" in parent:
            raise UserError(
                f"{key} cannot be taken away", given=text, remedy=f"Give it a value: {key}=VALUE."
            )
        return text
    if override.is_add() or override.is_force_add():
        _lookup(path[:1], config, text, dirs)
        return text
    if any(f"{key}.".startswith(f"{each}.") for each in empty):
        return f"++{text}"
    value = override.value()
    opens = _opens(path, value, config, text, dirs)
    return f"++{text}" if opens or isinstance(value, dict) else text


def _opens(
    path: list[str], value: Any, config: DictConfig, text: str, dirs: tuple[str, ...]
) -> bool:
    """Whether a value goes into an empty mapping: the one kind that takes any key."""
    node, rest = _lookup(path, config, text, dirs)
    if not isinstance(node, DictConfig) or len(node) == 0:
        return isinstance(node, DictConfig)
    assert not rest
    key = ".".join(path)
    if not isinstance(value, dict):
        remedy = f"Set one of its keys: {', '.join(f'{key}.{each}' for each in _names(node))}."
        if path[0] in groups(dirs):
            remedy = f"Choose an option with {'/'.join(path)}=OPTION, or s{remedy[1:]}"
        raise UserError(f"{key} is a mapping, not a value", given=text, remedy=remedy)
    for part, inner in value.items():
        _opens([*path, str(part)], inner, config, text, dirs)
    return False


def _lookup(
    path: list[str], config: DictConfig, text: str, dirs: tuple[str, ...]
) -> tuple[Any, list[str]]:
    """(the node at a path, what is left of the path): some is left only inside an empty mapping."""
    node: Any = config
    for k, part in enumerate(path):
        if not isinstance(node, DictConfig):
            key = ".".join(path[:k])
            raise UserError(
                f"{key} is a value, not a mapping", given=text, remedy=f"Write {key}=VALUE."
            )
        if len(node) == 0:
            return node, path[k:]
        if part not in node:
            raise _unknown_key(path[: k + 1], node, config, text, dirs)
        node = node._get_node(part)
    return node, []


def _unknown_key(
    path: list[str], node: DictConfig, config: DictConfig, text: str, dirs: tuple[str, ...]
) -> UserError:
    """The error for a key that is not there: where it is, else what there is."""
    *inside, part = path
    if not inside:
        elsewhere = [key for key in _dotted_keys(config) if key.endswith(f".{part}")]
        remedy = f"Did you mean {' or '.join(elsewhere[:3])}?" if elsewhere else ""
        problem = f"the config has no key {part}"
    else:
        having = _options_with(inside, part, dirs)
        remedy = f"It is a key of {' and '.join(having)}." if having else ""
        problem = f"{'.'.join(inside)} has no key {part}"
    return UserError(problem, given=text, remedy=remedy or nearest(part, _names(node)))


def _options_with(inside: list[str], part: str, dirs: tuple[str, ...]) -> list[str]:
    """Options of the group that ``inside`` is the config of which have a key of this name."""
    group = inside[0]
    if len(inside) != (2 if group == ENCODER else 1):
        return []
    key = re.compile(rf"^{re.escape(part)}:", re.MULTILINE)
    found = options(group, dirs).items()
    return [
        f"{'/'.join(inside)}={option}"
        for option, path in found
        if key.search(path.read_text(encoding="utf-8"))
    ]


def _dotted_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in _names(config):
        yield f"{prefix}{name}"
        node = config._get_node(name)
        if isinstance(node, DictConfig):
            yield from _dotted_keys(node, f"{prefix}{name}.")


def _empty_mappings(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in _names(config):
        node = config._get_node(name)
        if isinstance(node, DictConfig):
            if len(node) == 0:
                yield f"{prefix}{name}"
            yield from _empty_mappings(node, f"{prefix}{name}.")


def _names(node: DictConfig) -> list[str]:
    """The keys that a user may set: without Hydra's own."""
    return [str(key) for key in node if not str(key).startswith("_")]


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
        raise UserError(f"{key} cannot be resolved", remedy=_sentence(error)) from error
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
    words = [_typed(o) for o in parsed if not _outside_id(o.key_or_group)]
    return ",".join(words) or choices.get("dataset", "run")


def _outside_id(key: str) -> bool:
    head, _, leaf = key.partition(".")
    if head == "trainer":
        return leaf in NOT_IN_ID_TRAINER or leaf.startswith(NOT_IN_ID_TRAINER_PREFIX)
    return head in NOT_IN_ID


def _sentence(error: BaseException) -> str:
    """The first lines of Hydra's own message, without what is inside of OmegaConf, on one line."""
    cause = error.__cause__ if error.__cause__ is not None else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("full_key:", "object_type="))]
    text = " ".join(kept[:3]) or type(cause).__name__
    return text if text.endswith((".", "?", "!")) else f"{text}."
