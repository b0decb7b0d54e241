"""``mmrun wandb sync``: everything that waits gets there once, whatever state it was left in."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mmrun import cli
from mmrun.runs.heartbeat import process_start
from mmrun.runs.record import blank, to_text
from tests.fake_wandb import GONE, HANG, KEY, FakeWandb
from tests.running import environment_with, run_python

# Runs of one process: {id: [home, first step, steps, exit code]}.
RUNS = """
import json, sys
from pathlib import Path
from mmrun import tracking
mode = sys.argv[1]
for id, home, first, n, code in json.loads(sys.argv[2]):
    run = tracking.start(mode, id=id, name=id, directory=Path(home), config={"seed": n})
    for step in range(first, first + n):
        run.log({"trainer/global_step": step, "val/loss": 100 - step})
    tracking.finish(run, code)
"""


def make(*cases: tuple[str, str, int, int, int], mode: str = "offline", **environment: str) -> None:
    done = run_python("-c", RUNS, mode, json.dumps(cases), **environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def owner(directory: Path, id: str, **keys: object) -> None:
    """A run directory to which a W&B run belongs."""
    directory.mkdir(parents=True, exist_ok=True)
    record = blank() | {"id": id, "wandb": {"id": id, "url": None, "mode": "offline"}} | keys
    (directory / "run.json").write_text(to_text(record))


def file_of(id: str) -> Path:
    (found,) = Path().rglob(f"*run-*-{id}/run-{id}.wandb")
    return found


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    with FakeWandb() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def sync(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    """(exit code, printed lines)."""
    code = cli.main(["wandb", "sync", *words])
    out, err = capsys.readouterr()
    assert KEY not in out + err
    return code, (out + err).splitlines()


def test_what_can_be_read_is_uploaded_and_the_rest_is_said(
    server: FakeWandb, capsys: pytest.CaptureFixture[str]
):
    said = {
        "good": "uploaded",
        "torn": "uploaded",
        "rubbish": "failed",
        "empty": "empty",
        "runs": "running",
    }
    homes = {id: Path("outputs") / id for id in said}
    make(*((id, str(home), 0, 200 if id == "torn" else 3, 0) for id, home in homes.items()))
    whole = file_of("torn").read_bytes()
    file_of("torn").write_bytes(whole[: len(whole) * 2 // 3])
    file_of("rubbish").write_bytes(b"rubbish" * 100)
    file_of("empty").write_bytes(whole[:7])
    for id, home in homes.items():
        owner(home, id)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = process_start(process.pid)
        where = {"host": socket.gethostname(), "pid": process.pid, "pid_start": started}
        owner(homes["runs"], "runs", status="running", **where)
        code, lines = sync(capsys)
        process.communicate(b"\n")
    assert (code, lines[-1]) == (1, "2 uploaded, 1 failed; 0 already there")
    for id, word in said.items():
        (line,) = [each for each in lines if str(homes[id]) in each.split()]
        assert line.split()[0] == word
    assert sum("bad header" in line for line in lines) == 1
    assert set(server.runs) == {"good", "torn"}
    assert server.runs["good"].values("val/loss") == [100, 99, 98]
    n = len(server.runs["torn"].history)
    assert 0 < n < 200

    file_of("rubbish").unlink()
    code, lines = sync(capsys)  # the one that ran has ended
    assert (code, lines[-1]) == (0, "1 uploaded, 0 failed; 2 already there")
    assert len(server.runs["torn"].history) == n
    code, lines = sync(capsys)
    assert (code, lines[-1]) == (0, "nothing to upload; 3 already there")
    assert not Path("wandb").exists()


def test_parts_of_a_run_that_are_uploaded_apart_are_one_run(
    server: FakeWandb, capsys: pytest.CaptureFixture[str]
):
    home = Path("outputs/2026_x")
    owner(home, "abcd")
    make(("abcd", str(home), 0, 3, 143))
    code, lines = sync(capsys, "abc")  # a prefix of the run's id
    assert (code, lines[-1]) == (0, "1 uploaded, 0 failed; 0 already there")
    run = server.runs["abcd"]
    assert run.exit_code == 143
    make(("abcd", str(home), 3, 2, 0))
    assert len(list(home.glob("wandb/offline-run-*"))) == 2
    code, lines = sync(capsys, str(home))
    assert (code, lines[-1]) == (0, "1 uploaded, 0 failed; 0 already there")
    assert run.values("trainer/global_step") == run.values("_step") == [0, 1, 2, 3, 4]
    assert run.values("val/loss") == [100, 99, 98, 97, 96]
    assert run.exit_code == 0
    for words in ((), (str(home / "wandb"),), (str(next(home.glob("wandb/offline-*"))),)):
        code, lines = sync(capsys, *words)
        assert (code, lines[-1]) == (0, "nothing to upload; 1 already there")


def test_a_run_that_was_killed_and_resumed_goes_up_at_once(
    server: FakeWandb, capsys: pytest.CaptureFixture[str]
):
    """wandb leaves the second part for another call where the first is torn."""
    home = Path("outputs/2026_x")
    owner(home, "abcd")
    make(("abcd", str(home), 0, 200, 0))
    torn = file_of("abcd")
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size * 2 // 3])
    make(("abcd", str(home), 200, 5, 0))
    code, lines = sync(capsys)
    assert (code, lines[-1]) == (0, "1 uploaded, 0 failed; 0 already there")
    assert server.runs["abcd"].values("trainer/global_step")[-5:] == [200, 201, 202, 203, 204]
    assert server.runs["abcd"].exit_code == 0


def test_a_server_that_fails_loses_nothing(
    server: FakeWandb, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_X_GRAPHQL_RETRY_MAX", "1")
    make(("a", "outputs/a", 0, 2, 0), ("b", "outputs/b", 0, 2, 1))
    for how, reason in (
        (401, "the server refused the key"),
        (500, "giving up"),
        (GONE, "connection refused"),
    ):
        server.ail(how)
        code, lines = sync(capsys)
        assert (code, lines[-1]) == (1, "0 uploaded, 2 failed; 0 already there")
        failed = [line for line in lines if line.startswith("failed")]
        assert len(failed) == 2
        assert reason in failed[0]
    with FakeWandb() as other:
        monkeypatch.setenv("WANDB_BASE_URL", other.url)
        code, lines = sync(capsys)
        assert (code, lines[-1]) == (0, "2 uploaded, 0 failed; 0 already there")
        assert {id: run.exit_code for id, run in other.runs.items()} == {"a": 0, "b": 1}


# Runs that lose their server between start and end; it is told when by a line.
LOSING = """
import sys
from pathlib import Path
from mmrun import tracking
for id in sys.argv[1:]:
    run = tracking.start("online", id=id, name=id, directory=Path("outputs/r"), config={}, timeout_s=1)
    run.log({"trainer/global_step": 0, "val/loss": 5})
    print(tracking.describe(run, "online")["mode"], flush=True)
    input()
    for step in range(1, 20):
        run.log({"trainer/global_step": step, "val/loss": 5 - step})
    tracking.summarise(run, {"test": {"test/accuracy": 0.5}, "test_last": {}, "train_eval": {}, "metrics": {}})
    tracking.finish(run)
    print("ended", flush=True)
    input()
"""


def test_a_server_that_is_lost_in_mid_run_gets_the_rest_later(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    fates: dict[str, int | str] = {"broken": 500, "hanging": HANG, "gone": GONE}
    with FakeWandb() as server:
        child = subprocess.Popen(
            [sys.executable, "-c", LOSING, "well", *fates],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment_with(server.environment),
        )
        watch = threading.Timer(120, child.kill)  # an ending that takes for ever is a failure
        watch.start()
        with child:
            assert child.stdin is not None
            assert child.stdout is not None
            for id in ("well", *fates):
                assert child.stdout.readline() == "online\n"
                server.ail(fates.get(id))
                child.stdin.write("\n")
                child.stdin.flush()
                assert child.stdout.readline() == "ended\n"
                if id != "gone":
                    server.ail(None)
                child.stdin.write("\n")
                child.stdin.flush()
            _, err = child.communicate()
        watch.cancel()
    assert child.returncode == 0
    assert err.count("the server did not take everything") == 3
    assert err.count("mmrun wandb sync") == len(err.splitlines()) == 3
    with FakeWandb() as other:
        for name, value in other.environment.items():
            monkeypatch.setenv(name, value)
        code, lines = sync(capsys)
        assert (code, lines[-1]) == (0, "3 uploaded, 0 failed; 1 already there")
        assert set(other.runs) == set(fates)
        for run in other.runs.values():
            assert run.values("trainer/global_step") == list(range(20))
            assert run.summary["test/accuracy"] == 0.5
            assert run.exit_code == 0


def test_what_is_asked_wrongly(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def refused(*words: str) -> str:
        assert cli.main(["wandb", *words]) == 2
        out, err = capsys.readouterr()
        (line,) = (out + err).splitlines()
        return line

    assert "no runs yet" in refused("sync")
    assert "snyc" in refused("snyc")
    home = Path("outputs/one")
    owner(home, "abc", name="one", started="2026-01-01T00:00:00.000+00:00")
    assert sync(capsys) == (0, ["nothing to upload; 0 already there"])
    assert "no such run" in refused("sync", "two")
    make(("abc", str(home), 0, 1, 0))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert sync(capsys, "last", "--dry-run") == (
        0,
        ["waiting   outputs/one", "1 to upload; 0 already there"],
    )
    assert "no W&B key found for 127.0.0.1:9" in refused("sync", "last")
