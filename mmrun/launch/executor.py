"""The contract of executors: run the frozen points in these directories, somewhere."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmrun.errors import UserError
from mmrun.launch.made import made
from mmrun.spec import Point

GRACE_S = 4.0  # what a job that is told to end has for its last words


@dataclass(frozen=True, kw_only=True)
class Job:
    """A frozen point that is to be trained; what there is to do follows from its run.json.

    Args:
        directory: its run directory.
        trust: packages beside mmrun and torch.optim that its ``_target_`` may name.
    """

    directory: Path
    trust: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ended:
    """That a job has ended; what became of its point, its run.json says.

    Args:
        reason: why, where the job may not have come to write it down: "its process was ended by SIGKILL".
        stopped_by: what the record says under that name then.
    """

    reason: str | None = None
    stopped_by: str = "signal"


class Executor(ABC):
    """Runs frozen points, several at a time. The loop submits as many as there is room for, and polls until they have ended.

    Every job runs through ``mmrun.launch.task.run``, wherever that is.

    Args:
        fail_fast: whether the first failure ends the sweep.
        max_retries: how often a point that failed or was killed is tried again.
        timeout_s: seconds after which a point that trains is ended; None is never.
    """

    queues: ClassVar[bool] = False
    """Whether a submitted job may wait for its turn: its time begins when its run.json says running."""

    blocks: ClassVar[bool] = False
    """Whether ``submit`` returns when the job has ended, which shows itself what it does."""

    def __init__(
        self, *, fail_fast: bool = False, max_retries: int = 0, timeout_s: float | None = None
    ) -> None:
        if not isinstance(max_retries, int) or isinstance(max_retries, bool) or max_retries < 0:
            raise UserError(
                "launcher.max_retries is a whole number, 0 or more",
                given=max_retries,
                remedy="E.g. launcher.max_retries=2.",
            )
        if timeout_s is not None and not timeout_s > 0:
            raise UserError(
                "launcher.timeout_s is a number of seconds",
                given=timeout_s,
                remedy="E.g. launcher.timeout_s=3600, or null for no limit.",
            )
        self.fail_fast = fail_fast
        self.max_retries = max_retries
        self.timeout_s = timeout_s

    def prepare(self, jobs: int) -> None:  # noqa: B027 (most have nothing to get ready)
        """Get ready for so many jobs, while their points are frozen; not called where there are none."""

    @abstractmethod
    def room(self) -> int:
        """How many jobs can be submitted now."""

    @abstractmethod
    def submit(self, jobs: Sequence[Job]) -> list[Any]:
        """Start jobs, at most as many as there is room for; a handle for each."""

    @abstractmethod
    def poll(self, handle: Any) -> Ended | None:
        """That the job has ended, well or not; None as long as it has not. Never waits."""

    def wait(self, seconds: float) -> None:
        """Until a job may have ended, at most that long."""
        time.sleep(seconds)

    @abstractmethod
    def cancel(self, handles: Sequence[Any]) -> None:
        """End these jobs now: by SIGINT, so that their records say killed, by force after ``GRACE_S``."""

    def begun(self, handle: Any) -> bool:  # noqa: ARG002 (contract)
        """Whether the job is worked on for all that this process can tell: its time runs from then on."""
        return not self.queues

    def key(self, handle: Any) -> str:  # noqa: ARG002 (contract)
        """Under which a later process finds the job again; empty where it ends with this process."""
        return ""

    def adopt(self, job: Job, key: str) -> Any | None:  # noqa: ARG002 (contract)
        """The handle of a job that an earlier process submitted, where it still waits or runs."""
        return None

    def leave(self, handles: Sequence[Any]) -> str:  # noqa: ARG002 (contract)
        """What to say where jobs go on when the sweep is interrupted; empty where they are to be cancelled."""
        return ""

    def close(self) -> None:  # noqa: B027 (most have nothing to take away)
        """Take away what is this executor's own; no job of it runs then."""


def make_executor(
    node: Mapping[str, Any], trust: Collection[str] = (), points: Sequence[Point] = ()
) -> Executor:
    """The executor that the launcher group of a config names.

    Args:
        node: that group, of one of the points.
        trust: packages beside mmrun and torch.optim that ``_target_`` may name.
        points: all of them: there is to be enough for the one that takes most.

    Raises:
        UserError: none of ours or of the trusted packages, or settings that it does not take.
    """
    nodes = [point.config["launcher"] for point in points]
    most = {
        key: max(each[key] for each in nodes)
        for key in ("threads", "devices")
        if nodes and key in node
    }
    return made("launcher", {**node, **most}, Executor, trust)
