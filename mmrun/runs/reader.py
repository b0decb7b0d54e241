"""Read run directories, whatever state they are in."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmrun.errors import UserError
from mmrun.runs.heartbeat import is_alive
from mmrun.runs.layout import RECORD
from mmrun.runs.record import UNREADABLE, blank, from_text
from mmrun.spec import Point


def read(directory: Path) -> dict[str, Any]:
    """The record of a run with the status that holds now; never raises.

    All keys of run.json are there and of their types. A run that says "running" and whose process
    is gone is "killed". What cannot be read has status "unreadable" and the reason under ``error``.
    """
    try:
        record = _load(directory)
        touched = (directory / RECORD).stat().st_mtime if record["status"] == "running" else 0.0
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else str(error)) or repr(error)
        return blank() | {
            "status": UNREADABLE,
            "name": directory.name,
            "error": f"{RECORD} {reason}" if not isinstance(error, OSError) else _no_file(error),
        }
    if record["status"] == "running" and not is_alive(record, touched=touched):
        record["status"] = "killed"
        record["error"] = record["error"] or "the process died without a word"
    return record


def recorded(directory: Path) -> dict[str, Any]:
    """The record as it stands in run.json, for those who go on writing it.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    try:
        return _load(directory)
    except OSError as error:
        raise UserError(_no_file(error), given=directory) from error
    except ValueError as error:
        raise UserError(f"{RECORD} {error}", given=directory) from error


def point(directory: Path) -> Point:
    """The Point that a directory was frozen from.

    Raises:
        UserError: there is no readable run.json.
    """
    record = recorded(directory)
    return Point(
        config=record["config"],
        choices={str(group): str(option) for group, option in record["choices"].items()},
        overrides=tuple(str(override) for override in record["overrides"]),
        name=record["name"],
        config_dirs=tuple(str(folder) for folder in record["config_dirs"]),
    )


def list_runs(root: Path) -> list[Path]:
    """Run directories at ``root``: itself, its children, and the points of sweeps below it."""
    if _is_run(str(root)):
        return [root]
    runs: list[str] = []
    for child in _folders(str(root)):
        if _is_run(child):
            runs.append(child)
        else:
            runs += [inner for inner in _folders(child) if _is_run(inner)]
    return [Path(run) for run in runs]


def read_all(roots: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """{run directory: record} of every run at these roots, each once."""
    found = dict.fromkeys(run for root in roots for run in list_runs(root))
    return {run: read(run) for run in found}


def _load(directory: Path) -> dict[str, Any]:
    with open(f"{directory}/{RECORD}", "rb") as file:  # a Path costs thousands of runs 0.1 s
        data = file.read()
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ValueError("is not text") from None
    return from_text(text)


def _no_file(error: OSError) -> str:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return f"no {RECORD} here"
    return f"{RECORD} cannot be read: {error.strerror or error}"


def _is_run(directory: str) -> bool:
    return os.path.isfile(f"{directory}/{RECORD}")


def _folders(root: str) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return sorted(e.path for e in entries if not e.name.startswith(".") and e.is_dir())
    except OSError:
        return []
