"""Is the process behind a run still alive? The beat that says so, and the reading of it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

BEAT_S = 10.0
STALE_S = 60.0


class Heartbeat:
    """Touch a file's time every few seconds, from a thread that never keeps the process alive.

    The mtime is the beat, not a key of the file: a beat cannot tear or lose an update.

    Args:
        path: the file to touch, a run's run.json.
        interval_s: seconds between two touches.
    """

    def __init__(self, path: Path, *, interval_s: float = BEAT_S) -> None:
        self._path = path
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start to beat; a second call does nothing."""
        if self._thread is not None:
            return
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, name="mmrun-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop and wait for the thread; safe to call at any time."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=self._interval_s)

    def _beat(self) -> None:
        while not self._stop.wait(self._interval_s):
            # The folder may be gone, or its disk full or away for a moment: none of it ends a run.
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def __enter__(self) -> Heartbeat:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def process_start(pid: int) -> int | None:
    """When did this process start? A number that a later process with the same pid does not share.

    Clock ticks since boot on Linux, seconds since 1970 elsewhere; None for no such process, a dead
    one that nobody has waited for, or a system that does not say.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _process_start_ps(pid)
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name in parentheses may hold spaces
    if len(fields) < 20 or fields[0] in "ZX":
        return None
    return int(fields[19])


def _process_start_ps(pid: int) -> int | None:
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        return int(time.mktime(time.strptime(done.stdout.strip())))
    except (OSError, ValueError, OverflowError, subprocess.SubprocessError):
        return None


def is_alive(record: Mapping[str, Any], *, touched: float, now: float | None = None) -> bool:
    """Does the process that wrote this record still run?

    On the same host its pid and start time decide at once; elsewhere the heartbeat does.

    Args:
        record: the record as read, its status "running".
        touched: mtime of run.json.
        now: the present, seconds since 1970.
    """
    fresh = (time.time() if now is None else now) - touched <= STALE_S
    pid = record.get("pid")
    if not isinstance(pid, int) or pid <= 0 or record.get("host") != socket.gethostname():
        return fresh
    recorded, present = record.get("pid_start"), process_start(pid)
    if present is not None and recorded is not None:
        return present == recorded
    if Path("/proc/self/stat").exists():
        # No start time was recorded: an existing pid may be anybody's, so it must beat as well.
        return present is not None and fresh
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it exists and belongs to another user
    return fresh
