"""Points that train without torch: an executor whose points take one validation per look, and how a driver is killed."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

from mmrun.launch.executor import Ended, Executor, Job
from mmrun.runs import reader
from mmrun.runs.heartbeat import process_start
from mmrun.runs.layout import Paths
from mmrun.runs.table import CsvTable
from mmrun.runs.writer import Run

LOG = Path("trained to the end")
# Values of the validations of a point, and how it ends; from its config.
Law = Callable[[Mapping[str, Any]], tuple[Sequence[float], str]]


def quadratic(config: Mapping[str, Any]) -> tuple[list[float], str]:
    """Best at a threshold of 0.5, and after two validations; the seeds differ a little."""
    off = (config["clip"]["threshold"] - 0.5) ** 2 + 0.01 * config["seed"]
    return [off + 1 / step for step in (1, 4, 2)], "finished"


class Fake(Executor):
    """Trains ``slots`` points at a time; each poll is a validation.

    Args:
        law: what a point gives.
        slots: points at a time.
        settings: of every executor.
    """

    def __init__(self, law: Law = quadratic, slots: int = 1, **settings: Any) -> None:
        super().__init__(**settings)
        self.law = law
        self.slots = slots
        self.busy: dict[Path, tuple[list[float], str]] = {}
        self.submitted: list[str] = []
        self.most = 0

    def room(self) -> int:
        return self.slots - len(self.busy)

    def submit(self, jobs: Sequence[Job]) -> list[Path]:
        for job in jobs:
            record = reader.recorded(job.directory)
            values, status = self.law(record["config"])
            values = list(values)
            Run.open(job.directory).update(
                status="running",
                host=socket.gethostname(),
                pid=os.getpid(),
                pid_start=process_start(os.getpid()),
            )
            Paths(job.directory).metrics.unlink(missing_ok=True)
            self.busy[job.directory] = values, status
            self.submitted.append(record["name"])
        self.most = max(self.most, len(self.busy))
        return [job.directory for job in jobs]

    def poll(self, handle: Path) -> Ended | None:
        values, status = self.busy[handle]
        table = CsvTable(Paths(handle).metrics, ["step", "train/loss", "val/loss"])
        with table:
            rows = Paths(handle).metrics.read_bytes().count(b"\n") - 1
            if rows < len(values):
                table.append({"step": rows, "val/loss": values[rows]})
        if rows + 1 < len(values):
            return None
        del self.busy[handle]
        if status == "finished":
            with LOG.open("a") as file:
                file.write(f"{handle.name}\n")
        summary = {"last": values[-1], "min": min(values), "max": max(values), "best_step": 0}
        Run.open(handle).finish(
            status,
            metrics={"val/loss": summary},
            error=None if status == "finished" else "it says so",
        )
        return Ended()

    def wait(self, seconds: float) -> None:
        pass

    def cancel(self, handles: Sequence[Path]) -> None:
        for handle in handles:
            del self.busy[handle]
            Run.open(handle).finish("killed", stopped_by="signal")


def killed_at(count: int, work: Callable[[], object]) -> bool:
    """Whether ``work``, in a process of its own, was killed: at its ``count``-th write, which is half done where it can be.

    Every file that a driver writes is renamed into its place, but for the journal, which grows by lines.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return True
        assert os.waitstatus_to_exitcode(status) == 0, "the driver failed: see stderr"
        return False
    left = [count]

    def die() -> bool:
        left[0] -= 1
        return left[0] == 0

    append, replace, rename = JournalFileBackend.append_logs, Path.replace, Path.rename

    def torn_append(self: Any, logs: list[dict[str, Any]]) -> None:
        if die():
            with open(self._file_path, "ab") as file:
                file.write(b'{"op_code":4,"wor')
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, logs)

    def after(move: Any) -> Any:
        def moved(self: Path, target: Any) -> Any:
            found = move(self, target)
            if die():
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return moved

    code = 1
    try:
        JournalFileBackend.append_logs = torn_append
        Path.replace, Path.rename = after(replace), after(rename)
        work()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)
