"""Jobs of a SLURM cluster, submitted by submitit as a job array. Needs a file system that all its machines share.

A job outlives the process that submitted it: the ledger keeps its id, and the same command takes it up again. What
became of its point, run.json says; SLURM is asked about jobs that say nothing.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mmrun.errors import UserError
from mmrun.exits import program, shown
from mmrun.launch import slurm_queue
from mmrun.launch.executor import GRACE_S, Ended, Executor, Job
from mmrun.launch.plan import DONE
from mmrun.launch.slurm_queue import STUCK, Queue
from mmrun.launch.slurm_task import PointTask
from mmrun.runs import reader
from mmrun.runs.layout import RECORD
from mmrun.user_code import added_to_path, child_environment

if TYPE_CHECKING:
    from submitit import SlurmExecutor

FOLDER = "slurm"  # in the sweep's folder: scripts and logs of jobs
LOOK_S = 1.0
# How long a record may lag behind SLURM on a shared file system; a job that exits with 0 has written its own.
LAG_S = 3.0
LAG_COMPLETED_S = 60.0
_UNSUBMITTED = re.compile(r"[0-9a-f]{32}\.pkl|\.submission_file_[0-9a-f]{32}\.sh")
STOPPED_BY = {"TIMEOUT": "timeout", "CANCELLED": "cancel", "PREEMPTED": "preempted"}


@dataclass(eq=False)
class Submitted:
    """A job that is in SLURM's hands.

    Args:
        directory: the run directory of its point.
        id: SLURM's: 12, or 12_3 of an array.
        folder: where submitit keeps what belongs to it.
    """

    directory: Path
    id: str
    folder: Path
    looked: float = float("-inf")
    written: int = 0
    status: str = ""
    over: float | None = None

    @property
    def log(self) -> Path:
        """What the job has printed."""
        return self.folder / f"{self.id}_0_log.out"


class Slurm(Executor):
    """One job of SLURM for each point; conf/launcher/slurm.yaml says what the settings are.

    Raises:
        UserError: there is no SLURM here, or no submitit.
    """

    queues: ClassVar[bool] = True

    def __init__(
        self,
        *,
        partition: str | None = None,
        qos: str | None = None,
        account: str | None = None,
        constraint: str | None = None,
        exclude: str | None = None,
        time: int = 60,
        requeues: int = 100,
        signal_delay_s: int = 60,
        mem_gb: float | None = None,
        cpus: int | None = None,
        gpus_per_job: int | None = None,
        array_parallelism: int = 256,
        max_jobs: int = 1000,
        setup: Sequence[str] = (),
        additional: Mapping[str, Any] | None = None,
        on_interrupt: Literal["leave", "cancel"] = "leave",
        fail_fast: bool = False,
        max_retries: int = 0,
        timeout_s: float | None = None,
    ) -> None:
        super().__init__(fail_fast=fail_fast, max_retries=max_retries, timeout_s=timeout_s)
        for name, value, least in (
            ("time", time, 1),
            ("requeues", requeues, 0),
            ("signal_delay_s", signal_delay_s, 1),
            ("cpus", cpus, 1),
            ("gpus_per_job", gpus_per_job, 0),
            ("array_parallelism", array_parallelism, 1),
            ("max_jobs", max_jobs, 1),
        ):
            if value is not None and value < least:
                raise UserError(f"launcher.{name} is {least} at least", given=value)
        _check_installed()
        self.parameters: dict[str, Any] = {
            "partition": partition,
            "qos": qos,
            "account": account,
            "constraint": constraint,
            "exclude": exclude,
            "time": time,
            "mem": None if mem_gb is None else f"{round(mem_gb * 1024)}M",
            "nodes": 1,
            "array_parallelism": array_parallelism,
            "signal_delay_s": signal_delay_s,
            "wckey": None,
            "stderr_to_stdout": True,
            # Python takes the place of the batch script: srun would kill its task at the first SIGTERM, and tell
            # every process of it of SIGUSR2.
            "use_srun": False,
        }
        self.additional = {
            "requeue": True,
            "signal": f"B:USR2@{signal_delay_s}",
            **(additional or {}),
        }
        self.requeues = requeues
        self.cpus = cpus
        self.gpus_per_job = gpus_per_job
        self.max_jobs = max_jobs
        self.setup = list(setup)
        self.on_interrupt = on_interrupt
        self._queue = Queue()
        self._active: dict[str, Submitted] = {}

    def room(self) -> int:
        """As many as may be in the queue."""
        return max(0, self.max_jobs - len(self._active))

    # Into the queue

    def submit(self, jobs: Sequence[Job]) -> list[Submitted]:
        """One array; several where points differ in what they need."""
        needs: dict[tuple[int, int], list[Job]] = {}
        for job in jobs:
            needs.setdefault(self._needs(job), []).append(job)
        found: dict[Path, Submitted] = {}
        try:
            for (cpus, gpus), alike in needs.items():
                for each in self._submit(alike, cpus=cpus, gpus=gpus):
                    found[each.directory] = self._active[each.id] = each
        except UserError:
            self.cancel(list(found.values()))
            raise
        return [found[job.directory] for job in jobs]

    def _needs(self, job: Job) -> tuple[int, int]:
        """(CPUs, GPUs) of a point."""
        config = reader.recorded(job.directory)["config"]
        processes = int(config["trainer"]["devices"])
        gpus = self.gpus_per_job
        if gpus is None:
            gpus = 0 if config["trainer"]["accelerator"] == "cpu" else processes
        return self.cpus or int(config["threads"]) * processes, gpus

    def _submit(self, jobs: Sequence[Job], *, cpus: int, gpus: int) -> list[Submitted]:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        folder = _folder(jobs[0])
        executor = self._executor(folder, name=folder.parent.name, cpus=cpus, gpus=gpus)
        tasks = [PointTask(job, tuple(added_to_path)) for job in jobs]
        # Of a job in which this process may run itself; sbatch would pass it on.
        os.environ.pop("SLURM_RESTART_COUNT", None)
        try:
            with contextlib.redirect_stderr(
                io.StringIO()
            ):  # sbatch's words, which the error quotes
                submitted = executor.submit_array(tasks)
        except (FailedJobError, FailedSubmissionError) as error:
            _clean(folder)
            raise slurm_queue.refused(str(error)) from error
        return [
            Submitted(job.directory, each.job_id, folder)
            for job, each in zip(jobs, submitted, strict=True)
        ]

    def _executor(self, folder: Path, *, name: str, cpus: int, gpus: int) -> SlurmExecutor:
        from submitit import SlurmExecutor

        python = f"exec {shlex.quote(sys.executable)}"
        executor = SlurmExecutor(folder, max_num_timeout=self.requeues, python=python)
        environment = child_environment()
        exports = [
            f"export {name}={shlex.quote(environment[name])}"
            for name in ("PYTHONSAFEPATH", "PYTHONPATH")
        ]
        more: dict[str, Any] = {} if not gpus else {"gres": f"gpu:{gpus}"}
        executor.update_parameters(
            **self.parameters,
            job_name=name,
            cpus_per_task=cpus,
            setup=[*exports, *self.setup],
            additional_parameters={**more, **self.additional},
        )
        return executor

    # Out of it

    def poll(self, handle: Submitted) -> Ended | None:
        """By its record, else by what SLURM says of it."""
        self._queue.look(self._active)
        now = time.monotonic()
        if now - handle.looked < LOOK_S:
            return None
        handle.looked = now
        _read_status(handle)
        if handle.status in DONE:
            return self._end(handle, Ended())
        entry = self._queue.entry(handle.id)
        if entry is None or not entry.over:
            handle.over = None
            return None
        handle.over = handle.over or now
        lag = LAG_COMPLETED_S if entry.state == "COMPLETED" else LAG_S
        if handle.status in ("queued", "running") and now - handle.over < lag:
            return None
        state, said = slurm_queue.last_words(handle.id, entry)
        if state == STUCK:
            slurm_queue.cancel([handle.id])
        reason = f"its SLURM job {handle.id} {said}{_last_line(handle)}; log: {shown(handle.log)}"
        return self._end(handle, Ended(reason=reason, stopped_by=STOPPED_BY.get(state, "signal")))

    def _end(self, handle: Submitted, ended: Ended) -> Ended:
        self._active.pop(handle.id, None)
        (handle.folder / f"{handle.id}_submitted.pkl").unlink(missing_ok=True)
        return ended

    def cancel(self, handles: Sequence[Submitted]) -> None:
        """SIGTERM from SLURM, then SIGKILL; those that wait leave the queue."""
        left = {each.id for each in handles}
        began, forced = time.monotonic(), False
        if left:
            slurm_queue.cancel(left)
        while left:
            self._queue.ask(left)
            for id in list(left):
                entry = self._queue.entry(id)
                if entry is not None and entry.over:
                    left.discard(id)
            if not left or time.monotonic() - began > 4 * GRACE_S:  # a node that does not answer
                break
            if not forced and time.monotonic() - began > GRACE_S:
                slurm_queue.cancel(left, "--signal=KILL", "--full")
                forced = True
            time.sleep(0.3)
        for each in handles:
            self._end(each, Ended())

    def key(self, handle: Submitted) -> str:
        """SLURM's id."""
        return handle.id

    def adopt(self, job: Job, key: str) -> Submitted | None:
        """Where SLURM has a job of that id that was submitted from this sweep's folder, and it is not over."""
        entry = self._queue.entry(key)
        if entry is None:
            self._queue.ask([*self._active, key])
            entry = self._queue.entry(key)
        folder = _folder(job)
        if entry is None or Path(entry.script).parent != folder:
            return None
        if entry.over:
            if entry.state == STUCK:
                slurm_queue.cancel([key])
            return None
        self._active[key] = Submitted(job.directory, key, folder)
        return self._active[key]

    def leave(self, handles: Sequence[Submitted]) -> str:
        """Jobs go on, unless they are to be cancelled."""
        if self.on_interrupt == "cancel":
            return ""
        sweep = shlex.quote(shown(handles[0].folder.parent))
        jobs = " ".join(sorted({each.id.split("_")[0] for each in handles}, key=int))
        go = "1 job goes" if len(handles) == 1 else f"{len(handles)} jobs go"
        return (
            f"{go} on in SLURM; watch: {program()} sweep status {sweep}; "
            f"end: {program()} sweep cancel {sweep}, or scancel {jobs}"
        )


def _check_installed() -> None:
    if shutil.which("sbatch") is None:
        raise UserError(
            "launcher=slurm needs SLURM's sbatch, and it is not on the PATH",
            remedy="Run this on a machine of the cluster, or use another launcher (mmrun list launcher).",
        )
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise UserError(
            "launcher=slurm needs submitit", given=error, remedy="pip install 'mmrun[slurm]'"
        ) from error


def _folder(job: Job) -> Path:
    return job.directory.absolute().parent / FOLDER


def _clean(folder: Path) -> None:
    """Take away what submitit has made for jobs that were not submitted."""
    for path in folder.iterdir():
        # Scripts of what was submitted are links.
        if _UNSUBMITTED.fullmatch(path.name) and not path.is_symlink():
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _read_status(handle: Submitted) -> None:
    """What the record says, as it was written: a heartbeat may be late on a shared file system."""
    try:
        written = os.stat(f"{handle.directory}/{RECORD}").st_mtime_ns
        if written != handle.written:
            handle.status = reader.recorded(handle.directory)["status"]
            handle.written = written
    except (OSError, UserError):
        pass  # unreadable: SLURM knows when the job is over


def _last_line(handle: Submitted) -> str:
    """What a job that could not even begin has said last."""
    if handle.status == "running":
        return ""
    try:
        with handle.log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ", and has no log"
    said = [line.strip() for line in lines if line.strip() and not line.startswith("submitit ")]
    return f": {said[-1]}" if said else ""
