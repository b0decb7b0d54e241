"""A process of the local pool: trains point after point, as it is told through a socket, and ends when nobody tells it more.

``python -m mmrun.launch.worker PARENT SOCKET [--lock FD] [--path DIR]``. Messages are lines of JSON. To the worker:
``{"job": 1, "directory": ..., "trust": [...]}`` and ``{"cancel": 1}``. From it: ``{"ready": true, "printed": 0}`` once everything is
imported, and ``{"job": 1, "error": null, "retire": false}`` when a job has ended.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import faulthandler
import io
import json
import os
import queue
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from mmrun.errors import described
from mmrun.launch import task
from mmrun.launch.executor import Job
from mmrun.runs import reader
from mmrun.signals import Interrupted, end_with_parent, ending, interruptible
from mmrun.user_code import add_folders

# Seconds for the last words of a worker whose parent is gone; ranks of its point need some too.
LAST_WORDS_S = 15.0
_SPOILED = ("OutOfMemoryError", "AcceleratorError")
_SPOILS = re.compile(r"CUDA|cuDNN|cuBLAS|NCCL|out of memory|can't allocate memory", re.IGNORECASE)


def main(arguments: list[str] | None = None) -> int:
    """Serve until the parent closes its end of the socket, or is gone."""
    parser = argparse.ArgumentParser(prog="python -m mmrun.launch.worker")
    parser.add_argument("parent", type=int)
    parser.add_argument("socket", type=int)
    parser.add_argument("--lock", type=int, action="append", default=[], metavar="FD")
    parser.add_argument("--path", action="append", default=[], metavar="DIR")
    given = parser.parse_args(arguments)
    for file in (given.socket, *given.lock):
        os.set_inheritable(file, False)
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a point that kills its process has printed
            stream.reconfigure(line_buffering=True, errors="replace")
    add_folders(given.path)
    with ending():
        end_with_parent(given.parent)
        import mmrun.train  # noqa: F401
    # One that comes between two points is none of theirs. A function, which is not inherited by children as SIG_IGN is.
    signal.signal(signal.SIGINT, _nothing)
    signal.signal(signal.SIGTERM, _end_group)
    parent = _Parent(socket.socket(fileno=given.socket))
    try:
        return _serve(parent)
    finally:
        if os.getppid() != given.parent:  # nobody else ends what this process has started
            _end_group()


def _serve(parent: _Parent) -> int:
    # What imports have printed is no point's; the parent may hear this when the first point prints already.
    parent.say(ready=True, printed=os.fstat(1).st_size)
    for number, job in parent.jobs():
        error = None
        try:
            with interruptible():
                if parent.begin(number):
                    error = task.run(job)
        except Interrupted as interrupted:
            if interrupted.signum != signal.SIGINT:
                return 128 + interrupted.signum
        said = described(error) if error is not None else None
        retire = error is not None and (spoils(error) or _believed(job))
        del error  # its traceback holds the model
        parent.done(number, error=said, retire=retire)
    return 0


def spoils(error: BaseException) -> bool:
    """Whether an error leaves a process that is not as good as a new one: memory or the GPU failed."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        if isinstance(each, MemoryError) or type(each).__name__ in _SPOILED:
            return True
        if isinstance(each, RuntimeError) and _SPOILS.search(str(each)):
            return True
        each = each.__cause__ or each.__context__
    return False


def _believed(job: Job) -> bool:
    """Whether the record says that this process trains the point still: no disk took the last word."""
    record = reader.read(job.directory)
    return record["status"] == "running" and record["pid"] == os.getpid()


class _Parent:
    """The other end of the socket; a thread listens to it, so that a job can be told to end.

    Args:
        link: the socket.
    """

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._waiting: queue.SimpleQueue[tuple[int, Job] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._current: int | None = None  # a job that is under way
        self._unwanted: set[int] = set()  # jobs that were cancelled before they began
        threading.Thread(target=self._listen, name="mmrun-parent", daemon=True).start()

    def jobs(self) -> Iterator[tuple[int, Job]]:
        """(number, job), until there will be no more."""
        while (each := self._waiting.get()) is not None:
            yield each

    def begin(self, number: int) -> bool:
        """Whether the job is to be done; it can be interrupted from now on, inside ``interruptible`` that is."""
        with self._lock:
            self._current = number
            return number not in self._unwanted

    def done(self, number: int, *, error: str | None, retire: bool) -> None:
        """The job has ended."""
        with self._lock:
            self._current = None
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.say(job=number, error=error, retire=retire)

    def say(self, **message: Any) -> None:
        """Send a line; to nobody where the parent is gone."""
        try:
            self._link.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self._waiting.put(None)

    def _listen(self) -> None:
        try:
            with self._link.makefile("rb") as lines:
                for line in lines:
                    self._take(json.loads(line))
        except (OSError, ValueError):
            pass
        self._waiting.put(None)
        with self._lock:
            if self._current is not None:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        time.sleep(LAST_WORDS_S)  # a daemon's sleep: the process may end meanwhile
        _end_group()

    def _take(self, message: dict[str, Any]) -> None:
        if "cancel" not in message:
            job = Job(directory=Path(message["directory"]), trust=tuple(message["trust"]))
            self._waiting.put((message["job"], job))
            return
        with self._lock:
            if self._current == message["cancel"]:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            else:
                self._unwanted.add(message["cancel"])


def _nothing(_signum: int, _frame: FrameType | None) -> None:
    pass


def _end_group(*_: Any) -> None:
    """By force, with all that was started here; a process that user code has forked off ends nobody but itself."""
    if os.getpid() == os.getpgrp():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _exit(code: int) -> NoReturn:
    """Without the 1 to 2 s in which Python would take torch and Lightning apart, but not without what libraries do last."""
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    _exit(main())
