"""Overrides -> points: the combination of groups, the values on top, and what follows from the dataset."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmrun.compose.calibration import RecordedNorms
from mmrun.compose.clip import finish_clip
from mmrun.compose.groups import PREFERENCES, compose_groups, preferring
from mmrun.compose.overrides import canonical_choice, parse, single, split, typed
from mmrun.compose.values import apply_values, kept_type, sentence, value_at
from mmrun.errors import UserError, nearest
from mmrun.options import ENCODER, checked_dirs
from mmrun.spec import Point, outside_id
from mmrun.trust import whole


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
    recorded = RecordedNorms()
    made = Template(chosen, values, dirs, recorded).point(values, tuple(overrides), "")
    recorded.check_used()
    name = lone_name(parsed) or made.choices.get("dataset", "run")
    name = _text(made.config, "name") if made.config["name"] else name
    return replace(made, name=name)


class Template:
    """A combination of choices, composed once, of which points differ in values only.

    The first point is composed in full, by Hydra's own code. The next ones take its resolved config, where what differs is a
    plain value under a key that nothing else is computed from, but for other names of it (``data_seed: ${seed}``);
    any other is composed in full again.

    Args:
        chosen: choices of groups, as ``split`` gives them.
        values: overrides of values, in order; those of every point have the same keys.
        dirs: folders of the user's own configs.
        recorded: norms of earlier runs, for ``clip.calibrate_from``.
    """

    def __init__(
        self,
        chosen: Sequence[str],
        values: Sequence[Override],
        dirs: tuple[str, ...],
        recorded: RecordedNorms,
    ) -> None:
        self.recorded = recorded
        self.dirs = dirs
        self.chosen = tuple(chosen)
        self.preferring = tuple(preferring(values))
        self._first: _Composed | None = None

    def point(self, values: Sequence[Override], overrides: tuple[str, ...], name: str) -> Point:
        """The point with these values. overrides: as typed, for the record.

        Raises:
            UserError: a key or a value that the config does not take.
        """
        resolved, choices = self._quick(values) or self._full(values)
        _finish_dataset(resolved, choices)
        _finish_launcher(resolved)
        resolved["outputs"] = _text(resolved, "outputs")
        if "clip" in choices:
            finish_clip(resolved, choices["clip"], self.dirs, self.recorded)
            choices["clip"] = canonical_choice("clip", choices["clip"], resolved["clip"], self.dirs)
        for key in ("seed", "data_seed"):
            whole(resolved, key, 0)
        return Point(
            config=resolved,
            choices=dict(sorted(choices.items())),
            overrides=overrides,
            name=name,
            config_dirs=self.dirs,
        )

    def _full(self, values: Sequence[Override]) -> tuple[dict[str, Any], dict[str, str]]:
        config, choices = compose_groups(self.chosen, self.preferring, self.dirs)
        before = {v.key_or_group: value_at(config, v.key_or_group) for v in values}
        config = apply_values(config, values, self.dirs)
        resolved = _resolve(config)
        if self._first is None:
            linked = dict(_interpolations(OmegaConf.to_container(config, resolve=False)))
            self._first = _Composed(
                tuple(values), before, linked, deepcopy(resolved), dict(choices)
            )
        return resolved, choices

    def _quick(self, values: Sequence[Override]) -> tuple[dict[str, Any], dict[str, str]] | None:
        first = self._first
        if first is None:
            return None
        changes: dict[str, Any] = {}
        for old, new in zip(first.values, values, strict=True):
            if old is not new:
                key, value = new.key_or_group, new.value()
                alone = not any(_overlap(key, other.key_or_group) for other in values)
                names = first.names_of(key) if alone and _is_plain(value) else ()
                if not names:
                    return None
                changes |= dict.fromkeys(names, kept_type(first.before[key], value, key))
        resolved = deepcopy(first.resolved)
        for key, value in changes.items():
            *path, leaf = key.split(".")
            node: Any = resolved
            for part in path:
                node = node[part]
            node[leaf] = deepcopy(value)
        return resolved, dict(first.choices)


class _Composed(NamedTuple):
    """A point composed in full, and what is needed to make others of it."""

    values: tuple[Override, ...]
    before: dict[str, Any]  # {key: value} of what the overrides set, before they did
    linked: dict[str, str]  # {dotted key: interpolation}
    resolved: dict[str, Any]
    choices: dict[str, str]

    def names_of(self, key: str) -> tuple[str, ...]:
        """The key and its other names; none where more than that follows from it, or it is no single value."""
        path = key.split(".")
        node: Any = self.resolved
        for part in path:
            if not isinstance(node, dict) or part not in node:
                return ()
            node = node[part]
        if isinstance(node, dict):
            return ()
        names = [key]
        follows = dict(self.linked)
        for name in names:  # grows: a name of a name is one too
            parts = {name, *name.split(".")}
            for other, text in list(follows.items()):
                if text == f"${{{name}}}":
                    names.append(other)
                    del follows[other]
                elif key.startswith(f"{other}.") or any(_mentions(text, part) for part in parts):
                    return ()
        return tuple(names)


def _mentions(text: str, word: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9_]){re.escape(word)}(?![A-Za-z0-9_])", text) is not None


def _interpolations(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every interpolation in a config that is not resolved."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _interpolations(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list):
        for value in node:  # what is inside a list is no name of its own
            for _, text in _interpolations(value, prefix):
                yield f"{prefix}[]", f"{text} "
    elif isinstance(node, str) and "${" in node:
        yield prefix, node


def _overlap(key: str, other: str) -> bool:
    """Whether one of two keys is inside the other: then their order matters."""
    return key != other and (key.startswith(f"{other}.") or other.startswith(f"{key}."))


def _is_plain(value: Any) -> bool:
    """Whether a value is one for itself: no mapping that merges, no interpolation."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return "${" not in value and value != "???"
    return value is None or isinstance(value, bool | int | float)


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


def _finish_launcher(config: dict[str, Any]) -> None:
    """``launcher.gpus_per_job`` is how many processes train a point, where it is given as a whole number above 1."""
    launcher, trainer = config.get("launcher"), config.get("trainer")
    if not isinstance(launcher, dict) or not isinstance(trainer, dict):
        return
    processes = launcher.get("gpus_per_job")
    if not isinstance(processes, int) or isinstance(processes, bool) or processes <= 1:
        return
    if trainer.get("devices") not in (1, processes):
        raise UserError(
            "launcher.gpus_per_job and trainer.devices are one number",
            given=f"launcher.gpus_per_job={processes} trainer.devices={trainer.get('devices')}",
            remedy="Give one of them.",
        )
    trainer["devices"] = processes
    if "devices" in launcher:
        launcher["devices"] = processes


def lone_name(parsed: Sequence[Override]) -> str:
    """The overrides that change what is learnt; nothing where there are none."""
    return ",".join(typed(o) for o in parsed if not outside_id(o.key_or_group))
