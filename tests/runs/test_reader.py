"""Reading run directories in every state, finding them by what people type, and the heartbeat."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmrun import runs
from mmrun.errors import UserError
from mmrun.runs import heartbeat
from mmrun.runs.record import KEYS
from mmrun.spec import Point

FORMAT1 = Path(__file__).parent / "data" / "format1"


def make(directory: Path, *, name: str = "n", **config) -> runs.Run:
    return runs.freeze(Point(config=config, choices={}, name=name), directory)


def test_a_run_of_format_1_stays_readable():
    record = runs.read(FORMAT1)
    assert record["status"] == "finished"
    assert record["stability"] == "ok"
    assert record["test"]["test/accuracy"] == 0.95
    assert record["clip"]["scopes"]["image"]["norm"]["p50"] == 0.21
    assert record["monitor"] == {"metric": "val/loss", "mode": "min", "value": 0.18}
    assert record["wandb"]["mode"] == "offline"
    assert runs.point(FORMAT1).choices["clip"] == "0.5"
    assert runs.point(FORMAT1).overrides == ("fusion=attention", "clip=0.5")
    steps, losses = runs.read_series(FORMAT1 / "metrics.csv", "val/loss")
    assert (steps.tolist(), losses.tolist()) == ([1, 3], [0.3, 0.18])
    gradients = runs.read_columns(FORMAT1 / "gradients.csv")
    assert gradients["grad/norm/image"].shape == (4,)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "no run.json"),
        ("", "empty"),
        ('{"format": 1, "id": "ab', "not JSON"),
        ("[1, 2]", "holds a list"),
        ("null", "NoneType"),
        ("{}", "format number"),
        ('{"format": "1"}', "format number"),
        ('{"format": 2}', "format 2"),
        ('{"format": 1, "metrics": []}', "list under 'metrics'"),
        ('{"format": 1, "status": null}', "NoneType under 'status'"),
        (b"\xff\xfe\x00", "not text"),
        ("[" * 100_000, "run.json"),
    ],
)
def test_broken_records_say_why(tmp_path, text, reason):
    if isinstance(text, bytes):
        (tmp_path / "run.json").write_bytes(text)
    elif text is not None:
        (tmp_path / "run.json").write_text(text)
    record = runs.read(tmp_path)
    assert record["status"] == "unreadable"
    assert reason in record["error"]
    assert set(record) == set(KEYS)
    with pytest.raises(UserError):
        runs.point(tmp_path)


def test_odd_folders_do_not_raise(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "dir" / "run.json").mkdir(parents=True)
    (tmp_path / "loop").symlink_to("loop")
    for odd in ("file", "dir", "loop", "gone"):
        assert runs.read(tmp_path / odd)["status"] == "unreadable"
    assert runs.list_runs(tmp_path) == []
    assert runs.list_runs(tmp_path / "gone") == []


def test_unknown_keys_and_missing_keys_are_fine(tmp_path):
    (tmp_path / "run.json").write_text('{"format": 1, "id": "x", "later": 1}')
    record = runs.read(tmp_path)
    assert record["later"] == 1
    assert record["metrics"] == {}


def test_a_dead_process_is_killed_at_once(tmp_path):
    run = make(tmp_path / "run")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = heartbeat.process_start(child.pid)
    assert start is not None
    host = socket.gethostname()
    run.update(status="running", host=host, pid=child.pid, pid_start=start)
    assert runs.read(run.directory)["status"] == "running"
    os.utime(run.paths.record, (1, 1))  # on this host the process decides, not the clock
    assert runs.read(run.directory)["status"] == "running"
    run.update(pid_start=start + 1)  # the pid has gone to somebody else
    assert runs.read(run.directory)["status"] == "killed"
    run.update(pid_start=start)
    child.kill()
    while heartbeat.process_start(child.pid) is not None:
        time.sleep(0.01)  # a zombie nobody has waited for counts as dead
    assert runs.read(run.directory)["status"] == "killed"
    child.communicate()
    assert runs.read(run.directory)["status"] == "killed"
    assert runs.Run.open(run.directory).record["status"] == "running"  # the file is left as it was


def test_elsewhere_the_heartbeat_decides(tmp_path):
    run = make(tmp_path / "run")
    run.update(status="running", host="another-host", pid=1, pid_start=1)
    assert runs.read(run.directory)["status"] == "running"
    old = time.time() - heartbeat.STALE_S - 1
    os.utime(run.paths.record, (old, old))
    assert runs.read(run.directory)["status"] == "killed"
    assert runs.read(run.directory)["error"]
    run.update(status="finished")
    os.utime(run.paths.record, (old, old))
    assert runs.read(run.directory)["status"] == "finished"


def test_heartbeat_touches_and_stops(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("x")
    os.utime(path, (1, 1))
    with runs.Heartbeat(path, interval_s=0.01) as beat:
        beat.start()
        deadline = time.monotonic() + 5
        while path.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        path.unlink()  # a run folder that goes away ends no training
        time.sleep(0.03)
        path.write_text("y")
    assert path.stat().st_mtime > 2
    os.utime(path, (1, 1))
    time.sleep(0.05)
    assert path.stat().st_mtime == 1
    beat.stop()


def test_heartbeat_does_not_hold_the_process(tmp_path):
    code = (
        "from pathlib import Path; from mmrun.runs import Heartbeat;"
        f"Heartbeat(Path({str(tmp_path)!r}), interval_s=60).start()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


def test_no_torch_and_no_wandb():
    code = (
        "import sys, mmrun.runs, mmrun.tracking, mmrun.compare.show, mmrun.runs.verdict;"
        "bad = {'torch', 'pytorch_lightning', 'hydra', 'wandb'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


def test_find(tmp_path, monkeypatch):
    outputs = tmp_path / "outputs"
    one = make(outputs / "2026_one", name="one", lr=1)
    two = make(outputs / "sweep" / "clip=0.5", name="clip=0.5", lr=2)
    three = make(outputs / "sweep" / "clip=1", name="clip=1", lr=3)
    (outputs / "sweep" / "sweep.json").write_text("{}")
    (outputs / "broken").mkdir()
    (outputs / "broken" / "run.json").write_text("{")
    monkeypatch.chdir(tmp_path)

    def found(text: str) -> str:
        return runs.find(text, outputs).resolve().name

    assert found("outputs/2026_one") == "2026_one"
    assert found(str(two.directory / "run.json")) == "clip=0.5"
    assert found("sweep/clip=1") == "clip=1"
    assert found("one") == "2026_one"
    assert found("clip=0.5") == "clip=0.5"
    assert found(three.id) == "clip=1"
    assert found("2026") == "2026_one"
    with pytest.raises(UserError, match="no run has started"):
        found("last")
    three.update(started="2026-01-01T00:00:00.000+00:00")
    one.update(started="2026-01-01T00:00:00.001+00:00")
    assert found("last") == "2026_one"
    with pytest.raises(UserError, match="2 runs answer") as error:
        found("clip")
    assert "sweep/clip=0.5, sweep/clip=1" in str(error.value)
    with pytest.raises(UserError, match=r"Did you mean clip=0\.5"):
        found("clip=0.6")
    with pytest.raises(UserError, match="sweep of 2 points"):
        found("sweep")
    for text in ("", "."):
        with pytest.raises(UserError):
            found(text)
    with pytest.raises(UserError, match="no runs yet"):
        runs.find("last", tmp_path / "gone")
    assert runs.find_sweep("sw", outputs).name == "sweep"
    assert runs.find_sweep("last", outputs).name == "sweep"
    with pytest.raises(UserError, match="Did you mean sweep"):
        runs.find_sweep("sweeep", outputs)
    with pytest.raises(UserError, match="no sweeps yet"):
        runs.find_sweep("last", tmp_path / "gone")


def test_the_same_id_twice_is_not_guessed(tmp_path):
    first = make(tmp_path / "a", lr=1)
    make(tmp_path / "b", lr=1)
    with pytest.raises(UserError, match="2 runs answer"):
        runs.find(first.id[:6], tmp_path)


def test_read_all_reads_each_run_once(tmp_path):
    make(tmp_path / "a", lr=1)
    make(tmp_path / "s" / "b", lr=2)
    records = runs.read_all([tmp_path, tmp_path / "a", tmp_path / "s"])
    assert sorted(path.name for path in records) == ["a", "b"]


def test_five_hundred_runs_are_read_in_a_second(tmp_path):
    text = json.dumps(runs.read(FORMAT1))
    for i in range(500):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "run.json").write_text(text)
    begin = time.perf_counter()
    assert len(runs.read_all([tmp_path])) == 500
    assert time.perf_counter() - begin < 1.0  # 0.1 s on a quiet machine
