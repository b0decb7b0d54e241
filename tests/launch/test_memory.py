"""A sweep of 1,000 points takes no more memory than one of 100, in the process that drives it."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmrun import compose
from mmrun.launch import loop
from mmrun.launch.executor import Ended, Executor, Job
from mmrun.launch.plan import plan
from mmrun.runs.writer import Run
from tests.running import ROOT, SMALL

POINTS, FIRST = 1000, 100
MOST = 2**20  # bytes; records kept whole would be 20 times as much
RECORD = ROOT / "tests" / "runs" / "data" / "format1" / "run.json"


class AtOnce(Executor):
    """A point has its results as soon as it is submitted."""

    def __init__(self, results: dict[str, Any]):
        super().__init__()
        self.results = results
        self.count = 0
        self.grown = 0

    def room(self):
        return 2

    def submit(self, jobs: Sequence[Job]):
        for job in jobs:
            Run.open(job.directory).finish("finished", **self.results)
            self.count += 1
            if self.count == FIRST:
                tracemalloc.start()
            if self.count == POINTS:
                self.grown = tracemalloc.get_traced_memory()[0]
        return list(jobs)

    def poll(self, handle: Job):  # noqa: ARG002
        return Ended()

    def wait(self, seconds: float):
        pass

    def cancel(self, handles: Sequence[Job]):
        raise AssertionError(handles)


@pytest.mark.slow
def test_memory_stays_flat():
    record = json.loads(RECORD.read_text())
    kept = ("metrics", "monitor", "clip", "test", "seconds", "epochs", "steps", "versions")
    executor = AtOnce({key: record[key] for key in kept})
    sweep = compose.sweep([*SMALL, "sweep=s", f"seeds={POINTS}"])
    try:
        outcome = loop.drive(sweep, Path("outputs"), executor, say=lambda _: None)
        assert len(outcome.records) == executor.count == POINTS
        assert executor.grown < MOST
        tracemalloc.stop()
        tracemalloc.start()
        planned = plan(Path("outputs/s"), sweep.points, "false")
        assert tracemalloc.get_traced_memory()[0] < 10 * MOST  # whole, 25 MB
        assert {each.action for each in planned} == {"skip"}
    finally:
        tracemalloc.stop()
