"""The local pool: what its workers are given, that they serve on, and that what happens to one point is its own."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmrun import user_code
from mmrun.errors import UserError
from mmrun.launch.executor import GRACE_S, Ended
from mmrun.launch.local import THREADS, Local
from mmrun.launch.worker import spoils
from mmrun.runs import reader
from mmrun.runs.heartbeat import process_start
from mmrun.train import train
from tests.launch.acting import DEADLINE_S, TRUST, finish, job, project
from tests.running import ROOT, SMALL, environment_with, mmrun, record_of, same, saved, start, table

pytestmark = pytest.mark.trains


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Modules and GPU locks of one test are not the next one's."""
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr(user_code, "added_to_path", [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    # Short: loader processes put sockets there, whose paths may have 107 letters; with more they hang.
    with tempfile.TemporaryDirectory(prefix="mm", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr("tempfile.tempdir", None)
        project(tmp_path)
        yield


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were two; points train on the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")


@pytest.fixture
def pool() -> Iterator[Callable[..., Local]]:
    """Makes pools that are closed after the test."""
    made: list[Local] = []

    def make(**knobs: Any) -> Local:
        made.append(Local(**knobs))
        return made[-1]

    yield make
    for each in made:
        each.close()


def told(name: str) -> dict[str, Any]:
    """What a point has told of its process."""
    return json.loads(Path(f"{name}.json").read_text())


def alive(pid: int) -> bool:
    return process_start(pid) is not None


def until(what: Callable[[], Any], seconds: float = 120) -> Any:
    """The first true value of ``what``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("it does not come")


@pytest.mark.usefixtures("two_gpus")
def test_workers_have_their_gpu_and_threads_and_serve_on_and_count_alike(
    pool: Callable[..., Local],
    monkeypatch: pytest.MonkeyPatch,
):
    """Two slots, eight points: the same two processes, each with its own GPU; numbers are those of a training here."""
    monkeypatch.setenv(
        "OMP_WAIT_POLICY", "passive"
    )  # more threads than this machine may have cores
    two = pool(gpus=[0, 1], threads=3)
    jobs = [job(f"p{k}", "sleep", f"seed={k}", "threads=3") for k in range(6)]
    jobs += [job("prints", "print", "threads=3"), job("loads", "load", "threads=3")]
    two.prepare(len(jobs))
    assert two.room() == 2
    found = finish(two, jobs)
    assert {name: record["status"] for name, (_, record) in found.items()} == dict.fromkeys(
        found, "finished"
    )
    assert {ended for ended, _ in found.values()} == {Ended()}
    notes = [told(name) for name in found]
    assert {note["gpus"] for note in notes} == {"0", "1"}
    assert len({(note["pid"], note["gpus"]) for note in notes}) == 2
    assert {note["threads"] for note in notes} == {3}
    assert {note[name] for note in notes for name in THREADS} == {"3"}

    printed = Path("points/prints/train.log").read_text()
    assert "printed:\nprinted by a point\nwritten by a library\nread: ''\n" in printed
    assert "epoch   1" in printed
    assert "loaded 28.0" in Path("points/loads/train.log").read_text()
    assert "printed:" not in Path("points/p0/train.log").read_text()

    for name in ("p0", "p5"):  # the first of its worker, and a later one
        point = reader.point(Path(f"points/{name}"))
        here = Path(train(point, Path.cwd() / "here" / name, trust=TRUST, brief=True)["directory"])
        there = Path(f"points/{name}")
        assert table(here / "gradients.csv") == table(there / "gradients.csv")
        assert same(saved(here)["state_dict"], saved(there)["state_dict"])
        assert record_of(here)["test"] == record_of(there)["test"]


def test_what_happens_to_a_point_is_its_own(pool: Callable[..., Local]):
    two = pool(workers=2)
    acts = ("raise", "exit", "sys_exit", "kill", "crash", "memory", "cuda")
    jobs = [job(act, act) for act in acts]
    jobs += [job(f"after{k}", "nothing", f"seed={k}") for k in range(4)]
    two.prepare(len(jobs))
    found = finish(two, jobs)
    said = {name: (ended.reason, record["status"]) for name, (ended, record) in found.items()}
    after = {f"after{k}": (None, "finished") for k in range(4)}
    assert said == {
        "raise": ("KeyError: 'no luck'", "failed"),
        "exit": ("its process exited with code 9: last words", "running"),
        "sys_exit": ("RuntimeError: the code that was trained called sys.exit(3)", "failed"),
        "kill": ("its process was ended by SIGKILL", "running"),
        "crash": ("its process was ended by SIGSEGV", "running"),
        "memory": ("MemoryError: no more", "failed"),
        "cuda": ("ValueError: lost", "failed"),
        **after,
    }
    assert "last words" in Path("points/exit/train.log").read_text()
    pids = {name: told(name)["pid"] for name in found}
    ended = ("exit", "kill", "crash", "memory", "cuda")
    for name in ended:  # nobody has served after one of these
        others = [other for other in found if other != name and pids[other] == pids[name]]
        later = [o for o in others if found[o][1]["started"] > found[name][1]["started"]]
        assert later == [], name
        assert not alive(pids[name])
    assert len(set(pids.values())) <= 2 + len(ended)
    assert told("raise")["gpus"] == ""


def test_a_point_is_cancelled_and_its_worker_goes_on(pool: Callable[..., Local]):
    one = pool(workers=1)
    one.prepare(1)
    (hanging,) = one.submit([job("hangs", "hang")])
    until(Path("hangs.json").exists)
    pid = told("hangs")["pid"]
    time.sleep(0.3)
    assert one.poll(hanging) is None
    assert one.room() == 0
    one.cancel([hanging])
    assert one.poll(hanging) == Ended()
    record = record_of(Path("points/hangs"))
    assert (record["status"], record["stopped_by"]) == ("killed", "interrupt")
    finish(one, [job("next")])
    assert told("next")["pid"] == pid

    (holding,) = one.submit([job("holds", "hold")])
    until(Path("holds.json").exists)
    time.sleep(0.3)
    began = time.monotonic()
    one.cancel([holding])
    assert GRACE_S <= time.monotonic() - began < GRACE_S + 2
    assert one.poll(holding) == Ended(reason="its process was ended by SIGKILL")
    assert not alive(pid)

    (early,) = one.submit([job("early")])  # its worker is still importing
    one.cancel([early])
    assert one.poll(early) is not None
    assert record_of(Path("points/early"))["status"] == "queued"
    assert finish(one, [job("last")])["last"][1]["status"] == "finished"


@pytest.mark.usefixtures("two_gpus")
def test_a_process_for_every_point(pool: Callable[..., Local]):
    one = pool(gpus=[0], isolate=True)
    jobs = [job(f"p{k}", "nothing", f"seed={k}") for k in range(3)]
    one.prepare(len(jobs))
    found = finish(one, jobs)
    assert [record["status"] for _, record in found.values()] == ["finished"] * 3
    pids = {told(name)["pid"] for name in found}
    assert len(pids) == 3
    assert not any(map(alive, pids))  # each was gone when its point counted as ended


def test_a_worker_whose_disk_is_full_does_not_stand_for_its_point(pool: Callable[..., Local]):
    """Its record says running: of a worker that lives on that would be believed."""
    executor = pool(workers=1)
    ended, record = finish(executor, [job("full", "fill")])["full"]
    assert "No space left" in str(ended.reason)
    assert record["status"] == "running"
    assert not alive(record["pid"])
    assert reader.read(Path("points/full"))["status"] == "killed"


def test_imports_are_not_the_time_of_a_point(pool: Callable[..., Local]):
    executor = pool(workers=1)
    assert executor.room() == 1
    (task,) = executor.submit([job("first")])
    assert not executor.begun(task)
    until(lambda: executor.wait(0.1) or executor.begun(task))


def test_a_worker_that_cannot_start_says_why(
    pool: Callable[..., Local], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('libtorch.so is missing')\n")
    waiting = job("waiting")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "broken"), str(ROOT)]))
    found = finish(pool(workers=1), [waiting])
    reason = "its process exited with code 1: ImportError: libtorch.so is missing"
    assert found["waiting"][0] == Ended(reason=reason)


def acting(name: str, act: str, points: int, *knobs: str) -> subprocess.Popen[bytes]:
    """A pool in a process of its own."""
    words = ["-m", "tests.launch.acting", name, act, str(points), *knobs]
    return subprocess.Popen([sys.executable, *words], env=environment_with({}))


@pytest.mark.usefixtures("two_gpus")
def test_workers_end_with_their_parent(pool: Callable[..., Local]):
    """By SIGKILL even: their points say killed, what they have started is gone, and so are their locks."""
    parent = acting("p", "hang_loading", 1, "gpus=[0]")
    try:
        until(Path("loader.pid").exists)
        loader, worker = int(until(Path("loader.pid").read_text)), told("p0")["pid"]
        assert alive(worker)
        assert pool(gpus=[0]).room() == 0
        parent.kill()
        until(lambda: not alive(worker))
        until(lambda: not alive(loader))
    finally:
        parent.kill()
        parent.wait()
    record = record_of(Path("points/p0"))
    assert (record["status"], record["stopped_by"]) == ("killed", "terminate")
    again = pool(gpus=[0])
    until(again.room)  # a process has ended a little before the kernel has closed its files


@pytest.mark.usefixtures("two_gpus")
def test_two_sweeps_share_the_gpus():
    """The second one gets a GPU of the first, which has more to do, and none is ever used by both."""
    first = acting("a", "sleep", 0, "gpus=[0,1]")
    second = None
    try:
        until(lambda: len(list(Path.cwd().glob("a*.json"))) >= 2)
        second = acting("b", "sleep", 4, "gpus=[0,1]")
        assert second.wait(timeout=DEADLINE_S) == 0
        before = len(list(Path.cwd().glob("a*.json")))
        until(lambda: len(list(Path.cwd().glob("a*.json"))) > before)
    finally:
        for each in (first, second):
            if each is not None:
                each.kill()
                each.wait()
    spans: dict[str, list[tuple[str, str, str]]] = {"0": [], "1": []}
    for note in Path.cwd().glob("*.json"):
        record = record_of(Path("points") / note.stem)
        if record["status"] == "finished":
            gpu = json.loads(note.read_text())["gpus"]
            spans[gpu].append((record["started"], record["ended"], note.stem[0]))
    for each in spans.values():
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(sorted(each)))
    (given,) = ("".join(name for *_, name in sorted(e)) for e in spans.values() if "b" in str(e))
    assert "abbbb" in given  # one GPU was given, and the second one stayed with it
    assert len(spans["0"]) > 0 < len(spans["1"])


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"workers": 0}, "launcher.workers is a whole number, 1 or more (given: 0)"),
        ({"jobs_per_gpu": 0}, "launcher.jobs_per_gpu is a whole number"),
        ({"threads": 0}, "threads is a whole number"),
        ({"gpus_per_job": 1, "devices": 2}, "gives a point fewer GPUs than it has processes"),
        ({"gpus": [0, 0]}, "names a GPU twice"),
        ({"gpus": [0], "gpus_per_job": 2}, "there are fewer GPUs than a point takes"),
        ({"gpus": [0], "devices": 2}, "there are fewer GPUs than a point takes"),
        ({"gpus": [0], "workers": 2}, "launcher.workers is for sweeps without GPUs"),
        ({"gpus": [0], "accelerator": "cpu"}, "has no use with trainer.accelerator=cpu"),
        ({"gpus": [], "accelerator": "gpu"}, "the sweep has no GPU"),
        ({"max_retries": -1}, "launcher.max_retries"),
    ],
)
def test_wrong_settings_are_said_before_anything_is_made(
    knobs: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
):
    if "gpus" in knobs:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(UserError) as caught:
        Local(**knobs)
    assert said in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("knobs", "slots"),
    [
        ({"workers": 5}, 5),
        ({"gpus": [0, 1, 2], "jobs_per_gpu": 2}, 6),
        ({"gpus": [0, 1, 2, 3, 4], "gpus_per_job": 2}, 2),
        ({"gpus": [0, 1], "devices": 2, "jobs_per_gpu": 3}, 3),
        ({"gpus": [], "threads": 10_000}, 1),
        ({"accelerator": "cpu", "workers": 2}, 2),
        ({"threads": 1}, len(os.sched_getaffinity(0))),
    ],
)
def test_slots(
    knobs: dict[str, Any],
    slots: int,
    pool: Callable[..., Local],
    monkeypatch: pytest.MonkeyPatch,
):
    if "gpus" in knobs:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    assert len(slots_of(pool(**knobs))) == slots


def slots_of(pool: Local) -> list[Any]:
    for _ in range(10):
        pool._grow()
    return list(pool._seats())


def test_memory_and_gpu_errors_spoil_a_process():
    class OutOfMemoryError(RuntimeError): ...

    chained = ValueError("y")
    chained.__context__ = RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED")
    for error in (
        MemoryError(),
        OutOfMemoryError(),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        chained,
    ):
        assert spoils(error)
    for error in (ValueError("CUDA"), RuntimeError("shapes differ"), KeyError("out of memory")):
        assert not spoils(error)


# By the command


def command(*words: str) -> list[str]:
    return ["train", "-m", *SMALL, "launcher=local", "launcher.workers=2", "sweep=s", *words]


def test_a_sweep_by_its_command():
    done = mmrun(*command("trainer=smoke", "clip=none,0.5", "seeds=3"))
    assert done.returncode == 0, done.stderr
    records = [record_of(directory) for directory in reader.list_runs(Path("outputs/s"))]
    assert [record["status"] for record in records] == ["finished"] * 6
    assert len({record["pid"] for record in records}) == 2
    assert done.stderr == ""


def test_ctrl_c_ends_all_points_at_once():
    process = start(*command("trainer.max_epochs=100000", "seeds=4"))

    def running() -> list[dict[str, Any]]:
        found = [record_of(each) for each in reader.list_runs(Path("outputs/s"))]
        return [record for record in found if record["status"] == "running"]

    try:
        until(lambda: Path("outputs/s").is_dir() and len(running()) == 2)
        pids = [record["pid"] for record in running()]
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert time.monotonic() - began < 5
    finally:
        process.kill()
        process.wait()
    records = [record_of(directory) for directory in reader.list_runs(Path("outputs/s"))]
    assert sorted(record["status"] for record in records) == ["killed"] * 2 + ["queued"] * 2
    assert not any(map(alive, pids))
