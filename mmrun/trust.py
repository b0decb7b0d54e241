"""Which code may a config name? mmrun's own, torch's optimizers, and packages that the user has named. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mmrun.errors import UserError

OWN_PACKAGES = ("mmrun", "torch.optim")


def check_targets(config: Any, trust: Collection[str], where: str = "") -> None:
    """Raise UserError unless every ``_target_`` in a config is in a known or trusted package."""
    if isinstance(config, list):
        for each in config:
            check_targets(each, trust, where)
    if not isinstance(config, Mapping):
        return
    target = config.get("_target_")
    if target is not None:
        known = any(str(target).startswith(f"{package}.") for package in (*OWN_PACKAGES, *trust))
        if not known:
            package = str(target).split(".", 1)[0]
            raise UserError(
                f"{where}._target_ is outside the packages that are trusted",
                given=target,
                remedy=f"If you trust it, add --trust {package} or the --config-dir that it came with "
                f"(in Python trust=['{package}']).",
            )
    for key, value in config.items():
        check_targets(value, trust, f"{where}.{key}" if where else str(key))


def targets(config: Any) -> set[str]:
    """The top-level packages of every ``_target_`` in a config."""
    if isinstance(config, list):
        return set().union(*map(targets, config)) if config else set()
    if not isinstance(config, Mapping):
        return set()
    own = {str(config["_target_"]).split(".", 1)[0]} if "_target_" in config else set()
    return own.union(*map(targets, config.values())) if config else own
