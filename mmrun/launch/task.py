"""One job, from beginning to end, wherever an executor runs it: what there is to do follows from the point's run.json."""

from __future__ import annotations

import sys

from mmrun import point
from mmrun.errors import UserError
from mmrun.launch.executor import Job
from mmrun.launch.plan import RESUMABLE
from mmrun.runs import reader
from mmrun.runs.claim import ClaimedError
from mmrun.runs.layout import Paths
from mmrun.runs.writer import Run


def run(job: Job, *, alone: bool = False) -> Exception | SystemExit | None:
    """Train the frozen point of a job to its end, whatever that is; the error that ended it.

    A point that was killed goes on from its last checkpoint, or afresh where that is refused. One that has ended
    otherwise, or is trained elsewhere, is left as it is: to submit a job twice does no harm. Prints nothing.

    Args:
        job: the point.
        alone: whether no other process can be training it: a record that says running is of a dead one.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the record says killed.
    """
    record = reader.read(job.directory)
    if alone and record["status"] == "running":
        Run.open(job.directory).finish("killed", stopped_by="signal", error=DIED)
        record = reader.read(job.directory)
    if record["status"] not in ("queued", *RESUMABLE):
        return None
    try:
        if record["status"] in RESUMABLE and Paths(job.directory).last.is_file():
            try:
                point.run(job.directory, resume=True, trust=job.trust, brief=True)
                return None
            except ClaimedError:
                raise
            except UserError as error:  # say, a checkpoint that is damaged: the point itself is not
                sys.stderr.write(f"{job.directory.name}: {error} Training it afresh.\n")
        point.run(job.directory, trust=job.trust, brief=True)
    except (Exception, SystemExit) as error:  # its run.json and train.log say what it was
        return error
    return None


DIED = "the process died without a word"
