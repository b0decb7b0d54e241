"""A worker of the local pool as its parent sees it: started, told, heard, ended, and what it has printed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mmrun import user_code
from mmrun.errors import shortened
from mmrun.launch.executor import GRACE_S

MOST_PRINTED = 2**20  # bytes of what a point prints that go to its train.log


class WorkerProcess:
    """A process that runs ``mmrun.launch.worker``, in a session of its own: Ctrl-C comes to the parent alone.

    Args:
        environment: {variable: value} on top of this process's.
        locks: descriptors that it holds as long as it lives.
    """

    def __init__(self, environment: Mapping[str, str], locks: Collection[int]) -> None:
        self.link, theirs = socket.socketpair()
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        output = self._printed.fileno()
        # Written at its end, wherever that is: it is emptied now and then.
        fcntl.fcntl(output, fcntl.F_SETFL, fcntl.fcntl(output, fcntl.F_GETFL) | os.O_APPEND)
        command = [sys.executable, "-m", "mmrun.launch.worker", str(os.getpid())]
        command += [str(theirs.fileno())]
        command += [word for file in locks for word in ("--lock", str(file))]
        command += [word for folder in user_code.added_to_path for word in ("--path", folder)]
        with theirs:
            self._process = subprocess.Popen(
                command,
                env={**user_code.child_environment(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=self._printed,
                stderr=self._printed,
                pass_fds=(theirs.fileno(), *locks),
                start_new_session=True,
            )
        self.link.setblocking(False)
        self.pid = self._process.pid
        self.ready = False
        self.heard_all = False  # it has closed its end, or we ours
        self.replies: dict[int, dict[str, Any]] = {}
        self._half = b""
        self._read = 0
        self._leaving: float | None = None
        # Readable when the process has ended; where there is no such thing, its socket says so a little later.
        self.end: int | None = None
        with contextlib.suppress(OSError, AttributeError):
            self.end = os.pidfd_open(self.pid)

    @property
    def gone(self) -> bool:
        """Whether the process has ended, as of the last ``look``."""
        return self._process.returncode is not None

    @property
    def leaving(self) -> bool:
        """Whether it was told to end."""
        return self._leaving is not None

    def files(self) -> list[int]:
        """What becomes readable when it has said something, or has ended."""
        files: list[int] = [] if self.heard_all else [self.link.fileno()]
        if self.end is not None and not self.gone:
            files.append(self.end)
        return files

    def send(self, **message: Any) -> None:
        """Tell it something; to one that is gone it makes no difference."""
        with contextlib.suppress(OSError):
            self.link.sendall(json.dumps(message).encode() + b"\n")

    def look(self) -> None:
        """Take in what it has said, and whether it has ended; never waits."""
        ended = self._ended()
        self._hear()
        if ended:
            self._bury()
        elif self._leaving is not None and time.monotonic() - self._leaving > GRACE_S:
            self.kill()

    def dismiss(self) -> None:
        """It ends by itself, now that nothing more will come; by force where it takes too long."""
        self._leaving = self._leaving or time.monotonic()
        self.heard_all = True
        self.link.close()

    def kill(self) -> None:
        """End it and what it has started by force."""
        self._leaving = self._leaving or time.monotonic()
        if not self.gone:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)

    def reason(self) -> str:
        """How the process has ended."""
        code = self._process.returncode or 0
        if code < 0:
            return f"its process was ended by {_signal_name(-code)}"
        lines = self._text().strip().splitlines()
        last = f": {shortened(lines[-1].strip())}" if lines and code else ""
        return f"its process exited with code {code}{last}"

    def keep_printed(self, log: Path) -> None:
        """Append what it has printed since the last time to a log."""
        text = self._text()
        self._printed.truncate(0)
        self._read = 0
        if text.strip():
            with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
                file.write(f"printed:\n{text.rstrip()}\n")

    def _text(self) -> str:
        size = os.fstat(self._printed.fileno()).st_size
        begin = max(self._read, size - MOST_PRINTED)
        text = os.pread(self._printed.fileno(), size - begin, begin).decode(errors="replace")
        return text if begin == self._read else f"... {begin - self._read} bytes before\n{text}"

    def _hear(self) -> None:
        while not self.heard_all:
            try:
                got = self.link.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                got = b""
            if not got:
                self.heard_all = True
                self._leaving = self._leaving or time.monotonic()
                return
            *lines, self._half = (self._half + got).split(b"\n")
            for line in lines:
                said = json.loads(line)
                if "ready" in said:
                    self.ready = True
                    self._read = said["printed"]
                else:
                    self.replies[said["job"]] = said

    def _ended(self) -> bool:
        """Whether it is dead; its pid, and so its group's, is nobody else's until it is buried."""
        if self.gone:
            return False
        if not hasattr(os, "waitid"):  # macOS, before Python 3.13
            return self._process.poll() is not None
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self.pid, flags) is not None
        except ChildProcessError:  # somebody else in this process has waited for it
            return True

    def _bury(self) -> None:
        with contextlib.suppress(OSError):  # what it has started, and left behind
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self.dismiss()

    def close(self) -> None:
        """Free what this object holds; the process is gone, or is given up."""
        self.dismiss()
        self._printed.close()
        if self.end is not None:
            os.close(self.end)
            self.end = None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
