"""The pool of this machine: worker processes, each with its own GPUs or CPU threads, that train point after point."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal

from mmrun.errors import UserError
from mmrun.exits import say
from mmrun.launch.executor import GRACE_S, Ended, Executor, Job
from mmrun.launch.gpu_locks import Locks, Taken
from mmrun.launch.gpus import Gpu, choose
from mmrun.launch.seats import Place, Seat, Task
from mmrun.launch.worker_process import WorkerProcess
from mmrun.runs.layout import Paths

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
IDLE_S = 10.0  # after which GPUs without a job are let go
GIVE_S = 5.0  # between two that are given to other sweeps: the first may be all that is wanted
FORCE_S = 0.5  # what the kernel may take to end a process by force


class Local(Executor):
    """Points train in worker processes of this machine; what happens to one of them is nothing to the others.

    Args:
        gpus: positions among the GPUs that this process may see; auto is all of them, [] trains on the CPU.
        gpus_per_job: GPUs of each point; None is one for each of its processes.
        jobs_per_gpu: points that share a GPU.
        workers: processes where there are no GPUs; None is one for each ``threads`` * ``devices`` cores.
        isolate: whether every point gets a process of its own.
        threads: CPU threads of each process.
        accelerator: that of the points; with cpu no GPU is used.
        devices: processes of each point.
        fail_fast: whether the first failure ends the sweep.
        max_retries: how often a point that failed or was killed is tried again.
        timeout_s: seconds after which a point is ended; None is never.
    """

    def __init__(
        self,
        *,
        gpus: Literal["auto"] | list[int] = "auto",
        gpus_per_job: int | None = None,
        jobs_per_gpu: int = 1,
        workers: int | None = None,
        isolate: bool = False,
        threads: int = 1,
        accelerator: str = "auto",
        devices: int = 1,
        fail_fast: bool = False,
        max_retries: int = 0,
        timeout_s: float | None = None,
    ) -> None:
        super().__init__(fail_fast=fail_fast, max_retries=max_retries, timeout_s=timeout_s)
        numbers = {
            "launcher.gpus_per_job": gpus_per_job,
            "launcher.jobs_per_gpu": jobs_per_gpu,
            "launcher.workers": workers,
            "threads": threads,
            "trainer.devices": devices,
        }
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise UserError(
                    f"{name} is a whole number, 1 or more", given=value, remedy=f"E.g. {name}=1."
                )
        if gpus_per_job is not None and gpus_per_job < devices:
            raise UserError(
                "launcher.gpus_per_job gives a point fewer GPUs than it has processes",
                given=f"launcher.gpus_per_job={gpus_per_job} trainer.devices={devices}",
                remedy="Leave it away, or give as many.",
            )
        self._wanted: Literal["auto"] | list[int] = gpus
        self._size = gpus_per_job or devices
        self._jobs_per_gpu = jobs_per_gpu
        self._workers = workers
        self._isolate = isolate
        self._threads = threads
        self._accelerator = accelerator
        self._devices = devices
        self._places: list[Place] = []
        self._former: list[WorkerProcess] = []  # were told to end
        self._number = 0
        self._expected = 0
        self._gave = -GIVE_S
        self._told = False
        if gpus != "auto" or workers is not None or gpus_per_job is not None:
            _ = self._gpus  # what was asked for and is not here is said before anything is made

    def prepare(self, jobs: int) -> None:
        """Start the workers: they import torch while the points are frozen."""
        self._expected += jobs
        while self._grow() and sum(len(place.seats) for place in self._places) < jobs:
            pass
        for seat in list(self._seats())[:jobs]:
            self._worker(seat)

    def room(self) -> int:
        """Free seats; GPUs that have become free are taken where all seats are in use."""
        if not any(seat.free for seat in self._seats()):
            self._grow()
        return sum(seat.free for seat in self._seats())

    def submit(self, jobs: Sequence[Job]) -> list[Task]:
        """Give each job to the worker of a free seat."""
        free = [seat for seat in self._seats() if seat.free]
        tasks: list[Task] = []
        for job, seat in zip(jobs, free, strict=False):
            self._number += 1
            task = Task(job, self._number, seat, self._worker(seat))
            directory = str(
                job.directory.absolute()
            )  # wherever an earlier point has left the worker
            task.worker.send(job=task.number, directory=directory, trust=list(job.trust))
            seat.task, seat.place.idle_since = task, None
            if self._isolate and self._number < self._expected and seat.spare is None:
                seat.spare = self._start(seat.place)
            tasks.append(task)
        return tasks

    def poll(self, handle: Task) -> Ended | None:
        """That the worker has said so, or is gone."""
        if handle.ended is None:
            self._look(handle.worker)
            self._settle(handle)
        return handle.ended

    def begun(self, handle: Task) -> bool:
        """Whether its worker has what it needs: imports are not the point's time."""
        return handle.worker.ready

    def wait(self, seconds: float) -> None:
        """Until a worker says something or ends, at most that long."""
        self._share()
        with selectors.DefaultSelector() as selector:
            for worker in self._known():
                for file in worker.files():
                    selector.register(file, selectors.EVENT_READ)
            if selector.get_map():
                selector.select(seconds)
            else:
                time.sleep(seconds)
        for worker in self._known():
            self._look(worker)

    def cancel(self, handles: Sequence[Task]) -> None:
        """Interrupt the workers in these jobs, all at once; what has not ended after ``GRACE_S`` is killed."""
        for task in handles:
            if self.poll(task) is None:
                if task.worker.ready:
                    task.worker.send(cancel=task.number)
                else:  # it still imports: nothing is lost
                    task.worker.kill()
        left = self._wait_for(handles, GRACE_S)
        for task in left:
            task.worker.kill()
        for task in self._wait_for(left, FORCE_S):  # not even the kernel can end it now
            self._end(task, Ended(reason="its process does not end"))

    def close(self) -> None:
        """End the workers and let the GPUs go."""
        for place in self._places[:]:
            self._leave(place)
        for force in (False, True):
            until = time.monotonic() + FORCE_S
            while self._former and (left := until - time.monotonic()) > 0:
                if force:
                    for worker in self._former:
                        worker.kill()
                self.wait(min(left, 0.05))
        for worker in self._former:
            worker.close()
        self._former.clear()
        if "_locks" in self.__dict__:
            self._locks.close()

    # Places

    @cached_property
    def _gpus(self) -> list[Gpu]:
        if self._accelerator == "cpu":
            if self._wanted != "auto" and self._wanted:
                raise UserError(
                    "launcher.gpus has no use with trainer.accelerator=cpu",
                    given=f"launcher.gpus={self._wanted}",
                    remedy="Leave one of the two away.",
                )
            return []
        found = choose(self._wanted)
        if not found:
            if self._accelerator == "gpu":
                raise UserError(
                    "trainer.accelerator=gpu, and the sweep has no GPU",
                    given=f"launcher.gpus={self._wanted}",
                    remedy="mmrun doctor says whether there is one; launcher.gpus=[0] names the first.",
                )
            return []
        if self._workers is not None:
            raise UserError(
                "launcher.workers is for sweeps without GPUs",
                given=f"launcher.workers={self._workers}, {len(found)} GPUs",
                remedy="Use launcher.jobs_per_gpu, or train on the CPU with launcher.gpus=[].",
            )
        if len(found) < self._size:
            raise UserError(
                "there are fewer GPUs than a point takes",
                given=f"{self._size} for each point, {len(found)} here",
                remedy="Lower launcher.gpus_per_job or trainer.devices, or name more in launcher.gpus.",
            )
        return found

    @cached_property
    def _locks(self) -> Locks:
        return Locks(self._gpus, self._size)

    def _seats(self) -> Iterator[Seat]:
        for place in self._places:
            yield from place.seats

    def _grow(self) -> bool:
        """One more place, where there can be."""
        if not self._gpus:
            if not self._places:
                cores = _cores() // (self._threads * self._devices)
                self._open(None, self._workers or max(cores, 1))
            return False
        held = [gpu for place in self._places if place.taken for gpu in place.taken.gpus]
        if len(self._gpus) - len(held) < self._size:
            return False
        if self._places and self._locks.wanted(self._gpus):
            return False  # by one that has none
        taken = self._locks.take(held)
        if taken is not None:
            self._locks.content()
            self._open(taken, self._jobs_per_gpu)
        elif not self._places:
            self._locks.want()
            if not self._told:
                self._told = True
                holders = ", ".join(self._locks.holders()) or "another process"
                say(
                    f"waiting for {'a GPU' if self._size == 1 else f'{self._size} GPUs'}: {holders}"
                )
        return taken is not None

    def _open(self, taken: Taken | None, seats: int) -> None:
        place = Place(taken)
        place.seats = [Seat(place) for _ in range(seats)]
        self._places.append(place)

    def _leave(self, place: Place) -> None:
        """Its workers end; with the last of them its GPUs are free."""
        self._places.remove(place)
        for seat in place.seats:
            for worker in (seat.worker, seat.spare):
                if worker is not None:
                    self._dismiss(worker)
        if place.taken is not None:
            place.taken.release()

    def _share(self) -> None:
        """Let GPUs go that another sweep has none of, or that this one has no use for."""
        if not self._gpus:
            return
        now = time.monotonic()
        for place in self._places[:]:
            if place.idle_since is not None and now - place.idle_since > IDLE_S:
                self._leave(place)
            elif place.idle_since is not None or place.closing:
                self._give(place, now)

    def _give(self, place: Place, now: float) -> None:
        """Let it go where another sweep wants it, and this one has others; where several jobs share it, after the last."""
        if place.taken is None:
            return
        others = [each for each in self._places if not each.closing and each is not place]
        wanted = bool(others) and self._locks.wanted(place.taken.gpus)
        if wanted and not place.closing and now - self._gave < GIVE_S:
            return
        place.closing = wanted
        if wanted:
            self._gave = now
            if not place.busy:
                self._leave(place)

    # Workers

    def _worker(self, seat: Seat) -> WorkerProcess:
        """That of a seat, alive."""
        if seat.worker is not None:
            self._look(seat.worker)
            if seat.worker.gone or seat.worker.leaving:
                self._dismiss(seat.worker)
                seat.worker = None
        if seat.worker is None:
            seat.worker, seat.spare = seat.spare or self._start(seat.place), None
        return seat.worker

    def _start(self, place: Place) -> WorkerProcess:
        gpus, locks = (place.taken.gpus, place.taken.files) if place.taken else ((), ())
        environment = {
            **{name: str(self._threads) for name in THREADS},
            "CUDA_VISIBLE_DEVICES": ",".join(gpu.entry for gpu in gpus),
        }
        return WorkerProcess(environment, locks)

    def _known(self) -> list[WorkerProcess]:
        """All that may still live."""
        found = [each for seat in self._seats() for each in (seat.worker, seat.spare)]
        return [*(each for each in found if each is not None), *self._former]

    def _dismiss(self, worker: WorkerProcess) -> None:
        if worker.ready:
            worker.dismiss()
        else:  # it still imports, and would not notice
            worker.kill()
        if worker not in self._former:
            self._former.append(worker)

    def _look(self, worker: WorkerProcess) -> None:
        worker.look()
        if worker.gone and worker in self._former:
            self._former.remove(worker)
            worker.close()

    # Tasks

    def _settle(self, task: Task) -> None:
        """Take in what the worker has said of a task, or that it is gone."""
        worker, log = task.worker, Paths(task.job.directory).log
        if task.ended is not None:
            return
        if task.reply is None and task.number in worker.replies:
            task.reply = worker.replies.pop(task.number)
            worker.keep_printed(log)
            if task.reply["retire"]:
                worker.kill()
            elif self._isolate:
                worker.dismiss()
        if task.reply is None and not worker.gone:
            return
        if task.reply is None:
            reason = worker.reason()
            worker.keep_printed(log)
            self._end(task, Ended(reason=reason))
        elif (
            worker.gone or not worker.leaving
        ):  # what it has of a GPU's memory is free for the next one
            error = task.reply["error"]
            self._end(task, Ended(reason=error, stopped_by="error") if error else Ended())

    def _end(self, task: Task, ended: Ended) -> None:
        task.ended = ended
        seat = task.seat
        seat.task = None
        if task.worker.gone or task.worker.leaving:
            self._dismiss(task.worker)
            self._look(task.worker)
            seat.worker, seat.spare = seat.spare, None
        if not seat.place.busy:
            seat.place.idle_since = time.monotonic()
        if seat.place in self._places:
            self._give(seat.place, time.monotonic())

    def _wait_for(self, tasks: Sequence[Task], seconds: float) -> list[Task]:
        """Until they have ended, at most that long; those that have not."""
        until = time.monotonic() + seconds
        while True:
            running = [task for task in tasks if self.poll(task) is None]
            left = until - time.monotonic()
            if not running or left <= 0:
                return running
            self.wait(min(left, 0.1))


def _cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
