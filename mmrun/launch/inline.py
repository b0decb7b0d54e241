"""One point after another, in this process: nothing is imported twice, and nothing of one point reaches the next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmrun.launch import task
from mmrun.launch.executor import Ended, Executor, Job
from mmrun.signals import ending


class Inline(Executor):
    """``submit`` returns when the point has ended. A crash of the interpreter ends the sweep; the same command continues it.

    Args:
        fail_fast: whether the first failure ends the sweep.
        max_retries: how often a point that failed is tried again.
        gpus_per_job: processes of a point, where that is not ``trainer.devices``.
    """

    blocks = True

    def __init__(
        self, *, fail_fast: bool = False, max_retries: int = 0, gpus_per_job: int | None = None
    ) -> None:
        super().__init__(fail_fast=fail_fast, max_retries=max_retries)
        self.gpus_per_job = gpus_per_job

    def prepare(self, jobs: int) -> None:  # noqa: ARG002 (contract)
        """Import torch and Lightning: an interrupt meanwhile is none of the first point's."""
        with ending():
            import mmrun.train  # noqa: F401

    def room(self) -> int:
        """One."""
        return 1

    def submit(self, jobs: Sequence[Job]) -> list[Path]:
        """Train the point to its end, whatever that is; signals go through."""
        for job in jobs:
            task.run(job)
        return [job.directory for job in jobs]

    def poll(self, handle: Path) -> Ended:  # noqa: ARG002 (it has)
        """Always."""
        return Ended()

    def cancel(self, handles: Sequence[Path]) -> None:
        """Nothing is running."""
