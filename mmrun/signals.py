"""SIGINT and SIGTERM as one exception, raised wherever the main thread is; and the signal that a dying parent leaves."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# {signal: what run.json says under ``stopped_by``}; the last is a cluster's, heard where ``preemptible``
STOPPED_BY: dict[int, str] = {
    signal.SIGINT: "interrupt",
    signal.SIGTERM: "terminate",
    signal.SIGUSR2: "preempted",
}
_HEARD = (signal.SIGINT, signal.SIGTERM)


class _State:
    """How many ``interruptible`` there are around each other, and whether one signal has ended them."""

    depth = 0
    interrupted = False


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGUSR2; not an Exception, so that nothing in between takes it for a failure."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(signal.Signals(signum).name)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise ``Interrupted`` while this lasts; only the main thread can say so.

    One is enough: while it is on its way through others of these, a second one is not heard.
    """
    before: dict[int, Callable[..., Any] | int | None] = {}
    if not _State.depth:
        _State.interrupted = False
    _State.depth += 1
    interrupted = False
    try:
        with contextlib.suppress(ValueError):
            for signum in _HEARD:
                before[signum] = signal.signal(signum, _raise)
        yield
    except Interrupted:
        interrupted = True
        raise
    finally:
        for signum, handler in before.items():
            again = signal.SIG_IGN if interrupted and handler is _raise else handler
            signal.signal(signum, again)
        _State.depth -= 1


@contextlib.contextmanager
def preemptible() -> Iterator[None]:
    """SIGUSR2 too raises ``Interrupted`` while this lasts: a cluster is about to take the job away."""
    before = signal.signal(signal.SIGUSR2, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, before)


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """SIGINT and SIGTERM end the process at once while this lasts.

    For imports before anything exists: a library that is being imported may turn an exception into another one.
    """
    before: dict[int, Callable[..., Any] | int | None] = {}
    with contextlib.suppress(ValueError):  # only the main thread can say so
        for signum in _HEARD:
            before[signum] = signal.signal(signum, _end)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def take_signals() -> None:
    """Handle them here again, after a library has put handlers of its own in place."""
    with contextlib.suppress(ValueError):
        for signum in _HEARD:
            signal.signal(signum, _raise)


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Neither SIGINT nor SIGTERM is heard while this lasts: for the last words of a process that was told to end."""
    before: dict[int, Callable[..., Any] | int | None] = {}
    with contextlib.suppress(ValueError):
        for signum in _HEARD:
            before[signum] = signal.signal(signum, signal.SIG_IGN)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def later() -> Iterator[None]:
    """SIGINT and SIGTERM come when this is over: for what must not be left half done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def unhung() -> Iterator[None]:
    """The terminal may close while this lasts: SIGHUP is not heard, nor by processes that are started meanwhile."""
    before = None
    with contextlib.suppress(
        ValueError, AttributeError
    ):  # only the main thread can say so; no such signal
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGHUP, before)


def end_with_parent(parent: int | None = None) -> None:
    """Have SIGTERM sent to this process when the one that started it is gone, even by SIGKILL. Linux alone can do it.

    Args:
        parent: its pid; where it is gone already, the signal comes now.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _end(signum: int, _frame: FrameType | None) -> None:
    word = "interrupted" if signum == signal.SIGINT else "terminated"
    os.write(sys.stderr.fileno(), f"mmrun: {word}\n".encode())
    os._exit(128 + signum)


def _raise(signum: int, _frame: FrameType | None) -> None:
    for each in STOPPED_BY:  # one is enough: what follows writes the ending down
        signal.signal(each, signal.SIG_IGN)
    if _State.depth and _State.interrupted:  # Lightning puts this handler back as it leaves
        return
    _State.interrupted = True
    raise Interrupted(signum)
