"""Training on several processes: torchrun starts them, each runs the frozen point."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

from mmrun.exits import continuing, shown
from mmrun.runs import reader
from mmrun.runs.layout import Paths
from mmrun.runs.writer import Run, now
from mmrun.signals import STOPPED_BY
from mmrun.user_code import added_to_path, child_environment

# torchrun gives its ranks 30 s before it kills them; killed itself before that, it would leave them behind.
SHUTDOWN_S = 45
# How the lines begin that a rank writes when it ends badly (``exits.guarded``).
SAYS = "mmrun: "
ENDING = (SAYS, "MMRUN_TRACEBACK=1 ", "the run and its log: ", "continue it: ")
NOT_A_REASON = ("mmrun: terminated\n", "mmrun: interrupted\n")
KILLED = re.compile(r"rank \d+ was ended by SIG\w+")  # as mmrun.torchrun says it
# What gloo tells a rank when another one has died: that one knows better why.
LOST_PEER = ("Connection closed by peer", "Connection reset by peer")


def rank_and_world() -> tuple[int, int] | None:
    """(rank, number of ranks) of a process that torchrun started; None for any other."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def launch_ranks(
    directory: Path, processes: int, *, resume: bool, trust: Collection[str], brief: bool
) -> dict[str, Any]:
    """Run a frozen point in ``processes`` ranks of this machine; the record that rank 0 wrote.

    Lightning's own launcher would run the whole command line again in every rank; it is told that the
    processes were made outside.

    Raises:
        RuntimeError: the ranks ended before one of them began to train, or a rank was lost.
    """
    command = [sys.executable, "-m", "mmrun.torchrun", str(os.getpid()), "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", "mmrun.point", str(directory)]
    command += ["--resume"] if resume else []
    command += ["--brief"] if brief else []
    for package in trust:
        command += ["--trust", package]
    for folder in added_to_path:
        command += ["--path", folder]
    started = reader.recorded(directory)["started"]
    relay = _Relay()
    ranks: subprocess.Popen[bytes] | None = None
    try:
        ranks = subprocess.Popen(
            command,
            # One thread pool per rank: torchrun warns unless it is told so.
            env={**child_environment(), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            # A session of their own: Ctrl-C comes to them through us, once.
            start_new_session=True,
        )
        assert ranks.stderr is not None
        relay.follow(ranks.stderr)
        ranks.wait()
        relay.join()
    except BaseException as error:
        relay.quiet = True
        signum = getattr(error, "signum", signal.SIGTERM)
        if ranks is not None:
            # torchrun knows these two; any other would end it, and leave its ranks behind.
            ranks.send_signal(signum if signum == signal.SIGINT else signal.SIGTERM)
            try:
                ranks.wait(timeout=SHUTDOWN_S)
            except subprocess.TimeoutExpired:
                ranks.kill()
        _note_interruption(directory, started, signum, error)
        raise
    if ranks.returncode != 0:
        _check_ending(directory, started, ranks.returncode, relay.reason)
    return reader.read(directory)


def _note_interruption(
    directory: Path, started: str | None, signum: int, error: BaseException
) -> None:
    """Say where the run is and how it goes on; write down its end where no rank had begun to, and why it came."""
    record = reader.recorded(directory)
    stopped_by = STOPPED_BY.get(signum, "signal")
    if record["started"] == started and record["status"] == "queued":
        Run.open(directory).finish("killed", stopped_by=stopped_by)
    elif record["status"] == "killed" and record["stopped_by"] != stopped_by:
        Run.open(directory).update(stopped_by=stopped_by)
    resumable = Paths(directory).last.exists()
    error.add_note(continuing(directory) if resumable else f"the run: {shown(directory)}")


def _check_ending(directory: Path, started: str | None, code: int, reason: str) -> None:
    """Raise RuntimeError where the first rank could not say how the run ended.

    It was killed, or torchrun has ended it because another rank failed.
    """
    record = reader.recorded(directory)
    if record["started"] == started:
        error = reason or f"the ranks ended with exit code {code} before they trained"
        ended = record["status"] == "queued"
    elif record["status"] == "running" or record["stopped_by"] == "terminate":
        error = reason or f"the ranks ended with exit code {code}"
        ended = True
    else:
        if record["status"] == "failed" and reason and _blames_a_peer(record["error"] or ""):
            Run.open(directory).update(**_ending(reason), error=reason)
        return
    if ended:
        Run.open(directory).update(**_ending(error), error=error, ended=now())
    raise RuntimeError(error)


def _ending(reason: str) -> dict[str, str]:
    """A run that has lost a rank to a signal was killed, as one that is itself: it can go on."""
    if KILLED.fullmatch(reason):
        return {"status": "killed", "stopped_by": "signal"}
    return {"status": "failed", "stopped_by": "error"}


def _blames_a_peer(error: str) -> bool:
    return any(mark in error for mark in LOST_PEER)


class _Relay(threading.Thread):
    """Passes on what the ranks write to stderr; what all of them say of their end, once.

    Attributes:
        quiet: nothing is passed on from now.
        reason: what the first rank that failed has said.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.quiet = False
        self.reason = ""
        self._said: set[str] = set()
        self._stream: IO[bytes] | None = None

    def follow(self, stream: IO[bytes]) -> None:
        """Start to read, until the ranks have closed it."""
        self._stream = stream
        self.start()

    def run(self) -> None:
        """Read to the end."""
        assert self._stream is not None
        with self._stream as stream:
            for line in stream:
                self._take(line.decode(errors="replace"))

    def _take(self, line: str) -> None:
        if line.startswith(ENDING):
            if line in self._said or line in NOT_A_REASON or _blames_a_peer(line):
                return
            self._said.add(line)
            if line.startswith(SAYS):
                self.reason = self.reason or line.removeprefix(SAYS).strip()
        if not self.quiet:
            sys.stderr.write(line)
