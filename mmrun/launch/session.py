"""One sitting of a sweep: what an earlier one left under way is taken up, the rest is worked on, all is in the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mmrun.launch.executor import Executor
from mmrun.launch.plan import Planned
from mmrun.launch.source import Source
from mmrun.launch.view import open_view
from mmrun.launch.work import Work
from mmrun.runs.layout import CANCEL
from mmrun.runs.ledger import Ledger, write_ledger
from mmrun.runs.standing import Best
from mmrun.signals import Interrupted


class Book:
    """The ledger while a sweep goes on: what comes to it is written at once.

    Args:
        directory: the sweep's folder.
        ledger: as it is written there.
    """

    def __init__(self, directory: Path, ledger: Ledger) -> None:
        self.directory = directory
        self.ledger = ledger

    def add_jobs(self, keys: Mapping[str, str]) -> None:
        """These jobs outlive this process."""
        self._write(replace(self.ledger, jobs={**self.ledger.jobs, **keys}))

    def add_points(self, planned: Sequence[Planned]) -> None:
        """These points are to be made."""
        new = {each.point.id: each.directory.name for each in planned}
        if not new.items() <= self.ledger.points.items():
            self._write(replace(self.ledger, points={**self.ledger.points, **new}))

    def _write(self, ledger: Ledger) -> None:
        self.ledger = ledger
        write_ledger(self.directory, ledger)


def work_off(
    source: Source,
    executor: Executor,
    book: Book,
    *,
    trust: tuple[str, ...],
    before: Sequence[Best | None],
    say: Callable[[str], None],
) -> None:
    """Train what the source gives, until it gives nothing more or somebody asks for the end.

    Args:
        source: the points.
        executor: who trains them, made ready.
        book: the sweep's ledger.
        trust: packages beside mmrun and torch.optim that a ``_target_`` may name.
        before: results that are there already; the best of all is shown.
        say: prints a line.

    Raises:
        Interrupted: SIGINT or SIGTERM came; a note says of jobs that go on.
    """
    request = book.directory / CANCEL
    request.unlink(missing_ok=True)  # of a sweep that ended before it was heard
    try:
        with open_view(source.total, say, alone=not executor.blocks, before=before) as view:
            work = Work(
                executor, trust=trust, view=view, cancelled=request.exists, submitted=book.add_jobs
            )
            for each in source.under_way:
                key = book.ledger.jobs.get(each.directory.name)
                if key and work.adopt(each, key):
                    source.held(each)
                elif each.action == "wait":
                    work.wait_for(each)
                    source.held(each)
            try:
                work.run(source)
            except BaseException as error:
                said = work.interrupted()
                if isinstance(error, Interrupted):
                    error.__notes__ = [said] if said else []  # not how one point goes on
                raise
    finally:
        request.unlink(missing_ok=True)
