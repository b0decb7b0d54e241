"""Changing single settings of a plain config by their dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from mmrun.errors import UserError, nearest


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config with {dotted key: value} set.

    Raises:
        UserError: a key that the config does not have.
    """
    copy = deepcopy(dict(config))
    for key, value in changes.items():
        *path, leaf = key.split(".")
        node: Any = copy
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or leaf not in node:
            raise UserError(
                f"the run has no setting {key}",
                given=f"{key}={value}",
                remedy=nearest(leaf, node if isinstance(node, dict) else copy),
            )
        node[leaf] = value
    return copy
