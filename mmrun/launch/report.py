"""What a sweep says: at its start, after each point, and at its end."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrun.errors import printable, shortened
from mmrun.exits import program, shown
from mmrun.launch.plan import DONE, Planned
from mmrun.runs.layout import Paths
from mmrun.runs.ledger import Ledger
from mmrun.runs.standing import Best, Leaders, best, candidate, duration, status, time_left
from mmrun.spec import Rerun

FAILED = ("failed", "killed", "unreadable")
NO_RESULT = (*FAILED, "cancelled", "queued", "running")
_SHOWN = 20
LONGEST_NAME = 120  # characters of a line of a sweep


def opening(
    directory: Path,
    planned: Sequence[Planned],
    rerun: Rerun,
    repeated: Sequence[str] = (),
    idle: Sequence[str] = (),
) -> list[str]:
    """What there is to do, and what of it is done; what was ``repeated``, and by which ``idle`` keys."""
    of = {action: [p for p in planned if p.action == action] for action in _WORDS}
    words = [f"{len(points)} {_WORDS[action]}" for action, points in of.items() if points]
    lines = [
        f"{'sweep':8} {shown(directory)}",
        f"{'points':8} {len(planned)}: {', '.join(words)}",
    ]
    stale = [each for each in of["skip"] if each.stale]
    if stale and rerun == "false":
        lines.append(
            f"{'':8} {len(stale)} of those done were made by another version of the code; "
            "rerun=stale makes them again"
        )
    longer = [each for each in of["skip"] if each.record and each.record["resumed"]]
    if longer:
        lines.append(
            f"{'':8} {len(longer)} of those done went on with other limits than this command says"
        )
    if repeated:
        more = f" and {len(repeated) - 3} more" if len(repeated) > 3 else ""
        named = "; ".join(shortened(each, LONGEST_NAME) for each in repeated[:3])
        why = f" ({', '.join(idle)}: no difference to what is learnt)" if idle else ""
        lines.append(f"{'':8} taken once, as equal to others: {named}{more}{why}")
    return [printable(line) for line in lines]


_WORDS = {
    "skip": "done",
    "wait": "trained by another process now",
    "resume": "to resume",
    "train": "to train",
}


class Progress:
    """How far a sweep is, and one line per point that has ended, with the time that is left.

    Args:
        total: points to be trained.
        before: what may be the best of what was trained before.

    Attributes:
        parallel: how many run at a time, as far as seen.
        done: points that have a result.
        failed: those that ended without one.
        retried: how often one was tried again.
    """

    def __init__(self, total: int, before: Iterable[Best | None] = ()) -> None:
        self.total = total
        self.parallel = 1
        self.done = self.failed = self.retried = 0
        self._leaders = Leaders(before)
        self.seconds: list[float] = []

    def ended(
        self,
        planned: Planned,
        record: Mapping[str, Any],
        seconds: float,
        running: Sequence[float | None] = (),
    ) -> str:
        """The line of a point.

        Args:
            planned: the point.
            record: its run.json.
            seconds: how long it took.
            running: how long others have run so far.
        """
        self.seconds.append(seconds)
        if record["status"] in DONE:
            self.done += 1
        else:
            self.failed += 1
        self._leaders.add(candidate(planned.directory, record))
        k = len(self.seconds)
        width = len(str(self.total))
        words = [
            f"[{k:{width}}/{self.total}]",
            shortened(planned.point.name, LONGEST_NAME),
            _outcome(record),
            *_score(record),
        ]
        words.append(f"{seconds:.1f} s")
        left = self.left(running)
        if left is not None and k < self.total:
            words.append(f"({duration(left)} left)")
        return printable("  ".join(words))

    @property
    def best(self) -> Best | None:
        """The best point so far, by validation."""
        return self._leaders.best

    def left(self, running: Sequence[float | None] = ()) -> float | None:
        """Seconds until all have ended, where others have run so long (None: not begun); None before one has ended."""
        begun = [each for each in running if each is not None]
        waiting = max(self.total - len(self.seconds) - len(begun), 0)
        return time_left(self.seconds, begun, waiting, self.parallel)


def _outcome(record: Mapping[str, Any]) -> str:
    """How a point ended; where it has no result, why."""
    why = reason(record)
    if record["status"] not in FAILED or why == record["status"]:
        return status(record)
    return f"{record['status']}: {shortened(why, LONGEST_NAME)}"


def retried(planned: Planned, record: Mapping[str, Any], k: int, tries: int) -> str:
    """The line of a point that ended badly and is tried again: why, and which try of how many it will be."""
    name = shortened(planned.point.name, LONGEST_NAME)
    return printable(f"{name}  {_outcome(record)}  try {k} of {tries} follows")


def awaited(planned: Planned) -> str:
    """The line of a point that another process trains."""
    name = shortened(planned.point.name, LONGEST_NAME)
    return printable(f"{name}  another process trains it now: waiting for its end")


def reason(record: Mapping[str, Any]) -> str:
    """Why a point has no result, on one line."""
    by = record["stopped_by"]
    said = str(record["error"] or _SIGNALS.get(by, by) or record["status"])
    return next(iter(said.splitlines()), "")


_SIGNALS = {"interrupt": "interrupted (SIGINT)", "terminate": "terminated (SIGTERM)"}


def closing(
    records: Mapping[Path, Mapping[str, Any]],
    refused: Mapping[Path, str],
    lost: Sequence[str] = (),
) -> list[str]:
    """Counts, then every point that has no result, or one that is none, with its reason."""
    counts: dict[str, int] = {}
    for record in records.values():
        counts[record["status"]] = counts.get(record["status"], 0) + 1
    if refused:
        counts["refused"] = len(refused)
    lines = [f"{'points':8} " + ", ".join(f"{n} {name}" for name, n in counts.items())]
    diverged = [run for run, record in records.items() if record["status"] == "diverged"]
    if diverged:
        lines.append(f"diverged ({len(diverged)}): a result, not a failure")
        for record in (records[run] for run in diverged[:_SHOWN]):
            lines.append(f"  {shortened(record['name'], LONGEST_NAME)}: {record['error']}")
        if len(diverged) > _SHOWN:
            lines.append(f"  and {len(diverged) - _SHOWN} more")
    failed = {run: reason(record) for run, record in records.items() if record["status"] in FAILED}
    lines += failures(failed | dict(refused))
    if lost:
        names = "; ".join(lost[:3]) + ("; ..." if len(lost) > 3 else "")
        lines.append(f"without a folder ({len(lost)}): {names}")
        lines.append("  the sweep's own command, mmrun train -m ..., makes them again")
    return [printable(line) for line in lines]


def failures(reasons: Mapping[Path, str], most: int | None = None) -> list[str]:
    """{run directory: reason} as lines, each with where its log is; a count instead of those beyond ``most``."""
    lines = [f"failed ({len(reasons)}):"] if reasons else []
    for run, why in list(reasons.items())[:most]:
        lines.append(f"  {shortened(run.name, LONGEST_NAME)}: {why}  ({shown(log_of(run))})")
    if most is not None and len(reasons) > most:
        lines.append(f"  and {len(reasons) - most} more")
    return lines


def log_of(run: Path) -> Path:
    """Where to read what a point printed; its folder where it printed nothing."""
    log = Paths(run).log
    return log if log.exists() else run


def winner(records: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """The point that validation finds best, and how to look at it; nothing where none finished."""
    top = best(records)
    if top is None:
        return []
    name = shortened(top.name, LONGEST_NAME)
    command = f"{program()} show {shlex.quote(shown(top.directory))}"
    return [
        printable(f"{'best':8} {name}  {top.score}"),
        printable(f"{'next':8} {command}    # the best point, by {top.metric}"),
    ]


def interrupted(
    directory: Path, done: int, total: int, unfrozen: Ledger | None, of: str = "points"
) -> str:
    """How far it came, and how to go on; with the sweep's own command where not every point has a folder yet."""
    command = again(unfrozen) if unfrozen else resuming(directory)
    return f"{done} of {total} {of} are done; continue: {command}"


def resuming(directory: Path) -> str:
    """The command that goes on with a sweep as it is."""
    return f"{program()} resume {shlex.quote(shown(directory))}"


def again(ledger: Ledger) -> str:
    """The command that a sweep was made with."""
    folders = (word for folder in ledger.config_dirs for word in ("--config-dir", folder))
    return shlex.join([*shlex.split(program()), "train", "-m", *folders, *ledger.overrides])


def scores(record: Mapping[str, Any]) -> tuple[tuple[str, float] | None, float | None]:
    """The last validation's first metric beside the loss, by name, and its loss: the test is not looked at on the way."""
    values = {
        name: summary.get("last")
        for name, summary in record["metrics"].items()
        if name.startswith("val/")
    }
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    loss = numbers.pop("val/loss", None)
    return next(iter(numbers.items()), None), loss


def _score(record: Mapping[str, Any]) -> list[str]:
    metric, _ = scores(record)
    return [f"{metric[0]} {metric[1]:.3f}"] if metric and record["status"] in DONE else []
