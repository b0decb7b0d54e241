"""launcher=ray on a real Ray of four GPUs that are not there: each point has its own, and ends alone, whatever it does.

Commands run in processes of their own, as a person's do; all is on loopback.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mmrun.errors import UserError
from mmrun.launch import ray as launcher
from mmrun.launch import raytask
from mmrun.launch.executor import make_executor
from mmrun.runs import reader
from mmrun.runs.heartbeat import process_start
from mmrun.signals import Interrupted, interruptible
from tests.running import (
    SMALL,
    environment_with,
    fit,
    mmrun,
    record_of,
    run_python,
    same,
    saved,
    table,
)

installed = importlib.util.find_spec("ray") is not None


def needs_ray(test: Callable[..., None]) -> Callable[..., None]:
    """Skipped with a reason where there is none; left out by ``scripts/test --fast``."""
    reason = "Ray is not installed: pip install 'mmrun[ray]'"
    for mark in (pytest.mark.cluster, pytest.mark.trains):
        test = mark(test)
    return pytest.mark.skipif(not installed, reason=reason)(test)


QUICK = (*SMALL, "trainer.max_epochs=2", "trainer.checkpoint=both", "trainer.accelerator=cpu")
RAY = ("launcher=ray", "launcher.num_cpus=8")
SWEEP = Path("outputs/s")
SAFE = {
    "PYTHONSAFEPATH": "1"
}  # as the command itself, unlike python -m, does not look in its folder
END_S = 5.0  # in which every point has to end
GONE_S = 120  # Ray itself takes its time on a busy machine

# A fusion whose ``act`` says what it does in its first training step, and meets others of its kind.
ACTING = """\
import os, signal, time
from pathlib import Path
import torch
from mmrun.fusion.concat import Concat


class Acting(Concat):
    def __init__(self, dims, *, act: str = "", others: int = 0, meeting: str = "") -> None:
        super().__init__(dims)
        self.act, self.others, self.meeting = act, others, Path(meeting)
        self.step = 0

    def forward(self, tokens):
        if self.training and torch.is_grad_enabled():
            act, self.act = self.act, ""
            print("sees", os.environ.get("CUDA_VISIBLE_DEVICES"), act, flush=True)
            if self.others:
                self.meet()
            if act == "raises":
                raise ValueError("no luck")
            if act == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if act == "hangs":
                time.sleep(600)
            if act == "waits":  # in its second epoch, until a file in the working folder says go
                self.act, self.step = act, self.step + 1
                while self.step > 5 and not Path("go").exists():
                    time.sleep(0.05)
        return super().forward(tokens)

    def meet(self):
        (self.meeting / str(os.getpid())).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        end = time.monotonic() + 60
        while len(list(self.meeting.iterdir())) < self.others and time.monotonic() < end:
            time.sleep(0.05)
        self.others = 0
"""


@pytest.fixture
def acting(tmp_path: Path) -> tuple[str, ...]:
    """The words that make ``fusion=acting`` known; its relative folder of meetings is there."""
    folder = tmp_path / "project" / "conf"
    (folder / "fusion").mkdir(parents=True)
    (folder / "fusion" / "acting.yaml").write_text(
        "# Mine\n_target_: acting_fusion.Acting\nact: ''\nothers: 0\nmeeting: ''\n"
    )
    (tmp_path / "project" / "acting_fusion.py").write_text(ACTING)
    # What is in the working folder is not what Python's own library is looked up in.
    Path("random.py").write_text("raise SystemExit('the wrong random')\n")
    Path("meeting").mkdir()
    return ("--config-dir", str(folder))


def points(sweep: Path = SWEEP) -> dict[str, dict[str, Any]]:
    """{name: run.json} of a sweep's points."""
    return {record["name"]: record for record in map(record_of, reader.list_runs(sweep))}


def directory(name: str) -> Path:
    (found,) = SWEEP.glob(f"{name}_*")
    return found


def children(pid: int) -> set[tuple[int, int | None]]:
    """(pid, start) of every process below another one."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            text = entry.read_text(errors="replace")
            parents.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(
                int(entry.parent.name)
            )
    found, open_ = set[int](), [pid]
    while open_:
        below = parents.get(open_.pop(), [])
        found.update(below)
        open_ += below
    return {(each, process_start(each)) for each in found}


def alive(processes: set[tuple[int, int | None]]) -> list[int]:
    return [pid for pid, began in processes if began is not None and process_start(pid) == began]


def wait_until(true: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return bool(true())


# Without Ray


@pytest.mark.parametrize(
    ("node", "cpus", "gpus", "jobs"),
    [
        ({"CPU": 8.0}, 1, 0, 8),
        ({"CPU": 8.0}, 3, 0, 2),
        ({"CPU": 8.0, "GPU": 4.0}, 1, 1, 4),
        ({"CPU": 2.0, "GPU": 4.0}, 1, 1, 2),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.25, 8),
        ({"CPU": 80.0, "GPU": 3.0}, 1, 1 / 3, 9),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.6, 2),
        ({"CPU": 8.0, "GPU": 5.0}, 2, 2, 2),
        ({"CPU": 8.0}, 1, 1, 0),
        ({}, 1, 0, 0),
    ],
)
def test_slots(node: dict[str, float], cpus: float, gpus: float, jobs: int):
    assert launcher.slots(node, cpus, gpus) == jobs


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"gpus_per_job": 1.5}, "share of one GPU, or a whole number"),
        ({"gpus_per_job": -1}, "share of one GPU, or a whole number"),
        ({"num_cpus": 0}, "num_cpus is a whole number, 1 or more"),
        ({"num_gpus": 2, "address": "auto"}, "num_gpus is for a Ray that is started here"),
        ({"num_gpus": 1.5}, "num_gpus has the wrong type"),
    ],
)
def test_wrong_settings_are_refused(knobs: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        make_executor({"_target_": "mmrun.launch.ray.Ray", **knobs})


def test_without_ray_its_extra_is_named():
    """Nothing is left behind: neither a Ray nor a point that was begun."""
    text = (
        "import sys; sys.modules['ray'] = None; from mmrun import cli;"
        f"sys.exit(cli.main(['train', '-m', *{QUICK!r}, 'launcher=ray', 'sweep=s', 'seed=0,1']))"
    )
    done = run_python("-c", text)
    assert done.returncode == 2
    assert "mmrun: launcher=ray needs Ray" in done.stderr
    assert "pip install 'mmrun[ray]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_feigned_signal_wakes_a_process_that_waits():
    """As Ray's cancelling is: the main thread waits in the kernel, for its ranks."""
    import _thread

    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    timer = threading.Timer(0.5, _thread.interrupt_main)
    try:
        timer.start()
        with pytest.raises(Interrupted), interruptible(), raytask._woken():
            sleeper.wait()
        assert sleeper.poll() is None, "it was woken, the other did not end"
    finally:
        timer.cancel()
        sleeper.kill()
        sleeper.wait()
    assert signal.set_wakeup_fd(-1) == -1


def test_what_is_printed_goes_to_the_file(capfd: pytest.CaptureFixture[str]):
    Path("log").write_text("zero\n")
    with raytask._printed_at_the_end_of(Path("log")):
        os.write(1, b"one\n")
        subprocess.run(["sh", "-c", "echo two >&2"], check=True)
    os.write(1, b"three\n")
    assert Path("log").read_text() == "zero\nprinted:\none\ntwo\n"
    assert capfd.readouterr().out == "three\n"


@pytest.mark.skipif(not installed, reason="Ray is not installed")
@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.1:1", "Ray cannot be reached"), ("here", "launcher.address names no cluster")],
)
def test_an_address_where_nothing_is(address: str, said: str):
    """Ray itself would try for minutes."""
    done = mmrun("train", "-m", *QUICK, "launcher=ray", f"launcher.address={address}", "seed=0,1")
    assert done.returncode == 2
    assert said in done.stderr


def test_an_interrupt_comes_out_of_ray_as_it_is():
    """Ray's own code makes a SystemError of it, or a KeyboardInterrupt."""
    for other in (SystemError, KeyboardInterrupt):
        with pytest.raises(Interrupted) as caught, launcher._interrupts_as_they_are():
            raise other from Interrupted(signal.SIGTERM)
        assert caught.value.signum == signal.SIGTERM
    with pytest.raises(SystemError), launcher._interrupts_as_they_are():
        raise SystemError("another")


# On a real one


class Command:
    """``mmrun`` in a process of its own, what it prints, and all processes below it."""

    def __init__(self, *words: str) -> None:
        with Path("out").open("w") as out, Path("err").open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mmrun", *words],
                stdout=out,
                stderr=err,
                env=environment_with(SAFE),
            )
        self.family: set[tuple[int, int | None]] = set()

    def until(self, true: Callable[[], bool]) -> None:
        """Wait for something that it does."""
        assert wait_until(lambda: true() or self.process.poll() is not None, 240)
        assert self.process.poll() is None, self.err + self.out

    def wait(self) -> int:
        """Its exit code."""
        end = time.monotonic() + 240
        while self.process.poll() is None and time.monotonic() < end:
            self.family |= children(self.process.pid)
            time.sleep(0.2)
        return self.process.wait(timeout=1)

    @property
    def out(self) -> str:
        return Path("out").read_text()

    @property
    def err(self) -> str:
        return Path("err").read_text()

    def check_that_nothing_is_left(self) -> None:
        """Neither a process nor a folder of Ray's."""
        assert len(self.family) > 5, "a Ray was started"
        assert wait_until(lambda: not alive(self.family), GONE_S), alive(self.family)
        assert list(Path("/tmp/ray").glob(f"session_*_{self.process.pid}")) == []

    def kill(self) -> None:
        self.family |= children(self.process.pid)
        self.process.kill()
        self.process.wait()
        for pid in alive(self.family):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def command() -> Iterator[Callable[..., Command]]:
    """Starts commands; none outlives its test."""
    made: list[Command] = []

    def run(*words: str) -> Command:
        made.append(Command(*words))
        return made[-1]

    yield run
    for each in made:
        each.kill()


@needs_ray
def test_each_point_has_its_gpu_and_ends_alone(
    acting: tuple[str, ...], command: Callable[..., Command]
):
    """Four at a time; one raises, one dies, one hangs: the fourth has the numbers of a run alone."""
    ran = command(
        *("train", "-m", *acting, *QUICK, *RAY, "launcher.num_gpus=4", "sweep=s"),
        *("launcher.gpus_per_job=1", "launcher.timeout_s=40"),
        *("fusion=acting", "fusion.act=none,raises,dies,hangs"),
        *("fusion.others=4", "fusion.meeting=meeting"),
    )
    assert ran.wait() == 1
    assert ran.err == ""
    assert "(raylet)" not in ran.out, "Ray has nothing to say"
    found = points()
    states = {name: (each["status"], each["stopped_by"]) for name, each in found.items()}
    assert states == {
        "fusion.act=none": ("finished", "max_epochs"),
        "fusion.act=raises": ("failed", "error"),
        "fusion.act=dies": ("killed", "signal"),
        "fusion.act=hangs": ("killed", "timeout"),
    }
    assert found["fusion.act=dies"]["error"] == "its process died"
    assert "no luck" in found["fusion.act=raises"]["error"]
    assert sorted(path.read_text() for path in Path("meeting").iterdir()) == ["0", "1", "2", "3"]
    for name in found.keys() - {"fusion.act=dies"}:
        log = (directory(name) / "train.log").read_text()
        assert re.search(rf"^sees [0-3] {name.partition('=')[2]}$", log, re.M), "what is printed"
    check_numbers(directory("fusion.act=none"))
    ran.check_that_nothing_is_left()


def check_numbers(found: Path) -> None:
    """Bit for bit those of a run in this process; Acting computes what Concat does."""
    alone = fit(*QUICK, "fusion=concat", directory=Path("alone"))
    assert same(saved(found)["state_dict"], saved(Path("alone"))["state_dict"])
    assert table(found / "metrics.csv") == table(Path("alone/metrics.csv"))
    assert table(found / "gradients.csv") == table(Path("alone/gradients.csv"))
    assert record_of(found)["test"] == alone["test"]


@needs_ray
def test_an_interrupt_ends_all_points_and_the_same_command_goes_on(
    acting: tuple[str, ...], command: Callable[..., Command]
):
    words = (
        *("train", "-m", *acting, *QUICK, *RAY, "launcher.num_gpus=4", "sweep=s"),
        *("launcher.gpus_per_job=1", "fusion=acting", "fusion.act=waits", "seed=0,1,2"),
    )
    ran = command(*words)
    ran.until(lambda: len(list(SWEEP.glob("*/checkpoints/last.ckpt"))) == 3)
    ran.family |= children(ran.process.pid)
    began = time.monotonic()
    ran.process.send_signal(signal.SIGINT)
    ended = wait_until(lambda: {each["status"] for each in points().values()} == {"killed"}, END_S)
    assert ended, points()
    assert ran.wait() == 130
    assert time.monotonic() - began < END_S + GONE_S
    assert {each["stopped_by"] for each in points().values()} == {"interrupt"}
    assert "mmrun: interrupted" in ran.err
    ran.check_that_nothing_is_left()

    Path("go").touch()
    again = command(*words)
    assert again.wait() == 0, again.err
    assert {each["status"] for each in points().values()} == {"finished"}
    for path in SWEEP.glob("*/train.log"):
        (step,) = re.findall(r"resuming at step (\d+)", path.read_text())
        assert int(step) > 0
    check_numbers(directory("seed=0"))
    again.check_that_nothing_is_left()


@needs_ray
def test_an_interrupt_while_ray_starts_leaves_none(command: Callable[..., Command]):
    ran = command("train", "-m", *QUICK, *RAY, "sweep=s", "seed=0,1")
    ran.until(lambda: len(children(ran.process.pid)) > 1)
    ran.process.send_signal(signal.SIGINT)
    assert ran.wait() == 130
    assert "mmrun: interrupted" in ran.err
    assert not list(SWEEP.glob("seed*"))
    ran.check_that_nothing_is_left()


@needs_ray
def test_two_processes_a_point(acting: tuple[str, ...], command: Callable[..., Command]):
    """DDP inside a task: two GPUs each, the numbers of two ranks alone."""
    ran = command(
        *("train", "-m", *acting, *QUICK, *RAY, "launcher.num_gpus=4", "sweep=s"),
        *("launcher.gpus_per_job=2", "fusion=acting", "seed=0,1"),
    )
    assert ran.wait() == 0, ran.err + ran.out
    assert ran.err == ""
    assert {each["status"] for each in points().values()} == {"finished"}
    fit(*QUICK, "fusion=concat", "trainer.devices=2", directory=Path("alone"))
    found = directory("seed=0")
    assert same(saved(found)["state_dict"], saved(Path("alone"))["state_dict"])
    assert len(saved(found)["rng"]) == 2
    seen = {
        re.findall(r"^sees ([\d,]+)", p.read_text(), re.M)[0] for p in SWEEP.glob("*/train.log")
    }
    assert seen == {"0,1", "2,3"}
    ran.check_that_nothing_is_left()


@needs_ray
def test_a_cluster_that_is_there_is_shared_and_left(
    acting: tuple[str, ...], cluster: str, command: Callable[..., Command]
):
    """Two points on each of two GPUs; a point that nothing can hold waits for a node that can."""
    words = ("train", "-m", *acting, *QUICK, "launcher=ray", f"launcher.address={cluster}")
    ran = command(
        *(*words, "sweep=s", "launcher.gpus_per_job=0.5", "fusion=acting", "seed=0,1,2,3"),
        *("fusion.others=4", "fusion.meeting=meeting"),
    )
    assert ran.wait() == 0, ran.err + ran.out
    assert ran.err == ""
    assert sorted(path.read_text() for path in Path("meeting").iterdir()) == ["0", "0", "1", "1"]
    check_numbers(directory("seed=0"))

    waits = command(*words, "sweep=t", "launcher.gpus_per_job=3", "seed=0,1")
    waits.until(lambda: "no node has that many" in waits.out)
    waits.process.send_signal(signal.SIGINT)
    assert waits.wait() == 130
    assert {each["status"] for each in points(Path("outputs/t")).values()} == {"queued"}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray with two GPUs that no command has started."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else by whether a command has made a token
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="mmr"))  # Ray's sockets need a short path
    words = ["--block", "--head", "--node-ip-address=127.0.0.1", f"--port={port}"]
    words += ["--num-cpus=8", "--num-gpus=2", "--include-dashboard=false"]
    words += ["--disable-usage-stats", f"--temp-dir={folder}"]
    with (folder / "err").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", *words],
            stdout=err,
            stderr=err,
            env=environment_with({**SAFE, **launcher.LOOPBACK}),
        )
    family = set[tuple[int, int | None]]()
    try:

        def up() -> bool:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return True
            return process.poll() is not None

        assert wait_until(up, 60)
        assert wait_until(lambda: len(children(process.pid)) > 5, 60), (folder / "err").read_text()
        family = children(process.pid)
        yield f"127.0.0.1:{port}"
        assert process.poll() is None, "it is left running"
    finally:
        family |= children(process.pid)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        process.kill()
        for pid in alive(family):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@needs_ray
def test_a_point_that_is_too_large_is_refused():
    done = mmrun(
        *("train", "-m", *QUICK, *RAY, "launcher.num_gpus=1", "launcher.gpus_per_job=2"),
        "seed=0,1",
    )
    assert done.returncode == 2
    assert "Ray has no room for one point (given: a point takes 2 CPUs and 2 GPUs;" in done.stderr
    assert "Traceback" not in done.stderr
