"""Ids: what they ignore, what they see, and that they do not depend on how a config was written."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from mmrun import compose
from mmrun.spec import KINDS, MODALITY_NAME, RESERVED_SCOPES, Point, config_id

# DESIGN: exactly these change nothing that is learnt.
IGNORED = (
    *("outputs", "name", "sweep", "logger", "launcher", "sweeper", "profile"),
    "diagnostics",
)
IGNORED_TRAINER = ("accelerator", "devices", "num_nodes", "enable_progress_bar")


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return compose.point(["clip=0.5", "optimizer.scopes.text.lr=0.1", "logger.tags=[a]"]).config


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    else:
        yield path


def changed(config: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    result = copy.deepcopy(config)
    node = result
    for key in path[:-1]:
        node = node.setdefault(key, {})
    node[path[-1]] = value
    return result


def is_ignored(path: tuple[str, ...]) -> bool:
    return path[0] in IGNORED or (path[0] == "trainer" and path[1] in IGNORED_TRAINER)


def test_the_id_sees_every_setting_but_those(config: dict[str, Any]):
    base = config_id(config)
    paths = list(leaves(config))
    assert sum(map(is_ignored, paths)) >= 10
    for path in paths:
        differs = config_id(changed(config, path, "another value")) != base
        assert differs != is_ignored(path), ".".join(path)


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        (("sweep",), False),
        (("profile",), False),
        (("launcher", "timeout_s"), False),
        (("sweeper", "n_trials"), False),
        (("trainer", "enable_anything"), False),
        (("trainer", "enabled"), True),
        (("trainer", "outputs"), True),
        (("dataset", "root"), True),
        (("dataset", "path"), True),
        (("dataset", "name"), True),
        (("anything",), True),
    ],
)
def test_settings_that_are_added(config: dict[str, Any], path: tuple[str, ...], seen: bool):
    assert (config_id(changed(config, path, 1)) != config_id(config)) == seen


def test_the_order_of_keys_does_not_matter(config: dict[str, Any]):
    def turned(node: Any) -> Any:
        return {k: turned(v) for k, v in reversed(node.items())} if isinstance(node, dict) else node

    assert config_id(turned(config)) == config_id(config)


def test_an_id_is_twelve_hex_digits_and_of_the_config_alone(config: dict[str, Any]):
    one = Point(config=config, choices={}, name="one")
    two = Point(config=config, choices={"fusion": "x"}, overrides=("a=b",), config_dirs=("/tmp",))
    assert one.id == two.id == config_id(config)
    assert len(one.id) == 12
    assert int(one.id, 16) >= 0


def test_an_id_is_the_same_tomorrow():
    """A change of this number makes every recorded run unknown to resume and sweeps."""
    assert config_id({"seed": 0, "clip": {"threshold": 0.5}, "trainer": {"devices": 2}}) == PINNED


PINNED = "54c20f260589"


def test_names_and_kinds():
    assert all(MODALITY_NAME.fullmatch(name) for name in ("image", "a", "a_1", "lead2"))
    assert not any(
        MODALITY_NAME.fullmatch(name) for name in ("", "A", "1a", "_a", "a-b", "a.b", "ä")
    )
    assert set(RESERVED_SCOPES) == {"fusion", "objective", "missing", "shared"}
    assert len(set(KINDS)) == len(KINDS) == 7
