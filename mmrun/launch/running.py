"""A point that an executor works on, and what its run.json said last."""

from __future__ import annotations

import os
import time
from typing import Any

from mmrun.launch.plan import Planned, slim
from mmrun.runs.layout import RECORD
from mmrun.runs.reader import read

LOOK_S = 1.0


class Running:
    """A submitted point.

    Args:
        planned: the point.
        handle: the executor's.
        begun: whether it is worked on from now; else its time begins when its record says running.
    """

    def __init__(self, planned: Planned, handle: Any, *, begun: bool) -> None:
        self.planned = planned
        self.handle = handle
        self.began: float | None = time.monotonic() if begun else None
        self.record: dict[str, Any] = {}
        self._seen: int | None = None
        self._looked = 0.0

    def look(self) -> None:
        """Read the record anew where the file has changed; at most once a second."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        try:
            changed = os.stat(f"{self.planned.directory}/{RECORD}").st_mtime_ns
        except OSError:
            return
        if changed == self._seen:
            return
        self._seen = changed
        self.record = slim(read(self.planned.directory))
        if self.began is None and self.record["status"] == "running":
            self.began = now

    def seconds(self) -> float | None:
        """Since it began; None for one that waits for its turn."""
        return None if self.began is None else time.monotonic() - self.began
