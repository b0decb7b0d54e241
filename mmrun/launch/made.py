"""What a config group of a sweep names, made: its launcher, its sweeper."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from mmrun.errors import UserError
from mmrun.signature import check
from mmrun.trust import check_targets

Kind = TypeVar("Kind")


def made(
    group: str, node: Mapping[str, Any], kind: type[Kind], trust: Collection[str] = ()
) -> Kind:
    """An object of the class that a group's config names, with its settings.

    Args:
        group: its name, for messages.
        node: its config.
        kind: what it has to be.
        trust: packages beside mmrun and torch.optim that ``_target_`` may name.

    Raises:
        UserError: none of ours or of the trusted packages, or settings that it does not take.
    """
    check_targets({group: dict(node)}, trust)
    target = str(node.get("_target_", ""))
    knobs = {key: value for key, value in node.items() if key != "_target_"}
    module, _, name = target.rpartition(".")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{group}._target_ cannot be loaded", given=target or "nothing", remedy=f"{error}."
        ) from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UserError(
            f"{group}._target_ is no {kind.__name__}",
            given=target,
            remedy=f"See mmrun list {group}.",
        )
    check(found, knobs, group)
    return found(**knobs)
