"""Choices of groups -> config: each combination composed once by Hydra, after what its dataset prefers is known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mmrun.compose.overrides import parse, typed
from mmrun.compose.values import apply_values, sentence
from mmrun.errors import UserError, nearest
from mmrun.options import ENCODER, conf_dir, options
from mmrun.sources import Preferred, preferred, register
from mmrun.spec import KINDS, MODALITY_NAME, RESERVED_SCOPES

PREFERENCES = ("encoders", "objective")  # keys of a dataset's YAML that say what it prefers
SWEEP_BLOCK = "sweep"  # key of an experiment's YAML that is no setting: what it sweeps
EXPERIMENT, PACKAGE = "experiment", "# @package _global_"
PREFERRING = tuple(f"dataset.{key}" for key in ("modalities", *PREFERENCES))


@contextlib.contextmanager
def naming_the_file() -> Iterator[None]:
    """A YAML file that cannot be read is the user's: say which, and where."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(
            "this YAML file cannot be read",
            given="" if mark is None else f"{mark.name}, line {mark.line + 1}",
            remedy=f"It says: {error.problem or error.context}.",
        ) from error


@naming_the_file()
def compose_groups(
    chosen: tuple[str, ...], preferring: tuple[str, ...], dirs: tuple[str, ...]
) -> tuple[DictConfig, dict[str, str]]:
    """The config of a combination of choices, composed once; a copy that the caller may change."""
    config, choices = _composed_groups(chosen, preferring, dirs)
    return deepcopy(config), dict(choices)


@lru_cache(maxsize=256)
def _composed_groups(
    chosen: tuple[str, ...], preferring: tuple[str, ...], dirs: tuple[str, ...]
) -> tuple[DictConfig, dict[str, str]]:
    token = preferred.set(preferences(chosen, preferring, dirs))
    try:
        return _run_hydra([*searchpath(dirs), *chosen])
    finally:
        preferred.reset(token)


@naming_the_file()
@lru_cache(maxsize=256)
def preferences(
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
            config, _ = _run_hydra([*searchpath(dirs), *words])
        else:
            config = _lone_dataset(lone.get("dataset") or _default_option("dataset"), dirs)
    finally:
        preferred.reset(token)
    if not isinstance(config.get("dataset"), DictConfig):
        raise UserError("a dataset is a mapping with modalities", given=lone)
    if preferring:
        config = apply_values(config, parse(preferring), dirs)
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


def preferring(values: Sequence[Override]) -> list[str]:
    """The overrides of values that the defaults of other groups follow from."""
    return [typed(v) for v in values if _prefers(v)]


def _prefers(override: Override) -> bool:
    key, value = override.key_or_group, override.value() if override.value_type else None
    inside = [f"{key}.{name}" for name in value] if isinstance(value, dict) else [key]
    return any(each.startswith(PREFERRING) for each in inside)


def searchpath(dirs: tuple[str, ...]) -> list[str]:
    """User folders come after mmrun's own: they add options and replace none."""
    if not dirs:
        return []
    places = ("mmrun://", *(f"file://{folder}" for folder in dirs))
    listed = ",".join(QuotedString(place, Quote.single).with_quotes() for place in places)
    return [f"hydra.searchpath=[{listed}]"]


def _run_hydra(overrides: Sequence[str], name: str = "config") -> tuple[DictConfig, dict[str, str]]:
    register()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="mmrun"):
            composed = hydra_compose(name, overrides=list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(
            "this config cannot be composed", given=" ".join(overrides), remedy=sentence(error)
        ) from error
    if composed.get(EXPERIMENT):  # Hydra reads a package in the first lines alone
        option = str(composed.hydra.runtime.choices[EXPERIMENT])
        file = options(EXPERIMENT, preferred.get().config_dirs)[option]
        raise UserError(
            "this experiment sets nothing, because its file does not begin with its package",
            given=f"{EXPERIMENT}={option}",
            remedy=f"The first line of {file.name} must be {PACKAGE}.",
        )
    choices = {
        str(group): str(option)
        for group, option in composed.hydra.runtime.choices.items()
        if option is not None and not str(group).startswith("hydra/") and group != "preferred"
    }
    OmegaConf.set_struct(composed, False)
    clip = composed.get("clip")
    if isinstance(clip, DictConfig) and True in clip:  # YAML takes a bare ``on:`` for true
        clip["on"] = clip.pop(True)
    del composed["hydra"]
    composed.pop(SWEEP_BLOCK, None)
    return composed, choices


def _lone_dataset(option: str, dirs: tuple[str, ...]) -> DictConfig:
    """A dataset's config under its own key; a file without a defaults list needs no composing (40 ms)."""
    loaded = OmegaConf.load(options("dataset", dirs)[option])
    if "defaults" not in loaded:
        return OmegaConf.create({"dataset": loaded})
    if option in options("dataset"):
        return _run_hydra(searchpath(dirs), f"dataset/{option}")[0]
    # Hydra looks for what it composes first in conf/ alone: a user's file must be chosen.
    return _run_hydra([*searchpath(dirs), f"dataset={option}"])[0]


def _default_option(group: str) -> str:
    """The option of a group that conf/config.yaml names."""
    for entry in OmegaConf.load(conf_dir() / "config.yaml").defaults:
        if isinstance(entry, DictConfig) and group in entry:
            return str(entry[group])
    raise KeyError(group)


def experiment_files(option: str, dirs: tuple[str, ...]) -> list[tuple[Path, dict[str, Any]]]:
    """An experiment's file and content, after those of the experiments that it builds on; none where it cannot be read."""
    path = options("experiment", dirs).get(option)
    if path is None:
        return []
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, YAMLError, OSError):
        return []  # composing it says what is wrong
    if not isinstance(loaded, dict):
        return []
    content = {str(key): value for key, value in loaded.items()}
    bases = [
        each.rpartition("/")[2] for each in content.get("defaults") or [] if isinstance(each, str)
    ]
    before = [experiment_files(base, dirs) for base in bases if base != option]
    return [*chain(*before), (path, content)]


def _experiment_encoders(chosen: Sequence[str], dirs: tuple[str, ...]) -> set[str]:
    """Encoder groups that the chosen experiment overrides: their modalities must be listed."""
    found: set[str] = set()
    for choice in chosen:
        group, _, option = choice.partition("=")
        for path, content in experiment_files(option, dirs) if group == "experiment" else ():
            for entry in content.get("defaults") or []:
                for key, value in (entry if isinstance(entry, dict) else {}).items():
                    word = str(key).removeprefix("override").strip().lstrip("/")
                    if isinstance(value, int | float):  # Hydra refuses it before it asks any source
                        raise UserError(
                            "a defaults list names options, and a bare number is none",
                            given=f"{path.name}: {key}: {value}",
                            remedy=f'Write it in quotes, "{value}", or with its law, e.g. norm_{value}.',
                        )
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
