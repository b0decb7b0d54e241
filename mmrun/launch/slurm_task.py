"""What runs in a SLURM job: the frozen point, and the way back into the queue before the job is taken away.

SLURM tells a job that its end is near by SIGUSR2 and takes it away by SIGTERM. Both end the training with its last
words; after SIGUSR2 submitit's own handler asks SLURM to put the job back, after SIGTERM SLURM itself does so, or not.
In its new start the job finds a record that says killed, and continues.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from mmrun.errors import described
from mmrun.launch import task
from mmrun.launch.executor import Job
from mmrun.signals import Interrupted, ending, interruptible, preemptible
from mmrun.user_code import add_folders

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission


class PointTask:
    """A job as submitit pickles and calls it.

    Args:
        job: the point.
        folders: where the user's modules are.
    """

    def __init__(self, job: Job, folders: tuple[str, ...] = ()) -> None:
        self.job = job
        self.folders = folders

    def __call__(self) -> NoReturn:
        """Train, and exit: 0, 1 for a point that failed, 128 + signal. No result is pickled; run.json is it."""
        add_folders(self.folders)
        requeue: Any = signal.getsignal(signal.SIGUSR2)  # submitit's
        with ending():
            import mmrun.train  # noqa: F401 (torch: an interrupt meanwhile is none of the point's)
        try:
            with interruptible(), preemptible():
                error = task.run(self.job, alone=_restarted())
        except Interrupted as interrupted:
            if interrupted.signum == signal.SIGUSR2 and callable(requeue):
                requeue(signal.SIGUSR2, None)  # exits
            sys.exit(128 + interrupted.signum)
        sys.exit(error and f"mmrun: {self.job.directory.name}: {described(error)}")

    def checkpoint(self) -> DelayedSubmission:
        """What submitit starts in place of this after a requeue: the same, for what there is to do its run.json says."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _restarted() -> bool:
    """Whether SLURM has started this job before: then nobody else trains its point."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
