"""The ledger of a sweep: which points it has, who drives it now. What became of a point, its own run.json says."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from mmrun.errors import UserError
from mmrun.runs.heartbeat import process_start
from mmrun.runs.layout import LOCK, RECORD, SWEEP_RECORD
from mmrun.runs.writer import now, write_whole

FORMAT = 1
PROBED_S = 0.5  # for so long a new driver tries: who looks whether there is one holds the lock for a moment


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The content of sweep.json.

    Args:
        name: of the sweep, as W&B groups its points.
        overrides: the words of the last command, without ``-m``.
        config_dirs: the user's own config folders.
        axes: {key: values as typed}, of all commands so far.
        points: {id: name of its folder}, in the order in which they came.
        created: when, ISO 8601.
        driver: {host, pid, pid_start} of the process that drives it, or drove it last.
        jobs: {name of a point's folder: key of its job}, where jobs outlive the driver.
    """

    name: str
    overrides: tuple[str, ...] = ()
    config_dirs: tuple[str, ...] = ()
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    points: Mapping[str, str] = field(default_factory=dict[str, str])
    created: str = ""
    driver: Mapping[str, Any] = field(default_factory=dict[str, Any])
    jobs: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def driven_by(self) -> str:
        """The process that drives it, or drove it last: ``process 123 on a_host``."""
        return f"process {self.driver.get('pid', '?')} on {self.driver.get('host', '?')}"

    def extended(
        self,
        *,
        overrides: Sequence[str],
        config_dirs: Sequence[str],
        axes: Mapping[str, Sequence[str]],
        points: Mapping[str, str],
    ) -> Ledger:
        """With another command's points and values added to those that are there."""
        merged = {
            key: tuple(dict.fromkeys((*self.axes.get(key, ()), *axes.get(key, ()))))
            for key in dict.fromkeys((*self.axes, *axes))
        }
        return replace(
            self,
            overrides=tuple(overrides),
            config_dirs=tuple(config_dirs),
            axes=merged,
            points={**self.points, **points},
        )


def read_ledger(sweep: Path) -> Ledger:
    """The ledger of a sweep's folder.

    Raises:
        UserError: there is none, it cannot be read, or it is of a newer mmrun.
    """
    path = sweep / SWEEP_RECORD
    try:
        loaded: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"this ledger cannot be read: {error}",
            given=path,
            remedy="Points keep their own records: move it away, and the sweep's command writes it anew.",
        ) from error
    given = cast("dict[str, Any]", loaded) if isinstance(loaded, dict) else {}
    version = given.get("format")
    if not isinstance(version, int) or version > FORMAT:
        raise UserError(
            f"this ledger has format {version}, and this mmrun reads formats up to {FORMAT}",
            given=path,
            remedy="Update mmrun.",
        )

    def words(key: str) -> tuple[str, ...]:
        value = given.get(key)
        return tuple(map(str, cast("list[Any]", value))) if isinstance(value, list) else ()

    def mapping(key: str) -> dict[str, Any]:
        value = given.get(key)
        return cast("dict[str, Any]", value) if isinstance(value, dict) else {}

    axes = {
        key: tuple(map(str, cast("list[Any]", values)))
        for key, values in mapping("axes").items()
        if isinstance(values, list)
    }
    return Ledger(
        name=str(given.get("name") or sweep.name),
        overrides=words("overrides"),
        config_dirs=words("config_dirs"),
        axes=axes,
        points={key: str(value) for key, value in mapping("points").items()},
        created=str(given.get("created") or ""),
        driver=mapping("driver"),
        jobs={key: str(value) for key, value in mapping("jobs").items()},
    )


def write_ledger(sweep: Path, ledger: Ledger) -> None:
    """Write sweep.json, whole or not at all, with this process as the driver."""
    mine = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pid_start": process_start(os.getpid()),
    }
    content = {
        "format": FORMAT,
        "name": ledger.name,
        "created": ledger.created or now(),
        "updated": now(),
        "overrides": list(ledger.overrides),
        "config_dirs": list(ledger.config_dirs),
        "axes": {key: list(values) for key, values in ledger.axes.items()},
        "driver": mine,
        "points": dict(ledger.points),
        "jobs": dict(ledger.jobs),
    }
    write_whole(sweep / SWEEP_RECORD, json.dumps(content, indent=1) + "\n")


def driven(sweep: Path) -> bool:
    """Whether a process drives the sweep now: whether its lock is held. Only looks: see ``PROBED_S``."""
    try:
        file = os.open(sweep / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # several may look at a time
    except OSError:
        return True
    finally:
        os.close(file)  # and with it the lock
    return False


@contextlib.contextmanager
def locked(sweep: Path) -> Generator[None]:
    """The sweep is driven by this process alone while this lasts; the kernel lets go when the process dies.

    Makes the folder where there is none, and takes it away again where nothing was put into it.

    Raises:
        UserError: another process drives it, the folder is something else, or cannot be written.
    """
    from filelock import FileLock, Timeout  # 0.05 s, for who only looks

    if (sweep / RECORD).exists():
        raise UserError(
            "that is a run, not a sweep", given=sweep, remedy="Give another name: sweep=NAME."
        )
    lock = FileLock(sweep / LOCK, timeout=PROBED_S)
    made = [folder for folder in (sweep, sweep.parent) if not folder.exists()]
    try:
        sweep.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            "another process drives this sweep",
            given=sweep,
            remedy=f"{_driver(sweep)} Wait for it, or stop it.",
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot make the sweep's folder: {error.strerror or error}",
            given=sweep,
            remedy="Name a folder that you can write with outputs=DIR.",
        ) from error
    try:
        yield
    finally:
        if not (sweep / SWEEP_RECORD).exists():
            with contextlib.suppress(OSError):
                (sweep / LOCK).unlink(missing_ok=True)
                for folder in made:
                    folder.rmdir()
        lock.release()


def _driver(sweep: Path) -> str:
    try:
        return f"It is {read_ledger(sweep).driven_by}."
    except UserError:
        return ""
