"""What is a sweep called? What is left of its config where the axes are taken away tells it from others."""

from __future__ import annotations

import hashlib
from copy import deepcopy
from typing import Any

from hydra.core.override_parser.types import Override

from mmrun.compose.axes import SEED, Axes
from mmrun.compose.elements import is_mapping
from mmrun.options import ENCODER, groups
from mmrun.spec import Point, config_id, outside_id

DATA_SEED = "data_seed"


def base_of(axes: Axes, first: Point) -> tuple[str, str]:
    """A name for people, and a hash of the base config and the axes' keys: another value or seed continues the same sweep."""
    config = deepcopy(first.config)
    known = groups(first.config_dirs)
    dropped: set[str] = set()  # nodes that follow from an axis; what was set in them by hand counts
    for key in (*axes.values, SEED):
        head, _, part = key.partition("/")
        if key == "experiment":
            dropped |= set(config)
            config = {}
        elif head == ENCODER and part:
            config.get(ENCODER, {}).pop(part, None)
            dropped.add(f"{ENCODER}.{part}")
        elif (
            head in known and "." not in key and not any(map(is_mapping, axes.values.get(key, ())))
        ):
            for follows in (head, *((ENCODER, "objective") if head == "dataset" else ())):
                config.pop(follows, None)
                dropped.add(follows)
        else:
            *path, leaf = key.split(".")
            node: Any = config
            for name in path:
                node = node.get(name, {}) if isinstance(node, dict) else {}
            if isinstance(node, dict):
                node.pop(leaf, None)
            for follows in ("scopes", "laws") if key.startswith("clip.") else ():
                config.get("clip", {}).pop(follows, None)  # they may start from the axis's value
                dropped.add(f"clip.{follows}")
    fixed = [slot for slot in axes.slots if isinstance(slot, Override)]
    if not any(override.key_or_group == DATA_SEED for override in fixed):
        config.pop(DATA_SEED, None)
    by_hand = sorted(
        f"{o.key_or_group}={o.value() if o.value_type is not None else None!r}"
        for o in fixed
        if any(f"{o.key_or_group.replace('/', '.')}.".startswith(f"{node}.") for node in dropped)
    )
    keys = sorted({key for key in axes.values if not outside_id(key)} | {SEED})
    text = f"{config_id(config)} {keys} {by_hand}" if by_hand else f"{config_id(config)} {keys}"
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    people = first.choices.get("experiment") or ",".join(key for key in axes.values if key != SEED)
    return (people or ("seeds" if axes.values else "sweep"))[:80], digest
