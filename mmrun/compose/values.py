"""Values on a composed config: their keys checked, with the nearest names, then set by Hydra's own code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from mmrun.compose.overrides import typed
from mmrun.errors import UserError, nearest
from mmrun.options import ENCODER, groups, options
from mmrun.spec import SHARE_OR_COUNT

SCOPES = (
    "scopes"  # key of a group's config under which the settings of scopes stand, by their names
)
MOST_NAMED = 4  # options that a message names
YAML_INFINITY = (".inf", "+.inf", "-.inf")  # words to Hydra's command line, numbers in our files


def apply_values(
    config: DictConfig, values: Sequence[Override], dirs: tuple[str, ...]
) -> DictConfig:
    """Value overrides on a composed config, by Hydra's own code, after a check of their keys."""
    OmegaConf.set_struct(config, True)
    empty = tuple(_empty_mappings(config))  # still open when an override has put something in
    for override in values:
        key = override.key_or_group
        _spell_out_laws(config, override)
        try:
            text = opened(override, config, dirs, empty)
            before = value_at(config, key)
            rewritten = OverridesParser.create().parse_overrides([text])
            ConfigLoaderImpl._apply_overrides_to_config(rewritten, config)
            after = value_at(config, key)
            kept = kept_type(before, after, key)
            if kept is not after and "${" not in text:  # what follows from another key stays so
                OmegaConf.update(config, key, kept)
        except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
            raise UserError(
                f"{key} cannot be set so", given=typed(override), remedy=sentence(error)
            ) from error
    return config


def _spell_out_laws(config: DictConfig, override: Override) -> None:
    """``agc`` as ``{law: agc}`` in clip.scopes where an override sets a knob beside it, which would else replace it."""
    scopes = value_at(config, f"clip.{SCOPES}")
    if override.value_type is None or not isinstance(scopes, DictConfig):
        return
    for scope, word in scopes.items():
        at, key = f"clip.{SCOPES}.{scope}", override.key_or_group
        above = isinstance(override.value(), dict) and f"{at}.".startswith(f"{key}.")
        if isinstance(word, str | int | float) and (above or key.startswith(f"{at}.")):
            scopes[scope] = {"law": word}


def kept_type(before: Any, after: Any, key: str) -> Any:
    """A new value, as a float where the old one is: 1 and 1.0 are one setting, one id; so is ``.inf`` as a word."""
    if isinstance(before, float) and type(after) is int and not _share_or_count(key):
        return float(after)
    if isinstance(before, float) and str(after).lower() in YAML_INFINITY:
        return float(str(after).replace(".", ""))
    return after


def value_at(config: DictConfig, key: str) -> Any:
    """What is under a key; None for an interpolation that leads nowhere, which ``_resolve`` refuses."""
    try:
        return OmegaConf.select(config, key, throw_on_missing=False)
    except InterpolationResolutionError:
        return None


def _share_or_count(key: str) -> bool:
    """Whether 1 and 1.0 differ for a setting: one batch, or all of them."""
    return key.startswith(tuple(f"trainer.{each}" for each in SHARE_OR_COUNT))


def opened(
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
    text, key = typed(override), override.key_or_group
    path = key.split(".")
    if override.is_delete():
        parent = OmegaConf.select(config, key.rpartition(".")[0]) if len(path) > 2 else None
        if not isinstance(parent, DictConfig) or "_target_" in parent:
            raise UserError(
                f"{key} cannot be taken away", given=text, remedy=f"Give it a value: {key}=VALUE."
            )
        return text
    if isinstance(override.value(), list) and isinstance(value_at(config, key), DictConfig):
        one = "audio=value_0.1" if key == f"clip.{SCOPES}" else "NAME=VALUE"
        raise UserError(
            f"{key} is a mapping, not a list", given=text, remedy=f"Write e.g. {key}.{one}."
        )
    if override.is_add() or override.is_force_add():
        _lookup(path[:1], config, text, dirs)
        return text
    of_scope = path[1:2] == [SCOPES] and len(path) > 2
    if of_scope:
        _lookup(path[:2], config, text, dirs)
    if of_scope or any(f"{key}.".startswith(f"{each}.") for each in empty):
        return f"++{text}"
    value = override.value()
    opens = _opens(path, value, config, text, dirs)
    return f"++{text}" if opens or isinstance(value, dict) else text


def _opens(
    path: list[str], value: Any, config: DictConfig, text: str, dirs: tuple[str, ...]
) -> bool:
    """Whether a value goes into a mapping that takes any key: an empty one, or that of scopes."""
    node, rest = _lookup(path, config, text, dirs)
    if not isinstance(node, DictConfig) or len(node) == 0:
        return isinstance(node, DictConfig)
    if path[1:] == [SCOPES] and isinstance(value, dict):
        return True
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
        more = f" and {len(having) - MOST_NAMED} more" if len(having) > MOST_NAMED else ""
        remedy = f"It is a key of {', '.join(having[:MOST_NAMED])}{more}." if having else ""
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


def sentence(error: BaseException) -> str:
    """The first lines of Hydra's own message, without what is inside of OmegaConf, on one line."""
    cause = error.__cause__ if error.__cause__ is not None else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("full_key:", "object_type="))]
    text = " ".join(kept[:3]) or type(cause).__name__
    return text if text.endswith((".", "?", "!")) else f"{text}."
