"""launcher=slurm on a real SLURM of this machine: distinct GPUs, endings in plain words, requeues, drivers that die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmrun import cli
from mmrun.launch import slurm_queue, slurm_task
from mmrun.launch.executor import Job
from mmrun.launch.slurm_queue import GONE, STUCK, Entry, Queue
from mmrun.runs import reader
from mmrun.signals import Interrupted
from tests import slurm_cluster
from tests.running import SMALL, environment_with, record_of, same, saved, table

SWEEP = Path("outputs/s")
FUSION = """\
import os, sys, time
from pathlib import Path
import torch
from mmrun.fusion import Fusion

class Gated(Fusion):
    '''The largest of each. Every process of it waits after its sixth step as long as there is a file "gate".'''

    def __init__(self, dims, act="wait"):
        super().__init__(dims)
        self.dim = max(dims.values())
        self.act, self.steps = act, 0

    def forward(self, tokens):
        if self.training and torch.is_grad_enabled():
            self.steps += 1
            self.behave()
        return torch.stack([tokens[m].pooled for m in self.modalities]).amax(0)

    def behave(self):
        if self.steps == 1:
            gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
            Path(f"saw-{self.act}").write_text(f"{gpu} {torch.get_num_threads()}")
        if self.steps == 7 and self.act == "raise":
            raise ValueError("no luck")
        if self.steps == 7 and self.act == "exit":
            os._exit(9)
        while self.steps == 7 and self.act.startswith("wait") and Path("gate").exists():
            time.sleep(0.05)
"""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A SLURM of this session's own."""
    pytest.importorskip("submitit")
    missing = slurm_cluster.missing()
    if missing:
        pytest.skip(f"SLURM is not installed: no {', '.join(missing)}")
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as variables:
        yield variables


@pytest.fixture
def slurm(cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """That SLURM in the environment, and a project in the working directory; no job is left."""
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)
    Path("conf/fusion").mkdir(parents=True)
    Path("conf/fusion/gated.yaml").write_text("# Gated\n_target_: gated.Gated\nact: wait\n")
    Path("gated.py").write_text(FUSION)
    yield
    subprocess.run(["scancel", "--signal=KILL", "--full", "-u", str(os.getuid())], check=False)


def words(*more: str, launcher: str = "slurm", sweep: str = "s") -> list[str]:
    base = ["--config-dir", str(Path("conf").absolute()), *SMALL, "fusion=gated"]
    if not any(word.startswith("trainer.max_epochs") for word in more):
        base.append("trainer.max_epochs=4")
    base.append("trainer.checkpoint=both")
    return ["train", "-m", *base, f"launcher={launcher}", f"sweep={sweep}", *more]


def drive(*more: str) -> subprocess.Popen[bytes]:
    """A driver in a process of its own; what it says is in out.txt."""
    with open("out.txt", "wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "mmrun", *words(*more)],
            stdout=out,
            stderr=out,
            env=environment_with({}),
        )


def said() -> str:
    return Path("out.txt").read_text()


def until(what: Callable[[], Any], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"{said()}\n{logs()}"
        time.sleep(0.1)


def logs() -> str:
    return "\n".join(path.read_text() for path in SWEEP.glob("slurm/*.out"))


def points(sweep: Path = SWEEP) -> dict[str, Path]:
    """{act: run directory}."""
    runs = reader.list_runs(sweep) if sweep.exists() else []
    return {record_of(run)["config"]["fusion"]["act"]: run for run in runs}


def record(act: str) -> dict[str, Any]:
    """run.json as it stands; of a point that is not there yet, its status alone."""
    found = points()
    return record_of(found[act]) if act in found else {"status": ""}


def status(act: str) -> str:
    return record(act)["status"]


def jobs() -> dict[str, str]:
    """{folder of a point: its job}."""
    path = SWEEP / "sweep.json"
    return json.loads(path.read_text()).get("jobs", {}) if path.exists() else {}


def queue() -> dict[str, str]:
    """{job: state} of the jobs of this test that are not over."""
    done = subprocess.run(
        ["squeue", "-h", "-r", "-o", "%i|%T|%Z"], capture_output=True, text=True, check=True
    )
    lines = [line.split("|") for line in done.stdout.splitlines()]
    return {id: state for id, state, folder in lines if folder == str(Path.cwd())}


def start_now(job: str) -> None:
    """SLURM lets a job that was requeued wait for two minutes; not here."""

    def started() -> bool:
        command = ["scontrol", "update", f"jobid={job}", "StartTime=now"]
        return (
            queue().get(job) == "RUNNING"
            or subprocess.run(command, capture_output=True, check=False).returncode != 0
        )

    until(lambda: queue().get(job) == "PENDING")
    until(lambda: started() and queue().get(job) == "RUNNING")


def waiting_at_the_gate(act: str, step: int) -> bool:
    """Whether the point trains, and its last checkpoint is of that step."""
    run = points().get(act)
    return (
        run is not None
        and reader.read(run)["status"] == "running"
        and (run / "checkpoints" / "last.ckpt").exists()
        and saved(run)["global_step"] == step
    )


def check_equal_to_alone(act: str, *more: str) -> None:
    """Weights, tables and results, bit for bit those of the point in this process."""
    alone = Path("outputs/alone")
    assert cli.main(words(f"fusion.act={act}", *more, launcher="inline", sweep="alone")) == 0
    mine, other = points()[act], points(alone)[act]
    for key in ("state_dict", "optimizer_states", "clip", "rng", "global_step"):
        assert same(saved(mine)[key], saved(other)[key]), key
    for name in ("gradients.csv", "metrics.csv"):
        assert table(mine / name) == table(other / name)
    assert record_of(mine)["test"] == record_of(other)["test"]


@pytest.mark.cluster
@pytest.mark.trains
@pytest.mark.usefixtures("slurm")
def test_an_array_of_points_each_with_its_gpu_and_its_ending():
    Path("gate").touch()
    driver = drive("fusion.act=train,raise,exit,wait", "launcher.array_parallelism=4")
    until(lambda: waiting_at_the_gate("wait", 4))
    until(lambda: [status(act) for act in ("train", "raise")] == ["finished", "failed"])
    ids = sorted(jobs().values())
    assert [id.split("_")[1] for id in ids] == ["0", "1", "2", "3"], "one array"
    assert len({id.split("_")[0] for id in ids}) == 1
    subprocess.run(["scancel", jobs()[points()["wait"].name]], check=True)
    assert driver.wait(60) == 1
    seen = [Path(f"saw-{act}").read_text().split() for act in ("train", "raise", "exit", "wait")]
    assert sorted(gpu for gpu, _ in seen) == ["0", "1", "2", "3"]
    assert {threads for _, threads in seen} == {"1"}
    assert "no luck" in record("raise")["error"]
    ended = record("exit")
    assert (ended["status"], ended["stopped_by"]) == ("killed", "signal")
    assert "ended with exit code 9" in ended["error"]
    assert f"outputs/s/slurm/{ids[2]}_0_log.out" in ended["error"]
    cancelled = record("wait")
    assert (cancelled["status"], cancelled["stopped_by"]) == ("killed", "terminate")
    assert not list(SWEEP.glob("slurm/*.pkl"))
    check_equal_to_alone("train")


@pytest.mark.cluster
@pytest.mark.trains
@pytest.mark.usefixtures("slurm")
def test_a_job_outlives_its_driver_and_is_requeued_twice():
    """By SLURM, and by its own request before its time is over; it equals a run that nobody disturbed."""
    Path("gate").touch()
    driver = drive("fusion.act=wait")
    until(lambda: waiting_at_the_gate("wait", 4))
    driver.kill()
    driver.wait()
    (job,) = queue()
    driver = drive("fusion.act=wait")
    until(lambda: "points" in said())
    first = record("wait")["pid"]
    subprocess.run(["scontrol", "requeue", job], check=True)
    until(lambda: status("wait") == "killed")
    assert record("wait")["stopped_by"] == "terminate"
    start_now(job)
    until(lambda: waiting_at_the_gate("wait", 8))
    assert record("wait")["pid"] != first
    subprocess.run(["scancel", "--batch", "--signal=USR2", job], check=True)
    until(lambda: status("wait") == "killed")
    assert record("wait")["stopped_by"] == "preempted"
    until(lambda: queue().get(job) == "PENDING")
    Path("gate").unlink()
    start_now(job)
    assert driver.wait(90) == 0, said()
    assert status("wait") == "finished"
    assert list(jobs().values()) == [job]
    assert len(list(SWEEP.glob("slurm/*_log.out"))) == 1, "no job but this one"
    check_equal_to_alone("wait")


@pytest.mark.cluster
@pytest.mark.trains
@pytest.mark.usefixtures("slurm")
def test_ctrl_c_leaves_jobs_or_cancels_them():
    """One that trains and one that waits for its turn; a job that is killed by SLURM itself is taken up where it was."""
    two = ("fusion.act=wait,wait2", "launcher.array_parallelism=1")
    Path("gate").touch()
    driver = drive(*two)
    until(lambda: waiting_at_the_gate("wait", 4))
    driver.send_signal(signal.SIGINT)
    assert driver.wait(30) == 130
    array = next(iter(jobs().values())).split("_")[0]
    assert "2 jobs go on in SLURM; watch: mmrun sweep status outputs/s; end: " in said()
    assert f"scancel {array}" in said()
    assert queue() == {f"{array}_0": "RUNNING", f"{array}_1": "PENDING"}
    driver = drive(*two, "launcher.on_interrupt=cancel")
    until(lambda: "points" in said())
    time.sleep(3)  # it has taken them up
    assert queue() == {f"{array}_0": "RUNNING", f"{array}_1": "PENDING"}
    driver.send_signal(signal.SIGINT)
    assert driver.wait(30) == 130
    assert "go on in SLURM" not in said()
    assert set(queue().values()) <= {"COMPLETING"}
    assert status("wait") == "killed"
    assert status("wait2") == "queued"


@pytest.mark.cluster
@pytest.mark.trains
@pytest.mark.usefixtures("slurm")
def test_two_processes_in_one_job():
    """DDP: one task of SLURM's, and mmrun's own two ranks in it, whatever SLURM's variables say."""
    ddp = ("trainer=ddp", "trainer.max_epochs=1")
    driver = drive("fusion.act=train", *ddp, "launcher.gpus_per_job=2")
    assert driver.wait(120) == 0, said()
    assert Path("saw-train").read_text().split()[0] == "0,1"
    check_equal_to_alone("train", *ddp)


@pytest.mark.cluster
@pytest.mark.usefixtures("slurm")
def test_jobs_that_slurm_does_not_take(capsys: pytest.CaptureFixture[str]):
    assert cli.main(words("fusion.act=train", "launcher.partition=nowhere")) == 2
    err = capsys.readouterr().err
    assert err.startswith("mmrun: SLURM does not take the jobs (given: invalid partition specified")
    assert err.count("\n") == 1
    assert not (SWEEP / "slurm").exists()
    assert status("train") == "queued"
    assert cli.main(words("fusion.act=train", "launcher.time=999")) == 1
    assert "cannot start (PartitionTimeLimit)" in record("train")["error"]
    assert not queue()


def test_no_slurm_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["train", "-m", *SMALL, "launcher=slurm", "clip=0.5,1"]) == 2
    assert "launcher=slurm needs SLURM's sbatch" in capsys.readouterr().err
    assert not Path("outputs").exists()


def squeue(text: str, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> None:
    """A squeue that answers this, and a SLURM that says nothing else."""
    folder = Path("bin").absolute()
    folder.mkdir(exist_ok=True)
    (folder / "answer").write_text(text)
    for name in ("squeue", "scontrol", "sacct"):
        exit_code = code if name == "squeue" else 1
        (folder / name).write_text(f"#!/bin/sh\n/bin/cat {folder}/answer\nexit {exit_code}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_what_squeue_says(monkeypatch: pytest.MonkeyPatch):
    queue = Queue()
    assert queue.entry("7_0") is None
    lines = ["7_0|RUNNING|/s/x.sh|None", "7_1|PENDING|/s/x.sh|PartitionTimeLimit"]
    lines += ["8|PENDING|/s/y.sh|launch failed requeued held", "9|PENDING|/s/y.sh|Resources"]
    lines += ["10|OUT_OF_MEMORY|/s/y.sh|OutOfMemory"]
    squeue("\n".join(lines), monkeypatch)
    queue.ask(["7_0", "7_1", "7_2", "8", "9", "10"])
    found = {id: queue.entry(id) for id in ("7_0", "7_1", "7_2", "8", "9", "10", "11")}
    states = [entry and entry.state for entry in found.values()]
    assert states == ["RUNNING", STUCK, GONE, STUCK, "PENDING", "OUT_OF_MEMORY", None]
    assert [e.over for e in found.values() if e] == [False, True, True, True, False, True]
    assert found["7_0"] == Entry("RUNNING", "/s/x.sh", "None")
    squeue("slurm_load_jobs error: Unable to contact slurm controller", monkeypatch, code=1)
    queue.ask(["7_0"])
    assert queue.entry("7_0") == found["7_0"], "no answer changes nothing"
    squeue("slurm_load_jobs error: Invalid job id specified", monkeypatch, code=1)
    queue.ask(["7_0"])
    assert queue.entry("7_0") == Entry(GONE)
    assert slurm_queue.last_words("7_0", Entry(GONE))[1] == "is no longer known to SLURM"
    assert "ran out of memory" in slurm_queue.last_words("10", Entry("OUT_OF_MEMORY"))[1]


def test_a_job_that_was_started_before_is_alone_with_its_point(monkeypatch: pytest.MonkeyPatch):
    seen: list[bool] = []
    monkeypatch.setattr("mmrun.launch.task.run", lambda _, alone: seen.append(alone))
    job = slurm_task.PointTask(Job(directory=Path("x")))
    for count in ("0", "2"):
        monkeypatch.setenv("SLURM_RESTART_COUNT", count)
        with pytest.raises(SystemExit) as exit:
            job()
        assert exit.value.code is None
    assert seen == [False, True]


def test_sigusr2_goes_to_submitit_when_the_point_has_ended(monkeypatch: pytest.MonkeyPatch):
    heard: list[int] = []

    def train(*_: Any, **__: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(1)
        except Interrupted:
            heard.append(0)  # the record is written here
            raise

    before = signal.signal(signal.SIGUSR2, lambda signum, _: heard.append(signum))
    try:
        monkeypatch.setattr("mmrun.launch.task.run", train)
        with pytest.raises(SystemExit) as exit:
            slurm_task.PointTask(Job(directory=Path("x")))()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert heard == [0, signal.SIGUSR2]
    assert exit.value.code == 128 + signal.SIGUSR2
