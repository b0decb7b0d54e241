"""What a person sees of a sweep while it lasts: one line per point that has ended; in a terminal also what runs now."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from mmrun.exits import unheard
from mmrun.launch import report
from mmrun.launch.plan import Planned
from mmrun.launch.running import Running
from mmrun.runs.standing import Best
from mmrun.signals import later

REDRAW_S = 0.25


def open_view(
    total: int,
    say: Callable[[str], None],
    *,
    alone: bool,
    before: Iterable[Best | None] = (),
) -> View:
    """The view that suits where the output goes: lines, and below them what runs now where that is a terminal.

    Args:
        total: points to be trained.
        say: prints a line to stdout.
        alone: whether nothing else draws in the terminal.
        before: points that earlier commands trained, as those that may be the best.
    """
    drawn = alone and sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return (LiveView if drawn else View)(total, say, before)


class View:
    """Lines, for logs and pipes.

    Args:
        total: points to be trained.
        say: prints a line.
        before: what may be the best of what was trained before.
    """

    def __init__(
        self, total: int, say: Callable[[str], None], before: Iterable[Best | None] = ()
    ) -> None:
        self.say = say
        self.progress = report.Progress(total, before)
        self.running: list[Running] = []

    def __enter__(self) -> View:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def ended(self, planned: Planned, record: Mapping[str, Any], seconds: float) -> None:
        """A point has ended for good."""
        self.running = [each for each in self.running if each.planned is not planned]
        rest = [each.seconds() for each in self.running]
        self.say(self.progress.ended(planned, record, seconds, rest))

    def retried(self, planned: Planned, record: Mapping[str, Any], k: int, tries: int) -> None:
        """A point has ended badly; the ``k``-th of so many tries comes."""
        self.progress.retried += 1
        self.say(report.retried(planned, record, k, tries))

    def awaited(self, planned: Planned) -> None:
        """A point is trained by another process."""
        self.say(report.awaited(planned))

    def note(self, line: str) -> None:
        """Something else that a person should know."""
        self.say(line)

    def tick(self, running: Sequence[Running]) -> None:
        """These are worked on now; called a few times a second."""
        self.running = list(running)
        begun = sum(each.began is not None for each in running)
        self.progress.parallel = max(self.progress.parallel, begun)


class LiveView(View):
    """Lines that scroll, and below them a few that are drawn anew: a bar, the best so far, the points that run.

    What others print meanwhile scrolls too. A terminal that goes ends nothing.
    """

    def __init__(
        self, total: int, say: Callable[[str], None], before: Iterable[Best | None] = ()
    ) -> None:
        from rich.live import Live
        from rich.text import Text

        from mmrun.lasting import LastingConsole

        super().__init__(total, say, before)
        self.console = LastingConsole(
            markup=False, emoji=False, highlight=False, soft_wrap=True, safe_box=True
        )
        self._live = Live(
            Text(""),
            console=self.console,
            transient=True,
            auto_refresh=False,
            redirect_stderr=sys.stderr.isatty(),  # else what it says goes where it is led
            vertical_overflow="crop",
        )
        self._due = 0.0
        self._drawn: tuple[int, list[Text]] = (0, [])

    def __enter__(self) -> View:
        self._lasting(self._live.start)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was."""
        try:
            self._lasting(self._live.stop)
        except BaseException:  # a signal in the midst of it
            self._lasting(lambda: self.console.show_cursor(True))
            raise

    def tick(self, running: Sequence[Running]) -> None:
        """Draw them, a few times a second at most, and only where something looks different."""
        super().tick(running)
        now = time.monotonic()
        if now >= self._due:
            self._due = now + REDRAW_S
            self._lasting(self._draw)

    def _draw(self) -> None:
        from rich.console import Group

        from mmrun.launch.frame import lines

        width, height = self.console.size
        unicode = self.console.encoding.startswith("utf")
        fresh = lines(self.progress, self.running, width=width, height=height, unicode=unicode)
        before, old = self._drawn
        if (width, fresh) == (before, old):
            return
        if width < before:
            self._wipe(sum(-(-line.cell_len // width) or 1 for line in old), len(old))
        self._drawn = width, fresh
        self._live.update(Group(*fresh), refresh=True)

    def _wipe(self, taken: int, drawn: int) -> None:
        """Wipe lines that a narrower terminal has wrapped, and so has more of than were drawn."""
        from rich.control import Control
        from rich.segment import ControlType

        up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
        down = ((ControlType.CURSOR_DOWN, drawn - 1),) if drawn > 1 else ()
        self.console.control(
            Control(
                ControlType.CARRIAGE_RETURN,
                (ControlType.ERASE_IN_LINE, 2),
                *(up * (taken - 1)),
                *down,
            )
        )

    def _lasting(self, write: Callable[[], object]) -> None:
        try:
            with later():  # half drawn, it could not be taken away again
                write()
        except OSError:  # the terminal is gone
            self.console.quiet = True
            unheard()
