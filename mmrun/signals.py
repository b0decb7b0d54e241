"""SIGINT and SIGTERM as one exception, raised wherever the main thread is."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# {signal: what run.json says under ``stopped_by``}
STOPPED_BY: dict[int, str] = {signal.SIGINT: "interrupt", signal.SIGTERM: "terminate"}


class Interrupted(BaseException):
    """SIGINT or SIGTERM; not an Exception, so that nothing in between takes it for a failure."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(signal.Signals(signum).name)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise ``Interrupted`` while this lasts; only the main thread can say so."""
    before: dict[int, Callable[..., Any] | int | None] = {}
    try:
        for signum in STOPPED_BY:
            before[signum] = signal.signal(signum, _raise)
    except ValueError:
        pass
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def take_signals() -> None:
    """Handle them here again, after a library has put handlers of its own in place."""
    with contextlib.suppress(ValueError):
        for signum in STOPPED_BY:
            signal.signal(signum, _raise)


def _raise(signum: int, _frame: FrameType | None) -> None:
    for each in STOPPED_BY:  # one is enough: what follows writes the ending down
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(signum)
