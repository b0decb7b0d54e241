"""A sweep from its plan to its end: lock its folder, freeze what is planned, have it worked on, sum up."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from mmrun.launch.source import Listed
from mmrun.launch.study import Study
from mmrun.launch.view import open_view
from mmrun.launch.work import Work
from mmrun.runs.layout import CANCEL, STUDY, SWEEP_RECORD
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
    """

    directory: Path
    records: dict[Path, dict[str, Any]] = field(default_factory=dict[Path, dict[str, Any]])
    refused: dict[Path, str] = field(default_factory=dict[Path, str])
    lost: tuple[str, ...] = ()

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
    with interruptible(), unhung(), locked(directory):
        planned = plan(directory, sweep.points, sweep.rerun)
        ledger = _recorded(directory, sweep, planned)
        for line in report.opening(directory, planned, sweep.rerun, sweep.repeated, sweep.idle):
            say(line)
        for line in notes if any(each.action in TO_DO for each in planned) else ():
            say(line)
        return _run(directory, ledger, planned, executor, trust, say)


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
    with interruptible(), unhung(), locked(directory):
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
        write_ledger(directory, ledger)
        for line in report.opening(directory, planned, rerun):
            say(line)
        outcome = _run(directory, ledger, planned, executor, trust, say)
        outcome.refused.update(unreadable)
        folders = {run.name for run in unreadable}
        outcome.lost = tuple(
            name for id, name in ledger.points.items() if id not in points and name not in folders
        )
        return outcome


def _recorded(directory: Path, sweep: Sweep, planned: Sequence[Planned]) -> Ledger:
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
    with interruptible(), unhung(), locked(directory):
        ledger = _recorded(directory, space, ())
        study.open(space, directory, ledger.name)
        say(f"{'sweep':8} {shown(directory)}")
        for line in (*study.opening(), *(() if study.exhausted else notes)):
            say(line)
        outcome = _run(directory, ledger, study.under_way, executor, trust, say, study)
        outcome.refused.update(study.refused)
        outcome.records = {run: slim(read(run)) for run in study.folders().values()}
        for line in study.closing():
            say(line)
        return outcome


def _run(
    directory: Path,
    ledger: Ledger,
    planned: Sequence[Planned],
    executor: Executor,
    trust: Collection[str],
    say: Callable[[str], None],
    study: Study | None = None,
) -> Outcome:
    outcome = Outcome(directory)
    request = directory / CANCEL
    request.unlink(missing_ok=True)  # of a sweep that ended before it was heard
    todo = [each for each in planned if each.action in TO_DO]
    others = [each for each in planned if each.action == "wait"]
    unfrozen: Ledger | None = ledger
    book = _Book(directory, ledger)
    if study is not None:
        study.register = book.points
        book.points(list(study.planned.values()))
    jobs = ledger.jobs
    try:
        if todo or (study is not None and not study.exhausted):
            executor.prepare(study.total if study is not None else len(todo))
        for each in todo:  # all of them, before the first is trained: conf/ may be edited then
            _freeze(each, ledger.name, outcome)
        unfrozen = None
        todo = [each for each in todo if each.directory not in outcome.refused]
        trusted = tuple(trust)
        view = open_view(
            study.total if study is not None else len(todo) + len(others),
            say,
            alone=not executor.blocks,
            before=[
                candidate(each.directory, each.record)
                for each in planned
                if each.action not in TO_DO and each.record is not None
            ],
        )
        with view:
            work = Work(
                executor,
                trust=trusted,
                view=view,
                cancelled=request.exists,
                submitted=book.jobs,
            )
            adopted = [
                each
                for each in (*todo, *others)
                if (key := jobs.get(each.directory.name)) and work.adopt(each, key)
            ]
            for each in others:
                if each not in adopted:
                    work.wait_for(each)
            if study is not None:
                for each in (*adopted, *others):
                    study.held(each)
            try:
                work.run(study or Listed(each for each in todo if each not in adopted))
            except Interrupted as signal:
                said = work.interrupted()
                signal.__notes__ = [said] if said else []  # how the point alone goes on
                raise
            except BaseException:
                work.interrupted()
                raise
    except Interrupted as signal:
        signal.__notes__ = getattr(signal, "__notes__", None) or []
        if study is not None:
            signal.add_note(report.interrupted(directory, *study.progress, None, of="trials"))
            raise
        left = sum(read(each.directory)["status"] not in DONE for each in planned)
        signal.add_note(report.interrupted(directory, len(planned) - left, len(planned), unfrozen))
        raise
    finally:
        executor.close()
        request.unlink(missing_ok=True)
    outcome.records = {each.directory: slim(read(each.directory)) for each in planned}
    for refused in outcome.refused:
        outcome.records.pop(refused, None)
    return outcome


class _Book:
    """The ledger while the sweep goes on: what comes to it is written at once."""

    def __init__(self, directory: Path, ledger: Ledger) -> None:
        self.directory = directory
        self.ledger = ledger

    def jobs(self, keys: Mapping[str, str]) -> None:
        """These jobs outlive this process."""
        self._write(replace(self.ledger, jobs={**self.ledger.jobs, **keys}))

    def points(self, planned: Sequence[Planned]) -> None:
        """These points are to be made."""
        new = {each.point.id: each.directory.name for each in planned}
        if not new.items() <= self.ledger.points.items():
            self._write(replace(self.ledger, points={**self.ledger.points, **new}))

    def _write(self, ledger: Ledger) -> None:
        self.ledger = ledger
        write_ledger(self.directory, ledger)


def _freeze(each: Planned, sweep: str, outcome: Outcome) -> None:
    try:
        freeze(each.point, each.directory, sweep=sweep)
    except UserError as error:
        outcome.refused[each.directory] = str(error)
