"""Create, freeze and update run directories: the only code that makes one."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmrun.errors import UserError, nearest
from mmrun.runs import provenance, reader
from mmrun.runs.heartbeat import process_start
from mmrun.runs.layout import Paths, run_name
from mmrun.runs.record import KEYS, STATUSES, UNREADABLE, blank, to_text
from mmrun.spec import Point

# What a training leaves behind: everything but the frozen point itself.
_RESULTS = (
    "metrics.csv",
    "gradients.csv",
    "predictions.npz",
    "checkpoints",
    "train.log",
    "code.diff",
    "eval",
)


class Run:
    """One run directory that this process writes.

    Args:
        directory: an existing run directory.
        record: its run.json as recorded.
    """

    def __init__(self, directory: Path, record: Mapping[str, Any]) -> None:
        self.directory = directory
        self.paths = Paths(directory)
        self.record: dict[str, Any] = dict(record)
        self._lock = threading.Lock()

    @classmethod
    def open(cls, directory: Path) -> Run:
        """Take up an existing run directory, its status as recorded.

        Raises:
            UserError: there is no readable run.json.
        """
        directory = directory.absolute()
        return cls(directory, reader.recorded(directory))

    @property
    def id(self) -> str:
        """The id under which the directory was frozen."""
        return str(self.record["id"])

    def update(self, **keys: Any) -> None:
        """Replace these keys of run.json and write it, whole or not at all.

        Raises:
            KeyError: a name that run.json does not have.
        """
        for key in keys:
            if key not in KEYS:
                raise KeyError(f"run.json has no key '{key}'. {nearest(key, KEYS)}")
        with self._lock:
            merged = self.record | keys
            write_whole(self.paths.record, to_text(merged))
            self.record = merged

    def start(self, **keys: Any) -> None:
        """Say that this process runs it from now on: host, pid, versions, commit, code.diff."""
        git = provenance.commit()
        if git["dirty"]:
            write_whole(self.paths.diff, provenance.code_diff())
        else:
            self.paths.diff.unlink(missing_ok=True)
        mine: dict[str, Any] = {
            "status": "running",
            "stopped_by": None,
            "error": None,
            "started": now(),
            "ended": None,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "pid_start": process_start(os.getpid()),
            "versions": provenance.versions(),
            "git": git,
        }
        self.update(**mine | keys)

    def finish(self, status: str, **keys: Any) -> None:
        """Write the last status and what goes with it."""
        if status not in STATUSES:
            raise KeyError(f"no status '{status}'. {nearest(status, STATUSES)}")
        self.update(**{"status": status, "ended": now()} | keys)

    def reset(self) -> None:
        """Drop every result and queue the point again, for ``rerun``."""
        for name in _RESULTS:
            path = self.directory / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        kept = ("id", "name", "sweep", "seed", "data_seed", "choices", "overrides", "config")
        old = self.record
        fresh = blank() | {key: old[key] for key in (*kept, "config_dirs")}
        self.update(**fresh | {"status": "queued"})


def freeze(point: Point, directory: Path, *, sweep: str | None = None) -> Run:
    """Create a point's run directory, status queued; one frozen under the same id is taken over.

    Args:
        point: what to train.
        directory: the run directory itself; its parents are made.
        sweep: name of the sweep it belongs to; a single run has none.

    Raises:
        UserError: the directory holds something else, or cannot be written.
    """
    directory = directory.absolute()
    if directory.is_dir() and any(directory.iterdir()):
        return _take_over(point, directory)
    run = _build(point, directory, sweep)
    return run if run is not None else _take_over(point, directory)


def create(point: Point, outputs: Path, *, when: datetime | None = None) -> Run:
    """Create the directory of a single run below ``outputs``, its own even within one second.

    Raises:
        UserError: ``outputs`` cannot be written.
    """
    name = run_name(point, when or datetime.now().astimezone())
    for attempt in range(1, 1000):
        directory = outputs.absolute() / (name if attempt == 1 else f"{name}-{attempt}")
        if not directory.exists():
            run = _build(point, directory, None)
            if run is not None:
                return run
    raise UserError("could not find a free name for the run directory", given=outputs / name)


def now() -> str:
    """The present as run.json writes it: ISO 8601, UTC, milliseconds; sorts as text."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _build(point: Point, directory: Path, sweep: str | None) -> Run | None:
    """Build beside the target and rename; None where somebody else was faster."""
    config = point.config
    record = blank() | {
        "id": point.id,
        "name": point.name or directory.name,
        "sweep": sweep,
        "status": "queued",
        "seed": config.get("seed"),
        "data_seed": config.get("data_seed", config.get("seed")),
        "choices": dict(point.choices),
        "overrides": list(point.overrides),
        "config": config,
        "config_dirs": list(point.config_dirs),
    }
    building = directory.with_name(f".new-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        paths = Paths(building)
        paths.config.parent.mkdir(parents=True)
        paths.config.write_text(_yaml(config), encoding="utf-8")
        paths.overrides.write_text(_yaml(list(point.overrides)), encoding="utf-8")
        paths.record.write_text(to_text(record), encoding="utf-8")
        try:
            building.rename(directory)
        except OSError:
            if directory.exists():
                return None
            raise
    except OSError as error:
        raise UserError(
            f"cannot create the run directory: {error.strerror or error}",
            given=directory,
            remedy="Name a folder that you can write with outputs=DIR.",
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return Run(directory, record)


def _take_over(point: Point, directory: Path) -> Run:
    try:
        record = reader.recorded(directory)
    except UserError as error:
        raise UserError(
            f"the directory is in use and holds no run of this point: {error.problem}",
            given=directory,
            remedy="Move it away or name another one.",
        ) from error
    if record["status"] == UNREADABLE or record["id"] != point.id:
        raise UserError(
            f"the directory holds another point (id {record['id']}, this one is {point.id})",
            given=directory,
            remedy="Name another directory.",
        )
    return Run(directory, record)


def _yaml(value: Any) -> str:
    import yaml  # not for who only reads

    dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # 8x faster where libyaml is there
    return yaml.dump(value, Dumper=dumper, sort_keys=False, allow_unicode=True)
