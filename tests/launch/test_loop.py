"""A sweep from its command to its end: what is done is skipped, what failed is named, nothing leaks, nothing is lost."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrun import cli, compose
from mmrun.errors import UserError
from mmrun.launch import report
from mmrun.launch.plan import plan
from mmrun.runs import reader
from mmrun.runs.ledger import locked, read_ledger
from mmrun.runs.writer import Run, freeze
from mmrun.signals import Interrupted, interruptible
from mmrun.train import train
from tests.running import SMALL, record_of, run_python, same, saved, start, table

pytestmark = pytest.mark.trains

QUICK = (*SMALL, "trainer.max_epochs=1", "trainer.checkpoint=both", "launcher=inline")
SWEEP = Path("outputs/s")


def run(*words: str, code: int = 0) -> None:
    assert cli.main(["train", "-m", *QUICK, "sweep=s", *words]) == code


def points(sweep: Path = SWEEP) -> dict[str, dict[str, Any]]:
    """{name: run.json} of a sweep's points."""
    return {record["name"]: record for record in map(record_of, reader.list_runs(sweep))}


def test_every_point_is_trained_recorded_and_listed(capsys: pytest.CaptureFixture[str]):
    run("clip=none,0.5", "seeds=2")
    out = capsys.readouterr().out
    found = points()
    assert list(found) == sorted(
        f"clip={clip},seed={seed}" for clip in ("none", "0.5") for seed in (0, 1)
    )
    assert {record["status"] for record in found.values()} == {"finished"}
    assert {record["sweep"] for record in found.values()} == {"s"}
    assert found["clip=0.5,seed=1"]["overrides"] == [
        *QUICK,
        "clip=0.5",
        "seed=1",
    ]
    ledger = json.loads((SWEEP / "sweep.json").read_text())
    assert ledger["axes"] == {"clip": ["none", "0.5"], "seed": ["0", "1"]}
    assert ledger["points"] == {
        r["id"]: f"{name}_{r['id'][:8]}"
        for name, r in sorted(
            found.items(), key=lambda item: list(ledger["points"]).index(item[1]["id"])
        )
    }
    assert "points   4: 4 to train" in out
    assert "[4/4]  clip=0.5,seed=1  finished  val/accuracy" in out
    assert "points   4 finished" in out
    assert "epoch" not in out  # a point says nothing itself
    assert "epoch   1" in next(SWEEP.glob("clip=0.5,seed=1*/train.log")).read_text()


def test_the_same_command_skips_what_is_done_and_adds_what_is_new(
    capsys: pytest.CaptureFixture[str],
):
    run("clip=none,0.5")
    before = points()
    (moved,) = SWEEP.glob("clip=none*")
    moved.rename(SWEEP / "renamed by hand")
    run("clip=none,0.5,1", "seeds=2")
    assert "points   6: 2 done, 4 to train" in capsys.readouterr().out
    after = points()
    assert len(after) == 6
    assert all(
        after[name]["ended"] == record["ended"] for name, record in before.items() if name in after
    )
    assert read_ledger(SWEEP).axes == {"clip": ("none", "0.5", "1"), "seed": ("0", "1")}
    run("clip=norm_0.5")  # another spelling of a point that is there
    assert "points   1: 1 done" in capsys.readouterr().out
    assert len(points()) == 6


def test_a_failure_is_named_and_the_others_go_on(capsys: pytest.CaptureFixture[str]):
    words = ["encoder/a=identity,lstm", "optimizer.lr=0.01,1e30", "clip=none"]
    run(*words, code=1)
    out = capsys.readouterr().out
    found = points()
    states = {name: record["status"] for name, record in found.items()}
    assert list(states.values()).count("failed") == 2  # an LSTM takes no vectors
    assert list(states.values()).count("finished") == 1
    assert list(states.values()).count("diverged") == 1
    failed = next(record for record in found.values() if record["status"] == "failed")
    assert "this encoder takes" in failed["error"]
    assert "failed (2):" in out
    assert out.count("this encoder takes") == 4  # as each ends, and in the list of failures
    assert "diverged (1): a result, not a failure" in out
    run(*words, code=1)  # failed points are tried again, the others are not
    assert "points   4: 2 done, 2 to train" in capsys.readouterr().out


def test_diverged_alone_is_no_failure():
    run("optimizer.lr=1e30", "clip=none", code=0)
    assert {record["status"] for record in points().values()} == {"diverged"}


def test_the_first_failure_can_end_it(capsys: pytest.CaptureFixture[str]):
    run("encoder/a=lstm,identity", "seeds=2", "launcher.fail_fast=true", code=1)
    assert [record["status"] for record in points().values()].count("queued") == 3
    assert "stopped at the first failure; 3 points stay queued" in capsys.readouterr().out


def test_points_are_frozen_before_the_first_is_trained(monkeypatch: pytest.MonkeyPatch):
    seen: list[list[str]] = []

    def finish(directory: Path, **_: Any) -> None:
        seen.append([r["status"] for r in points().values()])
        Run.open(directory).finish("finished")

    monkeypatch.setattr("mmrun.point.run", finish)
    run("clip=none,0.5,1", code=0)
    assert [statuses.count("queued") for statuses in seen] == [3, 2, 1]


def test_rerun(capsys: pytest.CaptureFixture[str]):
    run("clip=none,0.5")
    old = Run.open(next(SWEEP.glob("clip=none*")))
    old.update(git={"commit": "0" * 40, "dirty": False})
    before = points()
    capsys.readouterr()
    run("clip=none,0.5")
    assert (
        "1 of those done were made by another version of the code; rerun=stale"
        in capsys.readouterr().out
    )
    run("clip=none,0.5", "rerun=stale")
    after = points()
    ended = {name: (record["ended"], after[name]["ended"]) for name, record in before.items()}
    assert [a == b for a, b in ended.values()].count(False) == 1
    assert after["clip=none"]["git"]["commit"] != "0" * 40
    run("clip=none,0.5", "rerun=true")
    assert all(record["ended"] != after[name]["ended"] for name, record in points().items())
    assert {name: r["test"] for name, r in points().items()} == {
        n: r["test"] for n, r in before.items()
    }


def test_one_process_at_a_time(capsys: pytest.CaptureFixture[str]):
    with locked(SWEEP.absolute()):
        (SWEEP / "sweep.json").write_text('{"format": 1}')
        run("clip=none", code=2)
    assert "another process drives this sweep" in capsys.readouterr().err
    run("clip=none")


def test_a_folder_of_something_else_is_left_alone(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["train", *QUICK, "trainer=smoke", "name=single"]) == 0
    (single,) = Path("outputs").iterdir()
    before = sorted(single.rglob("*"))
    assert cli.main(["train", "-m", *QUICK, f"sweep={single.name}"]) == 2
    assert "that is a run, not a sweep" in capsys.readouterr().err
    assert sorted(single.rglob("*")) == before


def test_dry_run_makes_nothing(capsys: pytest.CaptureFixture[str]):
    words = ["train", "-m", *QUICK, "clip=none,0.5", "dataset.batch_size=64,all", "--dry-run"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert not Path("outputs").exists()
    assert "train         4 steps  clip=none,dataset.batch_size=64" in out
    assert "train         1 steps  clip=0.5,dataset.batch_size=all" in out
    assert "10 steps to train at most; no model was built" in out
    assert "fusion=concat" in out
    run("clip=none")
    capsys.readouterr()
    assert cli.main(["train", "-m", *QUICK, "sweep=s", "clip=none,1", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "points   2: 1 done, 1 to train" in out
    assert "4 steps to train at most" in out
    assert cli.main(["train", *QUICK, "--dry-run"]) == 0
    assert "4 steps to train" in capsys.readouterr().out
    assert len(points()) == 1


def test_dry_run_of_a_search_says_that_its_points_are_examples(capsys: pytest.CaptureFixture[str]):
    words = ["sweeper=optuna", "sweeper.trials=7", "clip=norm", "clip.threshold=interval(1,3)"]
    assert cli.main(["train", "-m", *QUICK, *words, "seeds=2", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert not Path("outputs").exists()
    assert "trials   7 in all, 2 points each, chosen on the way; such as those below" in out
    assert "to train" not in out  # what the trials will be, nobody knows yet
    assert "clip=2" not in out
    assert "4 steps  clip.threshold=2,seed=0" in out


# What is interrupted


def interrupted_sweep(signum: int) -> subprocess.Popen[bytes]:
    """A sweep of three points, sent a signal while it trains the second."""
    words = [
        *QUICK,
        "sweep=s",
        "clip=none,0.5,1",
        "trainer.max_epochs=40",
        "trainer.checkpoint_every=2",
    ]
    words = [word for word in words if word != "trainer.max_epochs=1"]
    process = start("train", "-m", *words)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        second = list(SWEEP.glob("clip=0.5*/checkpoints/last.ckpt"))
        if second and process.poll() is None:
            break
        time.sleep(0.02)
    process.send_signal(signum)
    process.wait(timeout=60)
    return process


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_an_interrupted_sweep_goes_on_bit_for_bit(
    signum: int, code: int, capsys: pytest.CaptureFixture[str]
):
    process = interrupted_sweep(signum)
    assert process.returncode == code
    states = {
        record["name"]: reader.read(run)["status"]
        for run, record in reader.read_all([SWEEP]).items()
    }
    assert states == {"clip=none": "finished", "clip=0.5": "killed", "clip=1": "queued"}
    assert cli.main(["resume", "s"]) == 0
    out = capsys.readouterr().out
    assert "points   3: 1 done, 1 to resume, 1 to train" in out
    found = {r["name"]: run for run, r in reader.read_all([SWEEP]).items()}
    assert {reader.read(run)["status"] for run in found.values()} == {"finished"}
    words = [*QUICK, "clip=0.5", "trainer.max_epochs=40", "trainer.checkpoint_every=2"]
    alone = train(compose.point([word for word in words if word != "trainer.max_epochs=1"]))
    for name in ("metrics.csv", "gradients.csv"):
        assert table(found["clip=0.5"] / name) == table(Path(alone["directory"]) / name)
    assert record_of(found["clip=0.5"])["test"] == alone["test"]
    assert cli.main(["resume", "last"]) == 0 or signum  # the last run is the lone one


def test_interrupt_says_how_to_go_on():
    process = subprocess.Popen(
        [sys.executable, "-m", "mmrun", "train", "-m", *QUICK, "sweep=s", "seeds=200"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(SWEEP.glob("seed=1_*/metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "of 200 points are done; continue: mmrun resume outputs/s" in err
    assert "Traceback" not in err


def test_a_damaged_checkpoint_costs_the_point_s_start_and_no_more(
    capsys: pytest.CaptureFixture[str],
):
    run("clip=none,0.5")
    (directory,) = SWEEP.glob("clip=0.5*")
    whole = record_of(directory)
    Run.open(directory).update(status="killed")
    (directory / "checkpoints" / "last.ckpt").write_bytes(b"nothing")
    run("clip=none,0.5")
    assert "Training it afresh" in capsys.readouterr().err
    assert record_of(directory)["status"] == "finished"
    assert record_of(directory)["test"] == whole["test"]


def test_a_point_that_went_on_longer_is_told_of(capsys: pytest.CaptureFixture[str]):
    run("clip=none,0.5")
    (directory,) = SWEEP.glob("clip=0.5*")
    assert cli.main(["resume", str(directory), "trainer.max_epochs=2"]) == 0
    run("clip=none,0.5")
    assert (
        "1 of those done went on with other limits than this command says"
        in capsys.readouterr().out
    )


def test_what_another_process_trains_is_waited_for_and_taken_up(
    capsys: pytest.CaptureFixture[str],
):
    run("clip=none,0.5")
    before = points()
    (directory,) = SWEEP.glob("clip=0.5*")
    other = subprocess.Popen(["sleep", "60"])
    from mmrun.runs.heartbeat import process_start

    Run.open(directory).update(status="running", pid=other.pid, pid_start=process_start(other.pid))
    seen: list[str] = []

    def die() -> None:
        seen.append(record_of(directory)["status"])
        other.kill()
        other.wait()

    timer = threading.Timer(2, die)
    timer.start()
    try:
        run("clip=none,0.5")
    finally:
        timer.join()
    assert seen == ["running"]  # as long as the other one lived
    assert "1 done, 1 trained by another process now" in capsys.readouterr().out
    after = points()
    assert after["clip=none"]["ended"] == before["clip=none"]["ended"]
    assert after["clip=0.5"]["status"] == "finished"
    assert after["clip=0.5"]["pid"] == os.getpid()
    assert after["clip=0.5"]["test"] == before["clip=0.5"]["test"]


# Nothing of one point reaches the next

A = ("clip=0.5", "missing.train_rate=0.3", "optimizer=momentum")
B = {
    "deterministic": ("trainer.deterministic=true",),
    "double precision": ("trainer.precision=64-true",),
    "mixed precision": ("trainer.precision=bf16-mixed",),
    "fails": ("encoder/a=lstm",),
    "diverges": ("optimizer=sgd", "optimizer.lr=1e30"),
    "more threads": ("threads=2",),
    "raises in training": (),
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Point A trained by a process that has trained nothing else."""
    folder = tmp_path_factory.mktemp("fresh")
    process = start("train", *QUICK, *A, f"outputs={folder}")
    assert process.wait(timeout=300) == 0
    (found,) = folder.iterdir()
    return found


def broken(*_: Any, **__: Any) -> None:
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64)
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("between", B)
def test_a_point_is_the_same_before_and_after_another(
    between: str, fresh: Path, monkeypatch: pytest.MonkeyPatch
):
    first = train(compose.point([*QUICK, *A, "name=first"]))
    ends_well = between not in ("fails", "raises in training")
    with contextlib.nullcontext() if ends_well else pytest.raises((UserError, RuntimeError)):
        if between == "raises in training":
            with monkeypatch.context() as patch:
                patch.setattr("mmrun.module.MultimodalModule.training_step", broken)
                train(compose.point([*QUICK, "name=between"]))
        else:
            train(compose.point([*QUICK, *B[between], "name=between"]))
    second = train(compose.point([*QUICK, *A, "name=second"]))
    for record in (first, second):
        directory = Path(record["directory"])
        for name in ("metrics.csv", "gradients.csv"):
            assert table(directory / name) == table(fresh / name)
        assert same(saved(directory)["state_dict"], saved(fresh)["state_dict"])
        assert record["test"] == record_of(fresh)["test"]
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_default_dtype() is torch.float32


def test_the_closing_lists_every_failure():
    def record(status: str, error: str | None = None) -> dict[str, Any]:
        return {
            "status": status,
            "error": error,
            "stopped_by": None,
            "name": "n",
            "stability": None,
        }

    records = {Path(f"/x/p{k}"): record("failed", f"reason {k}\nmore") for k in range(50)}
    records |= {Path("/x/q"): record("killed"), Path("/x/d"): record("diverged", "not finite")}
    lines = report.closing(records, {Path("/x/r"): "in use"})
    assert lines[0] == "points   50 failed, 1 killed, 1 diverged, 1 refused"
    assert sum("reason" in line for line in lines) == 50
    assert any(line.strip().startswith("r: in use") for line in lines)
    assert not any("more" in line for line in lines if "reason" in line)


def test_planning_touches_nothing(tmp_path: Path):
    sweep = compose.sweep(["clip=none,0.5"])
    planned = plan(tmp_path / "none", sweep.points, "true")
    assert [each.action for each in planned] == ["train", "train"]
    assert list(tmp_path.iterdir()) == []
    shutil.rmtree(tmp_path / "none", ignore_errors=True)


def test_a_sweep_with_the_user_s_own_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The folder that it was made with is named again to resume it; without, nothing is touched."""
    folder = project(tmp_path, "sweep_fusion")
    words = ["--config-dir", str(folder), "fusion=mine,concat"]
    run(*words)
    (directory,) = SWEEP.glob("fusion=mine*")
    Run.open(directory).update(status="queued")
    before = {path: path.read_bytes() for path in SWEEP.rglob("*") if path.is_file()}
    assert cli.main(["resume", "s"]) == 2
    assert "add --trust sweep_fusion or the --config-dir" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in SWEEP.rglob("*") if path.is_file()} == before
    assert cli.main(["resume", "s", "--config-dir", str(folder)]) == 0
    assert record_of(directory)["status"] == "finished"


def project(root: Path, module: str, ending: str = "") -> Path:
    """A config folder with fusion=mine; ``ending`` is code that its forward begins with."""
    folder = root / "project" / "conf"
    (folder / "fusion").mkdir(parents=True)
    (folder / "fusion" / "mine.yaml").write_text(f"# Mine\n_target_: {module}.Largest\n")
    (folder.parent / f"{module}.py").write_text(FUSION.replace("ENDING", ending or "pass"))
    return folder


FUSION = """\
import sys
import torch
from mmrun.fusion import Fusion

class Largest(Fusion):
    def __init__(self, dims):
        super().__init__(dims)
        self.dim = max(dims.values())

    def forward(self, tokens):
        ENDING
        return torch.stack([tokens[m].pooled for m in self.modalities]).amax(0)
"""


def test_a_damaged_ledger_is_no_dead_end(capsys: pytest.CaptureFixture[str]):
    run("clip=none")
    (SWEEP / "sweep.json").write_text("{")
    run("clip=none", code=2)
    assert "move it away, and the sweep's command writes it anew" in capsys.readouterr().err
    (SWEEP / "sweep.json").unlink()
    run("clip=none")
    assert "points   1: 1 done" in capsys.readouterr().out
    assert len(read_ledger(SWEEP).points) == 1


def test_garbage_is_collected_while_a_sweep_trains(monkeypatch: pytest.MonkeyPatch):
    """Composing switches the collector off: models of a thousand points would stay."""
    seen: list[bool] = []
    monkeypatch.setattr("mmrun.point.run", lambda *_, **__: seen.append(gc.isenabled()))
    run("clip=none,0.5", code=1)  # they left no word
    assert seen == [True, True]


@pytest.mark.parametrize(
    ("ending", "module", "reason"),
    [
        ("sys.exit(0)", "exits_at_once", "has ended the process"),
        (
            "sys.exit(3) if self.training and torch.is_grad_enabled() else 0",
            "exits_late",
            "sys.exit(3)",
        ),
        ("raise KeyError('no luck')", "raises", "no luck"),
    ],
)
def test_code_that_ends_the_process_ends_its_point_alone(
    ending: str, module: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = project(tmp_path, module, ending)
    run("--config-dir", str(folder), "fusion=mine,sum", code=1)
    out = capsys.readouterr().out
    states = {name: record["status"] for name, record in points().items()}
    assert states == {"fusion=mine": "failed", "fusion=sum": "finished"}
    assert reason in out
    log = next(SWEEP.glob("fusion=mine*/train.log")).read_text()
    assert "Traceback" in log
    assert f"{module}.py" in log


def test_points_that_are_gone_are_missed(capsys: pytest.CaptureFixture[str]):
    run("clip=none,0.5,1")
    (gone,) = SWEEP.glob("clip=0.5*")
    shutil.rmtree(gone)
    assert cli.main(["resume", "s"]) == 1
    out = capsys.readouterr().out
    assert f"without a folder (1): {gone.name}" in out
    (torn,) = SWEEP.glob("clip=1*")
    (torn / "run.json").write_text("{")
    assert cli.main(["resume", "s"]) == 1
    assert f"{torn.name}: run.json is not JSON" in capsys.readouterr().out
    shutil.rmtree(torn)
    run("clip=none,0.5,1")
    assert "points   3: 1 done, 2 to train" in capsys.readouterr().out
    for directory in reader.list_runs(SWEEP):
        shutil.rmtree(directory)
    assert cli.main(["resume", "s"]) == 2
    assert "the sweep has no points left" in capsys.readouterr().err


def test_interrupted_while_freezing_it_goes_on_by_its_own_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    frozen: list[Any] = []

    def freeze_some(*given: Any, **more: Any) -> Any:
        if len(frozen) == 2:
            raise Interrupted(signal.SIGINT)
        frozen.append(freeze(*given, **more))

    monkeypatch.setattr("mmrun.launch.loop.freeze", freeze_some)
    run("clip=none,0.5,1", code=130)
    err = capsys.readouterr().err
    assert "0 of 3 points are done; continue: mmrun train -m" in err
    command = shlex.split(err.strip().rpartition("continue: ")[2])
    assert command[3:] == [*QUICK, "sweep=s", "clip=none,0.5,1"]
    monkeypatch.undo()
    assert cli.main(command[1:]) == 0
    assert len(points()) == 3


def test_a_copy_of_a_point_is_not_taken_for_it(capsys: pytest.CaptureFixture[str]):
    run("clip=none,0.5")
    (directory,) = SWEEP.glob("clip=none*")
    shutil.copytree(directory, SWEEP / "zcopy")
    Run.open(SWEEP / "zcopy").update(status="queued")
    run("clip=none,0.5")
    assert "points   2: 2 done" in capsys.readouterr().out
    assert cli.main(["resume", "s"]) == 0
    assert "points   2: 2 done" in capsys.readouterr().out


def test_a_reader_that_goes_does_not_end_the_sweep():
    words = shlex.join([*QUICK, "seeds=4", "sweep=s"])
    command = f"{sys.executable} -m mmrun train -m {words} | head -2"
    piped = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert piped.returncode == 0, piped.stderr
    assert {record["status"] for record in points().values()} == {"finished"}
    closed = f"{sys.executable} -m mmrun train -m {words} seed=9 >&-"
    done = subprocess.run(["bash", "-c", closed], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_vanishes_while_it_trains_is_no_wrong_input(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmrun.point.run", lambda *_, **__: shutil.rmtree(SWEEP))
    run("clip=none", code=1)


def test_a_second_signal_takes_no_last_word():
    """While the first is on its way out, with notes to be added, another one is not heard."""

    def trained() -> None:
        with interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    def swept() -> None:
        with interruptible():
            try:
                trained()
            except Interrupted as first:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.05)
                first.add_note("continue")
                raise

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        swept()
    assert caught.value.__notes__ == ["continue"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_library_that_puts_handlers_back_gives_a_second_signal_no_say():
    """Lightning does, as an exception leaves it: before the run has written down how it ended."""
    written: list[str] = []

    def trained() -> None:
        mine = signal.getsignal(signal.SIGTERM)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        finally:
            signal.signal(signal.SIGTERM, mine)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            written.append("killed")

    for number in (1, 2):  # the next one is heard again
        with pytest.raises(Interrupted), interruptible():
            trained()
        assert written == ["killed"] * number


def test_a_sweep_that_is_done_gets_nothing_ready():
    """It takes the command line's time, without torch, and says nothing of where points would log."""
    run("clip=none")
    auto = [word for word in QUICK if word != "logger=none"]
    words = [
        "train",
        "-m",
        *auto,
        "sweep=s",
        "clip=none",
    ]  # the logger is no part of what a point is
    done = run_python("-X", "importtime", "-m", "mmrun", *words)
    assert done.returncode == 0
    assert "points   1: 1 done" in done.stdout
    assert "W&B" not in done.stdout
    assert not any(line.rpartition("|")[2].strip() == "torch" for line in done.stderr.splitlines())
