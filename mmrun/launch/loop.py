"""A sweep from its plan to its end: lock its folder, freeze what is planned, have it worked on, sum up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrun import compose
from mmrun.compose.space import Space
from mmrun.errors import UserError
from mmrun.exits import say, shown
from mmrun.launch import report
from mmrun.launch.executor import Executor
from mmrun.launch.made import made
from mmrun.launch.plan import DONE, TO_DO, Planned, plan, slim
from mmrun.launch.session import Book, work_off
from mmrun.launch.source import Listed
from mmrun.launch.study import Study
from mmrun.runs.layout import STUDY, SWEEP_RECORD
from mmrun.runs.ledger import Ledger, locked, read_ledger, write_ledger
from mmrun.runs.reader import list_runs, read
from mmrun.runs.reader import point as frozen_point
from mmrun.runs.standing import candidate
from mmrun.runs.writer import freeze
from mmrun.signals import Interrupted, interruptible, unhung
from mmrun.spec import SWEEPER, Point, Rerun, Sweep
from mmrun.trust import check_targets


@dataclass
class Outcome:
    """How a sweep ended: the points of this command and their records.

    Args:
        directory: the sweep's folder.
        records: {run directory: ``plan.slim`` of run.json} of every point of the command.
        refused: {run directory: reason} of points that could not even be started.
        lost: names of points of the ledger that have no folder.
        trials: what there is to say of those that a study chose; empty for a list of points.
    """

    directory: Path
    records: dict[Path, dict[str, Any]] = field(default_factory=dict[Path, dict[str, Any]])
    refused: dict[Path, str] = field(default_factory=dict[Path, str])
    lost: tuple[str, ...] = ()
    trials: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 where every point has a result; a diverged one is one."""
        failed = any(record["status"] in report.NO_RESULT for record in self.records.values())
        return int(failed or bool(self.refused) or bool(self.lost))


def drive(
    sweep: Sweep,
    outputs: Path,
    executor: Executor,
    *,
    trust: Collection[str] = (),
    notes: Sequence[str] = (),
    say: Callable[[str], None] = say,
) -> Outcome:
    """Train what a sweep has left to train, in the folder ``outputs/<name>``.

    Args:
        sweep: the points.
        outputs: the root of all runs.
        executor: who trains them.
        trust: packages beside mmrun and torch.optim that a ``_target_`` may name.
        notes: lines that all points would say; said where one is trained.
        say: prints a line.

    Raises:
        UserError: the sweep's folder cannot be used, or another process drives it.
        Interrupted: SIGINT or SIGTERM came; a note says how to go on.
    """
    directory = (outputs / sweep.name).absolute()
    if isinstance(sweep, Space):
        return _search(directory, sweep, executor, trust, notes, say)
    with _driving(directory, executor):
        planned = plan(directory, sweep.points, sweep.rerun)
        for line in report.opening(directory, planned, sweep.rerun, sweep.repeated, sweep.idle):
            say(line)
        if todo := sum(each.action in TO_DO for each in planned):
            for line in notes:
                say(line)
            executor.prepare(todo)
        ledger = _recorded(directory, sweep, planned)
        return _train(directory, ledger, planned, executor, trust, say)


def resume(
    directory: Path,
    executor: Executor,
    *,
    trust: Collection[str] = (),
    say: Callable[[str], None] = say,
) -> Outcome:
    """Train what a sweep's folder has left, as it was frozen there; ``drive`` says the rest.

    Raises:
        UserError: a point names code that is not trusted; nothing is touched then.
    """
    directory = directory.absolute()
    space = _space_of(directory)
    if space is not None:
        for point in space.points:
            check_targets(point.config, trust)
        return _search(directory, space, executor, trust, (), say)
    with _driving(directory, executor):
        ledger = read_ledger(directory)
        points: dict[str, Point] = {}
        unreadable: dict[Path, str] = {}
        for run in list_runs(directory):
            record = read(run)
            if record["id"]:
                points.setdefault(record["id"], frozen_point(run))
            else:
                unreadable[run] = str(record["error"])
        if not points:
            raise UserError(
                "the sweep has no points left",
                given=directory,
                remedy=f"Make them again: {report.again(ledger)}",
            )
        order = {id: number for number, id in enumerate(ledger.points)}
        ordered = sorted(points.values(), key=lambda point: order.get(point.id, len(order)))
        rerun: Rerun = "false"
        planned = plan(directory, ordered, rerun)
        for each in planned:
            if each.action in TO_DO:
                check_targets(each.point.config, trust)
        for line in report.opening(directory, planned, rerun):
            say(line)
        if todo := sum(each.action in TO_DO for each in planned):
            executor.prepare(todo)
        write_ledger(directory, ledger)
        outcome = _train(directory, ledger, planned, executor, trust, say)
        outcome.refused.update(unreadable)
        folders = {run.name for run in unreadable}
        outcome.lost = tuple(
            name for id, name in ledger.points.items() if id not in points and name not in folders
        )
        return outcome


def _recorded(directory: Path, sweep: Sweep, planned: Iterable[Planned]) -> Ledger:
    """The sweep's ledger with what this command adds to it, written."""
    there = (directory / SWEEP_RECORD).exists()
    ledger = (read_ledger(directory) if there else Ledger(name=sweep.name)).extended(
        overrides=sweep.overrides,
        config_dirs=sweep.config_dirs,
        axes=sweep.axes,
        points={each.point.id: each.directory.name for each in planned},
    )
    try:
        write_ledger(directory, ledger)
    except OSError as error:
        raise UserError(
            f"the sweep's ledger cannot be written: {error.strerror or error}",
            given=directory / SWEEP_RECORD,
            remedy="Make room, or name another folder with outputs=DIR.",
        ) from error
    return ledger


def _space_of(directory: Path) -> Space | None:
    """What the sweep's last command spans, where its points are chosen on the way."""
    if not (directory / STUDY).is_file():
        return None
    ledger = read_ledger(directory)
    found = compose.sweep(ledger.overrides, ledger.config_dirs)
    return found if isinstance(found, Space) else None


def _search(
    directory: Path,
    space: Space,
    executor: Executor,
    trust: Collection[str],
    notes: Sequence[str],
    say: Callable[[str], None],
) -> Outcome:
    """``drive`` where the points are chosen on the way."""
    study = made(SWEEPER, space.sweeper, Study, trust)
    with _driving(directory, executor):
        fresh = not (directory / STUDY).exists()
        study.open(space, directory, space.name)
        try:
            if not study.exhausted:
                executor.prepare(study.total)
        except BaseException:
            if fresh:  # nothing was made
                (directory / STUDY).unlink(missing_ok=True)
            raise
        book = Book(directory, _recorded(directory, space, study.planned.values()))
        study.register = book.add_points
        say(f"{'sweep':8} {shown(directory)}")
        for line in (*study.opening(), *(() if study.exhausted else notes)):
            say(line)
        done = [candidate(run, read(run)) for run in study.folders().values()]
        try:
            work_off(study, executor, book, trust=tuple(trust), before=done, say=say)
        except Interrupted as signal:
            signal.add_note(report.interrupted(directory, *study.progress, None, of="trials"))
            raise
        records = {run: slim(read(run)) for run in study.folders().values()}
        return Outcome(directory, records, dict(study.refused), trials=tuple(study.closing()))


def _train(
    directory: Path,
    ledger: Ledger,
    planned: Sequence[Planned],
    executor: Executor,
    trust: Collection[str],
    say: Callable[[str], None],
) -> Outcome:
    refused: dict[Path, str] = {}
    unfrozen: Ledger | None = ledger
    try:
        for each in planned:  # all of them, before the first is trained: conf/ may be edited then
            if each.action in TO_DO:
                try:
                    freeze(each.point, each.directory, sweep=ledger.name)
                except UserError as error:
                    refused[each.directory] = str(error)
        unfrozen = None
        there = [each for each in planned if each.directory not in refused]
        open_ = [each for each in there if each.action in (*TO_DO, "wait")]
        done = [each for each in there if each not in open_]
        work_off(
            Listed(open_),
            executor,
            Book(directory, ledger),
            trust=tuple(trust),
            before=[candidate(each.directory, each.record) for each in done if each.record],
            say=say,
        )
    except Interrupted as signal:
        left = sum(read(each.directory)["status"] not in DONE for each in planned)
        signal.add_note(report.interrupted(directory, len(planned) - left, len(planned), unfrozen))
        raise
    records = {each.directory: slim(read(each.directory)) for each in there}
    return Outcome(directory, records, refused)


@contextlib.contextmanager
def _driving(directory: Path, executor: Executor) -> Generator[None]:
    """This process alone drives the sweep, and hears signals; at the end nothing of the executor is left."""
    with interruptible(), unhung(), locked(directory):
        try:
            yield
        finally:
            executor.close()
