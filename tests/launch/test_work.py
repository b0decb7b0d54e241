"""What is under way in a sweep, with executors that end jobs as a test says: nothing is lost, nothing done twice."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mmrun.errors import UserError
from mmrun.launch.executor import Ended, Executor, Job
from mmrun.launch.plan import Planned, plan
from mmrun.launch.source import Listed
from mmrun.launch.view import View
from mmrun.launch.work import Work
from mmrun.runs import reader, writer
from mmrun.runs.claim import claimed
from mmrun.runs.heartbeat import process_start
from mmrun.runs.layout import Paths
from mmrun.runs.writer import Run, freeze
from mmrun.spec import Point
from tests.running import record_of

How = Callable[[Run], Ended | None]


def gone() -> int:
    """The pid of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def begin(run: Run, pid: int | None = None) -> None:
    pid = os.getpid() if pid is None else pid
    run.update(
        status="running", pid=pid, pid_start=process_start(pid) or 1, host=os.uname().nodename
    )


def finish(run: Run) -> Ended:
    run.finish("finished", seconds=1.0)
    return Ended()


def fail(run: Run) -> Ended:
    run.finish("failed", error="ValueError: no luck")
    return Ended()


def die(run: Run) -> Ended:
    begin(run, gone())
    return Ended(reason="its process was ended by SIGKILL")


def hang(run: Run) -> None:
    begin(run)


def never_begin(run: Run) -> None:
    """It waits for its turn."""


class Fake(Executor):
    """Ends jobs at the poll after they were submitted, as ``how`` says.

    Args:
        how: {name of a point: what becomes of it, try by try}; finish is what else.
        slots: at a time.
    """

    def __init__(
        self, how: Mapping[str, Sequence[How]] | None = None, *, slots: int = 2, **rest: Any
    ) -> None:
        super().__init__(**rest)
        self.how = {name: list(each) for name, each in (how or {}).items()}
        self.slots = slots
        self.jobs: list[str] = []  # every submission
        self.under_way: dict[Path, Ended | None] = {}
        self.ended: list[str] = []  # by cancel
        self.most = 0

    def room(self) -> int:
        return self.slots - len(self.under_way)

    def submit(self, jobs: Sequence[Job]) -> list[Path]:
        assert len(jobs) <= self.room()
        for job in jobs:
            run = Run.open(job.directory)
            name = run.record["name"]
            self.jobs.append(name)
            how = self.how.get(name) or [finish]
            self.under_way[job.directory] = how.pop(0)(run)
        self.most = max(self.most, len(self.under_way))
        return [job.directory for job in jobs]

    def poll(self, handle: Path) -> Ended | None:
        ended = self.under_way[handle]
        if ended is not None:
            del self.under_way[handle]
        return ended

    def wait(self, seconds: float) -> None:
        pass

    def cancel(self, handles: Sequence[Path]) -> None:
        for handle in handles:
            del self.under_way[handle]
            run = Run.open(handle)
            self.ended.append(run.record["name"])
            if run.record["status"] == "running":
                run.finish("killed", stopped_by="interrupt")


class Queueing(Fake):
    queues = True


def points(folder: Path, *names: str) -> list[Planned]:
    """Frozen points, each of its own id."""
    made = [
        Point(config={"seed": k, "clip": name}, choices={}, name=name)
        for k, name in enumerate(names)
    ]
    planned = plan(folder / "s", made, "false")
    for each in planned:
        freeze(each.point, each.directory, sweep="s")
    return planned


class Sweep:
    """A Work over points, and what it has said."""

    def __init__(self, executor: Fake, *, cancelled: Callable[[], bool] = lambda: False) -> None:
        self.said: list[str] = []
        self.keys: dict[str, str] = {}
        self.work = Work(
            executor,
            trust=(),
            view=View(9, self.said.append),
            cancelled=cancelled,
            submitted=self.keys.update,
        )

    def run(self, planned: Sequence[Planned]) -> dict[str, str]:
        self.work.run(Listed(planned))
        return states(planned)


def states(planned: Sequence[Planned]) -> dict[str, str]:
    return {each.point.name: record_of(each.directory)["status"] for each in planned}


@pytest.fixture(autouse=True)
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrun.launch.work.LOOK_S", 0.0)
    monkeypatch.setattr("mmrun.launch.running.LOOK_S", 0.0)


def test_every_point_once_and_never_more_than_there_is_room_for(tmp_path: Path):
    executor = Fake(slots=3)
    found = Sweep(executor).run(points(tmp_path, *"abcdefgh"))
    assert set(found.values()) == {"finished"}
    assert executor.jobs == list("abcdefgh")
    assert executor.most == 3


def test_what_dies_without_a_word_is_recorded_with_the_reason(tmp_path: Path):
    planned = points(tmp_path, "a", "b")
    found = Sweep(Fake({"a": [die]})).run(planned)
    assert found == {"a": "killed", "b": "finished"}
    assert record_of(planned[0].directory)["error"] == "its process was ended by SIGKILL"


@pytest.mark.parametrize("bad", [fail, die])
def test_a_retry_starts_from_nothing_and_ends_when_it_is_good(tmp_path: Path, bad: How):
    def leave_something(run: Run) -> Ended | None:
        (run.directory / "train.log").write_text("first try\n")
        return bad(run)

    executor = Fake({"a": [leave_something, bad, finish]}, max_retries=2)
    planned = points(tmp_path, "a", "b")
    sweep = Sweep(executor)
    assert sweep.run(planned) == {"a": "finished", "b": "finished"}
    assert sorted(executor.jobs) == ["a", "a", "a", "b"]
    assert not (planned[0].directory / "train.log").exists()
    assert [line for line in sweep.said if "try 2 of 3" in line]
    assert [line for line in sweep.said if "try 3 of 3" in line]


def test_a_retry_keeps_a_checkpoint_of_what_was_killed(tmp_path: Path):
    (planned,) = points(tmp_path, "a")

    def after_a_checkpoint(run: Run) -> Ended:
        run.paths.checkpoints.mkdir()
        run.paths.last.write_text("weights")
        return die(run)

    def again(run: Run) -> Ended:
        assert run.record["status"] == "killed"  # task.run goes on from last.ckpt
        assert run.paths.last.read_text() == "weights"
        return finish(run)

    assert Sweep(Fake({"a": [after_a_checkpoint, again]}, max_retries=1)).run([planned]) == {
        "a": "finished"
    }


def test_retries_are_limited_and_counted_per_point(tmp_path: Path):
    executor = Fake({"a": [fail] * 9, "b": [fail, finish]}, max_retries=2)
    assert Sweep(executor).run(points(tmp_path, "a", "b")) == {"a": "failed", "b": "finished"}
    assert executor.jobs.count("a") == 3
    assert executor.jobs.count("b") == 2


def test_diverged_is_a_result_and_is_not_tried_again(tmp_path: Path):
    def diverge(run: Run) -> Ended:
        run.finish("diverged")
        return Ended()

    executor = Fake({"a": [diverge]}, max_retries=3, fail_fast=True)
    assert Sweep(executor).run(points(tmp_path, "a", "b")) == {"a": "diverged", "b": "finished"}
    assert executor.jobs == ["a", "b"]


def test_the_first_failure_ends_it_after_its_retries(tmp_path: Path):
    executor = Fake({"a": [fail, fail]}, max_retries=1, fail_fast=True, slots=1)
    sweep = Sweep(executor)
    found = sweep.run(points(tmp_path, *"abcd"))
    assert executor.jobs.count("a") == 2
    assert list(found.values()).count("queued") == 4 - len(set(executor.jobs))
    assert "queued" in found.values()
    assert any("stopped at the first failure" in line for line in sweep.said)


@pytest.mark.parametrize("kind", [Fake, Queueing])
def test_what_takes_too_long_is_ended_and_said_to_be(tmp_path: Path, kind: type[Fake]):
    executor = kind({"a": [hang]}, timeout_s=0.05)
    planned = points(tmp_path, "a", "b")
    assert Sweep(executor).run(planned) == {"a": "killed", "b": "finished"}
    record = record_of(planned[0].directory)
    assert record["stopped_by"] == "timeout"
    assert "0.05 s" in record["error"]
    assert executor.ended == ["a"]


def test_the_time_of_a_job_that_waits_for_its_turn_has_not_begun(tmp_path: Path):
    class Slow(Queueing):
        polls = 0

        def poll(self, handle: Path) -> Ended | None:
            self.polls += 1
            if self.polls == 200:
                self.under_way[handle] = finish(Run.open(handle))
            return super().poll(handle)

    executor = Slow({"a": [never_begin]}, timeout_s=1e-9)
    assert Sweep(executor).run(points(tmp_path, "a")) == {"a": "finished"}
    assert executor.ended == []


def test_the_time_of_a_job_begins_when_its_executor_says_so(tmp_path: Path):
    """A worker that still imports is not too slow; a point that never comes to say that it runs is."""

    class Importing(Fake):
        ready = False
        polls = 0

        def begun(self, handle: Path) -> bool:  # noqa: ARG002 (contract)
            return self.ready

        def poll(self, handle: Path) -> Ended | None:
            self.polls += 1
            self.ready = self.polls > 200
            assert self.ready or not self.ended
            return super().poll(handle)

    executor = Importing({"a": [never_begin]}, timeout_s=1e-9)
    assert Sweep(executor).run(points(tmp_path, "a")) == {"a": "killed"}


def test_a_result_that_came_in_time_stays(tmp_path: Path):
    """The limit strikes while the point writes down its end."""

    class Racing(Fake):
        def cancel(self, handles: Sequence[Path]) -> None:
            for handle in handles:
                finish(Run.open(handle))
            super().cancel(handles)

    assert Sweep(Racing({"a": [hang]}, timeout_s=0.01)).run(points(tmp_path, "a")) == {
        "a": "finished"
    }


def test_pruned_points_are_ended_and_are_results(tmp_path: Path):
    class Pruning(Listed):
        def watch(self, running: Sequence[Planned]) -> list[Planned]:
            return [each for each in running if each.point.name == "a"]

    planned = points(tmp_path, "a", "b")
    executor = Fake({"a": [hang]}, max_retries=3)
    sweep = Sweep(executor)
    sweep.work.run(Pruning(planned))
    assert states(planned) == {"a": "pruned", "b": "finished"}
    assert executor.jobs == ["a", "b"]


def test_cancelled_on_request(tmp_path: Path):
    planned = points(tmp_path, *"abcd")
    executor = Fake({"b": [hang]}, slots=2)
    sweep = Sweep(executor, cancelled=lambda: "b" in executor.jobs)
    found = sweep.run(planned)
    assert found["b"] == "cancelled"
    assert executor.ended[0] == "b"
    done = {name for name, status in found.items() if status == "finished"}
    assert {name for name in found if found[name] == "cancelled"} == set("abcd") - done
    assert set(executor.jobs) == done | {"b"}


def test_an_interrupt_ends_all_and_what_was_not_begun_stays_queued(tmp_path: Path):
    class Ending(Fake):
        """By force: the points have no last word."""

        def cancel(self, handles: Sequence[Path]) -> None:
            for handle in handles:
                begin(Run.open(handle), gone())

    planned = points(tmp_path, *"abcd")
    executor = Ending({"a": [hang], "b": [hang]})
    sweep = Sweep(executor)

    def interrupt(seconds: float) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    executor.wait = interrupt
    with pytest.raises(KeyboardInterrupt):
        sweep.run(planned)
    assert sweep.work.interrupted() == ""
    assert states(planned) == {"a": "killed", "b": "killed", "c": "queued", "d": "queued"}
    assert reader.recorded(planned[0].directory)["stopped_by"] == "interrupt"


def test_jobs_that_outlive_the_driver_are_named_and_taken_up(tmp_path: Path):
    class Outliving(Queueing):
        def key(self, handle: Path) -> str:
            return f"job of {Run.open(handle).record['name']}"

        def adopt(self, job: Job, key: str) -> Path | None:
            if "a" not in key.rpartition(" ")[2]:
                return None
            self.under_way[job.directory] = finish(Run.open(job.directory))
            return job.directory

        def leave(self, handles: Sequence[Path]) -> str:
            return f"{len(handles)} jobs go on"

    planned = points(tmp_path, "a", "b")
    first = Sweep(Outliving({"a": [hang], "b": [hang]}))
    first.work.source = Listed(planned)
    first.work._fill()
    assert first.work.interrupted() == "2 jobs go on"
    assert set(states(planned).values()) == {"running"}
    assert first.keys == {each.directory.name: f"job of {each.point.name}" for each in planned}
    Run.open(planned[1].directory).finish("killed")
    executor = Outliving()
    second = Sweep(executor)
    left = [
        each for each in planned if not second.work.adopt(each, first.keys[each.directory.name])
    ]
    assert [each.point.name for each in left] == ["b"]
    assert second.run(left) == {"b": "finished"}
    assert states(planned) == {"a": "finished", "b": "finished"}
    assert executor.jobs == ["b"]


def test_another_process_that_was_faster_is_waited_for(tmp_path: Path):
    planned = points(tmp_path, "a", "b")
    other = subprocess.Popen(["sleep", "60"])
    begin(Run.open(planned[0].directory), other.pid)

    class Killing(Fake):
        def wait(self, seconds: float) -> None:  # noqa: ARG002
            if other.poll() is None and self.jobs == ["b"]:
                other.send_signal(signal.SIGKILL)
                other.wait()

    executor = Killing()
    assert Sweep(executor).run(planned) == {"a": "finished", "b": "finished"}
    assert executor.jobs == ["b", "a"]


def test_a_job_that_comes_second_leaves_its_point_to_the_first(tmp_path: Path):
    """Between the look at a record and the job's own there are seconds of imports."""
    other = ExitStack()

    def faster(run: Run) -> Ended:
        other.enter_context(claimed(run.directory))
        begin(run)
        return Ended(reason="this run is being trained now", stopped_by="error")

    class First(Fake):
        waited = 0

        def wait(self, seconds: float) -> None:  # noqa: ARG002 (contract)
            self.waited += 1
            if self.waited == 3:
                assert states(planned)["a"] == "running"
                Run.open(planned[0].directory).finish("finished")
                other.close()

    executor = First({"a": [faster]}, max_retries=1)
    planned = points(tmp_path, "a")
    sweep = Sweep(executor)
    assert sweep.run(planned) == {"a": "finished"}
    assert executor.jobs == ["a"]
    assert sum("another process trains it" in line for line in sweep.said) == 1


@pytest.mark.parametrize("retries", [0, 1])
def test_a_record_that_cannot_be_written_ends_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retries: int
):
    """A disk that is full when a point has died: those that train go on."""
    executor = Fake({"b": [hang]}, max_retries=retries)
    planned = points(tmp_path, "a", "b", "c")
    full = planned[0].directory
    whole = writer.write_whole

    def write(path: Path, text: str) -> None:
        if path.parent == full and executor.jobs:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(path, text)

    def wait(_: float) -> None:
        executor.under_way[planned[1].directory] = finish(Run.open(planned[1].directory))

    monkeypatch.setattr(executor, "wait", wait)
    begin(Run.open(full), gone())
    monkeypatch.setattr(writer, "write_whole", write)
    executor.how["a"] = [lambda _: Ended(reason="its process was ended by SIGKILL")]
    Sweep(executor).run(planned)
    assert reader.read(full)["status"] == "killed"
    assert [reader.read(each.directory)["status"] for each in planned[1:]] == ["finished"] * 2


def test_an_unreadable_record_is_a_failure_and_no_crash(tmp_path: Path):
    def spoil(run: Run) -> Ended:
        run.paths.record.write_text("{")
        return Ended()

    planned = points(tmp_path, "a", "b")
    sweep = Sweep(Fake({"a": [spoil]}, max_retries=2))
    sweep.work.run(Listed(planned))
    assert reader.read(planned[0].directory)["status"] == "unreadable"
    assert record_of(planned[1].directory)["status"] == "finished"
    assert Paths(planned[0].directory).record.read_text() == "{"


@pytest.mark.parametrize(
    "wrong", [{"max_retries": -1}, {"max_retries": 1.5}, {"max_retries": True}, {"timeout_s": 0}]
)
def test_limits_that_are_none_are_refused(wrong: dict[str, Any]):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Fake(**wrong)
