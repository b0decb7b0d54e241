"""What a person sees of a sweep while it lasts: one line per point that has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmrun.launch import report
from mmrun.launch.plan import Planned
from mmrun.launch.running import Running


class View:
    """Lines, for logs and pipes.

    Args:
        total: points to be trained.
        say: prints a line.
    """

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.say = say
        self._progress = report.Progress(total)

    def ended(self, planned: Planned, record: Mapping[str, Any], seconds: float) -> None:
        """A point has ended for good."""
        self.say(self._progress.ended(planned.point.name, record, seconds))

    def note(self, line: str) -> None:
        """Something else that a person should know."""
        self.say(line)

    def tick(self, running: Sequence[Running]) -> None:
        """These are worked on now; called a few times a second."""
        self._progress.parallel = max(self._progress.parallel, len(running))
