"""What does SLURM say of these jobs? Asked for all of them at once, every few seconds, without waiting for the answer."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO

from mmrun.errors import UserError

EVERY_S = 5.0
ANSWER_S = 60  # a busy controller may take long
# Words for a job that is over, by state; the others are not over.
ENDINGS = {
    "COMPLETED": "ended without a word of the point",
    "FAILED": "failed",
    "CANCELLED": "was cancelled",
    "TIMEOUT": "reached its time limit (launcher.time)",
    "OUT_OF_MEMORY": "ran out of memory (launcher.mem_gb)",
    "NODE_FAIL": "lost its node",
    "BOOT_FAIL": "was given a node that did not start",
    "DEADLINE": "missed its deadline",
    "PREEMPTED": "gave way to another one, and SLURM did not put it back into the queue",
    "REVOKED": "was revoked",
}
GONE = "GONE"  # SLURM knows it no longer
STUCK = "STUCK"  # it waits for what will not come by itself
# Reasons of jobs that wait for ever: what they ask for, no machine of the partition can give.
_FOR_EVER = (
    "PartitionTimeLimit",
    "PartitionNodeLimit",
    "BadConstraints",
    "DependencyNeverSatisfied",
    "InvalidAccount",
    "InvalidQOS",
)
_FORMAT = "%i|%T|%o|%r"
_UNKNOWN_JOB = "Invalid job id"


@dataclass(frozen=True)
class Entry:
    """A line of squeue: state, the script that was submitted, why it waits."""

    state: str
    script: str = ""
    reason: str = ""

    @property
    def over(self) -> bool:
        """Whether it will not run, or no longer does."""
        return self.state in (*ENDINGS, GONE, STUCK)


class Queue:
    """The states of jobs, as far as they are known."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._asked: frozenset[str] = frozenset()
        self._when = float("-inf")
        self._question: tuple[subprocess.Popen[bytes], IO[bytes], frozenset[str]] | None = None

    def entry(self, id: str) -> Entry | None:
        """What was said of a job last; None where nobody has been asked."""
        if id in self._entries:
            return self._entries[id]
        return Entry(GONE) if id.split("_")[0] in self._asked else None

    def ask(self, ids: Iterable[str]) -> None:
        """Ask now, and wait for the answer."""
        self._drop()
        self._start(ids)
        if self._question is not None:
            try:
                self._question[0].wait(timeout=ANSWER_S)
            except subprocess.TimeoutExpired:
                return self._drop()
        return self._take()

    def look(self, ids: Iterable[str]) -> None:
        """Take in an answer that has come; ask again where the last one is some seconds old. Never waits."""
        now = time.monotonic()
        if self._question is not None:
            if self._question[0].poll() is not None:
                self._take()
            elif now - self._when > ANSWER_S:
                self._drop()
        elif now - self._when > EVERY_S:
            self._start(ids)

    def _start(self, ids: Iterable[str]) -> None:
        arrays = frozenset(id.split("_")[0] for id in ids)
        if not arrays:
            return
        self._when = time.monotonic()
        command = ["squeue", "--noheader", "--array", "--states=all", f"--format={_FORMAT}"]
        answer = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as squeue runs; a pipe could fill up)
        process = subprocess.Popen(
            [*command, f"--jobs={','.join(sorted(arrays))}"],
            stdin=subprocess.DEVNULL,
            stdout=answer,
            stderr=subprocess.STDOUT,
        )
        self._question = process, answer, arrays

    def _take(self) -> None:
        if self._question is None:
            return
        process, answer, arrays = self._question
        self._question = None
        with answer:
            answer.seek(0)
            text = answer.read().decode(errors="replace")
        if process.returncode != 0 and _UNKNOWN_JOB not in text:
            return  # the controller is away: what was known still is
        self._asked = arrays
        self._entries = dict(_entries(text))

    def _drop(self) -> None:
        if self._question is not None:
            process, answer, _ = self._question
            self._question = None
            process.kill()
            process.wait()
            answer.close()


def _entries(text: str) -> Iterable[tuple[str, Entry]]:
    for line in text.splitlines():
        id, *rest = line.split("|", 3)
        if len(rest) == 3:
            state, script, reason = rest
            held = "requeued" in reason and "held" in reason  # SLURM failed to start it
            stuck = state == "PENDING" and (held or reason in _FOR_EVER)
            yield id, Entry(STUCK if stuck else state, script, reason)


def last_words(id: str, entry: Entry) -> tuple[str, str]:
    """(state, sentence) of a job that is over, with its exit code where SLURM still knows that."""
    if entry.state == STUCK:
        return entry.state, f"cannot start ({entry.reason})"
    state, code = (
        entry.state,
        re.search(r" ExitCode=(\d+):(\d+)", _ask("scontrol", "-o", "show", "job", id)),
    )
    if state == GONE:
        accounted = _ask("sacct", "-n", "-X", "-P", "-o", "State,ExitCode", "-j", id)
        found = re.match(r"([A-Z_]+)[^|]*\|(\d+):(\d+)", accounted)
        if found is None:
            return state, "is no longer known to SLURM"
        return found[1], _said(found[1], int(found[2]), int(found[3]))
    exit_code, signum = map(int, code.groups()) if code else (0, 0)
    return state, _said(state, exit_code, signum)


def _said(state: str, exit_code: int, signum: int) -> str:
    if state == "FAILED" and signum:
        return f"was ended by signal {signum}"
    if state == "FAILED" and exit_code:
        return f"ended with exit code {exit_code}"
    return ENDINGS.get(state, f"ended as {state}")


def cancel(ids: Iterable[str], *options: str) -> None:
    """scancel; of jobs that are over it says nothing."""
    subprocess.run(["scancel", "--quiet", *options, *ids], capture_output=True, check=False)


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def refused(words: str) -> UserError:
    """The error for jobs that sbatch does not take, in its own words."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    said = [re.sub(r"^sbatch: (error: |fatal: )?", "", line) for line in lines]
    return UserError(
        "SLURM does not take the jobs",
        given="; ".join(said),
        remedy="sinfo shows partitions, sacctmgr accounts and qos; mmrun list launcher the options.",
    )
