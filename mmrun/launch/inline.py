"""One point after another, in this process: nothing is imported twice, and nothing of one point reaches the next."""

from __future__ import annotations

import sys
from pathlib import Path

from mmrun import point
from mmrun.errors import UserError
from mmrun.launch.executor import Executor, Job
from mmrun.signals import ending


class Inline(Executor):
    """``submit`` returns when the point has ended. A crash of the interpreter ends the sweep; the same command continues it."""

    def prepare(self) -> None:
        """Import torch and Lightning: an interrupt meanwhile is none of the first point's."""
        with ending():
            import mmrun.train  # noqa: F401

    def submit(self, job: Job, slot: int) -> Path:  # noqa: ARG002 (there is one)
        """Train the point to its end, whatever that is; signals go through."""
        try:
            if job.resume:
                try:
                    point.run(job.directory, resume=True, trust=job.trust, brief=True)
                    return job.directory
                except (
                    UserError
                ) as error:  # say, a checkpoint that is damaged: the point itself is not
                    sys.stderr.write(f"{job.directory.name}: {error} Training it afresh.\n")
            point.run(job.directory, trust=job.trust, brief=True)
        except (Exception, SystemExit):  # its run.json and train.log say what it was
            pass
        return job.directory

    def poll(self, handle: Path) -> bool:  # noqa: ARG002 (it has)
        """Always."""
        return True

    def cancel(self, handle: Path) -> None:
        """Nothing is running."""
