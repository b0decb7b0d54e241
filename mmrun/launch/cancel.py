"""End a sweep, whoever drives it: what is queued or running becomes cancelled, results stay."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrun.errors import UserError, printable
from mmrun.launch import report
from mmrun.launch.executor import Executor, Job, make_executor
from mmrun.launch.status import Status, look
from mmrun.runs import reader
from mmrun.runs.layout import CANCEL
from mmrun.runs.ledger import Ledger, driven, locked
from mmrun.runs.writer import Run

WAIT_S = 15.0  # a driver looks for a request once a second, and its points have some seconds for their last words
_LOOK_S = 0.1
_OPEN = ("queued", "running")  # in run.json: one that died says running for ever


@dataclass(frozen=True, kw_only=True)
class Cancelled:
    """What became of a request to end a sweep.

    Args:
        before: the sweep as it was.
        after: the sweep as it is.
        heard: whether it is over; else its driver has not ended yet, and the request stands.
    """

    before: Status
    after: Status
    heard: bool

    @property
    def points(self) -> dict[str, int]:
        """{status it had: points that are cancelled now}."""
        counts: dict[str, int] = {}
        for run in self.after.those("cancelled"):
            was = self.before.records.get(run, {}).get("status", "queued")
            if was != "cancelled":
                counts[was] = counts.get(was, 0) + 1
        return counts


def cancel(
    sweep: Path,
    *,
    trust: Sequence[str] = (),
    say: Callable[[str], None],
) -> Cancelled:
    """End a sweep: its driver is asked to; where there is none, what it left behind is cancelled here.

    Args:
        sweep: its folder.
        trust: packages that the ``_target_`` of a launcher may name, where jobs outlive the driver.
        say: prints a line.

    Raises:
        UserError: the sweep cannot be read or written, or a launcher is not trusted.
    """
    before = look(sweep)
    sweep = before.directory
    request = sweep / CANCEL
    if before.driven:
        say(f"{'driver':8} {before.ledger.driven_by} is asked to end it")
        if not _asked(sweep, request):
            return Cancelled(before=before, after=look(sweep), heard=False)
    with locked(sweep):  # what a driver that died, or ended by itself meanwhile, has left
        request.unlink(missing_ok=True)
        executors = _end_jobs(look(sweep), trust)
        for run in look(sweep).records:
            _settle(run, had_job=run in executors)
    return Cancelled(before=before, after=look(sweep), heard=True)


def _asked(sweep: Path, request: Path) -> bool:
    """Whether the driver is gone in time."""
    limit = time.monotonic() + WAIT_S
    while driven(sweep):
        try:
            request.touch()  # again, for a driver that begins takes away what an earlier one has left
        except OSError as error:
            raise UserError(
                f"the request cannot be written: {error.strerror or error}", given=request
            ) from error
        if time.monotonic() > limit:
            return False
        time.sleep(_LOOK_S)
    return True


def _end_jobs(status: Status, trust: Sequence[str]) -> set[Path]:
    """End the jobs that outlived their driver; the points they were for."""
    ended: set[Path] = set()
    for executor, keys in _executors(status.ledger, status.records, trust):
        try:
            handles = {
                run: executor.adopt(Job(directory=run, trust=tuple(trust)), key)
                for run, key in keys.items()
            }
            alive = {run: handle for run, handle in handles.items() if handle is not None}
            if alive:
                executor.cancel(list(alive.values()))
            ended |= alive.keys()
        finally:
            executor.close()
    return ended


def _executors(
    ledger: Ledger, records: Mapping[Path, Mapping[str, Any]], trust: Sequence[str]
) -> list[tuple[Executor, dict[Path, str]]]:
    """Each launcher that has jobs of points without an end, and {run directory: key} of those."""
    nodes: dict[str, dict[Path, str]] = {}
    for run, record in records.items():
        key = ledger.jobs.get(run.name)
        if key and record["status"] in (*_OPEN, "killed") and "launcher" in record["config"]:
            nodes.setdefault(json.dumps(record["config"]["launcher"]), {})[run] = key
    return [(make_executor(json.loads(node), trust), keys) for node, keys in nodes.items()]


def _settle(run: Path, *, had_job: bool) -> None:
    """Cancel a point that is queued, or that somebody who is gone was training; or whose job was ended here."""
    now = reader.read(run)["status"]
    if now not in ("queued", "killed"):
        return
    raw = reader.recorded(run)["status"]
    if raw in _OPEN or had_job:
        Run.open(run).finish("cancelled", stopped_by="cancel", error=None)


def lines(done: Cancelled) -> list[str]:
    """What there is to say of it."""
    by = done.before.ledger.driven_by
    if not done.heard:
        return [
            f"{by} has not ended yet; the request stands and is heard when it looks for one",
            "(a point that trains in the driver's own process, launcher=inline, comes to its end first)",
        ]
    words = [f"{count} that {_WORDS.get(was, was)}" for was, count in done.points.items()]
    left = {name: n for name, n in done.after.counts.items() if name != "cancelled"}
    rest = ", ".join(f"{count} {name}" for name, count in left.items())
    if not words:
        return [f"nothing was left to cancel{f': {rest}' if rest else ''}", *_beyond(done.after)]
    said = [f"{'points':8} cancelled {' and '.join(words)}"]
    if rest:
        said.append(f"{'':8} left as they are: {rest}")
    said += _beyond(done.after)
    said.append(f"{'next':8} {report.resuming(done.after.directory)}    # take them up again")
    return said


def _beyond(status: Status) -> list[str]:
    """Points that run without a driver that is seen from here: nobody has been asked to end them."""
    hosts = {
        str(record["host"] or "an unknown host") for record in status.those("running").values()
    }
    where = printable(", ".join(sorted(hosts)))
    return (
        [f"{'':8} what is running goes on, without a driver here: end it on {where}"]
        if hosts
        else []
    )


_WORDS = {"queued": "had not begun", "running": "were running", "killed": "had died"}
