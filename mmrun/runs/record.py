"""run.json: its keys, their types, and its text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

FORMAT = 1
STATUSES = (
    "queued",
    "running",
    "finished",
    "failed",
    "killed",
    "diverged",
    "pruned",
    "cancelled",
)
UNREADABLE = "unreadable"  # only ever read, never written

_NUMBER = (int, float)
_LONGEST_WHOLE = 300  # digits; float() takes 308 of them
# Key -> the JSON types it may have; a key whose types do not name None is never null.
KEYS: dict[str, tuple[type, ...]] = {
    "format": (int,),
    "id": (str,),
    "name": (str,),
    "sweep": (str, type(None)),
    "status": (str,),
    "stability": (str, type(None)),
    "stopped_by": (str, type(None)),
    "error": (str, type(None)),
    "seed": (int, type(None)),
    "data_seed": (int, type(None)),
    "choices": (dict,),
    "overrides": (list,),
    "config": (dict,),
    "config_dirs": (list,),
    "resumed": (dict,),  # {dotted key: value} that resuming changed, on top of config
    "metrics": (dict,),  # {val/accuracy: {last, min, max, best_step}}
    "test": (dict,),  # {test/accuracy: value} at the best checkpoint
    "test_last": (dict,),  # {test_last/accuracy: value} at the last one
    "train_eval": (dict,),
    "monitor": (dict,),  # {metric, mode, value}
    "clip": (dict,),  # see runs.verdict.clip_block
    "features": (dict,),  # see runs.features.feature_block
    "steps": (int, type(None)),
    "epochs": (*_NUMBER, type(None)),
    "seconds": (*_NUMBER, type(None)),
    "steps_per_second": (*_NUMBER, type(None)),
    "steps_to_target": (*_NUMBER, type(None)),
    "started": (str, type(None)),  # ISO 8601, UTC
    "ended": (str, type(None)),
    "host": (str, type(None)),
    "pid": (int, type(None)),
    "pid_start": (int, type(None)),  # tells this process from a later one with its pid
    "device": (str, dict, type(None)),
    "versions": (dict,),
    "git": (dict,),  # {commit, dirty}
    "wandb": (dict,),  # {id, url, mode}
}


def blank() -> dict[str, Any]:
    """A record with every key and nothing in it."""
    empty: dict[type, Any] = {dict: dict, list: list, str: str, int: int}
    return {
        key: None if type(None) in types else empty[types[0]]() for key, types in KEYS.items()
    } | {"format": FORMAT}


def to_text(record: Mapping[str, Any]) -> str:
    """Record to JSON; NaN and infinities as Python's own tokens, so that nothing is lost."""
    return json.dumps(record, indent=1, default=_plain) + "\n"


def from_text(text: str) -> dict[str, Any]:
    """JSON to record, with every key present and of its type; a whole number beyond all floats is a NaN.

    Raises:
        ValueError: the text is no record, or one of a newer format; the message says which.
    """
    try:
        parsed: object = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}" if text.strip() else "is empty") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"holds a {type(parsed).__name__}, not a record")
    given = cast("dict[str, Any]", parsed)
    version = given.get("format")
    if not isinstance(version, int):
        raise ValueError("has no format number")
    if version > FORMAT:
        raise ValueError(
            f"has format {version}; this mmrun reads formats up to {FORMAT}: update mmrun"
        )
    record = given if given.keys() >= KEYS.keys() else blank() | given
    for key, types in KEYS.items():
        if not isinstance(record[key], types):
            raise ValueError(f"has a {type(record[key]).__name__} under '{key}'")
    return record


def _whole(text: str) -> float:
    return int(text) if len(text) <= _LONGEST_WHOLE else math.nan


def _plain(value: Any) -> Any:
    """What json does not know: numpy and torch values, paths, tuples' kin."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(cast("set[Any]", value))
    if hasattr(value, "tolist"):  # numpy arrays and scalars, tensors
        return value.tolist()
    raise TypeError(f"run.json cannot hold a {type(value).__name__}")
