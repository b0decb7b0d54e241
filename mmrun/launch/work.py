"""The working part of a sweep: keep an executor busy, take in what ends, retry, time out, prune, cancel."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmrun.errors import UserError
from mmrun.launch.executor import Ended, Executor, Job
from mmrun.launch.plan import RESUMABLE, Planned, action_for
from mmrun.launch.report import FAILED
from mmrun.launch.running import LOOK_S, Running
from mmrun.launch.source import Listed, Source
from mmrun.launch.view import View
from mmrun.runs import reader
from mmrun.runs.claim import is_claimed
from mmrun.runs.writer import Run

POLL_S = 0.2
RETRIED = ("failed", "killed")


class Work:
    """What is under way in a sweep.

    Args:
        executor: who trains them.
        trust: packages beside mmrun and torch.optim that a ``_target_`` may name.
        view: what is shown.
        cancelled: whether somebody has asked for the end of the sweep.
        submitted: told of jobs that outlive this process, {name of the point's folder: key}.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        trust: tuple[str, ...],
        view: View,
        cancelled: Callable[[], bool],
        submitted: Callable[[Mapping[str, str]], None],
    ) -> None:
        self.source: Source = Listed(())
        self.executor = executor
        self.trust = trust
        self.view = view
        self.cancelled = cancelled
        self.submitted = submitted
        self.active: list[Running] = []
        self.again: deque[Planned] = deque()
        self.elsewhere: list[Planned] = []
        self.tries: dict[str, int] = {}
        self.given = 0
        self.stopping = False
        self._looked = 0.0
        self._awaited = set[str]()  # names of folders

    def adopt(self, planned: Planned, key: str) -> bool:
        """Take up a job that an earlier driver has submitted; False where there is none any more."""
        handle = self.executor.adopt(self._job(planned), key)
        if handle is not None:
            self.active.append(Running(planned, handle, begun=False))
        return handle is not None

    def wait_for(self, planned: Planned) -> None:
        """A point that another process trains: where it ends badly, it is this one's to train."""
        self.elsewhere.append(planned)
        if planned.directory.name not in self._awaited:
            self._awaited.add(planned.directory.name)
            self.view.awaited(planned)

    def run(self, source: Source) -> None:
        """Until nothing of the source is left, the first failure where that is asked for, or a cancellation."""
        self.source = source
        while True:
            self._fill()
            if not (self.active or self.elsewhere or self._more()):
                return
            if not self._reap():
                self.executor.wait(POLL_S)
            now = time.monotonic()
            if now - self._looked >= LOOK_S:
                self._looked = now
                if self.cancelled():
                    self._cancel()
                    return
                self._look()
            self.view.tick(self.active)

    def interrupted(self) -> str:
        """End what is under way, or leave it to go on: the sentence that says so."""
        handles = [each.handle for each in self.active]
        said = self.executor.leave(handles) if handles else ""
        if not said:
            self.executor.cancel(handles)
            for each in self.active:
                self._settle(each.planned, "killed", stopped_by="interrupt", queued=False)
        return said

    # Chapters

    def _more(self) -> bool:
        return not self.stopping and (bool(self.again) or not self.source.exhausted)

    def _fill(self) -> None:
        room = self.executor.room() if self._more() else 0
        batch: list[Planned] = []
        while len(batch) < room:
            each = self.again.popleft() if self.again else self.source.next()
            if each is None:
                break
            if _is_trained(each):  # another process was faster
                self.wait_for(each)
                continue
            if each.directory.name not in self.tries:
                self.given += 1
                self.tries[each.directory.name] = 0
                _renew(each)
            batch.append(each)
        if not batch:
            return
        self.view.tick([*self.active, *(Running(each, None, begun=False) for each in batch)])
        handles = self.executor.submit([self._job(each) for each in batch])
        self.active += [
            Running(planned, handle, begun=self.executor.begun(handle))
            for planned, handle in zip(batch, handles, strict=True)
        ]
        keys = {
            each.directory.name: key
            for each, handle in zip(batch, handles, strict=True)
            if (key := self.executor.key(handle))
        }
        if keys:
            self.submitted(keys)

    def _job(self, planned: Planned) -> Job:
        return Job(directory=planned.directory, trust=self.trust)

    def _reap(self) -> int:
        """Take in what has ended; how many that were."""
        count = 0
        for each in self.active[:]:
            ended = self.executor.poll(each.handle)
            if ended is None:
                continue
            count += 1
            self.active.remove(each)
            self._take_in(each, ended)
        return count

    def _take_in(self, each: Running, ended: Ended) -> None:
        planned = each.planned
        if is_claimed(planned.directory):  # by another process, which was faster than the job
            self.wait_for(planned)
            return
        reason = ended.reason or "the job ended and left no word"
        record = self._settle(planned, "killed", stopped_by=ended.stopped_by, error=reason)
        self._account(planned, record, each.seconds() or 0.0)

    def _account(self, planned: Planned, record: dict[str, Any], seconds: float) -> None:
        tries = self.tries.get(planned.directory.name, 0)
        retry = record["status"] in RETRIED and tries < self.executor.max_retries
        if retry and not self.stopping and _ready_again(planned, record):
            self.tries[planned.directory.name] = tries + 1
            self.view.retried(planned, record, tries + 2, self.executor.max_retries + 1)
            self.again.append(planned)
            return
        self.source.ended(planned, record)
        # The run's own time where it has one: the first point also waits for imports.
        self.view.ended(planned, record, record["seconds"] or seconds)
        if self.executor.fail_fast and record["status"] in FAILED and self._more():
            left = self.source.total - self.given + len(self.again)
            self.view.note(f"stopped at the first failure; {left} points stay queued")
            self.stopping = True

    def _settle(
        self,
        planned: Planned,
        status: str,
        *,
        queued: bool = True,
        overwrite: bool = False,
        **keys: Any,
    ) -> dict[str, Any]:
        """Write down how a point ended that could not do so itself; its record.

        Args:
            planned: the point; no process trains it.
            status: for a record that says running, or queued.
            queued: whether one that has not begun gets it too.
            overwrite: whether one that was killed on the way gets it too.
            keys: what else to write.
        """
        try:
            raw = reader.recorded(planned.directory)["status"]
            if is_claimed(planned.directory):
                raw = ""  # another process trains it, and writes down how that ends
            named = (
                "running",
                *(("queued",) if queued else ()),
                *(("killed",) if overwrite else ()),
            )
            if raw in named:
                Run.open(planned.directory).finish(status, **keys)
        except UserError:
            pass  # unreadable, and read as such
        except OSError:  # a full disk: it is no reason to end those that train on another
            return reader.read(planned.directory) | {"status": status} | keys
        return reader.read(planned.directory)

    def _look(self) -> None:
        """What is seen once a second: records, times, what other processes have done, what is to be pruned."""
        for each in self.active:
            each.look()
            if each.began is None and self.executor.begun(each.handle):
                each.began = time.monotonic()
        limit = self.executor.timeout_s
        late = [each for each in self.active if limit and (each.seconds() or 0.0) > limit]
        self._end(
            late,
            "killed",
            stopped_by="timeout",
            error=f"no end after {limit} s (launcher.timeout_s)",
        )
        chosen = self.source.watch([each.planned for each in self.active if each.began is not None])
        pruned = [each for each in self.active if each.planned in chosen]
        self._end(pruned, "pruned", stopped_by="pruned", error=None)
        for planned in self.elsewhere[:]:
            if _is_trained(planned):
                continue
            record = reader.read(planned.directory)
            self.elsewhere.remove(planned)
            if record["status"] in ("queued", *RESUMABLE) and not self.stopping:
                self.again.append(planned)
            else:
                self._account(planned, record, record["seconds"] or 0.0)

    def _end(self, chosen: Sequence[Running], status: str, **keys: Any) -> None:
        """End these now; what had come to its end already stays so."""
        if not chosen:
            return
        self.executor.cancel([each.handle for each in chosen])
        for each in chosen:
            self.active.remove(each)
            record = self._settle(each.planned, status, overwrite=True, **keys)
            self._account(each.planned, record, each.seconds() or 0.0)

    def _cancel(self) -> None:
        """End all; what is under way or has not begun is cancelled."""
        self.stopping = True
        self.executor.cancel([each.handle for each in self.active])
        for each in self.active:
            self._settle(each.planned, "cancelled", overwrite=True, stopped_by="cancel", error=None)
        for planned in (*self.again, *self.source.rest()):
            self._settle(planned, "cancelled", stopped_by="cancel")
        self.view.note("cancelled; the same command or mmrun resume takes up what is left")
        self.active.clear()


def _is_trained(each: Planned) -> bool:
    """Whether another process trains the point now; the jobs of this one are not asked about."""
    return reader.read(each.directory)["status"] == "running" or is_claimed(each.directory)


def _ready_again(each: Planned, record: Mapping[str, Any]) -> bool:
    """Whether a point that ended badly can be tried again, from its checkpoint or from the start."""
    try:
        if action_for(record, each.directory) == "train":
            Run.open(each.directory).reset()
    except (UserError, OSError):  # its folder is gone, or its disk full
        return False
    return True


def _renew(each: Planned) -> None:
    """A point that is trained anew is so from the start; what does not change the numbers is as this command says it."""
    if each.action != "train" or each.record is None:
        return
    run = Run.open(each.directory)
    if run.record["status"] != "queued":
        run.reset()
    run.update(
        config=each.point.config,
        overrides=list(each.point.overrides),
        config_dirs=list(each.point.config_dirs),
    )
