"""What a task of Ray does in its process: train the frozen point of a job, as every executor does."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmrun.launch import task
from mmrun.launch.executor import Job
from mmrun.runs import reader
from mmrun.runs.layout import Paths
from mmrun.signals import Interrupted, ending, interruptible
from mmrun.user_code import add_folders

# Words of errors after which a process is not to be used again.
LASTING = ("cuda", "cudnn", "cublas", "nccl", "out of memory", "can't allocate memory")
MOST_PRINTED = 2**20  # bytes of what a point prints that go to its train.log


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a process of Ray is to work.

    Args:
        folder: the working folder: paths in configs may be relative.
        modules: folders of the user's modules, to be found after everything else.
    """

    folder: str
    modules: tuple[str, ...] = ()


def work(job: Job, place: Place) -> None:
    """Train the point; its record says how that ended. A process that can serve no other point ends afterwards."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # Ray's processes start deaf to it
    with contextlib.suppress(OSError):
        os.chdir(place.folder)
    add_folders(place.modules)
    spoiled = False
    with _printed_at_the_end_of(Paths(job.directory).log):
        with ending():  # half an import is none: such a process ends
            import mmrun.train  # noqa: F401
        try:
            with interruptible(), _woken():
                spoiled = _is_lasting(task.run(job))
        except Interrupted as error:
            spoiled = error.signum != signal.SIGINT
    # Of a living process a record that says running would be believed for ever.
    if spoiled or reader.recorded(job.directory)["status"] == "running":
        sys.exit(0)  # Ray takes a new process for the next


def _is_lasting(error: BaseException | None) -> bool:
    """Whether an error is one of CUDA or of memory: what comes next would feel it."""
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(word in text for word in LASTING)


@contextlib.contextmanager
def _woken() -> Iterator[None]:
    """Ray cancels by a SIGINT that is none: a main thread that waits in the kernel, for ranks or for data, would sleep on.

    Python writes a byte wherever it notes a signal, a feigned one too; a thread then sends a real one.
    """
    main = threading.get_ident()
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)

    def relay() -> None:
        while byte := os.read(receiver, 1):
            if byte[0] == signal.SIGINT:
                signal.pthread_kill(main, signal.SIGINT)
                return

    thread = threading.Thread(target=relay, name="mmrun-wake", daemon=True)
    before = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(sender, b"\0")
        os.close(sender)
        thread.join()
        os.close(receiver)


@contextlib.contextmanager
def _printed_at_the_end_of(log: Path) -> Iterator[None]:
    """What is printed meanwhile, by whatever means, is appended to a log; a training begins its log anew."""
    streams = (sys.stdout, sys.stderr)
    kept = [os.dup(number) for number in (1, 2)]
    with tempfile.TemporaryFile() as printed:
        fcntl.fcntl(printed, fcntl.F_SETFL, fcntl.fcntl(printed, fcntl.F_GETFL) | os.O_APPEND)
        for stream, number in zip(streams, (1, 2), strict=True):
            stream.flush()
            os.dup2(printed.fileno(), number)
        try:
            yield
        finally:
            for stream, number, copy in zip(streams, (1, 2), kept, strict=True):
                stream.flush()
                os.dup2(copy, number)
                os.close(copy)
            size = os.fstat(printed.fileno()).st_size
            begin = max(0, size - MOST_PRINTED)
            text = os.pread(printed.fileno(), size - begin, begin).decode(errors="replace")
            if text.strip():
                before = f"... {begin} bytes before\n" if begin else ""
                with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
                    file.write(f"printed:\n{before}{text.rstrip()}\n")
