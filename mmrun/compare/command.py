"""Which line makes this run again, as it was or with a change? Quoted for a shell, from run.json alone."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from mmrun.exits import program
from mmrun.spec import outside_id


def command(record: Mapping[str, Any]) -> str:
    """The line that makes this run again, quoted for a shell; with what resuming changed."""
    changes = resumed(record)
    kept = [str(o) for o in record["overrides"] if key_of(str(o)) not in changes]
    return shlex.join(
        [
            *shlex.split(program()),
            "train",
            *(word for folder in record["config_dirs"] for word in ("--config-dir", str(folder))),
            *kept,
            *changes.values(),
        ]
    )


def variant(record: Mapping[str, Any], *words: str, without: Iterable[str]) -> str:
    """The line of this run with other words.

    Args:
        record: content of run.json.
        words: what is added, as typed.
        without: groups and keys that go; with a group or a mapping goes all that is inside it.
    """
    gone = tuple(without)
    kept = [
        str(override)
        for override in record["overrides"]
        if not any(_is_inside(key_of(str(override)), each) for each in gone)
    ]
    return command({**record, "overrides": [*kept, *words]})


def resumed(record: Mapping[str, Any]) -> dict[str, str]:
    """{key: override} of what resuming changed that decides the numbers."""
    changes: dict[str, Any] = record.get("resumed") or {}
    words = {True: "true", False: "false", None: "null"}
    return {
        key: f"{key}={words[value] if value is None or isinstance(value, bool) else value}"
        for key, value in changes.items()
        if not outside_id(key)
    }


def key_of(override: str) -> str:
    """The dotted key or the group that an override sets, adds or deletes."""
    return override.partition("=")[0].lstrip("+~").strip()


def _is_inside(key: str, of: str) -> bool:
    return key == of or key.startswith(f"{of}.")
