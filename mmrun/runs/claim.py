"""One process trains a run at a time: a lock on its folder, which the kernel lets go when that process dies.

``status`` in run.json alone cannot say so: between the look and the word there are seconds of imports and of building.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Generator
from pathlib import Path

from mmrun.errors import UserError
from mmrun.runs import reader

PROBED_S = 0.5  # for so long one tries: who looks whether there is one holds the lock for a moment
_STEP_S = 0.02
_held: set[int] = set()  # descriptors


class ClaimedError(UserError):
    """Another process trains this run."""


@contextlib.contextmanager
def claimed(directory: Path) -> Generator[None]:
    """This process alone trains the run while this lasts. Where a file system has no such locks, its record has to do.

    Raises:
        ClaimedError: another one does.
    """
    file = -1
    with contextlib.suppress(OSError):
        file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        _held.add(file)
    try:
        until = time.monotonic() + PROBED_S
        while file >= 0 and not _locks(file, fcntl.LOCK_EX):
            if time.monotonic() > until:
                raise taken(directory)
            time.sleep(_STEP_S)
        if reader.read(directory)["status"] == "running":  # on another machine
            raise taken(directory)
        yield
    finally:
        if file in _held:
            _held.remove(file)
            with contextlib.suppress(
                OSError
            ):  # what was trained may have closed what it did not open
                os.close(file)


def is_claimed(directory: Path) -> bool:
    """Whether a process trains the run now, or is about to."""
    try:
        file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _locks(file, fcntl.LOCK_SH)  # several may look at a time
    finally:
        os.close(file)


def taken(directory: Path) -> ClaimedError:
    """What to say to who comes second."""
    record = reader.read(directory)
    who = f"process {record['pid']} on {record['host']}" if record["status"] == "running" else "it"
    return ClaimedError(
        "this run is being trained now", given=directory, remedy=f"Wait for {who}, or stop it."
    )


def _locks(file: int, how: int) -> bool:
    """False where another process is in the way."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no such locks here
        return True
    return True


def _forget() -> None:
    """A child holds nothing: a loader that outlives its run by some seconds does not train it."""
    for file in _held:
        with contextlib.suppress(OSError):
            os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
