"""How does a sweep stand now? Read from its folder alone, whoever drives it; neither torch nor Hydra."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mmrun.errors import UserError, printable, shortened
from mmrun.exits import program, shown
from mmrun.launch import report
from mmrun.launch.plan import DONE, rank
from mmrun.runs.layout import STUDY
from mmrun.runs.ledger import Ledger, driven, read_ledger
from mmrun.runs.reader import list_runs, read
from mmrun.runs.record import STATUSES, UNREADABLE
from mmrun.runs.standing import Best, best, digits, duration, elapsed, time_left
from mmrun.runs.study import read_study

MOST = 20  # running points, and failures, that one screen has room for
# What a driver takes up. It may also take up failed points, but those that failed under it, it will not.
_TO_COME = ("queued", "killed", "cancelled")


@dataclass(frozen=True, kw_only=True)
class Status:
    """A sweep at one moment.

    Args:
        directory: its folder.
        ledger: its sweep.json.
        driven: whether a process drives it.
        records: {run directory: run.json} of its points, in the order of the ledger; of copies the one that counts.
        lost: folders of points of the ledger that are not there.
        trials: {state: trials} where a sweeper chooses the points; None for a grid, or a study that cannot be read.
    """

    directory: Path
    ledger: Ledger
    driven: bool
    records: Mapping[Path, Mapping[str, Any]]
    lost: tuple[str, ...] = ()
    trials: Mapping[str, int] | None = None

    def those(self, *statuses: str) -> dict[Path, Mapping[str, Any]]:
        """The points with one of these statuses."""
        return {run: r for run, r in self.records.items() if r["status"] in statuses}

    @property
    def counts(self) -> dict[str, int]:
        """{status: points}, without those that no point has."""
        counts = {each: len(self.those(each)) for each in (*STATUSES, UNREADABLE)}
        return {each: count for each, count in counts.items() if count}

    @property
    def best(self) -> Best | None:
        """The point that validation finds best so far."""
        return best(self.records)

    @property
    def seconds_left(self) -> float | None:
        """Until the last point has ended; None where nobody works on them, none has ended yet, or more will be chosen."""
        running = [elapsed(record) for record in self.those("running").values()]
        if not self.driven or not running or self.trials is not None:
            return None
        ended = [record["seconds"] for record in self.those(*DONE).values()]
        return time_left(
            [each for each in ended if each is not None],
            [each or 0.0 for each in running],
            len(self.those(*_TO_COME)),
            len(running),
        )

    @property
    def next(self) -> dict[str, str]:
        """{what it does: command} of what one may want now."""
        where = shlex.quote(shown(self.directory))
        commands: dict[str, str] = {}
        unreadable, search = self.those(UNREADABLE), self.trials
        if not self.driven and (unreadable or (self.lost and search is None)):
            what = "make again what has no folder" + (
                ", once those that are unreadable are moved away" if unreadable else ""
            )
            commands[what] = report.again(self.ledger)
        left = len(self.those(*DONE, "running", UNREADABLE)) < len(self.records)
        if not self.driven and (
            left or (search is not None and (self.lost or "running" in search))
        ):
            commands["train what is left"] = report.resuming(self.directory)
        if self.those("queued", "running"):
            commands["end it"] = f"{program()} sweep cancel {where}"
        return commands or {"compare the points": f"{program()} compare {where}"}


def look(sweep: Path) -> Status:
    """How the sweep in this folder stands.

    Raises:
        UserError: its sweep.json cannot be read.
    """
    sweep = sweep.absolute()
    ledger = read_ledger(sweep)
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for run in list_runs(sweep):
        record = read(run)
        id = record["id"] or run.name
        own = sweep / ledger.points.get(id, run.name)
        if id not in found or rank(run, record, own) > rank(*found[id], own):
            found[id] = run, record
    folders = {run.name for run, _ in found.values()}
    number = {id: k for k, id in enumerate(ledger.points)}
    return Status(
        directory=sweep,
        ledger=ledger,
        driven=driven(sweep),
        records=dict(found[id] for id in sorted(found, key=lambda id: number.get(id, len(number)))),
        lost=tuple(
            name for id, name in ledger.points.items() if id not in found and name not in folders
        ),
        trials=_trials(sweep),
    )


def _trials(sweep: Path) -> dict[str, int] | None:
    """{state: trials}; one that was tried again is not counted."""
    if not (sweep / STUDY).is_file():
        return None
    try:
        known = read_study(sweep).trials
    except UserError:  # the points are there all the same
        return None
    replaced = {each.again for each in known}
    counts: dict[str, int] = {}
    for each in known:
        if each.number not in replaced:
            counts[each.state] = counts.get(each.state, 0) + 1
    return counts


def facts(status: Status) -> dict[str, Any]:
    """Everything that is known of it, for programs."""
    leader = status.best
    return {
        "sweep": str(status.directory),
        "name": status.ledger.name,
        "driven": status.driven,
        "driver": {key: status.ledger.driver.get(key) for key in ("host", "pid")},
        "total": len(status.records) + len(status.lost),
        "points": status.counts,
        "lost": list(status.lost),
        "trials": status.trials,
        "seconds_left": status.seconds_left,
        "best": leader
        and {
            "directory": str(leader.directory),
            "name": leader.name,
            "metric": leader.metric,
            "value": leader.value,
        },
        "running": [_running(*each) for each in status.those("running").items()],
        "failed": [
            {
                "directory": str(run),
                "name": record["name"],
                "status": record["status"],
                "reason": report.reason(record),
                "log": str(report.log_of(run)),
            }
            for run, record in status.those(*report.FAILED).items()
        ],
        "next": list(status.next.values()),
    }


def lines(status: Status) -> list[str]:
    """One screen of it."""
    total = len(status.records) + len(status.lost)
    words = [f"{count} {name}" for name, count in status.counts.items()]
    # A driver is about to make them: it has planned all, and freezes one after another.
    lost = "not frozen yet" if status.driven else "without a folder"
    words += [f"{len(status.lost)} {lost}"] if status.lost else []
    said = [
        f"{'sweep':8} {shown(status.directory)}",
        f"{'driver':8} {_driver(status)}",
    ]
    if status.trials is not None:
        words_of = {"running": "under way"}  # also where nobody drives: its points are not all done
        states = ", ".join(f"{n} {words_of.get(word, word)}" for word, n in status.trials.items())
        more = "; points are chosen on the way" if status.driven else ""
        said.append(f"{'trials':8} {states or 'none yet'}{more}")
    said.append(f"{'points':8} {total}{': ' if words else ''}{', '.join(words)}")
    left, leader = status.seconds_left, status.best
    if left is not None:
        said.append(f"{'left':8} about {duration(left)}")
    if leader is not None:
        said.append(f"{'best':8} {_name(leader.name)}  {leader.score}")
    rows = [_row(_running(*each)) for each in status.those("running").items()]
    if rows:
        said += [f"running ({len(rows)}):", *rows[:MOST]]
    if len(rows) > MOST:
        said.append(f"  and {len(rows) - MOST} more")
    failed = {run: report.reason(r) for run, r in status.those(*report.FAILED).items()}
    said += report.failures(failed, MOST)
    for number, (what, command) in enumerate(status.next.items()):
        said.append(f"{'' if number else 'next':8} {command}    # {what}")
    return [printable(line) for line in said]


def _driver(status: Status) -> str:
    by = status.ledger.driven_by
    if status.driven:
        return by
    here = status.ledger.driver.get("host") == socket.gethostname()
    last = f"{by}{'' if here else ', as far as can be seen from here'}"
    n = len(status.those("running"))
    goes_on = f". {n} {'point is' if n == 1 else 'points are'} trained without one" if n else ""
    return f"none now; the last was {last}{goes_on}"


def _running(run: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    trainer = record["config"].get("trainer")
    limits = cast("Mapping[str, Any]", trainer if isinstance(trainer, Mapping) else {})
    metric, loss = report.scores(record)
    name, value = metric or (None if loss is None else "val/loss", loss)
    return {
        "directory": str(run),
        "name": record["name"],
        "epoch": record["epochs"],
        "max_epochs": limits.get("max_epochs"),
        "metric": name,
        "value": value,
        "seconds": elapsed(record),
        "host": record["host"],
    }


def _row(point: Mapping[str, Any]) -> str:
    of = "" if point["max_epochs"] is None else f"/{point['max_epochs']}"
    seconds = point["seconds"]
    words = [
        _name(point["name"]),
        "" if point["epoch"] is None else f"epoch {point['epoch']:g}{of}",
        "" if point["value"] is None else f"{point['metric']} {digits(point['value'])}",
        "" if seconds is None else duration(seconds),
        "" if point["host"] is None else f"on {point['host']}",
    ]
    return "  " + "  ".join(word for word in words if word)


def _name(name: str) -> str:
    return shortened(name, report.LONGEST_NAME)
