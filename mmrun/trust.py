"""May this config be built? It may come from anywhere: it names code that is trusted, it is whole, its numbers are numbers.

Trusted are mmrun's own packages, torch's optimizers, and packages that the user has named. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from mmrun.errors import UserError

OWN_PACKAGES = ("mmrun", "torch.optim")
GROUPS = (
    *("dataset", "encoder", "fusion", "objective", "optimizer", "schedule", "clip", "balance"),
    *("missing", "model", "trainer", "logger"),
)
# Groups that runs made before there was one do not have.
YOUNGER_GROUPS = ("diagnostics",)
MOST = 2**63 - 1


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


def check_whole(config: Mapping[str, Any]) -> None:
    """Raise UserError unless a config has every group: that of a run directory may have been written by anybody."""
    for group in (*GROUPS, *(group for group in YOUNGER_GROUPS if group in config)):
        if not isinstance(config.get(group), Mapping):
            raise UserError(
                f"the config has no {group}",
                given=f"{group}: {config.get(group)}",
                remedy="Is its YAML file no mapping, or its run.json damaged?",
            )
    for key in ("seed", "data_seed", "threads"):
        if key not in config:
            raise UserError(
                f"the config has no {key}",
                remedy="Is its YAML file no mapping, or its run.json damaged?",
            )


def check_numbers(config: Any, where: str = "") -> None:
    """Raise UserError for a number that no setting can have: NaN, or an integer beyond 64 bits."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            check_numbers(value, f"{where}.{key}" if where else str(key))
    elif isinstance(config, list):
        for value in config:
            check_numbers(value, where)
    elif isinstance(config, float) and math.isnan(config):
        raise UserError(f"{where} is not a number", given=config, remedy="Give one.")
    elif isinstance(config, int) and not -MOST <= config <= MOST:
        raise UserError(f"{where} is too large", given=config, remedy="Give less than 2^63.")


def whole(config: Mapping[str, Any], key: str, least: int, most: int | None = None) -> int:
    """The whole number under a key; UserError where it is none, or out of range."""
    value = config[key]
    above = most is not None and isinstance(value, int) and value > most
    if not isinstance(value, int) or isinstance(value, bool) or value < least or above:
        limits = f"{least} or more" if most is None else f"from {least} to {most}"
        raise UserError(f"{key} is a whole number, {limits}", given=value, remedy=f"E.g. {key}=1.")
    return value
