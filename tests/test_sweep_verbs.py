"""``mmrun sweep status`` and ``cancel``: what they say of a sweep in any state, and what they leave of it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mmrun import cli, compose
from mmrun.launch import cancel, status
from mmrun.launch.executor import Ended, Executor
from mmrun.runs import reader
from mmrun.runs.heartbeat import process_start
from mmrun.runs.layout import CANCEL, point_name
from mmrun.runs.ledger import Ledger, driven, locked, read_ledger, write_ledger
from mmrun.runs.writer import Run, freeze, now
from tests.running import SMALL, cpu_seconds, fit, mmrun, record_of, run_python, start

SWEEP = Path("outputs/s")
ALIVE = {"host": socket.gethostname(), "pid": os.getpid(), "pid_start": process_start(os.getpid())}
DEAD = {**ALIVE, "pid_start": 1}


def make(**points: Mapping[str, Any]) -> dict[str, Path]:
    """A sweep with a point of each name, whose record says this; {name: run directory}."""
    found: dict[str, Path] = {}
    ids: dict[str, str] = {}
    for number, (name, keys) in enumerate(points.items()):
        point = compose.point([*SMALL, f"seed={number}"])
        directory = SWEEP / point_name(point)
        freeze(point, directory, sweep="s").update(name=name, **keys)
        found[name], ids[point.id] = directory, directory.name
    write_ledger(SWEEP, Ledger(name="s", overrides=(*SMALL, "seeds=9"), points=ids))
    return found


def done(value: float, *, seconds: float = 10.0, word: str = "finished") -> dict[str, Any]:
    monitor = {"metric": "val/loss", "mode": "min", "value": value}
    return {"status": word, "monitor": monitor, "seconds": seconds, "ended": now()}


def running(since_s: float, **who: Any) -> dict[str, Any]:
    started = datetime.now(UTC) - timedelta(seconds=since_s)
    metrics = {"val/loss": {"last": 0.25}, "val/accuracy": {"last": 0.75}}
    return {
        "status": "running",
        "started": started.isoformat(timespec="milliseconds"),
        "epochs": 3,
        "metrics": metrics,
        "test": {"test/accuracy": 0.99},
        **(who or ALIVE),
    }


def statuses(found: Mapping[str, Path]) -> dict[str, str]:
    return {name: record_of(run)["status"] for name, run in found.items()}


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert cli.main(["sweep", *words]) == code
    out, err = capsys.readouterr()
    return out if code == 0 else out + err


# Status


def test_a_sweep_that_is_driven(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(status, "elapsed", lambda _: 4.0)
    make(
        good=done(0.5),
        better=done(0.3),
        ran_away=done(0.1, word="diverged"),
        runs=running(4),
        waits={},
        waits_too={},
    )
    with locked(SWEEP.absolute()):
        out = said(capsys, "status", "s")
        facts = json.loads(said(capsys, "status", "s", "--format", "json"))
    assert f"driver   process {os.getpid()} on {ALIVE['host']}\n" in out
    assert "points   6: 2 queued, 1 running, 2 finished, 1 diverged" in out
    assert "best     better  val/loss 0.300" in out  # not the one that diverged
    assert "left     about 26 s" in out  # 6 s of this one, 10 s of each of the two
    assert f"  runs  epoch 3/20  val/accuracy 0.750  4 s  on {ALIVE['host']}" in out
    assert "0.99" not in out  # test is not looked at on the way
    assert "mmrun sweep cancel outputs/s" in out
    assert "mmrun resume" not in out
    assert facts["driven"] is True
    assert facts["points"] == {"queued": 2, "running": 1, "finished": 2, "diverged": 1}
    assert facts["best"]["name"] == "better"
    assert facts["seconds_left"] == 26
    (point,) = facts["running"]
    assert (point["epoch"], point["max_epochs"], point["value"]) == (3, 20, 0.75)
    assert facts["failed"] == []


def test_a_sweep_that_nobody_drives(capsys: pytest.CaptureFixture[str]):
    found = make(
        good=done(0.5),
        broke={"status": "failed", "error": "RuntimeError: out of luck\nand more"},
        died=running(4, **DEAD),
        waits={},
    )
    (found["broke"] / "train.log").write_text("here\n")
    out = said(capsys, "status", "outputs/s")
    assert "driver   none now; the last was process" in out
    assert "points   4: 1 queued, 1 finished, 1 failed, 1 killed" in out
    assert "left  " not in out
    assert "failed (2):" in out
    assert f"RuntimeError: out of luck  ({found['broke']}/train.log)" in out
    assert f"the process died without a word  ({found['died']})" in out
    assert "next     mmrun resume outputs/s" in out
    assert "mmrun sweep cancel outputs/s" in out


def test_points_without_a_folder_are_counted(capsys: pytest.CaptureFixture[str]):
    found = make(good=done(0.5), gone={})
    for path in sorted(found["gone"].rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    found["gone"].rmdir()
    out = said(capsys, "status", "last")
    assert "points   2: 1 finished, 1 without a folder" in out
    assert f"next     mmrun train -m {SMALL[0]}" in out
    assert json.loads(said(capsys, "status", "s", "--format", "json"))["lost"] == [
        found["gone"].name
    ]


def test_points_that_a_driver_has_yet_to_freeze_are_not_missing(capsys: pytest.CaptureFixture[str]):
    found = make(waits={}, comes={})
    shutil.rmtree(found["comes"])
    with locked(SWEEP.absolute()):
        out = said(capsys, "status", "s")
    assert "points   2: 1 queued, 1 not frozen yet" in out
    assert "without a folder" not in out


def test_an_unreadable_point_is_not_for_resume(capsys: pytest.CaptureFixture[str]):
    found = make(good=done(0.5), torn={})
    (found["torn"] / "run.json").write_text("{")
    out = said(capsys, "status", "s")
    assert "points   2: 1 finished, 1 unreadable" in out
    assert "mmrun resume" not in out  # it would only say so again
    assert f"next     mmrun train -m {SMALL[0]}" in out
    assert "once those that are unreadable are moved away" in out


def test_one_point_without_a_driver_is_not_many(capsys: pytest.CaptureFixture[str]):
    make(elsewhere=running(4))
    assert "1 point is trained without one" in said(capsys, "status", "s")


def journal(*states: int) -> None:
    """The study of the sweep, with a trial in each of Optuna's states."""
    logs: list[dict[str, Any]] = [{"op_code": 0, "study_name": "s", "directions": [1]}]
    for number, state in enumerate(states):
        logs.append({"op_code": 4, "study_id": 0, "datetime_start": now()})
        logs.append({"op_code": 6, "trial_id": number, "state": state, "values": [0.5]})
    text = "".join(json.dumps({**log, "worker_id": "w"}) + "\n" for log in logs)
    (SWEEP / "study.journal").write_text(text)


def test_a_search_has_no_end_that_its_points_tell(capsys: pytest.CaptureFixture[str]):
    make(good=done(0.3), runs=running(4))
    journal(1, 0)
    with locked(SWEEP.absolute()):
        out = said(capsys, "status", "s")
        facts = json.loads(said(capsys, "status", "s", "--format", "json"))
    assert "trials   1 complete, 1 under way; points are chosen on the way" in out
    assert "left  " not in out  # more trials follow, which nobody has chosen yet
    assert facts["trials"] == {"complete": 1, "running": 1}
    assert facts["seconds_left"] is None


def test_a_search_that_was_killed_is_resumed(capsys: pytest.CaptureFixture[str]):
    found = make(good=done(0.3), comes={})
    journal(1, 0)
    shutil.rmtree(found["comes"])  # chosen, and not frozen
    out = said(capsys, "status", "s")
    assert "next     mmrun resume outputs/s    # train what is left" in out
    assert "mmrun train -m" not in out
    journal(1, 1, 3)
    out = said(capsys, "status", "s")
    assert "trials   2 complete, 1 failed\n" in out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["stat", "last"], "sweep does no such thing (given: stat). Did you mean status?"),
        (["last"], "sweep does no such thing (given: last). Available: cancel, status."),
        (["status"], "the following arguments are required: SWEEP"),
        (["--format", "json", "status", "nothing"], "no such sweep (given: nothing)"),
    ],
)
def test_words_that_are_wrong(capsys: pytest.CaptureFixture[str], words: list[str], named: str):
    make(good=done(0.5))
    assert named in said(capsys, *words, code=2)


def test_nothing_is_left(capsys: pytest.CaptureFixture[str]):
    make(good=done(0.5))
    assert "next     mmrun compare outputs/s" in said(capsys, "status", "s")


def test_twenty_failures_and_a_count(capsys: pytest.CaptureFixture[str]):
    make(**{f"p{k}": {"status": "failed", "error": f"reason {k}."} for k in range(23)})
    out = said(capsys, "status", "s")
    assert out.count("reason ") == 20
    assert "failed (23):" in out
    assert "  and 3 more" in out
    assert len(json.loads(said(capsys, "status", "s", "--format", "json"))["failed"]) == 23


def test_a_copy_of_a_point_counts_once(capsys: pytest.CaptureFixture[str]):
    found = make(point={})
    copy = SWEEP / "a copy"
    copy.mkdir()
    (copy / "run.json").write_text((found["point"] / "run.json").read_text())
    Run.open(copy).update(**done(0.5))
    assert "points   1: 1 finished" in said(capsys, "status", "s")


def test_looking_is_in_nobodys_way():
    make(point={})
    with locked(SWEEP.absolute()):
        assert driven(SWEEP)
    assert not driven(SWEEP)
    assert not driven(Path("nowhere"))
    names = sorted(os.listdir(SWEEP))
    SWEEP.chmod(0o500)
    try:
        assert status.look(SWEEP).counts == {"queued": 1}
    finally:
        SWEEP.chmod(0o700)
    assert sorted(os.listdir(SWEEP)) == names


@pytest.mark.parametrize("words", [["status", "outputs/s"], ["status", "s", "--format", "json"]])
def test_what_status_does_not_import(words: list[str]):
    make(good=done(0.5), runs=running(1))
    code = (
        f"import sys; from mmrun.cli import main; main({['sweep', *words]!r})\n"
        "absent = ('torch', 'hydra', 'omegaconf', 'numpy', 'yaml', 'rich', 'filelock', 'wandb')\n"
        "print('loaded', [name for name in absent if name in sys.modules])"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "loaded []"


# Cancel


def test_what_nobody_drives_is_cancelled_at_once(capsys: pytest.CaptureFixture[str]):
    words = {"good": "finished", "broke": "failed", "away": "diverged", "cut": "pruned"}
    found = make(
        **{name: {"status": word} for name, word in words.items()},
        died=running(4, **DEAD),
        elsewhere=running(4),
        waits={},
    )
    out = said(capsys, "cancel", "s")
    assert statuses(found) == {
        **words,
        "died": "cancelled",
        "elsewhere": "running",
        "waits": "cancelled",
    }
    assert "cancelled 1 that had died and 1 that had not begun" in out
    assert "left as they are: 1 running, 1 finished, 1 failed, 1 diverged, 1 pruned" in out
    assert f"what is running goes on, without a driver here: end it on {ALIVE['host']}" in out
    assert "next     mmrun resume outputs/s" in out
    record = record_of(found["died"])
    assert (record["stopped_by"], record["error"]) == ("cancel", None)
    assert not driven(SWEEP)
    out = said(capsys, "cancel", "s")
    assert out.startswith("nothing was left to cancel: 1 running, 1 finished, 1 failed")


def test_a_driver_is_asked_and_waited_for(monkeypatch: pytest.MonkeyPatch):
    found = make(runs=running(1), waits={}, good=done(0.5))
    heard: list[float] = []
    lock = locked(SWEEP.absolute())
    lock.__enter__()
    pause = time.sleep

    def drives(seconds: float) -> None:
        """The driver, as long as the other one sleeps: it hears, and ends a little later."""
        pause(0.01)
        heard.append(seconds)
        if len(heard) == 1:
            assert (SWEEP / CANCEL).exists()
            (SWEEP / CANCEL).unlink()  # as one does that is about to begin
        if len(heard) == 3:
            assert (SWEEP / CANCEL).exists()
            for name in ("runs", "waits"):
                Run.open(found[name]).finish("cancelled", stopped_by="cancel")
            lock.__exit__(None, None, None)

    monkeypatch.setattr("mmrun.launch.cancel.time.sleep", drives)
    lines: list[str] = []
    ended = cancel.cancel(SWEEP, say=lines.append)
    assert len(heard) == 3
    assert lines == [f"driver   process {os.getpid()} on {ALIVE['host']} is asked to end it"]
    assert ended.heard
    assert ended.points == {"running": 1, "queued": 1}
    assert not (SWEEP / CANCEL).exists()


def test_a_driver_that_does_not_hear(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    found = make(runs=running(1), waits={})
    driver = {"host": "another_host", "pid": 7, "pid_start": 1}
    text = json.loads((SWEEP / "sweep.json").read_text()) | {"driver": driver}
    (SWEEP / "sweep.json").write_text(json.dumps(text))
    monkeypatch.setattr("mmrun.launch.cancel.WAIT_S", 0.0)
    with locked(SWEEP.absolute()):
        out = said(capsys, "cancel", "s", code=1)
    assert "process 7 on another_host has not ended yet; the request stands" in out
    assert (SWEEP / CANCEL).exists()
    assert statuses(found) == {"runs": "running", "waits": "queued"}


class Cluster(Executor):
    """Its jobs outlive their driver."""

    ended: ClassVar[list[str]] = []
    closed = 0

    def room(self):
        return 1

    def submit(self, jobs):
        raise AssertionError(jobs)

    def poll(self, handle):  # noqa: ARG002
        return Ended()

    def adopt(self, job, key):
        return None if key == "gone" else (job.directory, key)

    def cancel(self, handles):
        for directory, key in handles:
            self.ended.append(key)
            if record_of(directory)["status"] == "running":
                Run.open(directory).finish("killed", stopped_by="signal")

    def close(self):
        Cluster.closed += 1


def test_jobs_that_outlived_their_driver_are_ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Cluster, "ended", [])
    monkeypatch.setattr(Cluster, "closed", 0)
    words = ("runs", "waits", "ended", "forgotten")
    found = make(runs=running(1), waits={}, ended=done(0.5), forgotten=running(1))
    for run in found.values():
        config = record_of(run)["config"]
        Run.open(run).update(
            config={**config, "launcher": {"_target_": f"{__name__}.Cluster", "fail_fast": False}}
        )
    jobs = {found[name].name: f"job_{name}" for name in words}
    jobs[found["forgotten"].name] = "gone"
    write_ledger(SWEEP, Ledger(name="s", points=read_ledger(SWEEP).points, jobs=jobs))
    out = said(capsys, "cancel", "s", code=2)
    assert "trust" in out
    assert Cluster.ended == []
    assert set(statuses(found).values()) == {"running", "queued", "finished"}
    out = said(capsys, "cancel", "s", "--trust", __name__.split(".")[0])
    assert sorted(Cluster.ended) == ["job_runs", "job_waits"]
    assert Cluster.closed == 1
    assert statuses(found) == {
        "runs": "cancelled",
        "waits": "cancelled",
        "ended": "finished",
        "forgotten": "running",
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["status", "t"], "no such sweep (given: t). Available: s."),
        (["cancel", "t"], "no such sweep (given: t). Available: s."),
        (["status", "RUN"], "that is a run, not a sweep"),
        (["cancel", "RUN"], "It belongs to outputs/s."),
        (["cancel", "s", "--format", "json"], "cancel takes no --format"),
        (["status", "s", "--trust", "mine"], "status runs no code"),
        (["status"], "SWEEP"),
        (["begin", "s"], "Available: cancel, status"),
    ],
)
def test_what_is_refused(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    found = make(point={})
    words = [str(found["point"]) if word == "RUN" else word for word in words]
    assert sentence in said(capsys, *words, code=2)
    assert statuses(found) == {"point": "queued"}


def test_there_are_no_sweeps(capsys: pytest.CaptureFixture[str]):
    assert "there are no sweeps yet" in said(capsys, "status", "last", code=2)


# A real one


@pytest.mark.trains
def test_a_real_sweep_is_cancelled_and_taken_up_again():
    words = (*SMALL, "trainer.max_epochs=8", "trainer.checkpoint=both", "sweep=s", "seeds=12")
    process = start("train", "-m", *words, "launcher=inline")
    try:
        limit = time.monotonic() + 120
        while time.monotonic() < limit and process.poll() is None:
            records = [reader.read(run) for run in reader.list_runs(SWEEP)]
            if any(record["status"] == "finished" for record in records):
                break
            time.sleep(0.1)
        looked = mmrun("sweep", "status", "s").stdout
        ended = mmrun("sweep", "cancel", "s")
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()
    assert f"driver   process {process.pid} on" in looked
    assert " finished" in looked
    assert ended.returncode == 0, ended.stderr
    assert "that had not begun" in ended.stdout
    found = status.look(SWEEP)
    assert set(found.counts) == {"finished", "cancelled"}
    assert not (SWEEP / CANCEL).exists()
    again = mmrun("resume", "s")
    assert again.returncode == 0, again.stderr
    assert status.look(SWEEP).counts == {"finished": 12}


# Scale

POINTS = 1000


def many() -> None:
    """A sweep of 1,000 points, each with a real run.json."""
    record = fit(*SMALL, "trainer.max_epochs=1", "clip=0.5")
    text = (record["directory"] / "run.json").read_text()
    assert len(text) > 5000
    loaded = json.loads(text)
    draw = random.Random(0)
    ids: dict[str, str] = {}
    for k in range(POINTS):
        loaded["id"], loaded["name"] = f"{k:012x}", f"clip=0.5,seed={k}"
        loaded["status"] = draw.choice(["finished", "finished", "queued", "failed"])
        directory = SWEEP / f"clip=0.5,seed={k}"
        directory.mkdir(parents=True)
        (directory / "run.json").write_text(json.dumps(loaded, indent=1))
        ids[loaded["id"]] = directory.name
    write_ledger(SWEEP, Ledger(name="s", points=ids))


@pytest.mark.trains
def test_a_thousand_points_in_half_a_second(capsys: pytest.CaptureFixture[str]):
    """Reading them takes 0.15 s of CPU, what is imported 0.1 s."""
    many()
    seconds = cpu_seconds(lambda: cli.main(["sweep", "status", "s"]), tries=5)
    assert f"points   {POINTS}: " in capsys.readouterr().out
    assert seconds < 0.4
