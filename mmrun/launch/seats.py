"""What the local pool has to give: places on GPUs or the CPU, seats in them, and the job that sits in one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmrun.launch.executor import Ended, Job
from mmrun.launch.gpu_locks import Taken
from mmrun.launch.worker_process import WorkerProcess


@dataclass(eq=False)
class Place:
    """What a worker is given to train on: GPUs of its own, or none.

    Args:
        taken: those GPUs; None for the CPU.
        seats: how many workers share them.
    """

    taken: Taken | None
    seats: list[Seat] = field(default_factory=list["Seat"])
    closing: bool = False  # takes no more jobs: another sweep wants its GPUs
    idle_since: float | None = (
        None  # since its last job has ended; None while it has one, or had none yet
    )

    @property
    def busy(self) -> bool:
        """Whether a job is under way in it."""
        return any(seat.task is not None for seat in self.seats)


@dataclass(eq=False)
class Seat:
    """A slot of the pool: one worker, one job at a time."""

    place: Place
    worker: WorkerProcess | None = None
    spare: WorkerProcess | None = (
        None  # imports what the next point needs, where each has a process of its own
    )
    task: Task | None = None

    @property
    def free(self) -> bool:
        """Whether it takes a job now."""
        return self.task is None and not self.place.closing


@dataclass(eq=False)
class Task:
    """A submitted job.

    Args:
        job: what was submitted.
        number: by which its worker knows it.
        seat: where it is done.
        worker: by whom.
    """

    job: Job
    number: int
    seat: Seat
    worker: WorkerProcess
    reply: dict[str, Any] | None = None
    ended: Ended | None = None
